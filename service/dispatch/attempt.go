package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const (
	// settleEvery is how often a settle is tried again while the database is away.
	settleEvery = 250 * time.Millisecond
	// settleFor is for how long. The send is unknown by then; the late evidence would still settle it.
	settleFor = 10 * time.Minute
)

// attempt sends one send, which was claimed from start to claimed, and settles it.
func (d *Dispatcher) attempt(work context.Context, t turn, send ledger.Send, start, claimed time.Time) {
	c := t.company
	work, span := d.traceAttempt(work, c, send, start, claimed)
	defer span.End()
	body, unopened := d.config.Open(send.Body)
	switch {
	case errors.Is(unopened, ErrKeyMissing):
		d.returnSealed(work, c, send)
		return
	case unopened != nil: // damaged
		d.log.Error("a stored send cannot be opened", slog.String("send_id", send.ID.String()), slog.Any("error", unopened))
	}
	result, err := d.request(work, t, send, body, start.Add(t.settings.attemptTimeout()))
	over := time.Now()
	timing := timingOf(result, err)
	d.metrics.noteAttempt(work, c.Name, over.Sub(start), err)
	d.check.attempted(c, send, timing)
	c.noteReply(start, timing, err)
	s := d.settlement(c, send, result, err, over)
	s.Pace = c.settlePace(send.Claim, result, err, over)
	d.settle(work, c, s, over, timing)
	c.landed(over, start, err == nil || err.Outcome != jelou.Unreachable)
	d.replan(c)
}

// request makes the one request; body is the send's, nil where it is damaged. A crash here leaves the send claimed: its lease lapses and it is unknown.
func (d *Dispatcher) request(work context.Context, t turn, send ledger.Send, body []byte, deadline time.Time) (result *jelou.Result, failed *jelou.Error) {
	ctx, cancel := context.WithDeadline(work, deadline)
	defer cancel()
	if ctx.Err() != nil {
		// The process was frozen for so long that the lease is as good as gone: nothing has left, and nothing will.
		return nil, &jelou.Error{Outcome: jelou.Unreachable, Reason: facadev1.ErrorReason_UPSTREAM_UNREACHABLE, Message: "the process was stopped before the request left"}
	}
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("panic in an attempt", slog.String("type", fmt.Sprintf("%T", p)), slog.String("stack", string(debug.Stack())))
			result, failed = nil, lostInside()
		}
	}()
	item := &facadev1.BatchItem{}
	err := proto.Unmarshal(body, item)
	if body == nil || err != nil {
		return nil, &jelou.Error{Outcome: jelou.Refused, Reason: facadev1.ErrorReason_INTERNAL, Message: "the stored send cannot be read"}
	}
	ctx, stop := d.watchAck(ctx, t.company, send.Claim)
	defer stop()
	traced, span := d.traceRequest(ctx, t.settings.Client, http.MethodPost)
	result, err = t.settings.Client.Send(traced, send.Bot, item)
	if err == nil {
		span.SetAttributes(semconv.HTTPResponseStatusCode(result.Status))
	}
	endRequest(span, err)
	if err == nil {
		return result, nil
	}
	if e, ok := errors.AsType[*jelou.Error](err); ok {
		return nil, e
	}
	return nil, lostInside() // not of the client's kinds: nobody can say how far it came
}

// returnSealed lets a send wait whose key this process has not got: it has not left, so that costs no attempt.
func (d *Dispatcher) returnSealed(work context.Context, c *company, send ledger.Send) {
	over := time.Now()
	wait, first := c.unopened(send.ID, over)
	if first {
		c.log.Warn("stored sends wait for a replica that has their key", slog.String("send_id", send.ID.String()))
	}
	s := ledger.Settlement{ID: send.ID, Claim: send.Claim, State: ledger.Pending, Reason: send.Reason, Uncounted: true, Backoff: wait}
	s.Pace = c.settlePace(send.Claim, nil, &jelou.Error{Outcome: jelou.Unreachable}, over)
	d.settle(work, c, s, over, jelou.Timing{})
	c.gaveBack()
	d.replan(c)
}

func lostInside() *jelou.Error {
	return &jelou.Error{Outcome: jelou.Unknown, Sent: true, Reason: facadev1.ErrorReason_OUTCOME_UNKNOWN, Message: "the facade failed while it sent"}
}

// watchAck asks for the transport's acknowledgement where the company's evidence may be that. Where the answer takes longer
// than half a window after it, the slot is told of it alone, so that a slow Jelou does not keep slots.
func (d *Dispatcher) watchAck(ctx context.Context, c *company, claim int64) (watching context.Context, stop func()) {
	rule := c.currentRule()
	if rule.Evidence == pace.EvidenceReply {
		return ctx, func() {}
	}
	var timer *time.Timer // set before the call returns, if at all
	told := make(chan struct{})
	watching = jelou.WithAck(ctx, func(at time.Time, trip time.Duration) {
		timer = time.AfterFunc(rule.EachWindow()/2, func() {
			defer close(told)
			d.updatePace(ctx, c, func(b *pace.Budget, now pace.Time) bool {
				return b.Acked(rule, now, claim, d.clock.ago(at, now, at), trip)
			})
			d.replan(c)
		})
	})
	return watching, func() {
		if timer != nil && !timer.Stop() {
			<-told
		}
	}
}

