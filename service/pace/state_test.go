package pace

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var allowUnexported = cmp.AllowUnexported(Budget{}, slot{}, trips{}, pause{})

// TestSilentWindow: whatever cannot be trusted begins with one window in which
// nothing leaves, and no more than one.
func TestSilentWindow(t *testing.T) {
	const window = time.Second + defaultMargin
	for _, tt := range []struct {
		name string
		then func(s *bench)
		want time.Duration
		save bool
	}{
		{"no state", func(s *bench) { s.b = Budget{} }, window, true},
		{"damaged state", func(s *bench) {
			if err := s.b.UnmarshalBinary([]byte{version, 3, 9}); !errors.Is(err, ErrEncoding) {
				s.t.Errorf("error %v", err)
			}
		}, window, true},
		{"asked for", func(s *bench) { s.b.Silence(s.cfg, s.now) }, window, false},
		{"the clock goes back an hour", func(s *bench) { s.now -= 3600 * second }, window, true},
		{"the clock goes back three seconds", func(s *bench) { s.now -= 3 * second }, window, true},
		{"the clock goes back 50 ms", func(s *bench) { s.now -= 50 * ms }, 0, false},
		{"nothing happens", func(*bench) {}, 0, false},
		{"nothing happens for a year", func(s *bench) { s.now += 365 * 86400 * second }, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newBench(t)
			s.settle(s.take(Urgent), Reply{Outcome: Answered})
			tt.then(s)
			turn := s.b.Next(s.cfg, s.now, Lanes{Bulk: true})
			if got := turn.At.Sub(s.now); got != tt.want || turn.Save != tt.save {
				t.Errorf("silent for %v, save %v; want %v, %v", got, turn.Save, tt.want, tt.save)
			}
			s.now = turn.At
			s.take(Bulk)
			s.checkWait(0)
		})
	}
}

// TestClockBack: a claim under way and a pause survive a clock that goes back.
func TestClockBack(t *testing.T) {
	s := newBench(t)
	claim, refused := s.take(Urgent), s.take(Urgent)
	s.settle(refused, Reply{Outcome: Throttled, RetryAfter: time.Minute})
	s.now -= 3600 * second
	s.checkWait(time.Minute)
	s.settle(claim, Reply{Outcome: Answered})
	s.now += 59 * second
	s.checkWait(time.Second)
}

func TestEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.end = epoch + 12*second
		w.limit = func(at Time) int { return 3 }
		w.run(t)
		want := w.budget
		data, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Budget
		later := append(bytes.Clone(data), "fields of a later program"...)
		seal(later)
		if err := got.UnmarshalBinary(later); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, allowUnexported); d != "" {
			t.Fatal(d)
		}
		again, err := got.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x, then %x (%v)", data, again, err)
		}
		for cut := 1; cut < len(data); cut++ {
			err := got.UnmarshalBinary(data[:cut])
			if !errors.Is(err, ErrEncoding) || got.seen != 0 || got.slots != nil {
				t.Fatalf("%d of %d bytes: %v, %+v", cut, len(data), err, got)
			}
			if cut < headerSize {
				continue
			}
			short := bytes.Clone(data[:cut])
			seal(short)
			if err := got.UnmarshalBinary(short); !errors.Is(err, ErrEncoding) || got.slots != nil {
				t.Fatalf("%d of %d bytes, sealed: %v", cut, len(data), err)
			}
		}
	})
}

// FuzzUnmarshal: whatever is stored, decisions can be made on it.
func FuzzUnmarshal(f *testing.F) {
	w := newWorld(8, "internet", 10*second, Urgent, Bulk)
	w.run(f)
	good, err := w.budget.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{version})
	f.Add([]byte{version + 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var b Budget
		if err := b.UnmarshalBinary(data); err != nil && !errors.Is(err, ErrEncoding) {
			t.Fatal(err)
		}
		turn := b.Next(Config{}, epoch, Lanes{Normal: true})
		b.Take(Config{}, epoch, turn, 1, epoch+11*second)
		b.Settle(Config{}, epoch+second, 1, Reply{Outcome: Throttled})
		b.Estimate(Config{}, epoch+second, Bulk, Backlog{Ahead: 3})
		b.Status(Config{}, epoch+second)
	})
}

// TestTakeRefuses: a decision that has become wrong takes nothing.
func TestTakeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(s *bench, turn Turn) bool
	}{
		{"claim zero", func(s *bench, turn Turn) bool { return s.b.Take(s.cfg, s.now, turn, 0, s.now+second) }},
		{"nobody's turn", func(s *bench, turn Turn) bool { return s.b.Take(s.cfg, s.now, Turn{}, 9, s.now+second) }},
		{"too early", func(s *bench, turn Turn) bool {
			turn.At++
			return s.b.Take(s.cfg, s.now, turn, 9, s.now+second)
		}},
		{"no slot is free any more", func(s *bench, turn Turn) bool {
			for range defaultRequests {
				s.take(Urgent)
			}
			return s.b.Take(s.cfg, s.now, turn, 9, s.now+second)
		}},
		{"held meanwhile", func(s *bench, turn Turn) bool {
			s.b.Hold()
			return s.b.Take(s.cfg, s.now, turn, 9, s.now+second)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newBench(t)
			if tt.take(s, s.b.Next(s.cfg, s.now, Lanes{Urgent: true})) {
				t.Error("taken")
			}
		})
	}
}

