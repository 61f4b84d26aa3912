package service

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"github.com/fullstorydev/grpchan/inprocgrpc"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/audit"
)

// A guard stands before every method, unary and stream, over gRPC and REST: it observes (a request id, one line of log),
// recovers from panics, authenticates, and validates. It is one type so that the two halves cannot drift apart.
type guard struct {
	log       *slog.Logger
	doors     *doors
	validator protovalidate.Validator
	transport transport
	metrics   *callMetrics
	tracer    trace.Tracer
	audit     *audit.Log // nil: none
}

// Unary guards a unary method.
func (g *guard) Unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (response any, err error) {
	ctx, c := g.begin(ctx, info.FullMethod)
	if err := grpc.SetHeader(ctx, metadata.Pairs(headerRequestID, c.id)); err != nil {
		return nil, err
	}
	defer func() { err = g.end(ctx, c, recover(), err) }()
	if ctx, _, err = g.doors.enter(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	if err := g.mayChange(c); err != nil {
		return nil, err
	}
	if err := g.validate(request); err != nil {
		return nil, err
	}
	return next(ctx, request)
}

// Stream guards a streaming method.
func (g *guard) Stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	method := info.FullMethod
	if server == nil { // an unknown one, of whatever name
		method = otherMethod
	}
	ctx, c := g.begin(stream.Context(), method)
	if err := stream.SetHeader(metadata.Pairs(headerRequestID, c.id)); err != nil {
		return err
	}
	defer func() { err = g.end(ctx, c, recover(), err) }()
	ctx, visit, err := g.doors.enter(ctx, method)
	if err != nil {
		return err
	}
	closed, err := g.doors.streams.open(callerName(ctx))
	if err != nil {
		return err
	}
	defer closed()
	if err := g.mayChange(c); err != nil {
		return err
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	go g.doors.watch(ctx, visit, leave)
	err = next(server, &guardedStream{stream, ctx, g})
	if shut := shutOut(ctx); shut != nil && err != nil {
		return shut // whatever the method made of it
	}
	return err
}

// guardedStream validates what it receives, and neither takes nor gives anything once its caller may not call any more.
type guardedStream struct {
	grpc.ServerStream
	ctx   context.Context
	guard *guard
}

func (s *guardedStream) Context() context.Context { return s.ctx }

func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if err := shutOut(s.ctx); err != nil {
		return err
	}
	return s.guard.validate(m)
}

func (s *guardedStream) SendMsg(m any) error {
	if err := shutOut(s.ctx); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

// call is what the log says about a call.
type call struct {
	id        string
	method    string
	transport transport
	span      trace.Span
	start     time.Time
	attrs     []slog.Attr
	admitted  bool // it may do what it was made for
	touched   touched
}

// rpc is the method as metrics and the log name it.
func (c *call) rpc() string { return strings.TrimPrefix(c.method, "/") }

type callKey struct{}

// note adds to the line that is logged at the end of the call. Never a phone number, text or credential.
func note(ctx context.Context, attrs ...slog.Attr) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.attrs = append(c.attrs, attrs...)
	}
}

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

func (g *guard) begin(ctx context.Context, method string) (context.Context, *call) {
	id := requestIDOrNew(first(metadata.ValueFromIncomingContext(ctx, headerRequestID)))
	c := &call{id: id, method: method, transport: g.transport, start: time.Now()}
	if request := inprocgrpc.ClientContext(ctx); request != nil {
		if a := answerOf(request); a != nil {
			a.told.Store(true)
		}
	}
	// A caller's trace goes on here; its tracestate is not looked at.
	carrier := propagation.MapCarrier{headerTraceparent: first(metadata.ValueFromIncomingContext(ctx, headerTraceparent))}
	ctx, c.span = g.tracer.Start(propagation.TraceContext{}.Extract(ctx, carrier), c.rpc(), trace.WithSpanKind(trace.SpanKindServer))
	return context.WithValue(ctx, callKey{}, c), c
}

// phoneForm is what a phone number looks like without its +, which no id may have.
var phoneForm = regexp.MustCompile(`^[0-9]{7,}$`)

