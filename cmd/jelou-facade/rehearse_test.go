package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

func TestTrafficRefused(t *testing.T) {
	for _, c := range []struct{ line, says string }{
		{`{"at": "0s"}`, "line 1: caller: must be there"},
		{`{"at": "soon", "caller": "a"}`, "line 1: at:"},
		{`{"at": "-1s", "caller": "a"}`, "line 1: at:"},
		{`{"at": "0s", "caller": "a", "lane": "FAST"}`, "line 1: lane:"},
		{`{"at": "0s", "caller": "a", "count": -1}`, "line 1: count:"},
		{`{"at": "0s", "caller": "a", "count": 60000000}`, "line 1: count:"},
		{`{"at": "0s", "caller": "a", "every": "often"}`, "line 1: every:"},
		{`{"at": "0s", "caller": "a", "deadline": "0s"}`, "line 1: deadline:"},
		{`{"at": "0s", "caller": "a", "weight": 5000}`, "line 1: weight:"},
		{`{"at": "0s", "caller": "a", "colour": "red"}`, "line 1: json: unknown field"},
		{"{\"at\": \"0s\", \"caller\": \"a\"}\n\n{\"at\": \"2026-11-23T09:00:00Z\", \"caller\": \"a\"}", "line 3: at: the lines before have spans"},
		{"{\"at\": \"0s\", \"caller\": \"a\", \"weight\": 2}\n{\"at\": \"1s\", \"caller\": \"a\", \"weight\": 3}", "line 2: weight:"},
		{`{"at": "0s", "caller": "a", "count": 1000000, "every": "1h"}`, "it spans"},
		{"\n\n", "no traffic"},
	} {
		if _, err := readTraffic(strings.NewReader(c.line)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s\ngot %v, want %q", c.line, err, c.says)
		}
	}
}

// mustRehearse runs the command over a traffic file.
func mustRehearse(t *testing.T, lines string, flags rehearseFlags) rehearsalReport {
	t.Helper()
	flags.traffic = filepath.Join(t.TempDir(), "traffic.ndjson")
	if err := os.WriteFile(flags.traffic, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	flags.json = true
	if flags.trip == 0 {
		flags.trip = 60_000_000
	}
	var out bytes.Buffer
	if err := rehearse(flags, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	var report rehearsalReport
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// TestRehearseShares: of two callers with full queues the one with three times the weight gets three times as much, and an
// urgent send waits for none of it.
func TestRehearseShares(t *testing.T) {
	r := mustRehearse(t, `
{"at": "2026-11-23T09:00:00Z", "caller": "light", "queue": "a", "count": 300}
{"at": "2026-11-23T09:00:00Z", "caller": "heavy", "queue": "b", "count": 300, "weight": 3}
{"at": "2026-11-23T09:00:10Z", "caller": "login", "lane": "URGENT", "deadline": "1s"}
`, rehearseFlags{})
	if r.Sent != 601 || r.Sends != 601 || r.SpanMS != 10_000 || r.Used < 0.97 {
		t.Errorf("%+v", r)
	}
	took := map[string]int64{}
	for _, b := range r.Batches {
		took[b.Batch] = b.FinishMS - b.BeganMS
	}
	if heavy, light := took["b"], took["a"]; heavy < 75_000 || heavy > 90_000 || light < 115_000 || light > 130_000 {
		t.Errorf("batches took %v", took)
	}
	if urgent := r.Callers[0]; urgent.Lane != "URGENT" || urgent.Sent != 1 || urgent.MaxMS > 400 {
		t.Errorf("the urgent send: %+v", urgent)
	}
}

func TestRehearseRefuses(t *testing.T) {
	r := mustRehearse(t, `{"at": "0s", "caller": "shop", "count": 100, "deadline": "4s"}`, rehearseFlags{})
	// The first second is silent, then five leave in each.
	if c := r.Callers[0]; c.Sent < 12 || c.Sent > 16 || c.Refused["WOULD_MISS_DEADLINE"] != 100-c.Sent || c.MaxMS > 4000 {
		t.Errorf("%+v", c)
	}
	config := filepath.Join(t.TempDir(), "facade.yaml")
	text := `
companies:
  - {id: acme, client_id_file: id, client_secret_file: secret, bots: [demo], allowance: {requests: 10}}
  - {id: other, client_id_file: id, client_secret_file: secret, bots: [other]}
bounds: {caller_waiting: 20, company_waiting: 30}
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r = mustRehearse(t, "{\"at\": \"0s\", \"caller\": \"a\", \"count\": 50}\n{\"at\": \"0s\", \"caller\": \"b\", \"count\": 50}", rehearseFlags{config: config, company: "acme"})
	want := map[string]int{"a": 20, "b": 10}
	got := map[string]int{}
	for _, c := range r.Callers {
		got[c.Caller] = c.Sent
		if c.Refused["QUEUE_FULL"] != 50-c.Sent {
			t.Errorf("%+v", c)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if r.FinishMS > 4500 {
		t.Errorf("30 sends at 10 a second took %d ms", r.FinishMS)
	}
	err := rehearse(rehearseFlags{traffic: filepath.Join("..", "..", "examples", "traffic", "day.ndjson"), config: config, trip: 1}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "acme, other") {
		t.Errorf("without --company: %v", err)
	}
}

// TestRehearseDay runs the example.
func TestRehearseDay(t *testing.T) {
	var out bytes.Buffer
	if err := rehearse(rehearseFlags{traffic: filepath.Join("..", "..", "examples", "traffic", "day.ndjson"), trip: 60_000_000}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"URGENT  login", "campaign-north  marketing  40000", "of 246800 sends left"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

// TestExport writes traffic without what was sent, and rehearses it.
func TestExport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(t.Context(), ledger.Config{Path: path, Replica: "one"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	company, err := l.Company(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	var sends []ledger.NewSend
	for range 7 {
		sends = append(sends, ledger.NewSend{Company: company, Lane: ledger.Urgent, Caller: "login", Bot: "demo", Recipient: "593991234567", Kind: "text", Body: []byte("clave 1234"), ExpireIn: 5e9})
	}
	if _, err := l.Add(t.Context(), sends); err != nil {
		t.Fatal(err)
	}
	config := &configv1.Config{Ledger: &configv1.Ledger{Path: path}, Companies: []*configv1.Company{{Id: "acme"}}}
	var out bytes.Buffer
	if err := exportTraffic(t.Context(), config, config.Companies[0], time.Now().Add(-time.Hour), &out); err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{"593991234567", "clave", "demo"} {
		if strings.Contains(out.String(), private) {
			t.Errorf("%q is in the traffic: %s", private, out.String())
		}
	}
	if r := mustRehearse(t, out.String(), rehearseFlags{}); r.Sent != 7 || r.Callers[0].Caller != "login" || r.Callers[0].Lane != "URGENT" {
		t.Errorf("%+v of\n%s", r, out.String())
	}
}
