package service_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// TestTraceOfCall: a caller's trace goes on in the call's span, and the log names it.
func TestTraceOfCall(t *testing.T) {
	f := newFacade(t, nil)
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+id+"-00f067aa0ba902b7-01")
	f.must(f.conn.Invoke(ctx, "/jelou.facade.v1.MessageService/SendMessage", textTo(openUser, "hola"), &facadev1.SendMessageResponse{}))
	if !strings.Contains(f.logs.String(), `"trace_id":"`+id+`"`) {
		t.Error("the log does not name the trace")
	}
	f.must(f.trace.Close(context.Background()))
	spans := f.spans.GetSpans()
	if len(spans) != 1 || spans[0].SpanContext.TraceID().String() != id || spans[0].Name != "jelou.facade.v1.MessageService/SendMessage" {
		t.Errorf("%+v", spans)
	}
}
