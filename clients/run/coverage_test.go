package main

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// row is one of the error table.
type row struct {
	code, domain string
	http         int
	retry        bool
}

// mustReadTable reads the error table, as docs/errors.md has it.
func mustReadTable(t *testing.T) map[string]row {
	t.Helper()
	text, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]row{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		if len(cells) != 7 {
			continue
		}
		if status, err := strconv.Atoi(cells[3]); err == nil {
			table[strings.TrimPrefix(cells[0], "| ")] = row{cells[2], cells[4], status, cells[5] == "yes"}
		}
	}
	return table
}

// TestCoverage holds that every row of the error table, every kind of content and every RPC has a scenario, that what scenarios expect
// is what the table says, and that docs/clients.md names the rows that only the stand-in answers.
func TestCoverage(t *testing.T) {
	t.Chdir("../..")
	f, err := readFile(scenarioFile)
	if err != nil {
		t.Fatal(err)
	}
	table := mustReadTable(t)
	rows, answered, contents, rpcs := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range f.Scenarios {
		for i, step := range s.Steps {
			rpcs[step.Call] = true
			var answer struct{ Send struct{ Kind string } }
			if step.Expect.Answer != nil {
				_ = json.Unmarshal(step.Expect.Answer, &answer) // an answer may be of another shape
			}
			contents[answer.Send.Kind] = true
			reason := step.Expect.Reason
			if reason == "" {
				continue
			}
			rows[reason] = true
			if step.Server != "stand-in" {
				answered[reason] = true
			}
			for _, problem := range differences(step, table[reason]) {
				t.Errorf("%s, step %d: %s is not what docs/errors.md says", s.Name, i+1, problem)
			}
		}
	}

	var reasons, kinds, calls, missing []string
	for number, name := range facadev1.ErrorReason_name {
		if number != 0 {
			reasons = append(reasons, name)
		}
	}
	slices.Sort(reasons)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(table)), reasons); diff != "" {
		t.Errorf("docs/errors.md and ErrorReason (-table +proto):\n%s", diff)
	}
	contentsOf := (&facadev1.Message{}).ProtoReflect().Descriptor().Oneofs().ByName("content").Fields()
	for i := range contentsOf.Len() {
		kinds = append(kinds, string(contentsOf.Get(i).Name()))
	}
	for _, file := range []protoreflect.FileDescriptor{
		facadev1.File_jelou_facade_v1_message_service_proto, facadev1.File_jelou_facade_v1_notification_service_proto,
		facadev1.File_jelou_facade_v1_send_service_proto, facadev1.File_jelou_facade_v1_batch_service_proto, facadev1.File_jelou_facade_v1_capacity_service_proto,
	} {
		service := file.Services().Get(0)
		for i := range service.Methods().Len() {
			calls = append(calls, string(service.Name()+"/"+service.Methods().Get(i).Name()))
		}
	}
	for what, all := range map[string]struct {
		wanted []string
		have   map[string]bool
	}{"reason": {reasons, rows}, "content": {append(kinds, "notification"), contents}, "RPC": {calls, rpcs}} {
		for _, name := range all.wanted {
			if !all.have[name] {
				t.Errorf("no scenario has the %s %s", what, name)
			}
		}
	}

	for _, reason := range reasons {
		if rows[reason] && !answered[reason] {
			missing = append(missing, reason)
		}
	}
	page, err := os.ReadFile("docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, listed, _ := strings.Cut(string(page), "Only a stand-in answers")
	listed, _, _ = strings.Cut(listed, ":")
	if diff := cmp.Diff(missing, regexp.MustCompile(`[A-Z_]{4,}`).FindAllString(listed, -1)); diff != "" {
		t.Errorf("what only the stand-in answers (-scenarios +docs/clients.md):\n%s", diff)
	}
}

// differences are what a step expects, or has the stand-in say, that the row of its reason does not.
func differences(s step, r row) []string {
	var problems []string
	// UPSTREAM_REFUSED has the code that fits Jelou's HTTP status.
	if s.Expect.Code != r.code && s.Expect.Reason != "UPSTREAM_REFUSED" {
		problems = append(problems, "code "+s.Expect.Code)
	}
	// Who says that a bot or a notification is not there may be either.
	if s.Expect.Domain != r.domain && s.Expect.Reason != "BOT_NOT_FOUND" && s.Expect.Reason != "RESOURCE_NOT_FOUND" {
		problems = append(problems, "domain "+s.Expect.Domain)
	}
	if retry := s.Expect.Retry != nil && *s.Expect.Retry; retry != r.retry {
		problems = append(problems, "retry "+strconv.FormatBool(retry))
	}
	if s.Expect.HTTP != 0 && s.Expect.HTTP != r.http {
		problems = append(problems, "HTTP "+strconv.Itoa(s.Expect.HTTP))
	}
	var said struct {
		Code string
		HTTP int
	}
	if s.Answer != nil {
		if err := json.Unmarshal(s.Answer, &said); err != nil || said.Code != r.code || said.HTTP != r.http {
			problems = append(problems, "the stand-in's answer")
		}
	}
	return problems
}
