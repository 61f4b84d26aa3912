package jelousim

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// limiter counts the requests of one credential. It decides on what it is told; it never waits.
type limiter struct {
	admitted []time.Duration // sliding: what is still in the window
	window   time.Duration   // fixed: where the current window began
	used     int             // fixed: requests in it
	due      time.Duration   // bucket: when it would be full again (the theoretical arrival time of GCRA)
}

// admit tells whether a request that arrives now is within the rate, else how long it is until one would be.
// A refused request does not count against the rate.
func (l *limiter) admit(now time.Duration, r Rate) (wait time.Duration, ok bool) {
	if r.Requests == 0 {
		return 0, true
	}
	switch r.Kind {
	case RateFixed:
		wait = l.fixed(now, r)
	case RateTokenBucket:
		wait = l.bucket(now, r, r.Burst)
	case RateEven:
		wait = l.bucket(now, r, 1)
	default:
		wait = l.sliding(now, r)
	}
	return wait, wait <= 0
}

// sliding: windows are half-open, so a request exactly one window after another does not meet it.
func (l *limiter) sliding(now time.Duration, r Rate) time.Duration {
	gone := slices.IndexFunc(l.admitted, func(at time.Duration) bool { return now-at < time.Duration(r.Window) })
	if gone < 0 {
		gone = len(l.admitted)
	}
	l.admitted = slices.Delete(l.admitted, 0, gone)
	if over := len(l.admitted) - r.Requests; over >= 0 {
		return l.admitted[over] + time.Duration(r.Window) - now
	}
	l.admitted = append(l.admitted, now)
	return 0
}

func (l *limiter) fixed(now time.Duration, r Rate) time.Duration {
	if began := now.Truncate(time.Duration(r.Window)); began != l.window {
		l.window, l.used = began, 0
	}
	if l.used >= r.Requests {
		return l.window + time.Duration(r.Window) - now
	}
	l.used++
	return 0
}

func (l *limiter) bucket(now time.Duration, r Rate, burst int) time.Duration {
	n := time.Duration(r.Requests)
	each := (time.Duration(r.Window) + n - 1) / n // rounded up: never more than the rate
	due := max(l.due, now)
	if wait := due - time.Duration(burst-1)*each - now; wait > 0 {
		return wait
	}
	l.due = due + each
	return 0
}

// throttled is a 429.
func (r Rate) throttled(wait time.Duration) answer {
	a := tooManyRequests.in(r.Body)
	a.header = http.Header{}
	seconds := int64((wait + time.Second - 1) / time.Second)
	switch r.RetryAfter {
	case RetryAfterSeconds:
		a.header.Set("Retry-After", strconv.FormatInt(seconds, 10))
	case RetryAfterDate:
		at := time.Now().Add(wait + time.Second - 1).UTC() // a date has whole seconds: rounded up
		a.header.Set("Retry-After", at.Format(http.TimeFormat))
	}
	return a
}
