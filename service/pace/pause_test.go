package pace

import (
	"fmt"
	"testing"
	"time"
)

// TestThrottled: a limit that is halved without notice, and a spell in which all
// is refused, cost no more than one 429 for each slot; nothing more leaves than
// Jelou takes, and soon all that it takes.
func TestThrottled(t *testing.T) {
	const at = epoch + 20*second
	none := func(length Time) func(Time) int {
		return func(now Time) int {
			if now >= at && now < at+length {
				return 0
			}
			return 5
		}
	}
	halved := func(now Time) int {
		if now < at {
			return 5
		}
		return 2
	}
	fifth := func(now Time) int {
		if now < at {
			return 5
		}
		return 1
	}
	for _, tt := range []struct {
		name  string
		limit func(Time) int
		rate  float64
		over  Time // when Jelou takes that rate again
		most  int  // refused
	}{
		{"halved", halved, 2, at, 5},
		// Taking one could be even spacing, and that is tried first.
		{"to a fifth", fifth, 1, at, 6},
		{"refused for 200 ms", none(200 * ms), 5, at + 200*ms, 5},
		{"refused for a second", none(second), 5, at + second, 5},
	} {
		for _, profile := range []string{"near", "internet"} {
			for _, lane := range []Lane{Urgent, Bulk} {
				t.Run(fmt.Sprintf("%s, %s, lane %d", tt.name, profile, lane), func(t *testing.T) {
					w := newWorld(6, profile, 45*second, lane)
					w.limit = tt.limit
					w.run(t)
					if len(w.refused) > tt.most {
						t.Errorf("%d refused, want at most %d", len(w.refused), tt.most)
					}
					taken := 0
					for _, a := range w.accepted {
						if a >= tt.over+2*second && a < tt.over+12*second {
							taken++
						}
					}
					if rate := float64(taken) / 10; rate < 0.9*tt.rate {
						t.Errorf("%.1f a second after two seconds, want %.1f", rate, tt.rate)
					}
				})
			}
		}
	}
}

// TestRaise: an allowance that was learned is tried again, one at a time, less
// often each time that it proves right, and is forgotten when it does not.
func TestRaise(t *testing.T) {
	const from = epoch + 10*second
	for _, tt := range []struct {
		name    string
		until   Time
		refused int
		rate    float64
	}{
		{"for good", Never, 11, 3},
		{"for a minute", from + 60*second, 5, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(7, "internet", 1800*second, Bulk)
			w.limit = func(now Time) int {
				if now >= from && now < tt.until {
					return 3
				}
				return 5
			}
			w.run(t)
			if len(w.refused) > tt.refused {
				t.Errorf("%d refused in half an hour, want at most %d", len(w.refused), tt.refused)
			}
			taken := 0
			for _, a := range w.accepted {
				if a > w.end-60*second {
					taken++
				}
			}
			if rate := float64(taken) / 60; rate < 0.93*tt.rate {
				t.Errorf("%.2f a second in the last minute, want %.0f", rate, tt.rate)
			}
		})
	}
}

// TestSpaced: a Jelou that takes requests only evenly spaced is found out, and soon
// gets nearly as many as it takes; whether it still wants that is tried less and less often.
func TestSpaced(t *testing.T) {
	for _, profile := range []string{"near", "internet", "lossy"} {
		for _, lane := range []Lane{Urgent, Bulk} {
			t.Run(fmt.Sprintf("%s, lane %d", profile, lane), func(t *testing.T) {
				w := newWorld(8, profile, 1800*second, lane)
				w.limit = func(Time) int { return defaultRequests }
				w.apart = second / defaultRequests
				w.run(t)
				if len(w.refused) > 20 {
					t.Errorf("%d refused in half an hour, want at most 20", len(w.refused))
				}
				taken := 0
				for _, a := range w.accepted {
					if a > w.end-300*second {
						taken++
					}
				}
				if share := float64(taken) / 300 / defaultRequests; share < 0.9 {
					t.Errorf("%.3f of what Jelou takes, want 0.9", share)
				}
			})
		}
	}
}

