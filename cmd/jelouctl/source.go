package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// source is a file of items: a CSV with a mapping, or one JSON item a line. It is read as often as is needed and never kept in memory.
type source struct {
	path      string
	separator rune     // of a CSV
	header    []string // of a CSV
	mapping   *mapping // of a CSV
	seen      os.FileInfo
}

// row is one item of the file that is not made yet.
type row struct {
	line  int
	cells []string // of a CSV
	text  []byte   // of NDJSON
	err   *rowError
}

// rowError is what is wrong with one line. It never has a value of the line: what is printed may be kept elsewhere.
type rowError struct {
	Line    int    `json:"line"`
	Field   string `json:"field,omitempty"`
	Column  string `json:"column,omitempty"`
	Message string `json:"message"`
}

// maxLine bounds a line, which is one request's item: the server takes no more than 4 MiB.
const maxLine = 4 << 20

var byteOrderMark = []byte("\xef\xbb\xbf")

// openSource looks at a file and prepares its mapping.
func openSource(path, separator string, flags *mappingFlags) (*source, error) {
	s := &source{path: path}
	info, err := os.Stat(path)
	switch {
	case path == "-" || err == nil && !info.Mode().IsRegular():
		return nil, invalid("%s: is no file; it is read several times, so write it to one first", path)
	case err != nil:
		return nil, invalid("%v", err)
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".ndjson", ".jsonl":
		if flags.given() || separator != "" {
			return nil, usage("%s: lines of JSON are whole items: --map, --text, --template, --mapping and --separator are for CSV", path)
		}
		return s, nil
	case ".csv", ".tsv", ".txt":
		return s, s.readHeader(separator, flags)
	}
	return nil, usage("%s: must end in .csv (.tsv, .txt) or .ndjson (.jsonl)", path)
}

const notUTF8 = "is not UTF-8: save the file as CSV UTF-8"

// readHeader reads a CSV's first line. Spreadsheets in Spanish write semicolons, so the separator is found in it.
func (s *source) readHeader(separator string, flags *mappingFlags) error {
	f, err := os.Open(s.path)
	if err != nil {
		return invalid("%v", err)
	}
	defer f.Close()
	in := bufio.NewReaderSize(io.LimitReader(f, maxLine), 1<<16)
	skipByteOrderMark(in)
	start, err := in.Peek(in.Size())
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	line, _, _ := strings.Cut(strings.TrimLeft(string(start), "\r\n"), "\n")
	if s.separator, err = separatorOf(separator, line); err != nil {
		return err
	}
	if s.header, err = s.reader(in).Read(); errors.Is(err, io.EOF) {
		return invalid("%s: has no line with the columns' names", s.path)
	} else if err != nil {
		return invalid("%s: the line with the columns' names: %v", s.path, err)
	}
	seen := map[string]bool{}
	for i, name := range s.header {
		name = strings.TrimSpace(name)
		switch s.header[i] = name; {
		case !utf8.ValidString(name):
			return invalid("%s: line 1: %s", s.path, notUTF8)
		case name == "": // spreadsheets write columns that had something once
		case seen[name]:
			return invalid("%s: line 1: two columns are called %q", s.path, name)
		}
		seen[name] = true
	}
	s.mapping, err = flags.newMapping(s.header)
	return err
}

// separators that are looked for, the likeliest first.
var separators = []rune{',', ';', '\t', '|'}

func separatorOf(flag, header string) (rune, error) {
	switch {
	case flag == `\t` || flag == "tab":
		return '\t', nil
	case flag != "":
		r, size := utf8.DecodeRuneInString(flag)
		if size != len(flag) || r == '"' || r == '\n' || r == '\r' || r == utf8.RuneError {
			return 0, usage("--separator %q: must be one character, or tab", flag)
		}
		return r, nil
	}
	best, most := separators[0], 0
	for _, r := range separators {
		if n := strings.Count(header, string(r)); n > most {
			best, most = r, n
		}
	}
	return best, nil
}

func (s *source) reader(r io.Reader) *csv.Reader {
	c := csv.NewReader(r)
	c.Comma = s.separator
	c.FieldsPerRecord = -1 // said with the line's number by rows
	return c
}

// errChanged says that a file is not the one any more that was read first.
var errChanged = errors.New("has changed")

