package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// The domains of google.rpc.ErrorInfo: who said it.
const (
	domainJelou  = "api.jelou.ai"
	domainFacade = "jelou-facade"
)

// Details travel in a header: more of them breaks clients (Python reports RST_STREAM, connect-node never settles).
const (
	maxFieldViolations = 20
	maxDetailBytes     = 4 << 10
	maxMessageBytes    = 1 << 10
	maxMetadataBytes   = 256
)

// A meaning is one row of the error table: what a reason means to the caller and to the ledger.
type meaning struct {
	reason facadev1.ErrorReason
	cause  string
	code   codes.Code
	http   int    // where it is not what the gRPC code maps to
	domain string // who says so, unless the fault knows better
	retry  bool   // RetryInfo can help
	ledger string // what becomes of the send
}

// Table is the one error table: the source of the statuses, of the documentation and of the tests.
var table = []meaning{
	{facadev1.ErrorReason_BOT_NOT_FOUND, "the company has no such bot: Jelou's `bot_not_found`, `E1019`, or no company of the configuration has it", codes.NotFound, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_FORBIDDEN_BOT, "Jelou's `forbidden_bot`: the company may not use the bot", codes.PermissionDenied, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND, "Jelou's `message_could_not_be_send`", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_SESSION_WINDOW_CLOSED, "the same where its text says that the user's 24-hour window is closed: send a notification", codes.FailedPrecondition, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND, "Jelou's `notification_could_not_be_send`", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_TEMPLATE_NOT_FOUND, "the template does not exist or is not approved", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_JELOU_UNAUTHORIZED, "Jelou refused the company's credential; the company is paused and probed", codes.Unauthenticated, 0, domainJelou, false, "a single send failed, a batch's back to pending"},
	{facadev1.ErrorReason_UNPROCESSABLE_ENTITY, "Jelou's `unprocessable_entity`, `E0422`: it refused a field", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_INVALID_MEDIA_URL, "Jelou could not fetch the media", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_MEDIA_TOO_LARGE, "the media is larger than WhatsApp allows", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_UNSUPPORTED_MEDIA_TYPE, "the media's type is not allowed", codes.InvalidArgument, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_JELOU_INTERNAL, "Jelou's `internal_server_error` that says that the credential has no company; it never heals by itself", codes.Internal, 0, domainJelou, false, "failed; the company is paused and shown"},
	{facadev1.ErrorReason_UPSTREAM_REFUSED, "any other refusal by Jelou, by its HTTP status, or a failure inside HTTP 200", codes.FailedPrecondition, 0, domainJelou, false, "failed"},
	{facadev1.ErrorReason_UPSTREAM_RATE_LIMITED, "Jelou throttles (429) and the caller could not wait", codes.ResourceExhausted, 0, domainJelou, true, "back to pending without counting, the company paused; expired before a caller is told"},
	{facadev1.ErrorReason_UPSTREAM_UNREACHABLE, "connection refused, DNS, TLS: nothing was written", codes.Unavailable, 0, domainFacade, true, "back to pending with backoff, counted; failed after the last attempt"},
	{facadev1.ErrorReason_OUTCOME_UNKNOWN, "timeout, reset, unreadable answer or 5xx after the request may have left; or the call ended before the send that it joined, or before the ledger's database could say what it stored", codes.Unknown, 0, domainFacade, false, "unknown; of a call that ended early: what GetSend or GetBatch says, it may still be sent"},
	{facadev1.ErrorReason_WOULD_MISS_DEADLINE, "the send could not start before the call's deadline or its expire_time", codes.ResourceExhausted, 0, domainFacade, true, "never stored"},
	{facadev1.ErrorReason_CALLER_QUOTA, "the caller's own quota is used up: of calls, sends or open streams", codes.ResourceExhausted, 0, domainFacade, true, "never stored"},
	{facadev1.ErrorReason_QUEUE_FULL, "too many sends wait, or too many streams are open", codes.ResourceExhausted, 0, domainFacade, true, "never stored"},
	{facadev1.ErrorReason_EXPIRED, "its time, or its caller's, passed while it waited", codes.DeadlineExceeded, 0, domainFacade, false, "expired"},
	{facadev1.ErrorReason_CANCELLED, "a person or another call cancelled it before it left", codes.FailedPrecondition, 0, domainFacade, false, "cancelled"},
	{facadev1.ErrorReason_REQUEST_ID_REUSED, "the request_id belongs to a send with other content", codes.InvalidArgument, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_INVALID_FIELD, "a field breaks its rule", codes.InvalidArgument, 0, domainFacade, false, "never stored"},
	{facadev1.ErrorReason_CALLER_UNAUTHENTICATED, "no valid credential of a caller", codes.Unauthenticated, 0, domainFacade, false, "-"},
	{facadev1.ErrorReason_CALLER_FORBIDDEN, "the caller may not use this bot, lane, company or method", codes.PermissionDenied, 0, domainFacade, false, "-"},
	{facadev1.ErrorReason_LEDGER_UNAVAILABLE, "the ledger's database cannot be reached; nothing was sent", codes.Unavailable, 0, domainFacade, true, "never stored"},
	{facadev1.ErrorReason_DRAINING, "the server stops, or the connection of a stream is old; nothing was sent", codes.Unavailable, 0, domainFacade, true, "never stored, or expired first"},
	{facadev1.ErrorReason_AUDIT_UNAVAILABLE, "the audit log is required and cannot be written; nothing was done", codes.Unavailable, 0, domainFacade, true, "unchanged"},
	{facadev1.ErrorReason_LEDGER_REWOUND, "the ledger went back in time; a person must release it", codes.Unavailable, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_LEDGER_HELD, "the ledger is held until a person releases it", codes.Unavailable, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_RESOURCE_NOT_FOUND, "no such send, batch or notification, or not the caller's", codes.NotFound, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_ROUTE_NOT_FOUND, "REST: no such route", codes.NotFound, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_METHOD_NOT_ALLOWED, "REST: the route has no such method", codes.Unimplemented, http.StatusMethodNotAllowed, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_INVALID_JSON, "REST: the body or its Content-Type is not JSON", codes.InvalidArgument, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_REQUEST_TOO_LARGE, "the request is larger than 4 MiB", codes.ResourceExhausted, http.StatusRequestEntityTooLarge, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_SEQUENCE_MISMATCH, "a gap, other content under the same number, or a seal with another count", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_BATCH_SEALED, "an item after the seal", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_STREAM_REPLACED, "a newer stream took the batch", codes.Aborted, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_CURSOR_EXPIRED, "the cursor is older than what is kept", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_ALREADY_SENDING, "too late to cancel", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_NOT_UNKNOWN, "only an unknown send can be resolved", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_BATCH_ENDED, "the batch is completed or cancelled", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_NOTHING_TO_REPLAY, "no item of the batch matches, or all were replayed", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_RETRY_WITHOUT_REQUEST_ID, "an automatic retry of a send or a new batch that has no request_id could send twice", codes.FailedPrecondition, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_NOT_BUILT_YET, "this server does not have it yet; gRPC: nor any other method that it does not know", codes.Unimplemented, 0, domainFacade, false, "unchanged"},
	{facadev1.ErrorReason_INTERNAL, "the facade's own fault; the cause is only in its log", codes.Internal, 0, domainFacade, false, "unknown if it may have left, else failed"},
}

