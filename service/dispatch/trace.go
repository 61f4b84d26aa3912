package dispatch

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// An attempt whose send was made by a traced call is a trace of its own, linked to that call: it may be made days later,
// by another process, and there may be several. Its spans are `send`, and in it `claim`, the request to Jelou, and
// `settle`. Nothing of it goes to Jelou, and nothing in it is personal: no URL either, which has the bot's id in it.

// traceAttempt begins the span of an attempt, with its claim.
func (d *Dispatcher) traceAttempt(ctx context.Context, c *company, s ledger.Send, start, claimed time.Time) (context.Context, trace.Span) {
	carrier := propagation.MapCarrier{"traceparent": s.Traceparent}
	call := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
	if !call.IsSampled() {
		return ctx, trace.SpanFromContext(context.Background())
	}
	ctx, span := d.config.Tracer.Start(ctx, "send", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithLinks(trace.Link{SpanContext: call}), trace.WithTimestamp(start), trace.WithAttributes(
			attribute.String("jelou.company", c.Name), attribute.String("jelou.send_id", s.ID.String()),
			attribute.String("jelou.lane", laneNames[s.Lane]), attribute.String("jelou.kind", s.Kind), attribute.Int("jelou.attempt", s.Attempt)))
	_, claim := d.config.Tracer.Start(ctx, "claim", trace.WithTimestamp(start))
	claim.End(trace.WithTimestamp(claimed))
	return ctx, span
}

// traceRequest begins the span of a request to Jelou, where whatever it belongs to is traced.
func (d *Dispatcher) traceRequest(ctx context.Context, to *jelou.Client, method string) (context.Context, trace.Span) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx, trace.SpanFromContext(context.Background())
	}
	return d.config.Tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(semconv.HTTPRequestMethodKey.String(method), semconv.ServerAddress(to.Host())))
}

// endRequest says what came of a request.
func endRequest(span trace.Span, err error) {
	defer span.End()
	if err == nil {
		return
	}
	outcome, reason := "_OTHER", ""
	if e, ok := errors.AsType[*jelou.Error](err); ok {
		outcome, reason = e.Outcome.String(), e.Reason.String()
		if e.Status != 0 {
			span.SetAttributes(semconv.HTTPResponseStatusCode(e.Status))
		}
	}
	span.SetAttributes(semconv.ErrorTypeKey.String(outcome))
	span.SetStatus(codes.Error, reason)
}

// traceSettle begins the span of a settle.
func (d *Dispatcher) traceSettle(ctx context.Context, s ledger.Settlement) (context.Context, trace.Span) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx, trace.SpanFromContext(context.Background())
	}
	return d.config.Tracer.Start(ctx, "settle", trace.WithAttributes(attribute.String("jelou.state", string(s.State)), attribute.String("jelou.reason", s.Reason)))
}
