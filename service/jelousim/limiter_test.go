package jelousim

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRateKinds sends at the given moments, in milliseconds, and compares which are let through.
func TestRateKinds(t *testing.T) {
	at := func(millis ...int) []int { return millis }
	for _, tc := range []struct {
		name       string
		rate       Rate
		at, passed []int
	}{
		{"none", Rate{}, at(0, 0, 0, 0), at(0, 0, 0, 0)},
		{"sliding: a burst, then as places fall free", Rate{Requests: 3}, at(0, 0, 100, 100, 999, 1000, 1000, 1000, 1100), at(0, 0, 100, 1000, 1000, 1100)},
		{"sliding: a boundary is no excuse", Rate{Requests: 3}, at(900, 950, 990, 1010, 1899, 1900), at(900, 950, 990, 1900)},
		{"sliding: a refused one does not count", Rate{Requests: 1}, at(0, 500, 999, 1000), at(0, 1000)},
		{"fixed: twice the rate across a boundary", Rate{Requests: 3, Kind: RateFixed}, at(900, 950, 990, 999, 1000, 1010, 1020, 1030), at(900, 950, 990, 1000, 1010, 1020)},
		{"bucket: burst, then one each 200 ms", Rate{Requests: 5, Kind: RateTokenBucket}, at(0, 0, 0, 0, 0, 0, 199, 200, 399, 400), at(0, 0, 0, 0, 0, 200, 400)},
		{"bucket: a smaller burst", Rate{Requests: 5, Kind: RateTokenBucket, Burst: 2}, at(0, 0, 0, 200, 300, 1000, 1000, 1000), at(0, 0, 200, 1000, 1000)},
		{"even", Rate{Requests: 5, Kind: RateEven}, at(0, 0, 199, 200, 350, 400, 900, 1000, 1100), at(0, 200, 400, 900, 1100)},
		{"another window", Rate{Requests: 1, Window: Duration(10 * time.Second)}, at(0, 9999, 10000), at(0, 10000)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := world()
				cfg.Rate = tc.rate
				s, passed, began := New(cfg), []int(nil), time.Now()
				for _, moment := range tc.at {
					time.Sleep(time.Until(began.Add(time.Duration(moment) * time.Millisecond)))
					if got := do(s, "POST", sendPath, hello); got.status == 200 {
						passed = append(passed, moment)
					} else if got.status != 429 {
						t.Fatalf("got %d %s", got.status, got.body)
					}
				}
				if diff := cmp.Diff(tc.passed, passed); diff != "" {
					t.Errorf("let through (-want +got):\n%s", diff)
				}
				r := s.Report()
				if r.Throttled != len(tc.at)-len(tc.passed) || r.Accepted != len(tc.passed) || r.Arrived != len(tc.at) {
					t.Errorf("report %+v", r)
				}
			})
		})
	}
}

func TestCredentialsHaveTheirOwnRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Rate = Rate{Requests: 1}
		cfg.Companies = append(cfg.Companies, Company{ClientID: "other", ClientSecret: "other", Bots: []Bot{{ID: "theirs"}}})
		s := New(cfg)
		wrong := func(r *http.Request) { r.SetBasicAuth("sandbox", "wrong") }
		other := func(r *http.Request) { r.SetBasicAuth("other", "other") }
		statuses := []int{
			do(s, "POST", sendPath, hello, wrong).status, // counts for the client id all the same
			do(s, "POST", sendPath, hello).status,
			do(s, "POST", "/v1/bots/theirs/messages", hello, other).status,
			do(s, "GET", "/v1/bots/theirs/templates", "", other).status, // reads count, too
		}
		if want := []int{401, 429, 200, 429}; !cmp.Equal(statuses, want) {
			t.Errorf("got %v, want %v", statuses, want)
		}
	})
}

func TestThrottledAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			rate             Rate
			retryAfter, body string
		}{
			{Rate{}, "", ""},
			{Rate{Body: DialectPlain}, "", "Too many requests\n"},
			{Rate{Body: DialectA, RetryAfter: RetryAfterSeconds}, "2", `{"code":"too_many_requests","description":"Too many requests"}`},
			{Rate{Body: DialectB, RetryAfter: RetryAfterDate}, time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat), `"statusMessage":"failed"`},
		} {
			tc.rate.Requests, tc.rate.Window = 1, Duration(1500*time.Millisecond)
			cfg := world()
			cfg.Rate = tc.rate
			s := New(cfg)
			do(s, "POST", sendPath, hello)
			got := do(s, "POST", sendPath, hello)
			if got.status != 429 || got.header.Get("Retry-After") != tc.retryAfter || !strings.Contains(got.body, tc.body) || tc.body == "" && got.body != "" {
				t.Errorf("%+v: got %d %v %q", tc.rate, got.status, got.header, got.body)
			}
		}
	})
}

func TestLimitIsHalvedWithoutNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Rate = Rate{Requests: 4}
		s := New(cfg)
		statuses := func(n int) (all []int) {
			for range n {
				all = append(all, do(s, "POST", sendPath, hello).status)
			}
			return all
		}
		if got, want := statuses(3), []int{200, 200, 200}; !cmp.Equal(got, want) {
			t.Errorf("before: %v", got)
		}
		if err := s.SetLimit(Rate{Requests: 2}); err != nil {
			t.Fatal(err)
		}
		if got, want := statuses(1), []int{429}; !cmp.Equal(got, want) { // three are in the window already
			t.Errorf("at once: %v, want %v", got, want)
		}
		time.Sleep(time.Second)
		if got, want := statuses(3), []int{200, 200, 429}; !cmp.Equal(got, want) {
			t.Errorf("in the next window: %v, want %v", got, want)
		}
		if err := s.SetLimit(Rate{Kind: "loose"}); err == nil {
			t.Error("an unknown kind was taken")
		}
	})
}

// TestEdgeAndBehind sends five requests 100 ms apart whose processing takes 50 to 1,000 ms. At the edge they arrive
// 100 ms apart; behind, when they are through, in another order perhaps, and the answer to a 429 takes as long.
func TestEdgeAndBehind(t *testing.T) {
	for _, behind := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			cfg := world()
			cfg.Seed = 1
			cfg.Rate = Rate{Requests: 3, Behind: behind}
			cfg.Processing = Processing{Min: Duration(50 * time.Millisecond), Max: Duration(time.Second)}
			s, began := New(cfg), time.Now()
			var all sync.WaitGroup
			var mu sync.Mutex
			quickest := time.Hour
			for range 5 {
				all.Go(func() {
					sent := time.Now()
					if got := do(s, "POST", sendPath, hello); got.status == 429 {
						mu.Lock()
						quickest = min(quickest, time.Since(sent))
						mu.Unlock()
					}
				})
				time.Sleep(100 * time.Millisecond)
			}
			all.Wait()
			var arrived []time.Duration
			for _, q := range s.Requests(0) {
				arrived = append(arrived, q.Arrived.Sub(began))
			}
			apart := []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 400 * time.Millisecond}
			if cmp.Equal(arrived, apart) == behind || !slices.IsSorted(arrived) {
				t.Errorf("behind %t: arrived at %v", behind, arrived)
			}
			if behind != (quickest >= 50*time.Millisecond) {
				t.Errorf("behind %t: a 429 came after %v", behind, quickest)
			}
		})
	}
}
