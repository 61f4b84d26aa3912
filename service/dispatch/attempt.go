package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const (
	// maxAttempts is how often a send is tried that never left, or that its caller wants retried when unknown.
	maxAttempts = 5
	// Backoff of a send that never left.
	backoffFirst = 500 * time.Millisecond
	backoffMost  = time.Minute
	// settleEvery is how often a settle is tried again while the database is away.
	settleEvery = 250 * time.Millisecond
	// settleFor is for how long. The send is unknown by then; the late evidence would still settle it.
	settleFor = 10 * time.Minute
)

// attempt sends one claimed send and settles it.
func (d *Dispatcher) attempt(work context.Context, c *company, send ledger.Send, leaseEnd time.Time) {
	result, err := d.request(work, c, send, leaseEnd)
	seen := time.Now()
	c.reached(err == nil || err.Outcome != jelou.Unreachable)
	s := d.settlement(send, result, err)
	reply, evidence := replyOf(result, err)
	s.Pace = func(now int64, state []byte) []byte {
		return c.settlePace(pace.Time(now), state, send.Claim, aged(reply, evidence))
	}
	d.settle(work, c, s, seen, timingOf(result, err))
	c.wakeAt(time.Now())
	d.nudge()
}

// request makes the one request. A crash here leaves the send claimed: its lease lapses and it is unknown.
func (d *Dispatcher) request(work context.Context, c *company, send ledger.Send, leaseEnd time.Time) (result *jelou.Result, failed *jelou.Error) {
	ctx, cancel := context.WithDeadline(work, leaseEnd.Add(-leaseGrace))
	defer cancel()
	if ctx.Err() != nil {
		// The process was frozen for so long that the lease is as good as gone: nothing has left, and nothing will.
		return nil, &jelou.Error{Outcome: jelou.Unreachable, Reason: facadev1.ErrorReason_UPSTREAM_UNREACHABLE, Message: "the process was stopped before the request left"}
	}
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("panic in an attempt", slog.String("type", fmt.Sprintf("%T", p)), slog.String("stack", string(debug.Stack())))
			result, failed = nil, &jelou.Error{Outcome: jelou.Unknown, Sent: true, Reason: facadev1.ErrorReason_OUTCOME_UNKNOWN, Message: "the facade failed while it sent"}
		}
	}()
	item := &facadev1.BatchItem{}
	if err := proto.Unmarshal(send.Body, item); err != nil {
		return nil, &jelou.Error{Outcome: jelou.Refused, Reason: facadev1.ErrorReason_INTERNAL, Message: "the stored send cannot be read"}
	}
	result, err := c.Client.Send(ctx, send.Bot, item)
	if err == nil {
		return result, nil
	}
	if e, ok := errors.AsType[*jelou.Error](err); ok {
		return nil, e
	}
	// Not of the client's kinds: nobody can say how far it came.
	return nil, &jelou.Error{Outcome: jelou.Unknown, Sent: true, Reason: facadev1.ErrorReason_OUTCOME_UNKNOWN, Message: "the facade failed while it sent"}
}

// settlement is what becomes of a send: three outcomes and not two, for what may have left is unknown.
func (d *Dispatcher) settlement(send ledger.Send, result *jelou.Result, e *jelou.Error) ledger.Settlement {
	s := ledger.Settlement{ID: send.ID, Claim: send.Claim}
	if e == nil {
		s.State, s.Result = ledger.Sent, d.config.Result(result)
		return s
	}
	s.State, s.Reason, s.Result = ledger.Failed, e.Reason.String(), d.config.Error(e)
	again := send.Attempt < maxAttempts
	switch e.Outcome {
	case jelou.Throttled:
		// It costs no attempt; the company waits, not the send.
		s.State, s.Uncounted = ledger.Pending, true
	case jelou.Unauthorized:
		// Somebody waits for a single send and must hear of it; a batch waits for the credential.
		if send.Batch {
			s.State, s.Uncounted = ledger.Pending, true
		}
	case jelou.Unreachable:
		if again {
			s.State, s.Backoff = ledger.Pending, backoff(send.Attempt)
		}
	case jelou.Unknown:
		switch {
		case send.OnUnknown == ledger.Hold, send.OnUnknown == ledger.Retry && !again:
			s.State = ledger.Unknown
		case send.OnUnknown == ledger.Retry:
			s.State, s.AfterLease = ledger.Pending, true
		}
	}
	if s.State == ledger.Pending {
		s.Result = nil
	}
	return s
}

