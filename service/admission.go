package service

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// admit refuses a send that could not leave in time, or that finds too many before it, and otherwise says how long it will
// wait. A send that is there already is never refused: deduplication comes first. Nothing is locked for it, so the bounds
// are soft by the adds in flight.
func (s *core) admit(ctx context.Context, n ledger.NewSend, within time.Duration) (time.Duration, error) {
	refused, err := s.queueFull(ctx, n, 1)
	if err != nil {
		return 0, err
	}
	var wait time.Duration
	if n.DueAt != 0 {
		within = forever // its time comes when it comes
	}
	if refused == nil {
		var ok bool
		if wait, ok, err = s.dispatch.Admit(ctx, n.Company, n.Lane, n.Caller, within); err != nil || ok {
			return wait, err
		}
		refused = s.missesDeadline(n.Company, wait, within)
	}
	known, err := s.known(ctx, n)
	switch {
	case err != nil:
		return 0, err
	case known:
		s.dispatch.Added(n.Company, n.Lane, n.Caller, 1) // which add takes back
		return wait, nil
	}
	return 0, refused
}

// forever is longer than any wait.
const forever = math.MaxInt64

// admitItems is admit for items of one batch, which wait as long as it takes.
func (s *core) admitItems(ctx context.Context, items []ledger.NewSend) error {
	n := items[0]
	refused, err := s.queueFull(ctx, n, int64(len(items)))
	if err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	s.dispatch.Added(n.Company, n.Lane, n.Caller, len(items))
	return nil
}

// admitBatch is admitItems for a whole batch, which has to fit into its caller's day as well. One that is stored already is never
// refused. The day is counted by the ledger, with the items; here it only keeps a batch that cannot fit from being written.
func (s *core) admitBatch(ctx context.Context, b ledger.NewBatch, items []ledger.NewSend) error {
	var refused error
	if limit := callerOf(ctx).DailySends(); limit > 0 {
		refused = s.ledger.CheckQuota(ctx, b.Company, b.Caller, limit, int64(len(items)))
	}
	if refused == nil {
		refused = s.admitItems(ctx, items)
	}
	if refused == nil || b.RequestID == "" {
		return refused
	}
	stored, _, err := s.ledger.Batches(ctx, ledger.BatchFilter{Companies: []int64{b.Company}, Caller: b.Caller, RequestID: b.RequestID}, ledger.Cursor{}, 1)
	switch {
	case err != nil:
		return err
	case len(stored) == 0:
		return refused
	}
	s.dispatch.Added(b.Company, b.Lane, b.Caller, len(items)) // which CreateBatch takes back
	return nil
}

// missesDeadline says why a send cannot leave in time. Where Jelou refuses the company's credential that is it: the next probe tells
// more than any wait, and only an operator can do something about it.
func (s *core) missesDeadline(companyID int64, wait, within time.Duration) *fault {
	switch st := s.dispatch.Status(companyID); st.Pause {
	case pace.PausedRejected, pace.PausedMisconfigured:
		return newFault(pauseReasons[st.Pause], "Jelou refuses the company's credential, and what waits is not sent until an operator has replaced it; nothing was stored")
	}
	if wait > maxAhead {
		return newFault(facadev1.ErrorReason_WOULD_MISS_DEADLINE, "the company is held and nobody can say when it sends again; nothing was stored")
	}
	f := newFault(facadev1.ErrorReason_WOULD_MISS_DEADLINE, "the send's turn would come in about %s, too late for the call's deadline or its expire_time; nothing was stored", wait.Round(100*time.Millisecond))
	f.retryAfter = max(wait-within, minRetryAfter)
	return f.with("expected_wait", wait.Round(time.Millisecond).String())
}

// minRetryAfter keeps refused callers from coming back at once.
const minRetryAfter = 200 * time.Millisecond

// queueFull says when more sends may be stored, where too many wait already. What was counted a moment ago will do as long as every
// bound is far: to count anew for each send should not cost more than to store it.
func (s *core) queueFull(ctx context.Context, n ledger.NewSend, more int64) (*fault, error) {
	rough, err := s.waitingBounds(ctx, n, true)
	if err != nil || !slices.ContainsFunc(rough, func(b waitingBound) bool { return !b.far(more, s.dispatch.Replicas()) }) {
		return nil, err
	}
	counted, err := s.waitingBounds(ctx, n, false)
	if err != nil {
		return nil, err
	}
	for _, b := range counted {
		if over := b.waiting + more - b.most; over > 0 {
			f := newFault(facadev1.ErrorReason_QUEUE_FULL, "%d sends %s wait, and %d may; nothing was stored", b.waiting, b.of, b.most)
			f.retryAfter = min(max(s.dispatch.Drains(n.Company, over), minRetryAfter), maxRetryAfter)
			return f, nil
		}
	}
	return nil, nil
}

