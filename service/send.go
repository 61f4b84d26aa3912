package service

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// Bounds in time.
const (
	maxWaitWithoutID = time.Minute      // of a call that nobody could ask about later
	maxWait          = 10 * time.Minute // of any call
	maxAhead         = 30 * 24 * time.Hour
	queuedExpiry     = 24 * time.Hour // of a queued send that names none
	settleGrace      = 5 * time.Second
	lookUpEvery      = 100 * time.Millisecond
)

// A single is a request for one send: SendMessageRequest or SendNotificationRequest.
type single interface {
	GetBotId() string
	GetRequestId() string
	GetValidateOnly() bool
	GetMode() facadev1.SendOptions_Mode
	GetOptions() *facadev1.SendOptions
}

type messageServer struct {
	facadev1.UnimplementedMessageServiceServer
	*core
}

// SendMessage sends one message.
func (s *messageServer) SendMessage(ctx context.Context, r *facadev1.SendMessageRequest) (*facadev1.SendMessageResponse, error) {
	item := &facadev1.BatchItem{UserId: r.UserId, Content: &facadev1.BatchItem_Message{Message: r.Message}}
	send, err := s.sendOne(ctx, r, item)
	if err != nil {
		return nil, err
	}
	return &facadev1.SendMessageResponse{Send: send, Warnings: jelou.Warnings(item)}, nil
}

// sendOne is the path of every single send: stored, then waited for.
func (s *core) sendOne(ctx context.Context, r single, item *facadev1.BatchItem) (*facadev1.Send, error) {
	company, err := s.companyOf(ctx, r.GetBotId())
	if err != nil {
		return nil, err
	}
	requestID, err := requestIDOf(ctx, r)
	if err != nil {
		return nil, err
	}
	item, f := normalize(item)
	if f != nil {
		return nil, f
	}
	n, err := s.newSend(ctx, company.ID, r.GetBotId(), item, r.GetOptions(), facadev1.SendOptions_NORMAL)
	if err != nil {
		return nil, err
	}
	if n.DueAt != 0 && r.GetMode() != facadev1.SendOptions_QUEUE {
		return nil, invalidField("options.schedule_time", "needs mode QUEUE: nobody waits that long for an answer")
	}
	n.RequestID = requestID
	note(ctx, slog.String("company", company.Name), slog.String("kind", n.Kind))
	if r.GetValidateOnly() {
		return nil, nil
	}
	s.quotaHeaders(ctx, company)
	if r.GetMode() == facadev1.SendOptions_QUEUE {
		return s.queueOne(ctx, n)
	}
	return s.waitForOne(ctx, n, r.GetOptions())
}

// requestIDOf is the request_id of the body or of the Idempotency-Key header, and refuses a repeated attempt without one.
func requestIDOf(ctx context.Context, r single) (string, error) {
	id := r.GetRequestId()
	if header := first(metadata.ValueFromIncomingContext(ctx, headerIdempotencyKey)); header != "" {
		key := idempotencyKey(header)
		if !requestIDForm.MatchString(key) {
			return "", invalidField("request_id", "the Idempotency-Key header must be 1 to 128 letters, digits, dots, dashes or underscores")
		}
		if id != "" && id != key {
			return "", invalidField("request_id", "differs from the Idempotency-Key header; send one of them")
		}
		id = key
	}
	if r.GetValidateOnly() && id != "" {
		return "", invalidField("request_id", "must be empty with validate_only: nothing is stored that it could name")
	}
	return id, refuseRepeated(ctx, "send", "request_id", id)
}

// refuseRepeated refuses a repeated attempt at what has no request_id: the one before may have stored it.
func refuseRepeated(ctx context.Context, what, field, id string) error {
	if id != "" || !repeated(ctx) {
		return nil
	}
	return newFault(facadev1.ErrorReason_RETRY_WITHOUT_REQUEST_ID, "this is an automatic retry of a %s without request_id, which could send twice; set %s", what, field)
}

// idempotencyKey reads the header as an RFC 8941 string or bare.
func idempotencyKey(header string) string {
	if s, err := strconv.Unquote(header); err == nil && strings.HasPrefix(header, `"`) {
		return s
	}
	return header
}

// repeated reports whether gRPC's own retry or Envoy's says that this is not the first attempt.
func repeated(ctx context.Context) bool {
	for header, firstAttempt := range map[string]int{"grpc-previous-rpc-attempts": 0, "x-envoy-attempt-count": 1} {
		if n, err := strconv.Atoi(first(metadata.ValueFromIncomingContext(ctx, header))); err == nil && n > firstAttempt {
			return true
		}
	}
	return false
}