// backoff grows with the attempts made, with full jitter on its upper half.
func backoff(attempts int) time.Duration {
	wait := min(backoffFirst<<min(max(attempts-1, 0), 10), backoffMost)
	return wait/2 + rand.N(wait/2)
}

// paceOutcomes are the client's outcomes for a slot.
var paceOutcomes = map[jelou.Outcome]pace.Outcome{
	jelou.Refused: pace.Answered, jelou.Throttled: pace.Throttled, jelou.Unreachable: pace.NeverLeft,
	jelou.Unauthorized: pace.Rejected, jelou.Misconfigured: pace.Rejected, jelou.Unknown: pace.Lost,
}

func timingOf(r *jelou.Result, e *jelou.Error) jelou.Timing {
	if e != nil {
		return e.Timing
	}
	return r.Timing
}

// replyOf is what a slot learns of an attempt, and when its evidence was seen. An unreadable or 5xx answer is
// evidence of arrival too.
func replyOf(r *jelou.Result, e *jelou.Error) (pace.Reply, jelou.Timing) {
	t := timingOf(r, e)
	reply := pace.Reply{Outcome: pace.Answered, Trip: t.Trip}
	if e != nil {
		reply.Outcome, reply.RetryAfter = paceOutcomes[e.Outcome], e.RetryAfter
		if reply.Outcome == pace.NeverLeft && e.Sent {
			reply.Outcome = pace.Lost // it was not processed, but Jelou may have counted it
		}
		if reply.Outcome == pace.Lost && !t.Seen.IsZero() {
			reply.Outcome = pace.Answered
			if t.Closed {
				reply.Outcome = pace.Closed
			}
		}
	}
	return reply, t
}

// aged fills in how long ago the evidence was seen, as late as possible.
func aged(r pace.Reply, t jelou.Timing) pace.Reply {
	if !t.Seen.IsZero() {
		r.Ago = time.Since(t.Seen)
	}
	return r
}

// settlePace settles a slot under the company's lock.
func (c *company) settlePace(now pace.Time, state []byte, claim int64, reply pace.Reply) []byte {
	var b pace.Budget
	if b.UnmarshalBinary(state) != nil || !b.Settle(c.Pace, now, claim, reply) {
		return state
	}
	c.saw(b, now)
	return marshal(&b)
}

// settle tells the ledger. Only this process knows what became of the request, so it does not give up while the
// database is away: the lease makes the send unknown meanwhile, and this settles it late.
func (d *Dispatcher) settle(work context.Context, c *company, s ledger.Settlement, seen time.Time, t jelou.Timing) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(work), settleFor)
	defer cancel()
	for first := true; ; first = false {
		s.SentAgo = -1
		if !t.Started.IsZero() {
			s.SentAgo = time.Since(t.Started)
		}
		_, err := d.config.Ledger.Settle(ctx, s)
		switch {
		case err == nil:
			return
		case !errors.Is(err, ledger.ErrUnavailable) || ctx.Err() != nil || d.stopping.Load() && time.Since(seen) > leaseGrace:
			d.log.Error("settle", slog.String("company", c.Name), slog.String("send_id", s.ID.String()), slog.Any("error", err))
			return
		case first:
			d.log.Warn("settle waits for the ledger", slog.String("company", c.Name), slog.String("send_id", s.ID.String()), slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(settleEvery):
		}
	}
}
