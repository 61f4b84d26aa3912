package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// TestCheck holds that a difference is seen: a runner that answers anything must not pass.
func TestCheck(t *testing.T) {
	delay := int64(1500)
	refused := outcome{status: &exchange.Status{
		Code: "RESOURCE_EXHAUSTED", Reason: "QUEUE_FULL", Domain: "jelou-facade", Metadata: map[string]string{"send_id": "s1"}, Fields: []string{"a"}, RetryDelayMS: &delay,
	}}
	sent := outcome{status: &exchange.Status{Code: "OK"}, messages: []json.RawMessage{[]byte(`{"send": {"state": "SENT", "attempts": 1}}`)}}
	stream := outcome{status: &exchange.Status{Code: "OK"}, messages: []json.RawMessage{
		[]byte(`{"result": {"send": {"sequence": 2, "state": "FAILED"}}}`), []byte(`{"result": {"send": {"sequence": 1, "state": "SENT"}}}`),
	}}
	for _, test := range []struct {
		name, expect string
		got          outcome
		problem      string // part of it; empty: none
	}{
		{"as expected", `{"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "domain": "jelou-facade", "retry": true, "fields": ["a"], "metadata": {"send_id": "*"}}`, refused, ""},
		{"code", `{"code": "UNAVAILABLE", "reason": "QUEUE_FULL"}`, refused, "RESOURCE_EXHAUSTED"},
		{"reason", `{"code": "RESOURCE_EXHAUSTED", "reason": "CALLER_QUOTA"}`, refused, "QUEUE_FULL"},
		{"domain", `{"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "domain": "api.jelou.ai"}`, refused, "domain"},
		{"a retry delay that nobody expects", `{"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL"}`, refused, "1500 ms"},
		{"fields", `{"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "retry": true, "fields": ["b"]}`, refused, "fields"},
		{"metadata", `{"code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "retry": true, "metadata": {"send_id": "s2"}}`, refused, "send_id"},
		{"an error where none is expected", `{}`, refused, "want OK"},
		{"answer", `{"answer": {"send": {"state": "SENT", "batch_id": "", "sequence": 0}}}`, sent, ""},
		{"value of the answer", `{"answer": {"send": {"state": "FAILED"}}}`, sent, "answer.send.state: got SENT"},
		{"member that is missing", `{"answer": {"send": {"message_id": "*"}}}`, sent, "message_id"},
		{"object that is missing", `{"answer": {"batch": {}}}`, sent, "answer.batch: is missing"},
		{"results in the order of their sequence", `{"messages": {"result": [{"send": {"state": "SENT"}}, {"send": {"state": "FAILED"}}]}}`, stream, ""},
		{"number of results", `{"messages": {"result": [{}]}}`, stream, "2 elements, want 1"},
		{"messages that did not come", `{"messages": {"end": [{}]}}`, stream, "0 elements, want 1"},
		{"no status", `{}`, outcome{}, "no status"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var e expectation
			if err := json.Unmarshal([]byte(test.expect), &e); err != nil {
				t.Fatal(err)
			}
			err := e.check(test.got, variables{})
			if err == nil && test.problem != "" || err != nil && (test.problem == "" || !strings.Contains(strings.ReplaceAll(err.Error(), `of "jelou-facade"`, "domain"), test.problem)) {
				t.Errorf("problem %v, want %q", err, test.problem)
			}
		})
	}
}

// TestScenarios holds that the file is read without names that nobody knows, and that its calls can be made.
func TestScenarios(t *testing.T) {
	t.Chdir("../..")
	f, err := readFile(scenarioFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Scenarios {
		for i, step := range s.Steps {
			if step.Call == "" {
				continue
			}
			if _, err := step.command(variables{}); err != nil {
				t.Errorf("%s, step %d: %v", s.Name, i+1, err)
			}
		}
	}
}
