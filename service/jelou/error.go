package jelou

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Outcome is what an error means for the send: every one calls for another treatment.
type Outcome int8

const (
	// Refused: Jelou, or this client before anything left, said no. The same request would be refused again.
	Refused Outcome = iota + 1
	// Throttled: a 429. Jelou did not take it; later it will.
	Throttled
	// Unreachable: Jelou did not take it, because nothing was written, or because HTTP/2 says that the stream was not
	// processed.
	Unreachable
	// Unknown: it may have been sent, and nobody can say. A read has changed nothing and may be repeated: its Reason is
	// UPSTREAM_UNREACHABLE.
	Unknown
	// Unauthorized: the credential was refused, or there is none to try.
	Unauthorized
	// Misconfigured: the credential is of no company. It never heals by itself.
	Misconfigured
)

var outcomeNames = [...]string{"none", "refused", "throttled", "unreachable", "unknown", "unauthorized", "misconfigured"}

// String is the outcome as a metric's label.
func (o Outcome) String() string {
	if o < 0 || int(o) >= len(outcomeNames) {
		return outcomeNames[0]
	}
	return outcomeNames[o]
}

// Error is every error of this package's calls. Nothing in it is personal: no recipient, no text, no URL.
type Error struct {
	// Outcome says what to do about it.
	Outcome Outcome
	// Reason is the caller's word for it, never unspecified.
	Reason facadev1.ErrorReason
	// Sent tells whether a byte of the request may have left. It is about the allowance; whether the message may have
	// been sent is Outcome's to say.
	Sent bool
	// Status is Jelou's HTTP status, 0 without an answer.
	Status int
	// Code is Jelou's own code or key, such as bot_not_found or E0422, or empty.
	Code string
	// Message says what is wrong and what to do: a sentence of ours, and Jelou's words after [scrub].
	Message string
	// Fields are the fields that Jelou complained about, under the API's names; at most 20.
	Fields []FieldViolation
	// RetryAfter is Jelou's, at most an hour. Zero means that it said none.
	RetryAfter time.Duration
	// Timing of the attempt.
	Timing Timing

	cause error
}

// FieldViolation is one field of the API's request that Jelou complained about.
type FieldViolation struct {
	// Field is its path, such as message.text.text.
	Field string
	// Description is what Jelou said about it.
	Description string
}

func (e *Error) Error() string { return e.Message }

// Unwrap is the cause as far as it is safe to log: what went wrong before anything was written, or one of the
// well-known errors of package context, io and syscall.
func (e *Error) Unwrap() error { return e.cause }

// maxFields bounds Error.Fields: longer details break gRPC clients.
const maxFields = 20

// messages are what a caller is told. What Jelou said follows where it is known to help.
var messages = map[facadev1.ErrorReason]string{
	facadev1.ErrorReason_BOT_NOT_FOUND:                  "the company has no such bot at Jelou",
	facadev1.ErrorReason_FORBIDDEN_BOT:                  "the company may not use this bot: enable it at Jelou",
	facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND:      "Jelou refused the message",
	facadev1.ErrorReason_SESSION_WINDOW_CLOSED:          "the user's 24-hour window is closed: send a notification instead",
	facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND: "Jelou refused the notification",
	facadev1.ErrorReason_TEMPLATE_NOT_FOUND:             "the template does not exist or is not approved: check element_name and language",
	facadev1.ErrorReason_JELOU_UNAUTHORIZED:             "Jelou refused the company's credential: an operator must replace it",
	facadev1.ErrorReason_UNPROCESSABLE_ENTITY:           "Jelou refused a field of the request",
	facadev1.ErrorReason_INVALID_MEDIA_URL:              "Jelou could not fetch the media: it must be a public https URL of the file itself",
	facadev1.ErrorReason_MEDIA_TOO_LARGE:                "the media is larger than WhatsApp allows",
	facadev1.ErrorReason_UNSUPPORTED_MEDIA_TYPE:         "the media's type is not allowed for this kind of message",
	facadev1.ErrorReason_JELOU_INTERNAL:                 "Jelou says that the company's credential has no company: an operator must have it repaired at Jelou",
	facadev1.ErrorReason_UPSTREAM_REFUSED:               "Jelou refused the request",
	facadev1.ErrorReason_UPSTREAM_RATE_LIMITED:          "Jelou throttles the company: try again later",
	facadev1.ErrorReason_UPSTREAM_UNREACHABLE:           "Jelou could not be reached; nothing was sent",
	facadev1.ErrorReason_OUTCOME_UNKNOWN:                "the request may have reached Jelou and nobody can say whether it was sent",
	facadev1.ErrorReason_RESOURCE_NOT_FOUND:             "Jelou has no such notification of this bot",
}

