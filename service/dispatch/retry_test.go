package dispatch

import (
	"testing"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

func newTestDispatcher(companies ...*Company) *Dispatcher {
	return New(Config{
		Companies: companies,
		Result:    func(r *jelou.Result) []byte { return []byte("result") }, Error: func(e *jelou.Error) []byte { return []byte("error") },
	})
}

func TestSettlement(t *testing.T) {
	unknown := facadev1.ErrorReason_OUTCOME_UNKNOWN.String()
	outcome := func(o jelou.Outcome, r facadev1.ErrorReason) *jelou.Error { return &jelou.Error{Outcome: o, Reason: r} }
	throttled := outcome(jelou.Throttled, facadev1.ErrorReason_UPSTREAM_RATE_LIMITED)
	unauthorized := outcome(jelou.Unauthorized, facadev1.ErrorReason_JELOU_UNAUTHORIZED)
	unreachable := outcome(jelou.Unreachable, facadev1.ErrorReason_UPSTREAM_UNREACHABLE)
	lost := outcome(jelou.Unknown, facadev1.ErrorReason_OUTCOME_UNKNOWN)
	refused := outcome(jelou.Refused, facadev1.ErrorReason_BOT_NOT_FOUND)
	for _, c := range []struct {
		name      string
		send      ledger.Send
		err       *jelou.Error
		state     ledger.State
		reason    string
		uncounted bool
		backoff   bool
		lease     bool
	}{
		{name: "sent", send: ledger.Send{Attempt: 1}, state: ledger.Sent},
		{name: "refused", send: ledger.Send{Attempt: 1}, err: refused, state: ledger.Failed, reason: "BOT_NOT_FOUND"},
		{name: "429 costs nothing", send: ledger.Send{Attempt: maxAttempts}, err: throttled, state: ledger.Pending, reason: "UPSTREAM_RATE_LIMITED", uncounted: true},
		{name: "credential, single", send: ledger.Send{Attempt: 1}, err: unauthorized, state: ledger.Failed, reason: "JELOU_UNAUTHORIZED"},
		{name: "credential, batch", send: ledger.Send{Attempt: 1, Batch: true}, err: unauthorized, state: ledger.Pending, reason: "JELOU_UNAUTHORIZED", uncounted: true},
		{name: "never left", send: ledger.Send{Attempt: 1}, err: unreachable, state: ledger.Pending, reason: "UPSTREAM_UNREACHABLE", backoff: true},
		{name: "never left, last", send: ledger.Send{Attempt: maxAttempts}, err: unreachable, state: ledger.Failed, reason: "UPSTREAM_UNREACHABLE"},
		{name: "lost, HOLD", send: ledger.Send{Attempt: 1}, err: lost, state: ledger.Unknown, reason: unknown},
		{name: "lost, FAIL", send: ledger.Send{Attempt: 1, OnUnknown: ledger.Fail}, err: lost, state: ledger.Failed, reason: unknown},
		{name: "lost, RETRY", send: ledger.Send{Attempt: 1, OnUnknown: ledger.Retry}, err: lost, state: ledger.Pending, reason: unknown, backoff: true, lease: true},
		{name: "lost, RETRY, last", send: ledger.Send{Attempt: maxAttempts, OnUnknown: ledger.Retry}, err: lost, state: ledger.Unknown, reason: unknown},
		// What may have been sent by an earlier attempt does not become surely unsent by a later one.
		{name: "lost, then never left", send: ledger.Send{Attempt: 2, OnUnknown: ledger.Retry, Reason: unknown}, err: unreachable, state: ledger.Pending, reason: unknown, backoff: true},
		{name: "lost, then never left, last", send: ledger.Send{Attempt: maxAttempts, OnUnknown: ledger.Retry, Reason: unknown}, err: unreachable, state: ledger.Unknown, reason: unknown},
		{name: "lost, then refused", send: ledger.Send{Attempt: 2, OnUnknown: ledger.Retry, Reason: unknown}, err: refused, state: ledger.Unknown, reason: unknown},
		{name: "lost, then credential, single", send: ledger.Send{Attempt: 2, OnUnknown: ledger.Retry, Reason: unknown}, err: unauthorized, state: ledger.Unknown, reason: unknown},
		{name: "lost, then credential, batch", send: ledger.Send{Attempt: 2, Batch: true, OnUnknown: ledger.Retry, Reason: unknown}, err: unauthorized, state: ledger.Pending, reason: unknown, uncounted: true},
		{name: "lost, then 429", send: ledger.Send{Attempt: 2, OnUnknown: ledger.Retry, Reason: unknown}, err: throttled, state: ledger.Pending, reason: unknown, uncounted: true},
		{name: "lost, then sent", send: ledger.Send{Attempt: 2, OnUnknown: ledger.Retry, Reason: unknown}, state: ledger.Sent},
	} {
		company := &Company{ID: 1}
		d := newTestDispatcher(company)
		var result *jelou.Result
		if c.err == nil {
			result = &jelou.Result{}
		}
		s := d.settlement(d.all()[1], c.send, result, c.err, time.Now())
		if s.State != c.state || s.Reason != c.reason || s.Uncounted != c.uncounted || (s.Backoff > 0) != c.backoff || s.AfterLease != c.lease {
			t.Errorf("%s: %+v", c.name, s)
		}
		if (s.Result != nil) != (s.State == ledger.Sent || s.State == ledger.Failed || s.State == ledger.Unknown && c.send.Reason == "") {
			t.Errorf("%s: result %q of a send that is %s", c.name, s.Result, s.State)
		}
	}
}

func TestBackoff(t *testing.T) {
	most := time.Duration(0)
	for attempts := 1; attempts < 30; attempts++ {
		for range 50 {
			wait, longest := backoff(attempts), min(backoffFirst<<min(attempts-1, 20), backoffMost)
			if wait < longest/2 || wait > longest {
				t.Fatalf("backoff after %d attempts is %v, longest %v", attempts, wait, longest)
			}
			most = max(most, wait)
		}
	}
	if most < backoffMost/2 {
		t.Errorf("the backoff grows to %v only", most)
	}
}

// TestRepeatShare asks for many repeats at once: no more of them get a place than a fifth of the allowance.
func TestRepeatShare(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		d := newTestDispatcher(&Company{ID: 1, Pace: pace.Config{Requests: 10, Window: time.Second}})
		now := time.Now()
		in := 0
		const minute = 60
		for range 1000 {
			if d.all()[1].repeatIn(now, replicas) <= minute*time.Second {
				in++
			}
		}
		if share := minute * 10 / repeatShare / replicas; in < share || in > share+repeatBurst+1 {
			t.Errorf("%d repeats in a minute for one of %d replicas, want %d", in, replicas, share)
		}
	}
}

