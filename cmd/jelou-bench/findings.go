package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// findings are what a benchmark found: tables for people, fields for programs, and goals.
type findings struct {
	tables []*table
	names  []string // of fields, in order
	values map[string]any
	goals  []goal
}

// table is printed with aligned columns.
type table struct {
	title  string
	header []string
	rows   [][]string
}

// goal compares a field with what it should be.
type goal struct {
	field string
	most  bool // the bound is the largest good value, else the smallest
	bound float64
	must  bool // on any machine: missing it is a failure
}

// table begins a table.
func (f *findings) table(title string, header ...string) *table {
	t := &table{title: title, header: header}
	f.tables = append(f.tables, t)
	return t
}

// add appends a row; numbers with a fraction are shortened.
func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case float64:
			row[i] = short(c)
		default:
			row[i] = fmt.Sprint(c)
		}
	}
	t.rows = append(t.rows, row)
}

func short(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-" // of nothing
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// set sets a field: a number, a bool or text.
func (f *findings) set(name string, value any) {
	if f.values == nil {
		f.values = map[string]any{}
	}
	if _, known := f.values[name]; !known {
		f.names = append(f.names, name)
	}
	f.values[name] = value
}

func (f *findings) atMost(field string, bound float64) {
	f.goals = append(f.goals, goal{field, true, bound, false})
}
func (f *findings) atLeast(field string, bound float64) {
	f.goals = append(f.goals, goal{field, false, bound, false})
}

// mustBe is a goal that has to be met on any machine: exactly this number. A bool counts as 0 or 1.
func (f *findings) mustBe(field string, value float64) {
	f.goals = append(f.goals, goal{field, true, value, true}, goal{field, false, value, true})
}

// number is a field's value as a number.
func (f *findings) number(field string) float64 {
	switch v := f.values[field].(type) {
	case float64:
		return v
	case int:
		return float64(v)
	case bool:
		if v {
			return 1
		}
	}
	return 0
}

func (f *findings) met(g goal) bool {
	v := f.number(g.field)
	if g.most {
		return v <= g.bound
	}
	return v >= g.bound
}

// missed are the fields that miss a goal; those that must hold, or all.
func (f *findings) missed(must bool) []string {
	names := []string{}
	for _, g := range f.goals {
		if !f.met(g) && (g.must || !must) {
			names = append(names, g.field)
		}
	}
	return names
}

func (f *findings) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(cells []string) { fmt.Fprintln(w, "  "+strings.Join(cells, "\t")) }
	for _, t := range f.tables {
		fmt.Fprintf(w, "%s\n", t.title)
		line(t.header)
		for _, row := range t.rows {
			line(row)
		}
		fmt.Fprintln(w)
		w.Flush()
	}
	goals := map[string]string{}
	for _, g := range f.goals {
		sign := map[bool]string{true: "at most ", false: "at least "}[g.most]
		if g.must {
			sign = ""
		}
		verdict := "met"
		if !f.met(g) {
			verdict = "MISSED"
		}
		if goals[g.field] == "" || verdict == "MISSED" {
			goals[g.field] = fmt.Sprintf("%s%v\t%s", sign, g.bound, verdict)
		}
	}
	fmt.Fprintln(w, "field\tmeasured\tgoal\t")
	for _, name := range f.names {
		value := f.values[name]
		if v, ok := value.(float64); ok {
			value = short(v)
		}
		fmt.Fprintf(w, "%s\t%v\t%s\n", name, value, goals[name])
	}
	return w.Flush()
}

// json is the findings as one line: the run, then the fields in their order, then the goals that were missed.
func (f *findings) json(b *bench) (string, error) {
	f.set("missed", f.missed(false))
	var out strings.Builder
	fmt.Fprintf(&out, `{"benchmark":%q,"seed":%d,"quick":%t`, b.name, b.seed, b.quick)
	for _, name := range f.names {
		value, err := json.Marshal(f.values[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, ",%q:%s", name, value)
	}
	return out.String() + "}", nil
}
