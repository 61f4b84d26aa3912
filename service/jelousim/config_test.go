package jelousim

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigReadsWhatItWrites(t *testing.T) {
	want := Sandbox()
	want.Seed = 9
	want.Network = Network{Profile: NetworkLossy, FasterBy: ms(40), FasterAfter: Duration(day)}
	want.Rate = Rate{Requests: 5, Window: ms(1000), Kind: RateFixed, Behind: true, RetryAfter: RetryAfterDate, Body: DialectB}
	want.Dialects = map[string]Dialect{"hsm": DialectB, "unauthorized": DialectA}
	want.Faults = []Fault{{Kind: FaultReset, Accepted: true, Probability: 0.01}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadConfig(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfigIsReadStrictly(t *testing.T) {
	company := func(bots string) string {
		return `{"companies":[{"client_id":"a","client_secret":"b","bots":[` + bots + `]}]}`
	}
	for text, says := range map[string]string{
		`{"companys":[]}`:                      "companys",
		`{}{}`:                                 "one JSON value",
		`{"rate":{},"rate":{}}`:                "twice",
		`{"processing":{"min":80}}`:            "min",
		`{"processing":{"min":"-1s"}}`:         "processing",
		`{"processing":{"max":"1h"}}`:          "processing",
		`{"companies":[{"client_id":"a"}]}`:    "companies[0]",
		company(`{"id":"a b"}`):                "companies[0].bots[0]",
		company(`{"id":"a"},{"id":"a"}`):       "companies[0].bots[1]",
		`{"templates":[{"element_name":"A"}]}`: "templates[0]",
		`{"templates":[{"element_name":"a","language":"es"},{"element_name":"a","language":"es"}]}`: "templates[1]",
		`{"templates":[{"element_name":"a","language":"es","type":"file"}]}`:                        "templates[0]",
		`{"rate":{"kind":"leaky"}}`:                        "rate.kind",
		`{"rate":{"body":"C"}}`:                            "rate.body",
		`{"rate":{"retry_after":"soon"}}`:                  "rate.retry_after",
		`{"rate":{"window":"-1s"}}`:                        "rate.window",
		`{"network":{"profile":"moon"}}`:                   "network.profile",
		`{"network":{"spikes":2}}`:                         "network.spikes",
		`{"network":{"spike_min":"2s","spike_max":"1s"}}`:  "network.spike_min",
		`{"network":{"carry":"pigeons"}}`:                  "network.carry",
		`{"delivery":{"channel":"2s"}}`:                    "delivery",
		`{"outside_window":"maybe"}`:                       "outside_window",
		`{"dialects":{"hms":"A"}}`:                         "dialects",
		`{"dialects":{"hsm":"Z"}}`:                         "dialects.hsm",
		`{"open_users":["+593991234567"]}`:                 "open_users",
		`{"records":-1}`:                                   "records",
		`{"faults":[{"kind":"reset"},{"kind":"latency"}]}`: "faults[1].delay",
	} {
		if _, err := ReadConfig(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", text, err, says)
		}
	}
}

func TestSandbox(t *testing.T) {
	s := New(Sandbox())
	for body, status := range map[string]int{
		hello: 200,
		strings.Replace(hello, "593991234567", "EC.8h3Kq0Zt", 1):  200,
		strings.Replace(hello, "593991234567", "593987654321", 1): 200,
		strings.Replace(hello, "593991234567", "593900000001", 1): 400,
	} {
		if got := do(s, "POST", sendPath, body); got.status != status {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
}