// bench is a Budget past its silent window, for tests that look at single steps.
type bench struct {
	t     *testing.T
	cfg   Config
	b     Budget
	now   Time
	claim int64
}

func newBench(t *testing.T) *bench {
	s := &bench{t: t, now: epoch}
	s.b.Next(s.cfg, s.now, Lanes{})
	s.now += 2 * second
	return s
}

// take takes a slot now and returns the claim.
func (s *bench) take(l Lane) int64 {
	s.t.Helper()
	var waiting Lanes
	waiting[l] = true
	s.claim++
	turn := s.b.Next(s.cfg, s.now, waiting)
	if !s.b.Take(s.cfg, s.now, turn, s.claim, s.now+11*second) {
		s.t.Fatalf("no request may leave for %v", turn.At.Sub(s.now))
	}
	return s.claim
}

func (s *bench) settle(claim int64, r Reply) {
	s.t.Helper()
	if !s.b.Settle(s.cfg, s.now, claim, r) {
		s.t.Fatalf("claim %d holds no slot", claim)
	}
}

// wait is how long nothing leaves.
func (s *bench) wait() time.Duration {
	return s.b.Next(s.cfg, s.now, Lanes{Urgent: true}).At.Sub(s.now)
}

func (s *bench) checkWait(want time.Duration) {
	s.t.Helper()
	if got := s.wait(); got != want {
		s.t.Errorf("nothing leaves for %v, want %v", got, want)
	}
}

// TestPauses: how long a company is silent after each outcome of a request.
func TestPauses(t *testing.T) {
	const widened = 15 * time.Millisecond // the margin and the first widening
	for _, tt := range []struct {
		name  string
		reply Reply
		want  time.Duration
		why   Pause
	}{
		{"answered", Reply{Outcome: Answered}, 0, NotPaused},
		{"never left", Reply{Outcome: NeverLeft}, 0, NotPaused},
		{"lost", Reply{Outcome: Lost}, 0, NotPaused},
		{"closed", Reply{Outcome: Closed}, 0, NotPaused},
		{"429", Reply{Outcome: Throttled}, time.Second + 5*time.Millisecond, PausedThrottled},
		{"429 seen 300 ms ago", Reply{Outcome: Throttled, Ago: 300 * time.Millisecond}, 705 * time.Millisecond, PausedThrottled},
		{"429 with a short Retry-After", Reply{Outcome: Throttled, RetryAfter: time.Millisecond}, 1005 * time.Millisecond, PausedThrottled},
		{"429 with Retry-After", Reply{Outcome: Throttled, RetryAfter: 7 * time.Second}, 7 * time.Second, PausedThrottled},
		{"429 with an absurd Retry-After", Reply{Outcome: Throttled, RetryAfter: 24 * time.Hour}, 10 * time.Minute, PausedThrottled},
		{"rejected", Reply{Outcome: Rejected}, 5 * time.Second, PausedRejected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newBench(t)
			claim := s.take(Urgent)
			s.now += 400 * ms
			s.settle(claim, tt.reply)
			s.checkWait(tt.want)
			st := s.b.Status(s.cfg, s.now)
			if st.Pause != tt.why || (tt.why != NotPaused) != (st.Free == 0) {
				t.Errorf("status %+v, want pause %d", st, tt.why)
			}
			if tt.why == PausedThrottled && st.Margin != widened {
				t.Errorf("margin %v, want %v", st.Margin, widened)
			}
			if s.b.Settle(s.cfg, s.now, claim, Reply{Outcome: Throttled}) && tt.reply.Outcome != Lost {
				t.Error("a claim was settled twice")
			}
		})
	}
}