// newSend is the row of a normalised item.
func (s *core) newSend(ctx context.Context, company int64, botID string, item *facadev1.BatchItem, o *facadev1.SendOptions, lane facadev1.SendOptions_Lane) (ledger.NewSend, error) {
	body, err := proto.Marshal(&facadev1.BatchItem{UserId: item.UserId, Content: item.Content})
	if err != nil {
		return ledger.NewSend{}, err
	}
	if o.GetLane() != facadev1.SendOptions_LANE_UNSPECIFIED {
		lane = o.GetLane()
	}
	c := callerOf(ctx)
	if err := mayUseLane(c, lane); err != nil {
		return ledger.NewSend{}, err
	}
	n := ledger.NewSend{
		Company: company, Lane: ledger.Lane(lane), Caller: c.Name(), Weight: c.Weight(), DailyLimit: c.DailySends(),
		Bot: botID, Recipient: s.keys.Pseudonym(recipientOf(item)), Kind: kindOf(item), Body: s.keys.Seal(keyring.Body, body),
		OnUnknown: onUnknown[o.GetOnUnknown()], Traceparent: traceparentOf(ctx),
	}
	n.Hash, n.HashVersion = s.keys.Digest(hashVersion, contentHash(botID, item))
	if n.Labels, err = labelsOf(o); err != nil {
		return n, err
	}
	now := time.Now()
	if n.ExpireAt, err = future("options.expire_time", o.GetExpireTime(), now); err != nil {
		return n, err
	}
	if n.DueAt, err = future("options.schedule_time", o.GetScheduleTime(), now); err != nil {
		return n, err
	}
	if n.DueAt != 0 && n.ExpireAt != 0 && n.ExpireAt <= n.DueAt {
		return n, invalidField("options.expire_time", "must be after schedule_time")
	}
	return n, nil
}

// traceparentOf names the call's span, where it is recorded, for the attempts that will be linked to it.
func traceparentOf(ctx context.Context) string {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() || !span.SpanContext().IsSampled() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[headerTraceparent]
}

// labelsOf is the labels as they are stored.
func labelsOf(o *facadev1.SendOptions) (string, error) {
	if len(o.GetLabels()) == 0 {
		return "", nil
	}
	labels, err := json.Marshal(o.GetLabels())
	return string(labels), err
}

var onUnknown = map[facadev1.SendOptions_OnUnknown]ledger.OnUnknown{
	facadev1.SendOptions_HOLD: ledger.Hold, facadev1.SendOptions_RETRY: ledger.Retry, facadev1.SendOptions_FAIL: ledger.Fail,
}

// future is a time of the caller's in microseconds, checked; 0 when absent.
func future(field string, t *timestamppb.Timestamp, now time.Time) (int64, error) {
	if t == nil {
		return 0, nil
	}
	if err := t.CheckValid(); err != nil {
		return 0, invalidField(field, "is no valid time")
	}
	switch at := t.AsTime(); {
	case !at.After(now):
		return 0, invalidField(field, "must be in the future")
	case at.Sub(now) > maxAhead:
		return 0, invalidField(field, "must be at most 30 days ahead")
	default:
		return at.UnixMicro(), nil
	}
}

// queueOne answers once the send is durable.
func (s *core) queueOne(ctx context.Context, n ledger.NewSend) (*facadev1.Send, error) {
	if n.ExpireAt == 0 {
		start := time.Now()
		if n.DueAt != 0 {
			start = time.UnixMicro(n.DueAt)
		}
		n.ExpireAt = start.Add(queuedExpiry).UnixMicro()
	}
	expected, err := s.admit(ctx, n, time.Until(time.UnixMicro(n.ExpireAt)))
	if err != nil {
		return nil, err
	}
	row, _, err := s.add(ctx, n, expected)
	if err != nil {
		return nil, err
	}
	return s.toSend(ctx, row)
}

// waitForOne answers with the send's end, within the call's deadline. An error is answered only with the row's final state, so
// the row is expired before a caller is told that time is up; where that fails, it has been claimed, and nobody
// can say yet. Nor can anybody where the call joined the send of another one: that one's times count, and it goes on.
func (s *core) waitForOne(ctx context.Context, n ledger.NewSend, o *facadev1.SendOptions) (*facadev1.Send, error) {
	wait := waitOf(ctx, n.RequestID != "")
	n.ExpireIn, n.OwnerBound = s.startWithin(n.Company, wait), n.RequestID == ""
	wait = n.ExpireIn
	if o.GetExpireTime() != nil {
		wait = min(wait, time.Until(o.GetExpireTime().AsTime()))
	}
	expected, err := s.admit(ctx, n, wait)
	if err != nil {
		return nil, err
	}
	waiting, stop := context.WithTimeout(ctx, waitOf(ctx, n.RequestID != ""))
	defer stop()
	drained := make(chan struct{})
	defer close(drained)
	go func() {
		select {
		case <-s.stopping:
			stop()
		case <-drained:
		}
	}()
	for {
		row, joined, err := s.add(ctx, n, expected)
		if err != nil {
			return nil, err
		}
		id := row.ID
		if row, err = s.ledger.Wait(waiting, id); err != nil {
			return s.giveUp(ctx, id, joined)
		}
		if joined && row.State == ledger.Expired && waiting.Err() == nil && expiredWithOther(row, n) {
			continue // joined a send whose own caller left: it never left, so it starts again for this one
		}
		return s.answer(ctx, row)
	}
}

