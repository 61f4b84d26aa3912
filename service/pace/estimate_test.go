package pace

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestEstimate: when nobody else comes a send starts when it was estimated to,
// whatever waits before it.
func TestEstimate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLine(t)
		s := Send{
			ID: 1, Lane: Lane(rapid.IntRange(1, 4).Draw(t, "lane")),
			Caller: fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "caller")),
			Queue:  fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "queue")),
		}
		items := rapid.IntRange(1, 300).Draw(t, "items")
		estimate, now := l.Estimate(s, items), l.now
		for range items - 1 {
			l.Add(Send{Lane: s.Lane, Caller: s.Caller, Queue: s.Queue})
		}
		l.Add(s)
		var start Time
		l.Advance(Never, func(e Event) {
			if e.Send.ID == s.ID {
				start = e.Start
			}
		})
		wait := start.Sub(now)
		if off := (estimate - start); span(max(off, -off)) > 300*time.Millisecond+wait/50 {
			t.Fatalf("estimated to wait %v, waited %v", estimate.Sub(now), wait)
		}
	})
}

// drawLine draws a backlog in several lanes, shares and queues, part of which
// has been served.
func drawLine(t *rapid.T) *Line {
	rng := newRand(rapid.Uint64().Draw(t, "seed"))
	passages := profiles["internet"].passages(rng)
	l := NewLine(LineConfig{
		Start: epoch, Weights: map[string]int{"1": 2, "2": 5},
		Trip: func() time.Duration { x := passages(0); return span(x.out + x.work + x.back) },
	})
	// The first estimates of a company know no trips yet.
	l.fill(20, Send{Lane: Normal, Caller: "0"})
	l.Advance(Never, func(Event) {})
	for range rapid.IntRange(0, 12).Draw(t, "queues") {
		l.fill(rapid.IntRange(1, 200).Draw(t, "waiting"), Send{
			Lane:   Lane(rapid.IntRange(1, 4).Draw(t, "lane")),
			Caller: fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "caller")),
			Queue:  fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "queue")),
		})
	}
	l.Advance(l.now+Time(rapid.IntRange(0, 60_000).Draw(t, "served for"))*ms, func(Event) {})
	return l
}

// TestEstimatePaused: a pause that will end by itself is part of the estimate.
func TestEstimatePaused(t *testing.T) {
	for _, tt := range []struct {
		reply Reply
		want  time.Duration
	}{
		{Reply{Outcome: Throttled, RetryAfter: 20 * time.Second}, 20 * time.Second},
		{Reply{Outcome: Rejected}, 5 * time.Second},
	} {
		s := newBench(t)
		s.settle(s.take(Urgent), tt.reply)
		if got := s.b.Estimate(s.cfg, s.now, Urgent, Backlog{}).Sub(s.now); got != tt.want {
			t.Errorf("%+v: the next is estimated in %v", tt.reply, got)
		}
		behind := s.b.Estimate(s.cfg, s.now, Normal, Backlog{Waiting: [lanes]int{Normal: 50}, Ahead: 50}).Sub(s.now)
		if behind < tt.want+9*time.Second || behind > tt.want+11*time.Second {
			t.Errorf("%+v: the one after 50 others is estimated in %v", tt.reply, behind)
		}
	}
}

func TestAhead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		own    Share
		others []Share
		want   int
	}{
		{"alone", Share{Weight: 1}, nil, 0},
		{"own backlog", Share{Weight: 1, Waiting: 7}, nil, 7},
		{"equals", Share{Weight: 1, Waiting: 10}, []Share{{Weight: 1, Waiting: 100}, {Weight: 1, Waiting: 4}}, 10 + 10 + 4},
		{"heavy other", Share{Weight: 1, Waiting: 10}, []Share{{Weight: 3, Waiting: 100}}, 10 + 31},
		{"equals that go first", Share{Weight: 1, Waiting: 10}, []Share{{Weight: 1, Waiting: 100, First: true}}, 10 + 11},
		{"other served ahead", Share{Weight: 1}, []Share{{Weight: 1, Waiting: 5, Tag: 3 * tagScale}}, 0},
		{"idle share's old tag", Share{Weight: 1, Tag: -9 * tagScale}, []Share{{Weight: 1, Waiting: 5, First: true}}, 1},
	} {
		if got := Ahead(0, tt.own, tt.others); got != tt.want {
			t.Errorf("%s: %d go first, want %d", tt.name, got, tt.want)
		}
	}
}
