package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// The formats of an answer.
const (
	formatTable  = "table"
	formatJSON   = "json"
	formatNDJSON = "ndjson"
	formatCSV    = "csv"
)

var formats = []string{formatTable, formatJSON, formatNDJSON, formatCSV}

func checkFormat(name string) error {
	if !slices.Contains(formats, name) {
		return fmt.Errorf("--output %s: must be one of %s", name, strings.Join(formats, ", "))
	}
	return nil
}

// column is one value of a row: in every CSV, and in a table where it is short.
type column[T any] struct {
	name  string
	shown shown
	value func(T) string
}

// shown says where a column stands.
type shown bool

const (
	short shown = true  // in tables of many rows, too
	long  shown = false // where there is room: CSV, and one object alone
)

// printer writes rows in one of the formats, as they come.
type printer[T any] struct {
	format  string
	name    string // the list's name in JSON
	columns []column[T]
	out     io.Writer

	csv   *csv.Writer
	table *table
	rows  int
}

func newPrinter[T any](format, name string, columns []column[T], out io.Writer) *printer[T] {
	p := &printer[T]{format: format, name: name, columns: columns, out: out}
	switch format {
	case formatCSV:
		p.csv = csv.NewWriter(out)
	case formatTable:
		p.columns = slices.DeleteFunc(slices.Clone(columns), func(c column[T]) bool { return c.shown == long })
		p.table = &table{out: out, color: colorOf(out)}
	}
	return p
}

// add writes one row.
func (p *printer[T]) add(row T) error {
	p.rows++
	switch p.format {
	case formatJSON:
		before := ",\n"
		if p.rows == 1 {
			before = fmt.Sprintf("{%q: [\n", p.name)
		}
		_, err := fmt.Fprintf(p.out, "%s%s", before, toJSON(row))
		return err
	case formatNDJSON:
		_, err := fmt.Fprintf(p.out, "%s\n", toJSON(row))
		return err
	case formatCSV:
		if p.rows == 1 {
			if err := p.csv.Write(p.head()); err != nil {
				return err
			}
		}
		err := p.csv.Write(p.cells(row))
		p.csv.Flush() // whoever watches sees it now
		return errors.Join(err, p.csv.Error())
	}
	if p.rows == 1 {
		p.table.add(p.head())
	}
	p.table.add(p.cells(row))
	return nil
}

// end writes what closes the list.
func (p *printer[T]) end() error {
	switch p.format {
	case formatJSON:
		end := "\n]}\n"
		if p.rows == 0 {
			end = fmt.Sprintf("{%q: []}\n", p.name)
		}
		_, err := io.WriteString(p.out, end)
		return err
	case formatCSV:
		if p.rows == 0 {
			if err := p.csv.Write(p.head()); err != nil {
				return err
			}
		}
		p.csv.Flush()
		return p.csv.Error()
	case formatTable:
		if p.rows == 0 {
			_, err := fmt.Fprintf(p.out, "no %s\n", p.name)
			return err
		}
		return p.table.flush()
	}
	return nil
}

func (p *printer[T]) head() []string {
	var cells []string
	for _, c := range p.columns {
		name := c.name
		if p.format == formatTable {
			name = strings.ToUpper(strings.ReplaceAll(name, "_", " "))
		}
		cells = append(cells, name)
	}
	return cells
}

func (p *printer[T]) cells(row T) []string {
	var cells []string
	for _, c := range p.columns {
		cell := c.value(row)
		if p.format == formatCSV && formula.MatchString(cell) && !number.MatchString(cell) {
			cell = "'" + cell
		}
		cells = append(cells, cell)
	}
	return cells
}

// A spreadsheet runs what it takes for a formula, and errors and names come from others: a quote makes it a text.
var (
	formula = regexp.MustCompile(`^[=+\-@\t\r]`)
	number  = regexp.MustCompile(`^[+-][0-9.]+$`)
)