// expiredWithOther reports whether the row expired by somebody else's deadline rather than the send's own.
func expiredWithOther(row ledger.Send, n ledger.NewSend) bool {
	return n.ExpireAt == 0 || time.Now().UnixMicro() < n.ExpireAt
}

// waitOf is how long a call waits: to its deadline, less what the answer needs to reach the caller in time.
func waitOf(ctx context.Context, hasID bool) time.Duration {
	bound := maxWaitWithoutID
	if hasID {
		bound = maxWait
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return maxWaitWithoutID
	}
	left := time.Until(deadline)
	return min(bound, left-min(left/10, 50*time.Millisecond))
}

// add stores one send, which is expected to wait for so long, or finds and joins the one that it repeats.
func (s *core) add(ctx context.Context, n ledger.NewSend, expected time.Duration) (row ledger.Send, joined bool, err error) {
	if err := s.accepts(ctx); err != nil {
		return ledger.Send{}, false, err
	}
	added, err := s.ledger.Add(ctx, []ledger.NewSend{n})
	switch {
	case len(added) > 0 && added[0].Err != nil:
		s.dispatch.Added(n.Company, n.Lane, n.Caller, -1)
		return ledger.Send{}, false, added[0].Err
	case errors.Is(err, ledger.ErrUncertain):
		// The commit's answer was lost: the row is there or not, and only the row can say.
		touch(ctx, "", sendName(added[0].Send.ID))
		row, err = s.lookUp(ctx, added[0].Send.ID, err)
		return row, added[0].Joined, err
	case err != nil:
		return ledger.Send{}, false, err
	}
	touch(ctx, "", sendName(added[0].Send.ID))
	note(ctx, slog.String("send_id", added[0].Send.ID.String()), slog.Bool("joined", added[0].Joined))
	if added[0].Joined {
		s.dispatch.Check().Joined()
		s.dispatch.Added(n.Company, n.Lane, n.Caller, -1)
	} else {
		s.dispatch.Promised(added[0].Send.ID, expected)
	}
	return added[0].Send, added[0].Joined, nil
}

// lookUp finds out whether a send was stored, for as long as the call lasts.
func (s *core) lookUp(ctx context.Context, id ledger.ID, lost error) (ledger.Send, error) {
	for {
		row, err := s.ledger.FindAdded(ctx, id)
		switch {
		case errors.Is(err, ledger.ErrNotFound):
			return row, newFault(facadev1.ErrorReason_LEDGER_UNAVAILABLE, "the ledger's database was lost while it stored the send; nothing was sent").because(lost)
		case err == nil:
			if err = s.ledger.Confirm(ctx); err == nil {
				return row, nil
			}
		}
		select {
		case <-ctx.Done():
			return row, undecided(id).because(lost)
		case <-time.After(lookUpEvery):
		}
	}
}

// giveUp ends a wait whose time is up, whose caller left, or whose server stops: the row must not leave any more, or has left
// already. A request that is under way while the server stops is waited for. The row that a call joined is not its to end.
func (s *core) giveUp(ctx context.Context, id ledger.ID, joined bool) (*facadev1.Send, error) {
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleGrace)
	defer cancel()
	var row ledger.Send
	var expired bool
	var err error
	if joined {
		row, err = s.ledger.Get(settle, id)
	} else {
		row, expired, err = s.ledger.Expire(settle, id)
	}
	switch {
	case err != nil:
		// It is pending or under way, and its expire_time holds without us; but nobody can say which.
		return nil, undecided(id).because(err)
	case expired && s.drains():
		return nil, newFault(facadev1.ErrorReason_DRAINING, "the server stops; the send was not sent and is expired").with("send_id", id.String())
	case row.State == ledger.Sending:
		// While the server stops the call has its whole time, else the moment that was kept for the answer.
		if row, err = s.ledger.Wait(ctx, id); err != nil {
			return nil, undecided(id).because(err)
		}
	case !row.State.Final():
		return nil, undecided(id)
	}
	return s.answer(ctx, row)
}

// undecided says that the call is over before the send is.
func undecided(id ledger.ID) *fault {
	return newFault(facadev1.ErrorReason_OUTCOME_UNKNOWN, "the call's time was up before the send's end: it may have been sent, or may still be; GetSend tells what became of it").with("send_id", id.String())
}

// answer is what a waiting call gets for a row: the send when it is SENT, and the row's error otherwise.
func (s *core) answer(ctx context.Context, row ledger.Send) (*facadev1.Send, error) {
	send, err := s.toSend(ctx, row)
	if err != nil {
		return nil, err
	}
	if row.State == ledger.Sent {
		return send, nil
	}
	return nil, statusError{send.Error}
}