func invalid(field, description string) *Error {
	return &Error{
		Outcome: Refused, Reason: facadev1.ErrorReason_INVALID_FIELD,
		Message: field + ": " + description,
		Fields:  []FieldViolation{{field, description}},
	}
}

// noAnswer is the error of a request that got no answer, or none that can be read.
func noAnswer(op operation, sent bool, timing Timing, err error) *Error {
	e := &Error{Sent: sent, Timing: timing, Outcome: Unreachable, Reason: facadev1.ErrorReason_UPSTREAM_UNREACHABLE}
	if sent && !notProcessed(err) {
		e.Outcome, e.Reason = Unknown, op.unknownReason()
	}
	text, cause := describe(err)
	if !sent {
		e.Timing = Timing{}
		// Nothing of the request is in the connection yet, so nothing of it can be in the error.
		cause = err
	}
	e.Message, e.cause = e.text(op)+": "+text, cause
	return e
}

// text is the sentence of the error's reason.
func (e *Error) text(op operation) string {
	if op.reads() && e.Outcome == Unknown {
		return "Jelou gave no usable answer to the read, which may be repeated"
	}
	return messages[e.Reason]
}

// notProcessed reports that the peer said, with HTTP/2's own words, that it has not processed the stream and will not
// (RFC 9113, 6.8 and 8.7). net/http exports no type for that. If a newer one says it differently, the send becomes
// unknown instead: late, never twice. A test holds the text.
func notProcessed(err error) bool {
	said, ok := strings.CutPrefix(err.Error(), "http2: Transport: cannot retry err [")
	return ok && (strings.HasPrefix(said, "http2: Transport received Server's graceful shutdown GOAWAY]") ||
		strings.HasPrefix(said, "stream error: ") && strings.Contains(said, "REFUSED_STREAM"))
}

// describe gives a transport's error a fixed text: its own may hold what Jelou answered. The second result is the
// well-known error in it, or nil.
func describe(err error) (string, error) {
	for _, known := range knownErrors {
		if errors.Is(err, known.err) {
			return known.text, known.err
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.IsTimeout {
		return "its name could not be resolved", nil
	}
	if isTLS(err) {
		return "the TLS handshake failed", nil
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "it did not answer in time", os.ErrDeadlineExceeded
	}
	if notProcessed(err) {
		return "it closes the connection and took no further request", nil
	}
	return "the connection failed", nil
}

var knownErrors = []struct {
	err  error
	text string
}{
	{context.Canceled, "the call was cancelled"},
	{context.DeadlineExceeded, "it did not answer in time"},
	{syscall.ECONNREFUSED, "the connection was refused"},
	{syscall.ECONNRESET, "the connection was reset"},
	{syscall.EPIPE, "the connection was reset"},
	{syscall.EHOSTUNREACH, "there is no route to it"},
	{syscall.ENETUNREACH, "there is no route to it"},
	{errClosed, "the server stops"},
	{errTooLarge, "its answer is too large"},
	{errUnreadable, "its answer cannot be read"},
	{io.ErrUnexpectedEOF, "the connection was closed early"},
	{io.EOF, "the connection was closed early"},
}

var (
	errTooLarge   = errors.New("answer too large")
	errUnreadable = errors.New("answer unreadable")
	errClosed     = errors.New("client closed")
)

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "remote error" || op.Op == "local error") {
		return true // an alert
	}
	_, ok := errors.AsType[x509.UnknownAuthorityError](err)
	return ok
}
