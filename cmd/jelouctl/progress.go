package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// progress shows how far a batch is: a bar on a terminal, a line now and then elsewhere.
type progress struct {
	out   io.Writer
	bar   *progressbar.ProgressBar // nil: lines
	total int

	barWidth      int
	done, notSent int
	uploaded      int
	estimated     time.Time // the server's estimate of the end
	paused        bool
	samples       []sample // the last few seconds, for the rate
	printed       time.Time
}

// sample is a count at a time.
type sample struct {
	at   time.Time
	done int
}

const (
	rateOver   = 5 * time.Second
	redrawn    = 100 * time.Millisecond
	linesEvery = 10 * time.Second
)

func newProgress(out io.Writer, total, done, notSent int) *progress {
	p := &progress{out: out, total: total, done: done, notSent: notSent}
	if width, terminal := terminalOf(out); terminal && os.Getenv("TERM") != "dumb" {
		p.barWidth = max(10, min(30, width-60))
		p.bar = progressbar.NewOptions(total,
			progressbar.OptionSetWriter(out), progressbar.OptionSetWidth(p.barWidth),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionShowCount(), progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionSetTheme(progressbar.ThemeASCII), progressbar.OptionThrottle(0), progressbar.OptionUseANSICodes(true))
		_ = p.bar.Set(done) // what cannot be drawn is no reason to end
	}
	p.samples = []sample{{time.Now(), done}}
	return p
}

// result counts one result.
func (p *progress) result(state facadev1.Send_State) {
	p.done++
	if state != facadev1.Send_SENT {
		p.notSent++
	}
	p.show(false)
}

// batch takes over what the server says.
func (p *progress) batch(b *facadev1.Batch) {
	p.paused = b.Paused
	p.estimated = time.Time{}
	if b.EstimatedEndTime != nil {
		p.estimated = b.EstimatedEndTime.AsTime()
	}
	p.show(false)
}

// rate is results per second over the last seconds; zero when nothing came.
func (p *progress) rate(now time.Time) float64 {
	for len(p.samples) > 1 && now.Sub(p.samples[1].at) >= rateOver {
		p.samples = p.samples[1:]
	}
	oldest := p.samples[0]
	seconds := now.Sub(oldest.at).Seconds()
	if seconds < 0.2 {
		return 0
	}
	return float64(p.done-oldest.done) / seconds
}

// fitting are as many of the words, from the first one on, as a width has room for: a bar that is longer than the line cannot be drawn over.
func fitting(words []string, width int) string {
	text := ""
	for i, word := range words {
		if i > 0 {
			word = text + ", " + word
		}
		if len(word) > width {
			break
		}
		text = word
	}
	return text
}

// words are what stands behind the bar, what matters most first.
func (p *progress) words(now time.Time) []string {
	var words []string
	rate := p.rate(now)
	switch {
	case p.paused:
		words = append(words, "paused")
	case rate > 0:
		words = append(words, fmt.Sprintf("%.0f/s", rate))
	}
	if p.notSent > 0 {
		words = append(words, fmt.Sprintf("%d not sent", p.notSent))
	}
	end := p.estimated
	if rate > 0 {
		end = now.Add(time.Duration(float64(p.total-p.done) / rate * float64(time.Second)))
	}
	if p.done < p.total && !end.IsZero() && !p.paused {
		words = append(words, "ends "+clockOf(end.Local(), now))
	}
	if p.uploaded < p.total && p.uploaded > 0 {
		words = append(words, fmt.Sprintf("%d uploaded", p.uploaded))
	}
	return words
}

// clockOf is a time of today, or a date.
func clockOf(t, now time.Time) string {
	if t.Sub(now) > 20*time.Hour {
		return t.Format("Jan 2 15:04")
	}
	return t.Format("15:04:05")
}

// show draws, not more often than one can see.
func (p *progress) show(now bool) {
	at := time.Now()
	every := redrawn
	if p.bar == nil {
		every = linesEvery
	}
	if !now && at.Sub(p.printed) < every {
		return // the last call draws what is left out here
	}
	p.printed = at
	if last := p.samples[len(p.samples)-1]; at.Sub(last.at) >= redrawn {
		p.samples = append(p.samples, sample{at, p.done})
	}
	if p.bar == nil {
		fmt.Fprintln(p.out, strings.Join(append([]string{fmt.Sprintf("%d of %d", p.done, p.total)}, p.words(at)...), ", "))
		return
	}
	width, _ := terminalOf(p.out)
	p.bar.Describe(fitting(p.words(at), width-p.barWidth-len(fmt.Sprintf(" 100%% [] (%d/%d)  ", p.total, p.total))))
	_ = p.bar.Set(p.done)
}

// say prints a line without leaving the bar's rest behind.
func (p *progress) say(format string, args ...any) {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	fmt.Fprintln(p.out, printable(fmt.Sprintf(format, args...)))
}

// stop draws for the last time.
func (p *progress) stop() {
	p.show(true)
	if p.bar != nil {
		fmt.Fprintln(p.out)
	}
}

// tallyKey is under what a result is counted: its state, and for what was not sent the reason.
func tallyKey(s *facadev1.Send) string {
	return strings.TrimSpace(s.State.String() + " " + s.ErrorReason)
}

// tallyLines are the counts of a batch by state, each with its reasons.
func tallyLines(tally map[string]int) []string {
	type group struct {
		count   int
		reasons []string
	}
	groups := map[string]*group{}
	for _, key := range slices.Sorted(maps.Keys(tally)) {
		state, reason, _ := strings.Cut(key, " ")
		if groups[state] == nil {
			groups[state] = &group{}
		}
		groups[state].count += tally[key]
		if reason != "" {
			groups[state].reasons = append(groups[state].reasons, fmt.Sprintf("%d %s", tally[key], reason))
		}
	}
	var lines []string
	for _, state := range []facadev1.Send_State{facadev1.Send_SENT, facadev1.Send_FAILED, facadev1.Send_UNKNOWN, facadev1.Send_CANCELLED, facadev1.Send_EXPIRED} {
		if g := groups[state.String()]; g != nil {
			lines = append(lines, strings.TrimRight(fmt.Sprintf("  %-10s %8d  %s", state, g.count, strings.Join(g.reasons, ", ")), " "))
		}
	}
	return lines
}

// accepted takes over how many items there are, where they are still being uploaded.
func (p *progress) accepted(total int) {
	if total == p.total {
		return
	}
	p.total = total
	if p.bar != nil {
		p.bar.ChangeMax(total)
	}
}

// checking shows how many lines of a long file are checked: in place on a terminal, a line now and then elsewhere.
type checking struct {
	out      io.Writer
	terminal bool
	printed  time.Time
	shown    bool
}

func newChecking(out io.Writer) *checking {
	_, terminal := terminalOf(out)
	return &checking{out: out, terminal: terminal && os.Getenv("TERM") != "dumb", printed: time.Now()}
}

func (c *checking) show(lines int) {
	every, line := linesEvery, "%d lines checked\n"
	if c.terminal {
		every, line = time.Second, "\r%d lines checked"+clearLine
	}
	if time.Since(c.printed) < every {
		return
	}
	c.printed, c.shown = time.Now(), true
	fmt.Fprintf(c.out, line, lines)
}

func (c *checking) stop() {
	if c.terminal && c.shown {
		fmt.Fprint(c.out, "\r"+clearLine)
	}
}
