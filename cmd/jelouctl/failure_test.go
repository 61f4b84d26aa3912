package main

import (
	"testing"

	"google.golang.org/grpc/codes"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// TestReasons: every reason of the API has a row in the server's table of errors and an advice here, and both agree on
// what a repetition is worth.
func TestReasons(t *testing.T) {
	known := map[string]explanation{}
	for _, e := range explanations() {
		known[e.Reason] = e
	}
	for number, name := range facadev1.ErrorReason_name {
		if number == 0 {
			continue
		}
		e, ok := known[name]
		advice := advices[facadev1.ErrorReason(number)]
		if !ok || e.When == "" || e.Send == "" {
			t.Errorf("%s: has no row in docs/errors.md", name)
		}
		if advice.next == "" || advice.exit == 0 {
			t.Errorf("%s: has no advice", name)
		}
		if e.Retry == "yes" && advice.exit != exitUnavailable {
			t.Errorf("%s: a retry helps, but the exit code is %d", name, advice.exit)
		}
	}
	if len(known) != len(facadev1.ErrorReason_name)-1 {
		t.Errorf("%d rows in docs/errors.md for %d reasons", len(known), len(facadev1.ErrorReason_name)-1)
	}
}

// TestExitCodes: every code that a failure can have is in the table, and every gRPC code has one.
func TestExitCodes(t *testing.T) {
	listed := map[int]bool{}
	for _, row := range exitCodes {
		listed[row.code] = true
	}
	for reason, advice := range advices {
		if !listed[advice.exit] {
			t.Errorf("%s: exit code %d is not in the table", reason, advice.exit)
		}
	}
	for code := codes.OK + 1; code <= codes.Unauthenticated; code++ {
		if exit := codeExits[code]; exit != 0 && !listed[exit] {
			t.Errorf("%s: exit code %d is not in the table", code, exit)
		}
	}
}

// TestErrorsCommand explains offline.
func TestErrorsCommand(t *testing.T) {
	w := &world{folder: t.TempDir(), address: "127.0.0.1:1"}
	contains(t, w.ctl(t, 0, "errors", "session_window_closed").out, "FAILED_PRECONDITION", "jelouctl notify", "exit_code            4")
	contains(t, w.ctl(t, 0, "errors", "LEDGER_HELD").out, "jelou-facade ledger release")
	if list := fields(t, w.ctl(t, 0, "errors", "--output", "json").out)["errors"].([]any); len(list) != len(advices) {
		t.Errorf("%d errors", len(list))
	}
	contains(t, w.ctl(t, exitInvalid, "errors", "NOTHING").err, "jelouctl errors")
	contains(t, w.ctl(t, 0, "__complete", "errors", "").out, "BOT_NOT_FOUND\t")
	contains(t, w.ctl(t, 0, "exit-codes").out, "  8  the batch ended")
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		contains(t, w.ctl(t, 0, "completion", shell).out, "jelouctl")
	}
}
