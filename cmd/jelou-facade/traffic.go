package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// trafficLine is one line of a traffic file: some sends that come together, or one after the other.
type trafficLine struct {
	// At is a time, RFC 3339, or a span since the beginning of the file; the same form in all lines.
	At string `json:"at"`
	// Caller whose sends they are.
	Caller string `json:"caller"`
	// Lane is URGENT, NORMAL or BULK; NORMAL when absent, BULK with a queue.
	Lane string `json:"lane,omitzero"`
	// Queue names a batch; absent for loose sends.
	Queue string `json:"queue,omitzero"`
	// Count of sends; 1 when absent.
	Count int `json:"count,omitzero"`
	// Every is the time between two of them; they come together when absent.
	Every string `json:"every,omitzero"`
	// Deadline is how long their callers wait; for ever when absent. What could not leave in time is refused.
	Deadline string `json:"deadline,omitzero"`
	// Weight of the caller, where it is not 1; the same in all his lines.
	Weight int `json:"weight,omitzero"`
}

// arrivals are a checked line.
type arrivals struct {
	at       time.Duration // of the next, since the beginning
	send     pace.Send     // without Expire
	left     int
	every    time.Duration
	deadline time.Duration
}

// traffic is a checked file.
type traffic struct {
	arrivals []*arrivals
	weights  map[string]int
	sends    int
	end      time.Duration // when the last comes
}

// Bounds of a traffic file.
const (
	maxTrafficSends = 50_000_000
	maxTrafficSpan  = 366 * 24 * time.Hour
)

// readTraffic reads a file, strictly: an error names the line.
func readTraffic(in io.Reader) (*traffic, error) {
	t := &traffic{weights: map[string]int{}}
	clock := &trafficClock{}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		var l trafficLine
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&l)
		if err == nil {
			err = t.add(&l, clock)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if t.sends == 0 {
		return nil, errors.New("there is no traffic in it")
	}
	for _, a := range t.arrivals {
		a.at -= clock.first
		t.end = max(t.end, a.at+time.Duration(a.left-1)*a.every)
	}
	if t.end > maxTrafficSpan {
		return nil, fmt.Errorf("it spans %v; at most %v can be rehearsed", t.end, maxTrafficSpan)
	}
	return t, nil
}

func (t *traffic) add(l *trafficLine, clock *trafficClock) error {
	a := &arrivals{left: cmp.Or(l.Count, 1), send: pace.Send{Caller: l.Caller, Queue: l.Queue}}
	var err error
	if a.at, err = clock.read(l.At); err != nil {
		return err
	}
	if a.every, err = span("every", l.Every); err != nil {
		return err
	}
	if a.deadline, err = span("deadline", l.Deadline); err != nil {
		return err
	}
	otherwise := "NORMAL"
	if l.Queue != "" {
		otherwise = "BULK"
	}
	lane := cmp.Or(l.Lane, otherwise)
	a.send.Lane = laneNames[lane]
	weight := cmp.Or(l.Weight, 1)
	known, seen := t.weights[l.Caller]
	switch {
	case l.Caller == "":
		return errors.New("caller: must be there")
	case a.send.Lane == 0:
		return fmt.Errorf("lane: %q is not URGENT, NORMAL or BULK", lane)
	case a.left < 1 || a.left > maxTrafficSends || t.sends+a.left > maxTrafficSends:
		return fmt.Errorf("count: must be 1 to %d, in all lines together", maxTrafficSends)
	case weight < 1 || weight > pace.MaxWeight:
		return fmt.Errorf("weight: must be 1 to %d", pace.MaxWeight)
	case seen && l.Weight != 0 && known != weight:
		return fmt.Errorf("weight: caller %q has %d in an earlier line", l.Caller, known)
	}
	if !seen || l.Weight != 0 {
		t.weights[l.Caller] = weight
	}
	t.sends += a.left
	t.arrivals = append(t.arrivals, a)
	return nil
}

var laneNames = map[string]pace.Lane{"URGENT": pace.Urgent, "NORMAL": pace.Normal, "BULK": pace.Bulk}

// trafficClock reads times of one form.
type trafficClock struct {
	form  string
	first time.Duration // the earliest; of spans it is 0
	seen  bool
}

func (c *trafficClock) read(text string) (time.Duration, error) {
	form := "spans"
	at, err := time.ParseDuration(text)
	if err != nil {
		var moment time.Time
		if moment, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return 0, fmt.Errorf("at: %q is no span such as 90s and no time such as 2026-11-23T09:00:00Z", text)
		}
		form, at = "times", time.Duration(moment.UnixNano())
	}
	switch {
	case c.form != "" && c.form != form:
		return 0, fmt.Errorf("at: the lines before have %s, and this one has not", c.form)
	case form == "spans" && at < 0:
		return 0, errors.New("at: must not be negative")
	case form == "times" && (!c.seen || at < c.first):
		c.first = at
	}
	c.form, c.seen = form, true
	return at, nil
}

func span(field, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s: %q is no span such as 2s", field, text)
	}
	return d, nil
}

// exportTraffic writes what a company accepted lately as a traffic file.
func exportTraffic(ctx context.Context, config *configv1.Config, company *configv1.Company, since time.Time, out io.Writer) error {
	buffered := bufio.NewWriter(out)
	lines := json.NewEncoder(buffered)
	from := ledger.Config{Path: config.Ledger.Path, URL: config.Ledger.Url}
	err := ledger.ReadTraffic(ctx, from, company.Id, since, func(t ledger.Traffic) error {
		l := trafficLine{At: t.At.Format(time.RFC3339), Caller: t.Caller, Lane: laneName(pace.Lane(t.Lane)), Count: int(t.Count)}
		if t.Batch != 0 {
			l.Queue = fmt.Sprintf("batch-%d", t.Batch)
		}
		if t.Expire > 0 {
			l.Deadline = t.Expire.String()
		}
		return lines.Encode(l)
	})
	return errors.Join(err, buffered.Flush())
}

func laneName(lane pace.Lane) string {
	for name, l := range laneNames {
		if l == lane {
			return name
		}
	}
	return ""
}

// companyNamed is the configured company with the name, or the only one.
func companyNamed(config *configv1.Config, name string) (*configv1.Company, error) {
	names := map[string]*configv1.Company{}
	for _, c := range config.Companies {
		names[c.Id] = c
	}
	list := strings.Join(slices.Sorted(maps.Keys(names)), ", ")
	switch {
	case name == "" && len(names) == 1:
		return config.Companies[0], nil
	case name == "":
		return nil, fmt.Errorf("--company: say which of %s", list)
	case names[name] == nil:
		return nil, fmt.Errorf("--company: %q is not one of %s", name, list)
	}
	return names[name], nil
}

// openTraffic opens a traffic file; - is standard input.
func openTraffic(path string) (*traffic, error) {
	in := os.Stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	t, err := readTraffic(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}
