package pace

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestWindows is the promise of the package: whatever comes, however long it
// travels and whatever is lost, no window at Jelou holds more than are allowed,
// but for what a trip was faster than any seen before.
func TestWindows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.run(t)
		if v := w.violations(true); len(v) > 0 {
			t.Fatalf("%d of %d requests: %+v", len(v), len(w.sent), v[0])
		}
	})
}

// drawWorld draws a company, a network and an hour's worth of trouble in a minute.
func drawWorld(t *rapid.T) *world {
	rng := newRand(rapid.Uint64().Draw(t, "seed"))
	millis := func(name string, least, most int) Time { return Time(rapid.IntRange(least, most).Draw(t, name)) * ms }
	p := profile{
		out: millis("out", 0, 200), back: millis("back", 0, 200), work: millis("work", 0, 300),
		jitter: millis("jitter", 0, 60), workJitter: millis("work jitter", 0, 1000),
		spikes: rapid.Float64Range(0, 0.1).Draw(t, "spikes"), spikeMin: 20 * ms, spikeMax: millis("spike", 20, 3000),
	}
	trouble := rapid.Float64Range(0, 0.1).Draw(t, "trouble")
	passages := p.passages(rng)
	w := &world{
		rng: rng, end: epoch + 40*second,
		behind: rapid.Bool().Draw(t, "counts behind its work"),
		passage: func(n int) passage {
			x := passages(n)
			if rng.Float64() < trouble {
				x.fate = fate(rng.IntN(int(connClosed) + 1))
			}
			return x
		},
	}
	if !w.behind {
		w.acks = rapid.Bool().Draw(t, "acknowledgements")
	}
	draw := func(n int) Config {
		cfg := Config{Requests: rapid.IntRange(1, 9).Draw(t, fmt.Sprint("requests ", n)), Window: time.Second}
		if w.acks {
			cfg.Evidence = Evidence(rapid.IntRange(0, 2).Draw(t, fmt.Sprint("evidence ", n)))
		}
		return cfg
	}
	w.cfg = draw(0)
	for n := range rapid.IntRange(0, 3).Draw(t, "changes") {
		w.changes = append(w.changes, change{epoch + Time(n+1)*9*second, draw(n + 1)})
	}
	phases := rapid.SliceOfN(rapid.SampledFrom([]Lanes{
		{}, {Urgent: true}, {Bulk: true}, {Urgent: true, Normal: true, Bulk: true, Read: true}, {Normal: true, Read: true},
	}), 1, 8).Draw(t, "phases")
	w.demand = func(now Time) Lanes { return phases[int((now-epoch)/(3*second))%len(phases)] }
	for at := epoch; at < w.end; at += upTo(rng, 2*second) {
		w.urgent = append(w.urgent, at)
	}
	return w
}

// TestProfiles holds the windows strictly, without any excuse, and the share of
// the allowance that is used.
func TestProfiles(t *testing.T) {
	for _, tt := range []struct {
		profile  string
		evidence Evidence
		behind   bool
		least    float64
	}{
		{"near", EvidenceReply, false, 0.98},
		{"near", EvidenceReply, true, 0.98},
		{"internet", EvidenceReply, false, 0.97},
		{"internet", EvidenceReply, true, 0.97},
		{"lossy", EvidenceReply, false, 0.96},
		{"steady", EvidenceReply, false, 0.98},
		{"slow", EvidenceReply, false, 0.62},
		{"slow", EvidenceReply, true, 0.62},
		{"slow", EvidenceTransport, false, 0.96},
		{"slow", EvidenceAuto, false, 0.94},
		{"internet", EvidenceTransport, false, 0.97},
	} {
		for _, lane := range []Lane{Urgent, Bulk} {
			name := fmt.Sprintf("%s, evidence %d, behind %v, lane %d", tt.profile, tt.evidence, tt.behind, lane)
			t.Run(name, func(t *testing.T) {
				w := newWorld(1, tt.profile, 600*second, lane)
				w.cfg.Evidence, w.behind, w.acks = tt.evidence, tt.behind, tt.evidence != EvidenceReply
				w.run(t)
				if v := w.violations(false); len(v) > 0 {
					t.Errorf("%d windows of %d requests: %+v", len(v), len(w.sent), v[0])
				}
				if u := w.utilization(); u < tt.least || u > 1 {
					t.Errorf("utilization %.4f, want at least %.2f", u, tt.least)
				} else {
					t.Logf("utilization %.4f", u)
				}
			})
		}
	}
}

// TestFasterRoute: a route that becomes faster by δ costs no more than N windows,
// and none of them is short by more than δ.
func TestFasterRoute(t *testing.T) {
	const faster = 40 * ms
	w := newWorld(2, "steady", 60*second, Urgent)
	before, after := w.passage, profile{out: 10 * ms, back: 10 * ms}.passages(w.rng)
	w.passage = func(n int) passage {
		if n < 150 {
			return before(n)
		}
		return after(n)
	}
	w.run(t)
	v := w.violations(false)
	if len(v) == 0 || len(v) > defaultRequests {
		t.Errorf("%d windows are short, want 1 to %d", len(v), defaultRequests)
	}
	for _, v := range v {
		if v.span < second-faster {
			t.Errorf("a window is short by more than %d: %+v", faster, v)
		}
	}
}

