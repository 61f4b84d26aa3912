package jelousim

import (
	"encoding/json"
	"testing"
)

// TestFingerprintText: a report that says what was doubled can be read back.
func TestFingerprintText(t *testing.T) {
	want := Doubled{Fingerprint: hash("bot", "user", "text"), Count: 2}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Doubled
	if err := json.Unmarshal(data, &got); err != nil || got != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if json.Unmarshal([]byte(`{"fingerprint": "00"}`), &got) == nil {
		t.Error("a short fingerprint is accepted")
	}
}