func TestReplyOf(t *testing.T) {
	seen := time.Now()
	ago := func(at time.Time) time.Duration { return time.Minute + seen.Sub(at) }
	for _, c := range []struct {
		name string
		err  *jelou.Error
		want pace.Reply
	}{
		{"answered", nil, pace.Reply{Outcome: pace.Answered, Ago: time.Minute, Trip: time.Second}},
		{"throttled", &jelou.Error{Outcome: jelou.Throttled, RetryAfter: time.Hour}, pace.Reply{Outcome: pace.Throttled, Ago: time.Minute, Trip: time.Second, RetryAfter: time.Hour}},
		{"5xx is evidence", &jelou.Error{Outcome: jelou.Unknown, Sent: true}, pace.Reply{Outcome: pace.Answered, Ago: time.Minute, Trip: time.Second}},
		{"no company", &jelou.Error{Outcome: jelou.Misconfigured, Sent: true}, pace.Reply{Outcome: pace.Misconfigured, Ago: time.Minute, Trip: time.Second}},
		{"refused credential", &jelou.Error{Outcome: jelou.Unauthorized, Sent: true}, pace.Reply{Outcome: pace.Rejected, Ago: time.Minute, Trip: time.Second}},
	} {
		timing := jelou.Timing{Started: seen.Add(-time.Second), Seen: seen, Trip: time.Second}
		result := &jelou.Result{Timing: timing}
		if c.err != nil {
			c.err.Timing, result = timing, nil
		}
		if got := replyOf(result, c.err, ago); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	closed := &jelou.Error{Outcome: jelou.Unknown, Sent: true, Timing: jelou.Timing{Seen: seen, Closed: true}}
	if got := replyOf(nil, closed, ago); got.Outcome != pace.Closed {
		t.Errorf("a closed connection is %+v", got)
	}
	silent := &jelou.Error{Outcome: jelou.Unknown, Sent: true}
	if got := replyOf(nil, silent, ago); got != (pace.Reply{Outcome: pace.Lost}) {
		t.Errorf("a timeout is %+v", got)
	}
	counted := &jelou.Error{Outcome: jelou.Unreachable, Sent: true}
	if got := replyOf(nil, counted, ago); got.Outcome != pace.Lost {
		t.Errorf("what was written and not processed is %+v", got)
	}
	acked := &jelou.Result{Timing: jelou.Timing{Seen: seen, Trip: time.Second, Acked: seen.Add(-time.Second), AckTrip: time.Millisecond}}
	if got := replyOf(acked, nil, ago); got.AckAgo != time.Minute+time.Second || got.AckTrip != time.Millisecond {
		t.Errorf("an acknowledgement is %+v", got)
	}
}
