package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// variables are texts that stand as ${name} in requests and expectations.
type variables map[string]string

// fill puts the variables into a JSON text. A value that begins with [ stands for the whole quoted place.
func (v variables) fill(text json.RawMessage) json.RawMessage {
	filled := string(text)
	for name, value := range v {
		place := "${" + name + "}"
		if strings.HasPrefix(value, "[") {
			filled = strings.ReplaceAll(filled, `"`+place+`"`, value)
		}
		filled = strings.ReplaceAll(filled, place, value)
	}
	return json.RawMessage(filled)
}

// outcome is all that a call came to.
type outcome struct {
	messages []json.RawMessage
	status   *exchange.Status
}

// byKind sorts a stream's messages by the one field that each has; results by their sequence.
func (o outcome) byKind() map[string][]any {
	kinds := map[string][]any{}
	for _, text := range o.messages {
		var message map[string]any
		if json.Unmarshal(text, &message) != nil {
			continue
		}
		for kind, value := range message {
			kinds[kind] = append(kinds[kind], value)
		}
	}
	results := kinds["result"]
	sort.SliceStable(results, func(i, j int) bool { return sequence(results[i]) < sequence(results[j]) })
	return kinds
}

func sequence(result any) float64 {
	n, _ := at(result, "send.sequence").(float64)
	return n
}

// read returns the value at a path: of the message for a unary call, of the messages by kind for a stream.
func (o outcome) read(path string) any {
	if len(o.messages) == 1 {
		var message any
		if json.Unmarshal(o.messages[0], &message) == nil {
			if value := at(message, path); value != nil {
				return value
			}
		}
	}
	kinds := map[string]any{}
	for kind, messages := range o.byKind() {
		kinds[kind] = messages
	}
	return at(kinds, path)
}

// at follows a path such as sends.0.state; nil when it leads nowhere.
func at(value any, path string) any {
	for _, name := range strings.Split(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}

// check compares an outcome with what was expected.
func (e expectation) check(o outcome, vars variables) error {
	st := o.status
	if st == nil {
		return fmt.Errorf("the runner gave no status")
	}
	if code := or(e.Code, "OK"); st.Code != code || st.Reason != e.Reason || e.Domain != "" && st.Domain != e.Domain {
		return fmt.Errorf("got %s %s of %q, want %s %s of %q: %s", st.Code, st.Reason, st.Domain, code, e.Reason, e.Domain, st.Message)
	}
	if e.Retry != nil && (st.RetryDelayMS != nil) != *e.Retry {
		return fmt.Errorf("a retry delay is there: %v, want %v", st.RetryDelayMS != nil, *e.Retry)
	}
	if e.Reason != "" && e.Retry == nil && st.RetryDelayMS != nil {
		return fmt.Errorf("a retry delay of %d ms is there, where a retry does not help", *st.RetryDelayMS)
	}
	if e.Fields != nil && !slices.Equal(st.Fields, e.Fields) {
		return fmt.Errorf("fields %q, want %q", st.Fields, e.Fields)
	}
	if e.HTTP != 0 && st.HTTP != e.HTTP {
		return fmt.Errorf("HTTP %d, want %d", st.HTTP, e.HTTP)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Metadata)) {
		want, got := string(vars.fill(json.RawMessage(e.Metadata[name]))), st.Metadata[name]
		if got != want && (want != "*" || got == "") {
			return fmt.Errorf("metadata %s is %q, want %q", name, got, want)
		}
	}
	return e.checkMessages(o, vars)
}

func (e expectation) checkMessages(o outcome, vars variables) error {
	if e.Answer != nil {
		if len(o.messages) != 1 {
			return fmt.Errorf("%d messages, want 1", len(o.messages))
		}
		var got any
		if err := json.Unmarshal(o.messages[0], &got); err != nil {
			return err
		}
		if err := contains(got, vars.fill(e.Answer), "answer"); err != nil {
			return err
		}
	}
	kinds := o.byKind()
	for kind, want := range e.Messages {
		var got any = kinds[kind]
		if err := contains(got, vars.fill(want), kind); err != nil {
			return err
		}
	}
	return nil
}

// contains checks that a value has all that is wanted.
func contains(got any, want json.RawMessage, place string) error {
	var wanted any
	if err := json.Unmarshal(want, &wanted); err != nil {
		return fmt.Errorf("%s: expectation: %w", place, err)
	}
	return includes(got, wanted, place)
}

func includes(got, want any, place string) error {
	switch want := want.(type) {
	case map[string]any:
		members, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: is missing", place)
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if err := includes(members[name], want[name], place+"."+name); err != nil {
				return err
			}
		}
		return nil
	case []any:
		elements, _ := got.([]any)
		if len(elements) != len(want) {
			return fmt.Errorf("%s: %d elements, want %d", place, len(elements), len(want))
		}
		for i := range want {
			if err := includes(elements[i], want[i], fmt.Sprintf("%s[%d]", place, i)); err != nil {
				return err
			}
		}
		return nil
	}
	switch {
	case want == "*" && got != nil && got != "":
		return nil
	case got == want, got == nil && (want == 0.0 || want == false || want == ""):
		return nil
	}
	return fmt.Errorf("%s: got %v, want %v", place, got, want)
}

func or(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