var meanings = func() map[facadev1.ErrorReason]meaning {
	m := make(map[facadev1.ErrorReason]meaning, len(table))
	for _, row := range table {
		m[row.reason] = row
	}
	return m
}()

// A fault is an error that a caller is told: a row of the table and what is special about this case. Its text and
// details are public, its cause goes to the log only.
type fault struct {
	reason     facadev1.ErrorReason
	message    string
	metadata   map[string]string
	fields     []*errdetails.BadRequest_FieldViolation
	quota      *errdetails.QuotaFailure
	retryAfter time.Duration // with a row that retries; zero there is a second
	code       codes.Code    // in place of the row's, where Jelou's HTTP status decides
	domain     string        // in place of the row's
	cause      error
}

func newFault(reason facadev1.ErrorReason, format string, args ...any) *fault {
	return &fault{reason: reason, message: fmt.Sprintf(format, args...)}
}

func invalidField(field, format string, args ...any) *fault {
	description := fmt.Sprintf(format, args...)
	return &fault{
		reason:  facadev1.ErrorReason_INVALID_FIELD,
		message: field + ": " + description,
		fields:  []*errdetails.BadRequest_FieldViolation{{Field: field, Description: description}},
	}
}

func (f *fault) with(key, value string) *fault {
	if value == "" {
		return f
	}
	if f.metadata == nil {
		f.metadata = map[string]string{}
	}
	f.metadata[key] = truncate(value, maxMetadataBytes)
	return f
}