// printAll writes a whole list.
func printAll[T any](a *app, name string, columns []column[T], rows iter.Seq[T]) error {
	p := newPrinter(a.output, name, columns, a.out)
	for row := range rows {
		if err := p.add(row); err != nil {
			return err
		}
	}
	return p.end()
}

// printOne writes one object: its values below each other, or as the one row of a CSV.
func printOne[T any](a *app, columns []column[T], row T) error {
	switch a.output {
	case formatJSON:
		var indented bytes.Buffer
		if err := json.Indent(&indented, toJSON(row), "", "  "); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.out, "%s\n", indented.Bytes())
		return err
	case formatTable:
		color := colorOf(a.out)
		for _, c := range columns {
			if value := printable(c.value(row)); value != "" {
				if _, err := fmt.Fprintf(a.out, "%-20s %s\n", c.name, color.state(value)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return printAll(a, "", columns, slices.Values([]T{row}))
}

// toJSON is a message as the REST API writes it, or any other value. protojson spaces at random: json.Compact takes that out.
func toJSON(v any) []byte {
	m, ok := v.(proto.Message)
	if !ok {
		data, err := json.Marshal(v)
		must(err)
		return data
	}
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	must(err)
	var compact bytes.Buffer
	must(json.Compact(&compact, data))
	return compact.Bytes()
}

// errorJSON is a failure in the shape of the REST API's errors, with the exit code beside it.
func errorJSON(f *failure) string {
	type body struct {
		Status   string            `json:"status,omitempty"`
		Message  string            `json:"message"`
		ExitCode int               `json:"exit_code"`
		WhatToDo string            `json:"what_to_do,omitempty"`
		Facts    map[string]string `json:"facts,omitempty"`
		Details  []json.RawMessage `json:"details,omitempty"`
	}
	b := body{Message: f.text, ExitCode: f.exit, WhatToDo: f.next, Facts: map[string]string{}}
	for _, fact := range f.facts {
		b.Facts[fact.name] = fact.value
	}
	if st, ok := status.FromError(f.cause); ok && f.cause != nil {
		b.Status = code.Code(st.Code()).String()
		for _, d := range st.Proto().GetDetails() {
			b.Details = append(b.Details, toJSON(d))
		}
	}
	return string(toJSON(map[string]body{"error": b}))
}

// table aligns rows. Its widths are those of the first rows: a list of a million is not kept in memory.
type table struct {
	out    io.Writer
	color  color
	rows   [][]string
	widths []int
	err    error
}

const alignedRows = 1000

func (t *table) add(cells []string) {
	for i := range cells {
		cells[i] = printable(cells[i])
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], runewidth.StringWidth(cells[i]))
	}
	if t.rows = append(t.rows, cells); len(t.rows) >= alignedRows {
		t.err = t.flush()
	}
}

func (t *table) flush() error {
	if t.err != nil {
		return t.err
	}
	for _, cells := range t.rows {
		var line strings.Builder
		for i, cell := range cells {
			line.WriteString(t.color.state(cell))
			if i < len(cells)-1 {
				line.WriteString(strings.Repeat(" ", t.widths[i]-runewidth.StringWidth(cell)+2))
			}
		}
		if _, err := fmt.Fprintln(t.out, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	t.rows = nil
	return nil
}

// printable takes out what would steer the terminal: names and errors come from others.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '�'
		}
		return r
	}, s)
}

// color paints on terminals, unless NO_COLOR is set.
type color bool

func colorOf(w io.Writer) color {
	_, terminal := terminalOf(w)
	return color(terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

// terminalOf tells whether a writer is a terminal, and its width.
func terminalOf(w io.Writer) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		width = 80
	}
	return width, true
}

func (c color) paint(sgr, s string) string {
	if !c {
		return s
	}
	return "\x1b[" + sgr + "m" + s + "\x1b[0m"
}

func (c color) red(s string) string { return c.paint("31", s) }

