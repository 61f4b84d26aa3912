package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDocument(t *testing.T) {
	d, err := readDocument("../../service/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	o, err := d.find("jelou.facade.v1.SendService/ListSends")
	if err != nil {
		t.Fatal(err)
	}
	target, body := o.place(map[string]any{"page_size": 2, "states": []any{"SENT", "FAILED"}, "labels": map[string]any{"app": "shop"}})
	if diff := cmp.Diff("/v1/sends?labels%5Bapp%5D=shop&page_size=2&states=SENT&states=FAILED", target); diff != "" || len(body) != 0 {
		t.Errorf("body %v, target (-want +got):\n%s", body, diff)
	}
	for _, test := range []struct {
		name, text string
		status     int
		problem    string
	}{
		{"a page", `{"sends": [{"state": "SENT"}], "next_page_token": ""}`, 200, ""},
		{"a state that is not in the document", `{"sends": [{"state": "LOST"}]}`, 200, "state"},
		{"a number in place of a text", `{"next_page_token": 7}`, 200, "next_page_token"},
		{"an error", `{"error": {"code": 404, "status": "NOT_FOUND", "message": "", "details": []}}`, 404, ""},
		{"an error without its form", `{"error": "no"}`, 404, "error"},
		{"no JSON", `<html>`, 502, "invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := o.check(test.status, []byte(test.text))
			if err == nil && test.problem != "" || err != nil && (test.problem == "" || !strings.Contains(err.Error(), test.problem)) {
				t.Errorf("problem %v, want %q", err, test.problem)
			}
		})
	}
}