// TestProbe: one request goes first after a pause; the rest follow its answer.
func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply Reply
		want  time.Duration
	}{
		{"answered", Reply{Outcome: Answered}, 0},
		{"never left", Reply{Outcome: NeverLeft}, 0},
		{"lost", Reply{Outcome: Lost}, time.Second},
		{"closed", Reply{Outcome: Closed}, time.Second},
		{"refused again", Reply{Outcome: Throttled}, 1015 * time.Millisecond},
		{"rejected", Reply{Outcome: Rejected}, 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newBench(t)
			first, other := s.take(Urgent), s.take(Urgent)
			s.settle(first, Reply{Outcome: Throttled})
			s.settle(other, Reply{Outcome: Throttled}) // under way when the pause began
			if m := s.b.Status(s.cfg, s.now).Margin; m != 15*time.Millisecond {
				t.Errorf("margin %v: the second 429 of one pause widened it again", m)
			}
			s.now = s.now.Add(s.wait())
			probe := s.take(Urgent)
			s.checkWait(11 * time.Second) // until the probe's lease
			s.now += 100 * ms
			s.settle(probe, tt.reply)
			s.now = s.now.Add(tt.want)
			if tt.want > 0 && s.wait() != 0 || tt.want == 0 && s.wait() > 200*time.Millisecond {
				t.Errorf("the next leaves after another %v", s.wait())
			}
			next := s.take(Urgent)
			if st := s.b.Status(s.cfg, s.now); st.Probing == (tt.reply.Outcome == Answered) {
				t.Errorf("claim %d: %+v", next, st)
			}
		})
	}
	t.Run("its claimant dies", func(t *testing.T) {
		s := newBench(t)
		s.settle(s.take(Urgent), Reply{Outcome: Throttled})
		s.now = s.now.Add(s.wait())
		s.take(Urgent)
		s.now = s.now.Add(s.wait())
		s.take(Urgent)
		if !s.b.Status(s.cfg, s.now).Probing {
			t.Error("the request after a dead probe is none")
		}
	})
}

// TestRejectedBackoff: the pause of a rejected credential doubles up to five
// minutes; a new credential ends it.
func TestRejectedBackoff(t *testing.T) {
	s := newBench(t)
	for _, want := range []int{5, 10, 20, 40, 80, 160, 300, 300} {
		s.settle(s.take(Urgent), Reply{Outcome: Rejected})
		s.checkWait(time.Duration(want) * time.Second)
		s.now = s.now.Add(s.wait())
	}
	s.settle(s.take(Urgent), Reply{Outcome: Rejected})
	s.b.Resume(s.now)
	s.checkWait(0)
	s.settle(s.take(Urgent), Reply{Outcome: Answered})
	if st := s.b.Status(s.cfg, s.now); st.Pause != NotPaused || st.Probing {
		t.Errorf("%+v after a probe was answered", st)
	}
}

func TestHold(t *testing.T) {
	s := newBench(t)
	claim := s.take(Urgent)
	s.b.Hold()
	s.settle(claim, Reply{Outcome: Answered})
	if turn := s.b.Next(s.cfg, s.now, Lanes{Urgent: true}); turn.At != Never {
		t.Errorf("held, but something leaves at %d", turn.At)
	}
	if st := s.b.Status(s.cfg, s.now); st.Pause != PausedHeld || st.PauseUntil != Never {
		t.Errorf("%+v", st)
	}
	if at := s.b.Estimate(s.cfg, s.now, Urgent, Backlog{}); at != Never {
		t.Errorf("held, but estimated for %d", at)
	}
	s.b.Resume(s.now)
	s.checkWait(0)
}

// TestMarginNarrows: a margin widened by a 429 halves every minute.
func TestMarginNarrows(t *testing.T) {
	s := newBench(t)
	s.settle(s.take(Urgent), Reply{Outcome: Throttled})
	for _, want := range []time.Duration{15000, 10000, 7500, 6250} {
		if m := s.b.Status(s.cfg, s.now).Margin; m != want*time.Microsecond {
			t.Errorf("margin %v, want %v", m, want*time.Microsecond)
		}
		s.now += 60 * second
	}
	s.now += 3600 * second
	if m := s.b.Status(s.cfg, s.now).Margin; m != 5*time.Millisecond {
		t.Errorf("margin %v after an hour", m)
	}
}