// unackedMost is how many replies without the acknowledgement that was asked for are taken for chance.
const unackedMost = 20

// noteReply notices how long it took, a credential that is refused and acknowledgements that do not come.
func (c *company) noteReply(start time.Time, t jelou.Timing, e *jelou.Error) {
	refused := e != nil && e.Outcome == jelou.Unauthorized
	var print [32]byte
	if read := c.settings.Load().Credential; refused && read != nil {
		print = fingerprint(read)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if refused {
		c.refused = print
	}
	if t.Trip > 0 {
		c.noteTrip(t.Seen.Sub(start))
	}
	switch {
	case c.rule.Evidence == pace.EvidenceReply || t.AckTrip > 0:
		c.unacked = 0
	case t.Trip > 0:
		if c.unacked++; c.unacked == unackedMost {
			c.log.Warn("evidence is not REPLY, but the connection's acknowledgements cannot be seen (a proxy, requests over 2 KiB on HTTP/1.1, or not on Linux): replies are used")
		}
	}
}

// paceOutcomes are the client's outcomes for a slot.
var paceOutcomes = map[jelou.Outcome]pace.Outcome{
	jelou.Refused: pace.Answered, jelou.Throttled: pace.Throttled, jelou.Unreachable: pace.NeverLeft,
	jelou.Unauthorized: pace.Rejected, jelou.Misconfigured: pace.Misconfigured, jelou.Unknown: pace.Lost,
}

func timingOf(r *jelou.Result, e *jelou.Error) jelou.Timing {
	if e != nil {
		return e.Timing
	}
	return r.Timing
}

// replyOf is what a slot learns of an attempt. An unreadable or 5xx answer is evidence of arrival too.
func replyOf(r *jelou.Result, e *jelou.Error, ago func(seen time.Time) time.Duration) pace.Reply {
	t := timingOf(r, e)
	reply := pace.Reply{Outcome: pace.Answered, Trip: t.Trip, AckTrip: t.AckTrip}
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
	if !t.Seen.IsZero() {
		reply.Ago = ago(t.Seen)
	}
	if !t.Acked.IsZero() {
		reply.AckAgo = ago(t.Acked)
	}
	return reply
}

// settlePace settles a slot under the company's lock, after the attempt was over.
func (c *company) settlePace(claim int64, r *jelou.Result, e *jelou.Error, over time.Time) func(now int64, state []byte) []byte {
	return func(now int64, state []byte) []byte {
		var b pace.Budget
		reply := replyOf(r, e, func(seen time.Time) time.Duration { return c.clock.ago(over, pace.Time(now), seen) })
		if b.UnmarshalBinary(state) != nil || !b.Settle(c.currentRule(), pace.Time(now), claim, reply) {
			return state
		}
		data := marshal(&b) // before others may read it
		c.saw(b)
		return data
	}
}

// updatePace changes a company's pacing state under its lock. It is for what may as well not happen: an error is logged.
func (d *Dispatcher) updatePace(ctx context.Context, c *company, update func(b *pace.Budget, now pace.Time) bool) {
	err := d.config.Ledger.UpdatePace(ctx, c.ID, func(now int64, state []byte) []byte {
		var b pace.Budget
		if b.UnmarshalBinary(state) != nil || !update(&b, pace.Time(now)) {
			return state
		}
		data := marshal(&b) // before others may read it
		c.saw(b)
		return data
	})
	if err != nil {
		c.log.Warn("update the pacing state", slog.Any("error", err))
	}
}

// settle tells the ledger. Only this process knows what became of the request, so it does not give up while the
// database is away, nor while its answers are lost: told twice, the ledger knows. The lease makes the send unknown meanwhile, and this settles it late.
func (d *Dispatcher) settle(work context.Context, c *company, s ledger.Settlement, over time.Time, t jelou.Timing) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(work), settleFor)
	defer cancel()
	ctx, span := d.traceSettle(ctx, s)
	defer span.End()
	log := c.log.With(slog.String("send_id", s.ID.String()))
	for first := true; ; first = false {
		s.SentAgo = -1
		if !t.Started.IsZero() {
			s.SentAgo = time.Since(t.Started)
		}
		_, err := d.config.Ledger.Settle(ctx, s)
		switch {
		case err == nil:
			return
		case errors.Is(err, ledger.ErrClaimLost):
			log.Warn("a send was settled otherwise before its answer came", slog.String("answer", string(s.State)))
			return
		case !errors.Is(err, ledger.ErrUnavailable) && !errors.Is(err, ledger.ErrUncertain) || ctx.Err() != nil || d.stopping.Load() && time.Since(over) > leaseGrace:
			log.Error("settle", slog.Any("error", err))
			return
		case first:
			log.Warn("settle waits for the ledger", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(settleEvery):
		}
	}
}