func (f *fault) because(err error) *fault {
	f.cause = err
	return f
}

// Error is the public text.
func (f *fault) Error() string { return f.message }

// Unwrap gives the private cause.
func (f *fault) Unwrap() error { return f.cause }

// GRPCStatus makes the fault's status with its details, within the bounds of what clients can take.
func (f *fault) GRPCStatus() *status.Status {
	row, ok := meanings[f.reason]
	if !ok {
		row = meanings[facadev1.ErrorReason_INTERNAL]
	}
	code, domain := row.code, row.domain
	if f.code != codes.OK {
		code = f.code
	}
	if f.domain != "" {
		domain = f.domain
	}
	details := []proto.Message{&errdetails.ErrorInfo{Reason: row.reason.String(), Domain: domain, Metadata: f.metadata}}
	if row.retry {
		wait := max(f.retryAfter, 0)
		if wait == 0 {
			wait = time.Second
		}
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	if f.quota != nil {
		details = append(details, f.quota)
	}
	size := 0
	for _, d := range details {
		size += proto.Size(d)
	}
	if bad := boundedBadRequest(f.fields, maxDetailBytes-size); bad != nil {
		details = append(details, bad)
	}
	st := status.New(code, truncate(f.message, maxMessageBytes))
	v1 := make([]protoadapt.MessageV1, len(details))
	for i, d := range details {
		v1[i] = protoadapt.MessageV1Of(d)
	}
	full, err := st.WithDetails(v1...)
	if err != nil { // cannot happen: the code is never OK and the details are linked messages
		return st
	}
	return full
}

func boundedBadRequest(fields []*errdetails.BadRequest_FieldViolation, room int) *errdetails.BadRequest {
	var bad errdetails.BadRequest
	for _, v := range fields {
		v := &errdetails.BadRequest_FieldViolation{Field: truncate(v.Field, 256), Description: truncate(v.Description, 512)}
		room -= proto.Size(v) + 8
		if len(bad.FieldViolations) == maxFieldViolations || room < 0 {
			break
		}
		bad.FieldViolations = append(bad.FieldViolations, v)
	}
	if len(bad.FieldViolations) == 0 {
		return nil
	}
	return &bad
}

// truncate cuts s to at most n bytes at a character's edge, and makes it UTF-8: gRPC cannot send anything else.
func truncate(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// internalMessage is all that a caller learns about a fault of ours.
const internalMessage = "internal error of jelou-facade; its log has the cause under the x-request-id of this answer"

// toStatus makes the status of any error that a method returned: never OK for an error, never a text that was not
// written for callers.
func toStatus(err error) *status.Status {
	if err == nil {
		return nil
	}
	if stored, ok := errors.AsType[statusError](err); ok {
		return stored.GRPCStatus()
	}
	return toFault(err).GRPCStatus()
}

// toFault finds the row of the table for any error.
func toFault(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	if e, ok := errors.AsType[*jelou.Error](err); ok {
		return jelouFault(e)
	}
	if e, ok := errors.AsType[*ledger.SequenceError](err); ok {
		return newFault(facadev1.ErrorReason_SEQUENCE_MISMATCH, "sequence: must be %d, or one that is stored, with the same content; a seal must name the number of items", e.Expected).
			with("expected_sequence", strconv.FormatInt(e.Expected, 10)).because(err)
	}
	if e, ok := errors.AsType[*ledger.QuotaError](err); ok {
		return callerQuota(e.Caller, fmt.Sprintf("%d sends a day, from midnight UTC", e.Limit), e.Resets).because(err)
	}
	for _, known := range ledgerErrors {
		if errors.Is(err, known.err) {
			return newFault(known.reason, "%s", known.message).because(err)
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return newFault(facadev1.ErrorReason_EXPIRED, "the call's deadline passed; nothing more was done").because(err)
	case errors.Is(err, context.Canceled):
		return newFault(facadev1.ErrorReason_CANCELLED, "the caller left").because(err)
	case status.Code(err) == codes.Unimplemented:
		return newFault(facadev1.ErrorReason_NOT_BUILT_YET, "this server does not have this method yet").because(err)
	}
	return newFault(facadev1.ErrorReason_INTERNAL, internalMessage).because(err)
}

// about names the send or batch of which the ledger cannot say what became of it.
func about(err error, key, id string) error {
	if !errors.Is(err, ledger.ErrUncertain) {
		return err
	}
	return toFault(err).with(key, id)
}

// ledgerErrors are what the ledger refuses, in the caller's words.
var ledgerErrors = []struct {
	err     error
	reason  facadev1.ErrorReason
	message string
}{
	// Before all others, of which it may be made: what is not known to be done is not known to be not done either.
	{ledger.ErrUncertain, facadev1.ErrorReason_OUTCOME_UNKNOWN, "the ledger's database was lost while it stored this, and nobody can say yet whether it did: GetSend or GetBatch tells"},
	{ledger.ErrRequestIDReused, facadev1.ErrorReason_REQUEST_ID_REUSED, "request_id: belongs to a send with other content; use a new one for a new send"},
	{ledger.ErrBatchEnded, facadev1.ErrorReason_BATCH_ENDED, "the batch is completed or cancelled"},
	{ledger.ErrNothingToReplay, facadev1.ErrorReason_NOTHING_TO_REPLAY, "no item of the batch has these states and reasons, or all that have were replayed"},
	{ledger.ErrCursorExpired, facadev1.ErrorReason_CURSOR_EXPIRED, "the cursor is older than what is kept; begin without one, or list the batch's sends"},
	{ledger.ErrSequenceMismatch, facadev1.ErrorReason_SEQUENCE_MISMATCH, "sequence: an item with this number and other content is stored already"},
	{ledger.ErrSealed, facadev1.ErrorReason_BATCH_SEALED, "the batch is sealed and takes no more items; make a new one"},
	{ledger.ErrStreamReplaced, facadev1.ErrorReason_STREAM_REPLACED, "a newer stream uploads this batch"},
	{ledger.ErrNotFound, facadev1.ErrorReason_RESOURCE_NOT_FOUND, "no such send or batch"},
	{ledger.ErrBadID, facadev1.ErrorReason_RESOURCE_NOT_FOUND, "no such id; copy it whole, as it was answered"},
	{ledger.ErrHeld, facadev1.ErrorReason_LEDGER_HELD, "the ledger is held, and what it calls unsent may have been sent; an operator must release it: jelou-facade ledger release"},
	{keyring.ErrKeyMissing, facadev1.ErrorReason_LEDGER_UNAVAILABLE, "this replica has not got the key of what is stored; another one may have it"},
	{ledger.ErrUnavailable, facadev1.ErrorReason_LEDGER_UNAVAILABLE, "the ledger's database cannot be reached; nothing was sent"},
}

// httpStatus is the REST status of a gRPC status.
func httpStatus(st *status.Status) int {
	if info := errorInfo(st); info != nil {
		if row, ok := meanings[facadev1.ErrorReason(facadev1.ErrorReason_value[info.Reason])]; ok && row.http != 0 {
			return row.http
		}
	}
	return runtime.HTTPStatusFromCode(st.Code())
}

func errorInfo(st *status.Status) *errdetails.ErrorInfo { return detail[*errdetails.ErrorInfo](st) }

// detail finds the detail of type T, or the zero T.
func detail[T any](st *status.Status) (found T) {
	for _, d := range st.Details() {
		if t, ok := d.(T); ok {
			return t
		}
	}
	return found
}
