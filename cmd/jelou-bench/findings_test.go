package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestFindings(t *testing.T) {
	var f findings
	f.table("Table", "name", "value").add("x", 1.23456)
	f.set("slow", 7.5)
	f.atMost("slow", 5)
	f.set("kept", true)
	f.mustBe("kept", 1)
	f.set("wrong", 2)
	f.mustBe("wrong", 0)
	var out strings.Builder
	if err := f.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1.235", "at most 5  MISSED", "true      1          met", "2         0          MISSED"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if got := strings.Join(f.missed(true), " "); got != "wrong" {
		t.Errorf("missed what must hold: %q", got)
	}
	line, err := f.json(&bench{name: "test", seed: 7, quick: true})
	if err != nil {
		t.Fatal(err)
	}
	var fields struct {
		Benchmark string
		Seed      uint64
		Quick     bool
		Slow      float64
		Missed    []string
	}
	if err := json.Unmarshal([]byte(line), &fields); err != nil || strings.Contains(line, "\n") {
		t.Fatalf("%v: %s", err, line)
	}
	if fields.Benchmark != "test" || fields.Seed != 7 || !fields.Quick || fields.Slow != 7.5 || len(fields.Missed) != 2 {
		t.Errorf("%s", line)
	}
}

func TestHelp(t *testing.T) {
	for _, b := range benchmarks {
		var out strings.Builder
		c := newCommand(&out, &out)
		c.SetArgs([]string{b.name, "--help"})
		if err := c.Execute(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Fields", "--json", "--quick", "--seed"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("help of %s has no %q", b.name, want)
			}
		}
	}
}