// TestMutants: each wrong rule is found by the same check that the right one passes.
func TestMutants(t *testing.T) {
	// One way's gain is the other's loss: every trip takes 60 ms, yet the way out
	// of one and the way back of another can be 56 together.
	rng := newRand(3)
	wobble := func(int) passage {
		d := upTo(rng, 4*ms)
		return passage{out: 28*ms + d, back: 32*ms - d}
	}
	stuck := func(n int) passage {
		if n%7 == 0 {
			return passage{out: 3 * second, fate: orphaned}
		}
		return passage{out: 30 * ms, back: 30 * ms}
	}
	jumpy := func(n int) passage { return passage{out: Time(n%3) * 30 * ms, back: 30 * ms} }
	for _, tt := range []struct {
		name    string
		passage func(int) passage
		mutate  func(b *Budget, i int, sent Time)
	}{
		{"no margin", wobble, func(b *Budget, i int, _ Time) {
			b.slots[i].anchor -= micros(defaultMargin)
		}},
		{"floor too large", wobble, func(b *Budget, i int, _ Time) {
			b.slots[i].anchor -= 20 * ms
		}},
		{"slot freed a window after sending", jumpy, func(b *Budget, i int, sent Time) {
			b.slots[i].anchor = sent - micros(defaultMargin) + b.reply.credit(sent)
		}},
		{"unanswered slot freed with the others", stuck, func(b *Budget, _ int, _ Time) {
			for i := range b.slots {
				if s := &b.slots[i]; s.claim != 0 {
					s.lease = min(s.lease, s.taken+90*ms)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, mutant := range []bool{false, true} {
				w := newWorld(3, "steady", 120*second, Urgent)
				w.passage = tt.passage
				if mutant {
					w.mutate = tt.mutate
				}
				w.run(t)
				if v := w.violations(false); (len(v) > 0) != mutant {
					t.Errorf("mutant %v: %d windows held too many", mutant, len(v))
				}
			}
		})
	}
}

// TestUrgentWait: an urgent send soon finds a slot under a full bulk load, because
// bulk is spread; without spreading it would not.
func TestUrgentWait(t *testing.T) {
	for _, unspread := range []bool{false, true} {
		w := newWorld(4, "internet", 3600*second, Bulk)
		for at := epoch + 5*second; at < w.end; at += second + upTo(w.rng, 3*second) {
			w.urgent = append(w.urgent, at)
		}
		w.unspread = unspread
		w.run(t)
		p50, p99, most := percentile(w.waits, 0.5), percentile(w.waits, 0.99), percentile(w.waits, 1)
		t.Logf("unspread %v: %d urgent sends waited p50 %v, p99 %v, at most %v", unspread, len(w.waits), p50, p99, most)
		if good := p50 <= 150*time.Millisecond && p99 <= 400*time.Millisecond && most <= 1200*time.Millisecond; good == unspread {
			t.Errorf("unspread %v: good %v", unspread, good)
		}
		if v := w.violations(false); len(v) > 0 {
			t.Errorf("%+v", v[0])
		}
	}
}

// TestDownAndUp: a smaller allowance holds at once for every window that ends
// with a request decided under it, a larger one is used at once.
func TestDownAndUp(t *testing.T) {
	w := newWorld(5, "internet", 30*second, Urgent)
	w.changes = []change{{epoch + 10*second, Config{Requests: 2}}, {epoch + 20*second, Config{Requests: 8}}}
	w.run(t)
	if v := w.violations(false); len(v) > 0 {
		t.Errorf("%+v", v[0])
	}
	count := func(from, to Time) (n int) {
		for _, r := range w.sent {
			if r.counted >= epoch+from && r.counted < epoch+to {
				n++
			}
		}
		return n
	}
	if n := count(12*second, 20*second); n < 15 || n > 17 {
		t.Errorf("%d requests in 8 s at 2 a second", n)
	}
	if n := count(21*second, 29*second); n < 61 || n > 65 {
		t.Errorf("%d requests in 8 s at 8 a second", n)
	}
}

// TestShorterWindow: what a long window has put off is not waited for once the
// window is short.
func TestShorterWindow(t *testing.T) {
	s := newBench(t)
	s.cfg.Window = time.Hour
	s.b.Silence(s.cfg, s.now)
	s.now += 3601 * second
	s.settle(s.take(Bulk), Reply{Outcome: Answered})
	s.b.Silence(s.cfg, s.now)
	s.cfg.Window = time.Second
	if wait := s.b.Next(s.cfg, s.now, Lanes{Bulk: true}).At.Sub(s.now); wait != time.Second+defaultMargin {
		t.Errorf("bulk waits %v", wait)
	}
}

// TestCreditBounds: the credit comes with enough trips, is bounded, and goes when
// none was seen for ten minutes.
func TestCreditBounds(t *testing.T) {
	s := newBench(t)
	credit := func() time.Duration { return s.b.Status(s.cfg, s.now).Credit }
	for range tripsLeast {
		if c := credit(); c != 0 {
			t.Fatalf("credit %v after too few trips", c)
		}
		s.settle(s.take(Urgent), Reply{Outcome: Answered, Trip: 800 * time.Millisecond})
		s.now += 300 * ms
	}
	if c := credit(); c != 500*time.Millisecond {
		t.Errorf("credit %v, want half the window", c)
	}
	s.cfg.FloorCap = 30 * time.Millisecond
	if c := credit(); c != s.cfg.FloorCap {
		t.Errorf("credit %v, want %v", c, s.cfg.FloorCap)
	}
	s.settle(s.take(Urgent), Reply{Outcome: Answered, Trip: 7 * time.Millisecond})
	if c := credit(); c > 7*time.Millisecond {
		t.Errorf("credit %v after a trip of 7 ms", c)
	}
	s.now += 600 * second
	if c := credit(); c != 0 {
		t.Errorf("credit %v ten minutes later", c)
	}
}