// TestNeverLeft: a request of which nothing was written costs no slot.
func TestNeverLeft(t *testing.T) {
	s := newBench(t)
	for range defaultRequests * 4 {
		s.settle(s.take(Urgent), Reply{Outcome: NeverLeft})
	}
	for range defaultRequests {
		s.settle(s.take(Urgent), Reply{Outcome: Answered, Trip: time.Microsecond})
	}
	if s.wait() < time.Second {
		t.Error("a sixth request leaves within the second")
	}
}

// TestLostEvidence: a lost request keeps its slot until its lease has ended and
// a window more; evidence that comes late frees it, and a settle after that, or
// of a slot that somebody else has, does nothing.
func TestLostEvidence(t *testing.T) {
	s := newBench(t)
	var claims []int64
	for range defaultRequests {
		claims = append(claims, s.take(Urgent))
	}
	s.now += 10 * second
	for _, c := range claims {
		s.settle(c, Reply{Outcome: Lost})
	}
	s.checkWait(2*time.Second + defaultMargin)
	s.settle(claims[0], Reply{Outcome: Answered, Ago: 400 * time.Millisecond})
	s.checkWait(600*time.Millisecond + defaultMargin)
	s.now += 5 * second
	for range defaultRequests {
		s.take(Urgent)
	}
	for _, c := range claims {
		if s.b.Settle(s.cfg, s.now, c, Reply{Outcome: Answered}) {
			t.Errorf("claim %d was settled though its slot is somebody else's", c)
		}
	}
}

// TestEvidenceBounds: a claimant that reports nonsense cannot free a slot before
// its request can have arrived.
func TestEvidenceBounds(t *testing.T) {
	s := newBench(t)
	for range defaultRequests {
		claim := s.take(Urgent)
		s.now += 100 * ms
		s.settle(claim, Reply{Outcome: Answered, Ago: time.Hour, Trip: 90 * time.Millisecond})
		s.now -= 100 * ms
	}
	s.checkWait(time.Second + 90*time.Millisecond + defaultMargin)
}

// TestAuto: AUTO moves to the transport's evidence when waiting for replies costs
// much, and a 429 brings replies back for an hour.
func TestAuto(t *testing.T) {
	evidence := func(w *world) Evidence { return w.budget.Status(w.cfg, w.now).Evidence }
	for profile, want := range map[string]Evidence{"internet": EvidenceReply, "slow": EvidenceTransport} {
		w := newWorld(9, profile, 120*second, Bulk)
		w.cfg.Evidence, w.acks = EvidenceAuto, true
		w.run(t)
		if got := evidence(w); got != want {
			t.Errorf("%s: evidence %d, want %d", profile, got, want)
		}
	}
	w := newWorld(9, "slow", 120*second, Bulk)
	w.cfg.Evidence, w.acks = EvidenceAuto, true
	w.limit = func(at Time) int {
		if at > w.end-400*ms {
			return 0
		}
		return 5
	}
	w.run(t)
	refused := w.end
	w.limit, w.end = nil, refused+3500*second
	w.run(t)
	if got := evidence(w); got != EvidenceReply {
		t.Errorf("evidence %d within the hour after a 429", got)
	}
	w.end = refused + 3700*second
	w.run(t)
	if got := evidence(w); got != EvidenceTransport {
		t.Errorf("evidence %d an hour after a 429", got)
	}
}

func TestClock(t *testing.T) {
	type look struct {
		sent, took time.Duration
		off        time.Duration // of the database's clock from its course
		jumped     bool
	}
	for _, tt := range []struct {
		name  string
		looks []look
	}{
		{"steady", []look{{0, 1, 0, false}, {time.Second, 1, 0, false}, {time.Hour, 1, 0, false}}},
		{"slow answers", []look{{0, 1, 0, false}, {time.Second, time.Second, 0, false}, {3 * time.Second, 1, 0, false}}},
		{"corrected slowly", []look{{0, 1, 0, false}, {time.Minute, 1, 30 * time.Millisecond, false}, {2 * time.Minute, 1, 60 * time.Millisecond, false}}},
		{"forward", []look{{0, 1, 0, false}, {time.Second, 1, 3 * time.Second, true}, {2 * time.Second, 1, 3 * time.Second, false}}},
		{"back", []look{{0, 1, 0, false}, {time.Second, 1, -50 * time.Millisecond, true}, {2 * time.Second, 1, -50 * time.Millisecond, false}}},
		{"forward while idle", []look{{0, 1, 0, false}, {time.Hour, 1, 10 * time.Second, true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c Clock
			for i, l := range tt.looks {
				db := epoch.Add(l.sent + l.took/2 + l.off)
				if got := c.Jumped(l.sent, l.sent+l.took, db); got != l.jumped {
					t.Errorf("look %d: jumped %v", i, got)
				}
			}
		})
	}
}

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		cfg Config
		ok  bool
	}{
		{Config{}, true},
		{Config{Requests: MaxRequests, Window: MaxWindow, Evidence: EvidenceAuto, LowerFloor: 2, Margin: time.Minute, FloorCap: time.Hour}, true},
		{Config{Requests: -1}, false},
		{Config{Requests: MaxRequests + 1}, false},
		{Config{Window: time.Millisecond}, false},
		{Config{Window: MaxWindow + 1}, false},
		{Config{Evidence: 3}, false},
		{Config{LowerFloor: 1}, false},
		{Config{LowerFloor: MaxLowerFloor + 1}, false},
		{Config{Margin: -1}, false},
		{Config{Margin: 2 * time.Second}, false},
		{Config{FloorCap: 2 * time.Second}, false},
	} {
		if err := tt.cfg.Validate(); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.cfg, err)
		}
	}
}