// requestIDOrNew is the id that a caller gave a call, or a new one. It is logged, so one that may be a phone number is not taken.
func requestIDOrNew(id string) string {
	if requestIDForm.MatchString(id) && !phoneForm.MatchString(id) {
		return id
	}
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// end turns whatever ended the call into a status of the table and logs one line.
func (g *guard) end(ctx context.Context, c *call, panicked any, err error) error {
	if panicked != nil {
		// The panic's value may quote a request: only its type and the stack's functions are logged.
		err = newFault(facadev1.ErrorReason_INTERNAL, internalMessage).because(crashOf(panicked))
	}
	st := toStatus(err)
	level, attrs := slog.LevelInfo, []slog.Attr{
		slog.String("rpc", c.rpc()), slog.String("transport", string(c.transport)), slog.String("caller", callerName(ctx)), slog.String("code", codeNames[st.Code()]),
		slog.Float64("duration_ms", float64(time.Since(c.start).Microseconds())/1000), slog.String("request_id", c.id),
	}
	g.metrics.note(ctx, c, st.Code(), errorInfo(st).GetReason())
	if id := c.span.SpanContext().TraceID(); id.IsValid() {
		attrs = append(attrs, slog.String("trace_id", id.String()))
	}
	g.record(ctx, c, st.Code(), errorInfo(st).GetReason())
	c.endSpan(ctx, codeNames[st.Code()], errorInfo(st).GetReason())
	if err != nil {
		info := errorInfo(st)
		attrs = append(attrs, slog.String("reason", info.GetReason()))
		if info.GetReason() == facadev1.ErrorReason_INTERNAL.String() {
			level = slog.LevelError
			attrs = append(attrs, slog.String("cause", privateCause(err)))
		}
	}
	g.log.LogAttrs(ctx, level, "call", append(attrs, c.attrs...)...)
	return st.Err()
}

// crash is a panic that somebody recovered from: its type and where it was.
type crash struct{ error }

// crashOf makes one of a panic's value; that of another goroutine stays what it is.
func crashOf(panicked any) error {
	if c, ok := panicked.(crash); ok {
		return c
	}
	return crash{fmt.Errorf("panic of type %T\n%s", panicked, debug.Stack())}
}

// endSpan says how the call went: names of closed sets only, and nothing of what was sent.
func (c *call) endSpan(ctx context.Context, code, reason string) {
	c.span.SetAttributes(semconv.RPCSystemNameGRPC, semconv.RPCMethod(c.rpc()), semconv.RPCResponseStatusCode(code),
		attribute.String("jelou.transport", string(c.transport)), attribute.String("jelou.caller", callerName(ctx)),
		attribute.StringSlice("jelou.resources", c.touched.names()))
	if reason != "" {
		c.span.SetStatus(otelcodes.Error, reason)
	}
	c.span.End()
}

// privateCause is the text of what was wrapped, for the log.
func privateCause(err error) string {
	if cause := errors.Unwrap(err); cause != nil {
		return cause.Error()
	}
	return err.Error()
}

// validate checks a request against the rules of its proto.
func (g *guard) validate(request any) error {
	m, ok := request.(proto.Message)
	if !ok {
		return newFault(facadev1.ErrorReason_INTERNAL, internalMessage).because(fmt.Errorf("request is a %T", request))
	}
	if f := undecodable(m); f != nil {
		return f
	}
	return checkRules(g.validator, m)
}

// checkRules holds a message to the rules of its proto, and to those of every message: no text has the character U+0000,
// which PostgreSQL cannot store, and every time is one.
func checkRules(validator protovalidate.Validator, m proto.Message) error {
	if err := fieldFault(validator.Validate(m)); err != nil {
		return err
	}
	return protorange.Range(m.ProtoReflect(), func(at protopath.Values) error {
		last := at.Index(-1)
		var broken string
		switch v := last.Value.Interface().(type) {
		case string:
			if strings.Contains(v, "\x00") {
				broken = "must not contain the character U+0000"
			}
		case protoreflect.Message:
			if t, ok := v.Interface().(interface{ CheckValid() error }); ok && t.CheckValid() != nil {
				broken = "is no valid time"
			}
		}
		if broken == "" {
			return nil
		}
		return invalidField(fieldPath(at.Path), "%s", broken)
	})
}

// fieldPath writes a path as protovalidate does, but for a map's keys, which may be anything.
func fieldPath(path protopath.Path) string {
	var b strings.Builder
	for _, step := range path[1:] {
		switch step.Kind() {
		case protopath.FieldAccessStep:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(step.FieldDescriptor().TextName())
		case protopath.ListIndexStep:
			fmt.Fprintf(&b, "[%d]", step.ListIndex())
		}
	}
	return b.String()
}

// fieldFault makes INVALID_FIELD of the violations that protovalidate found; nil for none.
func fieldFault(err error) error {
	if err == nil {
		return nil
	}
	invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		return newFault(facadev1.ErrorReason_INTERNAL, internalMessage).because(err)
	}
	f := &fault{reason: facadev1.ErrorReason_INVALID_FIELD}
	seen := map[string]bool{}
	for _, v := range invalid.Violations {
		field, description := violationText(v)
		// One empty field may break two rules; the first says enough.
		if seen[field] {
			continue
		}
		seen[field] = true
		f.fields = append(f.fields, &errdetails.BadRequest_FieldViolation{Field: field, Description: description})
	}
	f.message = fmt.Sprintf("%s: %s", f.fields[0].Field, f.fields[0].Description)
	if n := len(f.fields) - 1; n > 0 {
		f.message += fmt.Sprintf(" (and %d more)", n)
	}
	return f
}

// violationText names the field and the rule. Rules about two fields name theirs in front of a colon.
func violationText(v *protovalidate.Violation) (field, description string) {
	field = mapKeys.ReplaceAllString(protovalidate.FieldPathString(v.Proto.GetField()), "")
	description = v.Proto.GetMessage()
	if description == "" {
		description = "breaks the rule " + v.Proto.GetRuleId()
	}
	if name, rest, ok := strings.Cut(description, ": "); ok && fieldName.MatchString(name) {
		field, description = strings.TrimPrefix(field+"."+name, "."), rest
	}
	return field, description
}

// mapKeys are the keys in a field's path, which may be anything.
var mapKeys = regexp.MustCompile(`\["(?:[^"\\]|\\.)*"\]`)

var fieldName = regexp.MustCompile(`^[a-z_]{1,40}$`)

// undecodable is the fault that the codec noted in a request that it could not decode; nil for a good one.
func undecodable(m proto.Message) *fault {
	switch string(m.ProtoReflect().GetUnknown()) {
	case markTooLarge:
		return newFault(facadev1.ErrorReason_REQUEST_TOO_LARGE, "the request is larger than %d MiB; send fewer items at once", maxRequestBytes>>20)
	case markMalformed:
		return newFault(facadev1.ErrorReason_INVALID_FIELD, "the request is no valid protobuf message of this method; generate the client from the same proto files")
	}
	return nil
}

// first is the first of values, or "".
func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