// rows calls f with every row, and ends with errChanged before the first row that may not be what was read the first time.
func (s *source) rows(f func(row) error) error {
	file, err := os.Open(s.path)
	if err != nil {
		return invalid("%v", err)
	}
	defer file.Close()
	unchanged := func(r row) error {
		info, err := file.Stat()
		switch {
		case err != nil:
			return err
		case s.seen == nil:
			s.seen = info
		case !os.SameFile(info, s.seen) || info.Size() != s.seen.Size() || !info.ModTime().Equal(s.seen.ModTime()):
			return errChanged
		}
		return f(r)
	}
	in := bufio.NewReaderSize(file, 1<<16)
	skipByteOrderMark(in)
	if s.mapping != nil {
		return s.csvRows(in, unchanged)
	}
	return ndjsonRows(in, unchanged)
}

func skipByteOrderMark(in *bufio.Reader) {
	if start, _ := in.Peek(len(byteOrderMark)); bytes.Equal(start, byteOrderMark) {
		_, _ = in.Discard(len(byteOrderMark)) // it was just seen
	}
}

func (s *source) csvRows(in io.Reader, f func(row) error) error {
	r := s.reader(in)
	for n := 0; ; n++ {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		bad, isParse := errors.AsType[*csv.ParseError](err)
		if err != nil && !isParse {
			return err
		}
		if n == 0 && err == nil {
			continue
		}
		made := row{cells: cells}
		switch {
		case err != nil:
			made.line = bad.StartLine
			made.err = &rowError{Line: bad.StartLine, Message: "is no CSV: " + bad.Err.Error()}
		default:
			made.line, _ = r.FieldPos(0)
			if len(cells) != len(s.header) {
				made.err = &rowError{Line: made.line, Message: fmt.Sprintf("has %d columns instead of %d", len(cells), len(s.header))}
			}
		}
		if err := f(made); err != nil {
			return err
		}
	}
}

func ndjsonRows(in *bufio.Reader, f func(row) error) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 1<<16), maxLine)
	n := 0
	for lines.Scan() {
		n++
		if text := bytes.TrimSpace(lines.Bytes()); len(text) > 0 {
			if err := f(row{line: n, text: text}); err != nil {
				return err
			}
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return invalid("line %d: is longer than %d MiB", n+1, maxLine>>20)
	}
	return lines.Err()
}

// item makes a row's item, and gives the JSON that it was made from.
func (s *source) item(r row) (*facadev1.BatchItem, []byte, *rowError) {
	if r.err != nil {
		return nil, nil, r.err
	}
	item := &facadev1.BatchItem{}
	if s.mapping == nil {
		if err := protojson.Unmarshal(r.text, item); err != nil {
			return nil, nil, &rowError{Line: r.line, Message: "is no item: " + parseError(err).Error()}
		}
		return item, r.text, nil
	}
	cells := make(map[string]string, len(r.cells))
	for i, cell := range r.cells {
		if !utf8.ValidString(cell) {
			return nil, nil, &rowError{Line: r.line, Column: s.header[i], Message: notUTF8}
		}
		cells[s.header[i]] = strings.TrimSpace(cell)
	}
	text, err := s.mapping.json(cells)
	if err != nil {
		return nil, nil, &rowError{Line: r.line, Message: err.Error()}
	}
	if err := protojson.Unmarshal(text, item); err != nil {
		// The place is one in JSON that nobody has seen.
		return nil, nil, &rowError{Line: r.line, Message: place.ReplaceAllString(parseError(err).Error(), "")}
	}
	return item, text, nil
}

var place = regexp.MustCompile(`^\(line \d+:\d+\): `)

// quotes are the words after which protojson quotes the input.
var quotes = []string{"unexpected token", "invalid value", "invalid UTF-8", "invalid character", "invalid escape code", "invalid number"}

// parseError is an error of protojson without the value that it quotes: that may be a phone number or a text.
func parseError(err error) error {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ") // protojson writes one of the two, at random
	text = strings.TrimPrefix(text, "proto: ")
	for _, words := range quotes {
		before, after, found := strings.Cut(text, words)
		if !found {
			continue
		}
		what, _, _ := strings.Cut(after, ":") // such as " for string field userId"
		if !strings.HasPrefix(what, " for ") {
			what = ""
		}
		return errors.New(before + words + what)
	}
	return errors.New(text)
}
