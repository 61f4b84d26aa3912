package canary

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// A Search looks for canaries and for secrets, as they are and encoded.
type Search struct {
	needles []needle

	mu    sync.Mutex
	bytes map[string]int64 // by sink
}

// needle is one form of what is searched for.
type needle struct {
	name, form string
	text       []byte
	label      bool // not in every sink forbidden
}

// A Finding is a canary where none may be.
type Finding struct {
	Sink, What, Form string
	Around           string // what stands there
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s, %s: %q", f.Sink, f.What, f.Form, f.Around)
}

// NewSearch makes a search for all canaries and for the given secrets, which it names by their beginning.
func NewSearch(secrets ...string) *Search {
	s := &Search{bytes: map[string]int64{}}
	s.add("a text", Word)
	s.add("a phone number", Number)
	s.add("a label", Label)
	s.add("a bot's number", Bot)
	for _, secret := range secrets {
		if secret != "" {
			s.add(fmt.Sprintf("%.4s…", secret), secret)
		}
	}
	return s
}

func (s *Search) add(name, text string) {
	forms := map[string]string{text: "plain"}
	also := func(form, encoded string) {
		if forms[encoded] == "" {
			forms[encoded] = form
		}
	}
	also("in upper case", strings.ToUpper(text))
	also("URL-escaped", url.QueryEscape(text))
	also("URL-escaped", url.PathEscape(text))
	also("hexadecimal", hex.EncodeToString([]byte(text)))
	also("hexadecimal", strings.ToUpper(hex.EncodeToString([]byte(text))))
	for before := range 3 { // how many bytes of its group of three come before it
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString([]byte(strings.Repeat("x", before) + text))
			// The first and the last character may have bits of what stands beside it.
			also("base64", encoded[(before*8+5)/6:(before+len(text))*8/6])
		}
	}
	for _, encoded := range slices.Sorted(maps.Keys(forms)) {
		s.needles = append(s.needles, needle{name, forms[encoded], []byte(encoded), text == Label || text == Bot})
	}
}

// mostFindings of one form in one piece of a sink are told.
const mostFindings = 3

// In searches a sink.
func (s *Search) In(sink string, data []byte) []Finding { return s.in(sink, data, false) }

// InLabelled searches a sink that may have labels, request ids and bots: a database, or what the caller is told who gave them.
func (s *Search) InLabelled(sink string, data []byte) []Finding { return s.in(sink, data, true) }

func (s *Search) in(sink string, data []byte, labels bool) (found []Finding) {
	s.mu.Lock()
	s.bytes[sink] += int64(len(data))
	s.mu.Unlock()
	for _, n := range s.needles {
		if n.label && labels {
			continue
		}
		for from, times := 0, 0; times < mostFindings; times++ {
			i := bytes.Index(data[from:], n.text)
			if i < 0 {
				break
			}
			at, after := from+i, from+i+len(n.text)
			found = append(found, Finding{sink, n.name, n.form, string(data[max(0, at-60):min(len(data), after+60)])})
			from = after
		}
	}
	return found
}

// InFiles is InLabelled for the files of some glob patterns, as they are. A pattern without files is an error: nothing would be searched.
func (s *Search) InFiles(sink string, patterns ...string) (found []Finding, err error) {
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return found, err
		}
		if len(names) == 0 {
			return found, fmt.Errorf("%s: no file is %s", sink, pattern)
		}
		for _, name := range names {
			if info, err := os.Stat(name); err != nil || info.IsDir() {
				continue
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return found, err
			}
			found = append(found, s.InLabelled(sink, data)...)
		}
	}
	return found, nil
}

// Bytes is how much was searched, by sink.
func (s *Search) Bytes() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.bytes)
}