// state paints the words that a person looks for.
func (c color) state(s string) string {
	switch s {
	case "SENT", "COMPLETED":
		return c.paint("32", s)
	case "FAILED", "EXPIRED":
		return c.paint("31", s)
	case "UNKNOWN", "CANCELLED", "PAUSED":
		return c.paint("33", s)
	}
	return s
}

// stamp is a time for programs.
func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339Nano)
}

var sendColumns = []column[*facadev1.Send]{
	{"send_id", short, (*facadev1.Send).GetSendId},
	{"state", short, func(s *facadev1.Send) string { return s.State.String() }},
	{"bot_id", long, (*facadev1.Send).GetBotId},
	{"batch_id", long, (*facadev1.Send).GetBatchId},
	{"sequence", short, func(s *facadev1.Send) string { return numberOrNothing(s.Sequence) }},
	{"kind", short, (*facadev1.Send).GetKind},
	{"request_id", long, (*facadev1.Send).GetRequestId},
	{"message_id", long, (*facadev1.Send).GetMessageId},
	{"notification_ids", long, notificationIDs},
	{"error_reason", short, (*facadev1.Send).GetErrorReason},
	{"error_message", long, func(s *facadev1.Send) string { return s.GetError().GetMessage() }},
	{"attempts", short, func(s *facadev1.Send) string { return fmt.Sprint(s.Attempts) }},
	{"create_time", short, func(s *facadev1.Send) string { return stamp(s.CreateTime) }},
	{"estimated_send_time", long, func(s *facadev1.Send) string { return stamp(s.EstimatedSendTime) }},
	{"send_time", long, func(s *facadev1.Send) string { return stamp(s.SendTime) }},
	{"end_time", long, func(s *facadev1.Send) string { return stamp(s.EndTime) }},
	{"source_send_id", long, (*facadev1.Send).GetSourceSendId},
	{"resolved", long, func(s *facadev1.Send) string { return yes(s.Resolved) }},
	{"warnings", long, func(s *facadev1.Send) string { return strings.Join(s.Warnings, "; ") }},
}

var batchColumns = []column[*facadev1.Batch]{
	{"batch_id", short, (*facadev1.Batch).GetBatchId},
	{"name", short, func(b *facadev1.Batch) string { return b.GetSpec().GetDisplayName() }},
	{"bot_id", long, func(b *facadev1.Batch) string { return b.GetSpec().GetBotId() }},
	{"state", short, batchState},
	{"accepted", short, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetAccepted()) }},
	{"waiting", short, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetAccepted() - final(b)) }},
	{"sent", short, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetSent()) }},
	{"failed", short, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetFailed()) }},
	{"unknown", short, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetUnknown()) }},
	{"cancelled", long, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetCancelled()) }},
	{"expired", long, func(b *facadev1.Batch) string { return fmt.Sprint(b.GetCounts().GetExpired()) }},
	{"create_time", short, func(b *facadev1.Batch) string { return stamp(b.CreateTime) }},
	{"estimated_end_time", short, func(b *facadev1.Batch) string { return stamp(b.EstimatedEndTime) }},
	{"end_time", long, func(b *facadev1.Batch) string { return stamp(b.EndTime) }},
	{"request_id", long, func(b *facadev1.Batch) string { return b.GetSpec().GetRequestId() }},
	{"source_batch_id", long, (*facadev1.Batch).GetSourceBatchId},
}

func batchState(b *facadev1.Batch) string {
	if b.Paused && b.EndTime == nil {
		return "PAUSED"
	}
	return b.State.String()
}

// final counts the items that have a result.
func final(b *facadev1.Batch) int32 {
	c := b.GetCounts()
	return c.GetSent() + c.GetFailed() + c.GetUnknown() + c.GetCancelled() + c.GetExpired()
}

func notificationIDs(s *facadev1.Send) string {
	var ids []string
	for _, n := range s.Notifications {
		ids = append(ids, n.NotificationId)
	}
	return strings.Join(ids, " ")
}

func numberOrNothing(n int32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}
