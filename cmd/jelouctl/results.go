package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// writeResults writes one line for each item, in the order of the file. The file is there once it is whole.
func (u *upload) writeResults(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(u.flags.results), 0o777); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(u.flags.results), ".results-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	write, end := ndjsonResults(out)
	if filepath.Ext(u.flags.results) == ".csv" {
		write, end = csvResults(out)
	}
	written := 0
	err = eachSend(ctx, u.client, &facadev1.ListSendsRequest{BatchId: u.journal.BatchID}, func(s *facadev1.Send) error {
		at := int(s.Sequence) - 1
		if at < 0 || at >= len(u.found.lines) {
			return fmt.Errorf("batch %s: has sequence %d, which the file has not", s.BatchId, s.Sequence)
		}
		written++
		return write(itemResult{int(u.found.lines[at]), u.found.to[at], s})
	})
	if err = errors.Join(err, end(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(out.Name(), u.flags.results); err != nil {
		return err
	}
	u.note("%d results written to %s", written, u.flags.results)
	return nil
}

// itemResult is a line of the results: the item's line in the file, its recipient, and what became of it.
type itemResult struct {
	line int
	to   string
	send *facadev1.Send
}

func ndjsonResults(out io.Writer) (write func(itemResult) error, end func() error) {
	return func(r itemResult) error {
		line, err := json.Marshal(struct {
			Line int             `json:"line"`
			To   string          `json:"to"`
			Send json.RawMessage `json:"send"`
		}{r.line, r.to, toJSON(r.send)})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", line)
		return err
	}, func() error { return nil }
}

func csvResults(out io.Writer) (write func(itemResult) error, end func() error) {
	columns := []column[itemResult]{
		{"line", short, func(r itemResult) string { return fmt.Sprint(r.line) }},
		{"to", short, func(r itemResult) string { return r.to }},
	}
	for _, c := range sendColumns {
		columns = append(columns, column[itemResult]{c.name, c.shown, func(r itemResult) string { return c.value(r.send) }})
	}
	p := newPrinter(formatCSV, "results", columns, out)
	return p.add, p.end
}