// waitingBound is how many sends of a kind wait, and how many may.
type waitingBound struct {
	of            string
	waiting, most int64
}

// far reports whether the bound is so far for one of so many replicas that it need not know what the others have just stored:
// each knows what it stored itself, so as long as none stores more than this they stay within the bound together.
func (b waitingBound) far(more, replicas int64) bool { return b.waiting+more <= b.most/(replicas+1) }

// waitingBounds are the bounds on a new send, by what was counted now, or roughly in the last two seconds.
func (s *core) waitingBounds(ctx context.Context, n ledger.NewSend, roughly bool) ([]waitingBound, error) {
	mine, inLane, all, err := s.dispatch.Waiting(ctx, n.Company, n.Lane, n.Caller, roughly)
	if err != nil {
		return nil, err
	}
	bounds := s.settings.Load().Bounds
	return slices.DeleteFunc([]waitingBound{
		{"of this caller in the lane", mine, orDefault(callerOf(ctx).MostWaiting(), bounds.Caller)},
		{"in the lane", inLane, bounds.Lane},
		{"of the company", all, bounds.Company},
	}, func(b waitingBound) bool { return b.most == 0 }), nil
}

// maxRetryAfter is for who waits behind a very long line: it may be cancelled, too.
const maxRetryAfter = 10 * time.Minute

// known reports whether the ledger has a send with this request_id. One that expired begins again, like a new one.
func (s *core) known(ctx context.Context, n ledger.NewSend) (bool, error) {
	if n.RequestID == "" {
		return false, nil
	}
	row, err := s.ledger.FindByRequestID(ctx, n.Company, n.Caller, n.RequestID)
	if errors.Is(err, ledger.ErrNotFound) {
		return false, nil
	}
	return err == nil && row.State != ledger.Expired, err
}

// startWithin is how soon a send has to leave whose caller waits for so long: what leaves later is answered to nobody.
func (s *core) startWithin(companyID int64, wait time.Duration) time.Duration {
	return wait - min(s.dispatch.Trip(companyID)+wait/unseenTrip, wait/2)
}

// unseenTrip is the part of a caller's time that is kept for a trip longer than any lately.
const unseenTrip = 8

// estimate is when a send that waits will leave, as far as one can say.
func (s *core) estimate(ctx context.Context, row ledger.Send) *timestamppb.Timestamp {
	if row.State == ledger.Scheduled {
		return timestamp(row.DueAt)
	}
	if row.State != ledger.Pending {
		return nil
	}
	before, err := s.ledger.Before(ctx, row)
	if err != nil {
		return nil
	}
	at := s.estimateAt(ctx, ledger.QueueID{Company: row.ID.Company, Queue: row.ID.Queue}, row.Lane, row.Caller, before)
	if due := timestamp(row.DueAt); row.Parked == ledger.Backoff && at != nil && at.AsTime().Before(due.AsTime()) {
		return due
	}
	return at
}

// estimateBatch is when the last item that waits will leave.
func (s *core) estimateBatch(ctx context.Context, b ledger.Batch) *timestamppb.Timestamp {
	if b.Counts.Pending == 0 || b.Paused {
		return nil
	}
	return s.estimateAt(ctx, b.ID, b.Lane, b.Caller, b.Counts.Pending-1)
}

func (s *core) estimateAt(ctx context.Context, queue ledger.QueueID, lane ledger.Lane, caller string, before int64) *timestamppb.Timestamp {
	wait, err := s.dispatch.EstimateAt(ctx, queue, lane, caller, before)
	if err != nil || wait > maxAhead {
		return nil // nobody can say
	}
	return timestamp(time.Now().Add(wait).UnixMicro())
}

// quotaHeaders tells the company's allowance as draft-ietf-httpapi-ratelimit-headers-10 writes it.
func (s *core) quotaHeaders(ctx context.Context, c *dispatch.Company) {
	st := s.dispatch.Status(c.ID)
	window := c.Pace.EachWindow()
	until := int64(1)
	if st.Pause != pace.NotPaused && st.PauseUntil != pace.Never {
		until = wholeSeconds(s.dispatch.Until(st.PauseUntil))
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs( // the headers are gone only when the call is
		headerRateLimitPolicy, fmt.Sprintf(`"jelou";q=%d;w=%d`, st.Allowed, wholeSeconds(window)),
		headerRateLimit, fmt.Sprintf(`"jelou";r=%d;t=%d`, st.Free, max(until, 1)),
	))
}
