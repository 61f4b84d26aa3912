package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// jelouFault is the row of the table for an error of the upstream client.
func jelouFault(e *jelou.Error) *fault {
	f := &fault{reason: e.Reason, message: e.Message, retryAfter: e.RetryAfter, cause: errors.Unwrap(e)}
	for _, v := range e.Fields {
		f.fields = append(f.fields, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
	}
	if e.Status != 0 {
		f = f.with("jelou_status", fmt.Sprint(e.Status))
	}
	if e.Reason == facadev1.ErrorReason_UPSTREAM_REFUSED {
		f.code = canonicalCode(e.Status)
	}
	if e.Outcome == jelou.Refused && e.Status != 0 {
		f.domain = domainJelou
	}
	return f.with("jelou_code", e.Code)
}

// canonicalCode is the gRPC code of a refusal that has only an HTTP status. A refusal inside HTTP 200 says that the
// state of things forbids the send, hence FAILED_PRECONDITION.
func canonicalCode(httpStatus int) codes.Code {
	switch httpStatus {
	case 400, 405, 411, 413, 414, 415, 422:
		return codes.InvalidArgument
	case 401:
		return codes.Unauthenticated
	case 402, 403:
		return codes.PermissionDenied
	case 404, 410:
		return codes.NotFound
	case 409:
		return codes.Aborted
	default:
		return codes.FailedPrecondition
	}
}

// storedError is the error of a refused or lost attempt, as it is kept with the send: the same for the caller who
// waits, for GetSend and for a batch's results.
func (s *core) storedError(e *jelou.Error) []byte {
	return s.sealedResult(&facadev1.Send{Error: jelouFault(e).GRPCStatus().Proto()})
}

// storedResult is what Jelou answered to an accepted send, as it is kept with it.
func (s *core) storedResult(r *jelou.Result) []byte {
	return s.sealedResult(&facadev1.Send{MessageId: r.MessageID, Notifications: r.Notifications, Warnings: r.Warnings})
}

func (s *core) sealedResult(m *facadev1.Send) []byte {
	return s.keys.Seal(keyring.Result, mustMarshal(m))
}

// mustMarshal writes a message whose strings are known to be UTF-8.
func mustMarshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// statusError is a stored status as an error.
type statusError struct{ status *spb.Status }

func (e statusError) Error() string              { return e.status.GetMessage() }
func (e statusError) GRPCStatus() *status.Status { return status.FromProto(e.status) }

// states are the ledger's states in the API.
var states = map[ledger.State]facadev1.Send_State{
	ledger.Scheduled: facadev1.Send_SCHEDULED, ledger.Pending: facadev1.Send_PENDING, ledger.Sending: facadev1.Send_SENDING,
	ledger.Sent: facadev1.Send_SENT, ledger.Failed: facadev1.Send_FAILED, ledger.Unknown: facadev1.Send_UNKNOWN,
	ledger.Cancelled: facadev1.Send_CANCELLED, ledger.Expired: facadev1.Send_EXPIRED,
}

// endings are the errors of states that the ledger gives without Jelou having said anything.
var endings = map[ledger.State]struct {
	reason  facadev1.ErrorReason
	message string
}{
	ledger.Failed:    {facadev1.ErrorReason_INTERNAL, internalMessage},
	ledger.Unknown:   {facadev1.ErrorReason_OUTCOME_UNKNOWN, "the request may have reached Jelou and its answer was lost; nobody can say whether it was sent"},
	ledger.Cancelled: {facadev1.ErrorReason_CANCELLED, "the send was cancelled before it left"},
	ledger.Expired:   {facadev1.ErrorReason_EXPIRED, "the send's time was up before its turn came; it was not sent"},
}

// causes are the reasons that may stand behind an ending, in place of its own: a send that waited because Jelou throttled or
// could not be reached expires with that reason.
var causes = map[string]string{
	facadev1.ErrorReason_UPSTREAM_RATE_LIMITED.String(): "Jelou throttles the company, and the call's time was up before it sent again; nothing was sent",
	facadev1.ErrorReason_UPSTREAM_UNREACHABLE.String():  "Jelou could not be reached before the call's time was up; nothing was sent",
	facadev1.ErrorReason_REQUEST_ID_REUSED.String():     "request_id: belongs to another send; this item was not sent",
	facadev1.ErrorReason_OUTCOME_UNKNOWN.String():       "the request may have reached Jelou and its answer was lost; nobody can say whether it was sent",
}

// toSend is a row as callers see it.
func (s *core) toSend(ctx context.Context, row ledger.Send) (*facadev1.Send, error) {
	send := &facadev1.Send{}
	if len(row.Result) > 0 {
		result, err := s.open(keyring.Result, row.Result)
		if err == nil {
			err = proto.Unmarshal(result, send)
		}
		if err != nil {
			return nil, fmt.Errorf("result of send %s: %w", row.ID, err)
		}
	}
	send.SendId = row.ID.String()
	send.State = states[row.State]
	send.BotId = row.Bot
	if row.Batch {
		send.BatchId = ledger.QueueID{Company: row.ID.Company, Queue: row.ID.Queue}.String()
		send.Sequence = int32(row.ID.Pos)
	}
	send.RequestId = row.RequestID
	send.Kind = row.Kind
	send.Attempts = int32(row.Attempt)
	send.Resolved = row.Resolved
	if !row.ReplayOf.IsZero() {
		send.SourceSendId = row.ReplayOf.String()
	}
	send.CreateTime, send.SendTime, send.EndTime = timestamp(row.AcceptedAt), timestamp(row.SentAt), timestamp(row.SettledAt)
	send.Options = &facadev1.SendOptions{
		Lane: facadev1.SendOptions_Lane(row.Lane), ExpireTime: timestamp(row.ExpireAt), OnUnknown: onUnknownOf[row.OnUnknown],
	}
	if row.State == ledger.Scheduled {
		send.Options.ScheduleTime = timestamp(row.DueAt)
	}
	if row.Labels != "" {
		if err := json.Unmarshal([]byte(row.Labels), &send.Options.Labels); err != nil {
			return nil, fmt.Errorf("labels of send %s: %w", row.ID, err)
		}
	}
	setError(send, row)
	if !row.State.Final() {
		send.EstimatedSendTime = s.estimate(ctx, row)
	}
	return send, nil
}

// setError gives a send that did not go its error, with the send's id in it.
func setError(send *facadev1.Send, row ledger.Send) {
	if row.State == ledger.Sent || !row.State.Final() {
		send.Error = nil
		return
	}
	if send.Error == nil {
		send.Error = endingOf(row).GRPCStatus().Proto()
	}
	for i, d := range send.Error.Details {
		var info errdetails.ErrorInfo
		if d.UnmarshalTo(&info) != nil {
			continue
		}
		send.ErrorReason = info.Reason
		if info.Metadata == nil {
			info.Metadata = map[string]string{}
		}
		info.Metadata["send_id"] = send.SendId
		if packed, err := anypb.New(&info); err == nil {
			send.Error.Details[i] = packed
		}
		return
	}
}

// endingOf is the error of a row that the ledger ended by itself.
func endingOf(row ledger.Send) *fault {
	end := endings[row.State]
	text, known := causes[row.Reason]
	if known {
		return newFault(facadev1.ErrorReason(facadev1.ErrorReason_value[row.Reason]), "%s", text)
	}
	return newFault(end.reason, "%s", end.message)
}

var onUnknownOf = map[ledger.OnUnknown]facadev1.SendOptions_OnUnknown{
	ledger.Hold: facadev1.SendOptions_HOLD, ledger.Retry: facadev1.SendOptions_RETRY, ledger.Fail: facadev1.SendOptions_FAIL,
}

// timestamp is a stored time with the milliseconds that the API promises; nil for none.
func timestamp(micros int64) *timestamppb.Timestamp {
	if micros == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMicro(micros).Truncate(time.Millisecond))
}
