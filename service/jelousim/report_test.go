package jelousim

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestWorstWindowIsExact compares with counting from every moment at which a window can begin or change.
func TestWorstWindowIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		millis := rapid.SliceOfN(rapid.IntRange(0, 3000), 0, 60).Draw(t, "times")
		window := time.Duration(rapid.IntRange(1, 1500).Draw(t, "window"))
		slices.Sort(millis)
		times, want := []time.Duration{}, 0
		for _, m := range millis {
			times = append(times, time.Duration(m))
		}
		for begin := time.Duration(-1500); begin <= 3000; begin++ {
			n := 0
			for _, at := range times {
				if at >= begin && at < begin+window {
					n++
				}
			}
			want = max(want, n)
		}
		if got := worstWindow(times, window); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	})
}

func TestSlidingLimitHoldsForAnyTraffic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := Rate{Requests: rapid.IntRange(1, 7).Draw(t, "requests"), Kind: rapid.SampledFrom([]RateKind{RateSliding, RateFixed, RateTokenBucket, RateEven}).Draw(t, "kind")}.withDefaults()
		most := map[RateKind]int{RateSliding: rate.Requests, RateFixed: 2 * rate.Requests, RateTokenBucket: 2 * rate.Requests, RateEven: rate.Requests}
		var l limiter
		var now time.Duration
		var admitted []time.Duration
		for _, gap := range rapid.SliceOfN(rapid.IntRange(0, 400), 1, 100).Draw(t, "gaps") {
			now += time.Duration(gap) * time.Millisecond
			wait, ok := l.admit(now, rate)
			if ok {
				admitted = append(admitted, now)
				continue
			}
			// The wait that is told is exact.
			for later, want := range map[time.Duration]bool{wait - 1: false, wait: true} {
				copied := l
				copied.admitted = slices.Clone(l.admitted)
				if _, ok := copied.admit(now+later, rate); ok != want {
					t.Fatalf("told to wait %v: after %v let through is %t", wait, later, ok)
				}
			}
		}
		if got := worstWindow(admitted, time.Second); got > most[rate.Kind] {
			t.Fatalf("%s: %d in a window, at most %d", rate.Kind, got, most[rate.Kind])
		}
	})
}

func TestReportOfTheAllowance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Rate = Rate{Requests: 5}
		s := New(cfg)
		for range 20 { // all of it, in bursts
			for range 5 {
				do(s, "POST", sendPath, hello)
			}
			time.Sleep(time.Second)
		}
		c := s.Report().Credentials[0]
		if c.Used != 1 || c.WorstWindow != 5 || c.WorstAdmitted != 5 || time.Duration(c.Busy) != 19*time.Second || c.Credential != "sandbox" {
			t.Errorf("bursts: %+v", c)
		}
		s.Reset()
		for range 101 { // half of it, evenly
			do(s, "POST", sendPath, hello)
			time.Sleep(400 * time.Millisecond)
		}
		if c = s.Report().Credentials[0]; c.Used < 0.49 || c.Used > 0.5 || c.WorstWindow != 3 {
			t.Errorf("half: %+v", c)
		}
		s.Reset()
		for range 8 { // too many at once
			do(s, "POST", sendPath, hello)
		}
		r := s.Report()
		if c = r.Credentials[0]; r.WorstWindow != 8 || c.WorstWindow != 8 || c.WorstAdmitted != 5 || c.Admitted != 5 || r.Throttled != 3 || r.Outcomes[Throttled] != 3 {
			t.Errorf("too many: %+v", r)
		}
	})
}
