package service_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/keyring"
)

const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"

// traced calls as part of a trace: flags are 01 where it is sampled, 00 where it is not.
func traced(f *facade, tr transport, flags, method string, request, response proto.Message) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	parent := "00-" + traceID + "-00f067aa0ba902b7-" + flags
	var err error
	if tr.name == "REST" {
		_, err = overRESTWith(ctx, f, method, request, response, http.Header{"Traceparent": {parent}})
	} else {
		_, err = tr.call(metadata.AppendToOutgoingContext(ctx, "traceparent", parent), f, method, request, response)
	}
	f.must(err)
}

// awaitSpans waits until so many spans of a name have ended, and gives them.
func (f *facade) awaitSpans(name string, n int) tracetest.SpanStubs {
	f.Helper()
	deadline := time.After(10 * time.Second)
	for {
		var found tracetest.SpanStubs
		for _, s := range f.spans.GetSpans() {
			if s.Name == name {
				found = append(found, s)
			}
		}
		if len(found) >= n {
			return found
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			f.Fatalf("%d spans %q of %d", len(found), name, n)
		}
	}
}

func attributeOf(s tracetest.SpanStub, key attribute.Key) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

// TestTraces: a caller's trace goes on in the call's span, and the log names it. What comes of the send later, by whatever
// process and as often as it takes, is linked to that span; nothing of it is where the caller's trace was not sampled.
func TestTraces(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "5")
	const sendSpan, createSpan = "jelou.facade.v1.MessageService/SendMessage", "jelou.facade.v1.BatchService/CreateBatch"
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		sent := &facadev1.SendMessageResponse{}
		traced(f, tr, "01", sendMessage, textTo(openUser, "hola"), sent)
		call := f.awaitSpans(sendSpan, 1)[0]
		if !strings.Contains(f.logs.String(), `"trace_id":"`+traceID+`"`) {
			t.Error("the log does not name the trace")
		}
		if call.SpanContext.TraceID().String() != traceID || call.SpanKind != trace.SpanKindServer || !strings.Contains(attributeOf(call, "jelou.resources"), sent.Send.SendId) {
			t.Errorf("call: %+v", call)
		}
		attempt := f.awaitSpans("send", 1)[0]
		if attempt.SpanContext.TraceID() == call.SpanContext.TraceID() || attempt.SpanKind != trace.SpanKindConsumer || attributeOf(attempt, "jelou.send_id") != sent.Send.SendId {
			t.Errorf("attempt: %+v", attempt)
		}
		f.checkLinked(attempt, call)
		for _, name := range []string{"claim", "POST", "settle"} {
			if s := f.awaitSpans(name, 1)[0]; s.Parent.SpanID() != attempt.SpanContext.SpanID() || s.StartTime.Before(attempt.StartTime) || s.EndTime.After(attempt.EndTime) {
				t.Errorf("%s: %+v", name, s)
			}
		}
		request := f.awaitSpans("POST", 1)[0]
		if request.SpanKind != trace.SpanKindClient || attributeOf(request, "http.response.status_code") != "200" || attributeOf(request, "server.address") != "127.0.0.1" {
			t.Errorf("request: %+v", request)
		}

		// A batch: each item's attempts are linked to the call, one that Jelou throttled twice over.
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle, Times: 1}))
		created := &facadev1.CreateBatchResponse{}
		traced(f, tr, "01", "BatchService/CreateBatch", batchOf(3, "aviso "), created)
		watch(f, tr, created.Batch.BatchId, "")
		batch := f.awaitSpans(createSpan, 1)[0]
		throttled := 0
		for _, s := range f.awaitSpans("send", 5)[1:] {
			f.checkLinked(s, batch)
		}
		for _, s := range f.awaitSpans("POST", 5) {
			if attributeOf(s, "http.response.status_code") == "429" && attributeOf(s, "error.type") == "throttled" && s.Status.Description == "UPSTREAM_RATE_LIMITED" {
				throttled++
			}
		}
		if throttled != 1 {
			t.Errorf("%d requests were throttled", throttled)
		}

		// A replay is linked to the call that asked for it.
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultMediaTooLarge, Times: 1}))
		traced(f, tr, "00", "BatchService/CreateBatch", batchOf(1, "grande "), created)
		watch(f, tr, created.Batch.BatchId, "")
		replayed := &facadev1.ReplayBatchResponse{}
		traced(f, tr, "01", "BatchService/ReplayBatch", &facadev1.ReplayBatchRequest{BatchId: created.Batch.BatchId, States: []facadev1.Send_State{facadev1.Send_FAILED}}, replayed)
		watch(f, tr, replayed.Batch.BatchId, "")
		f.checkLinked(f.awaitSpans("send", 6)[5], f.awaitSpans("jelou.facade.v1.BatchService/ReplayBatch", 1)[0])

		// A read is a part of its call.
		traced(f, tr, "01", "NotificationService/ListNotifications", &facadev1.ListNotificationsRequest{BotId: "demo"}, &facadev1.ListNotificationsResponse{})
		if get, list := f.awaitSpans("GET", 1)[0], f.awaitSpans("jelou.facade.v1.NotificationService/ListNotifications", 1)[0]; get.Parent.SpanID() != list.SpanContext.SpanID() {
			t.Errorf("read: %+v", get)
		}

		// The unsampled batch before left no span, and this comes after all.
		f.must(f.trace.Close(context.Background()))
		for _, s := range f.spans.GetSpans() {
			if s.Name == "send" && len(s.Links) != 1 {
				t.Errorf("linked to nothing: %+v", s)
			}
		}
		if n := len(f.awaitSpans("send", 6)); n != 6 {
			t.Errorf("%d attempts are traced", n)
		}
	})
}

// TestTraceOverProcesses: who sends finds in the ledger which call it was, also after a restart.
func TestTraceOverProcesses(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "5")
	folder := t.TempDir()
	same := func(s *setup) {
		s.ledger.Path, s.keyFile = filepath.Join(folder, "ledger.db"), filepath.Join(folder, "ledger.key")
	}
	if err := os.WriteFile(filepath.Join(folder, "ledger.key"), []byte(keyring.New()), 0o600); err != nil {
		t.Fatal(err)
	}
	var call tracetest.SpanStub
	t.Run("queue", func(t *testing.T) {
		f := newFacade(t, same)
		r := textTo(openUser, "más tarde")
		r.Mode, r.Options = facadev1.SendOptions_QUEUE, &facadev1.SendOptions{ScheduleTime: timestampIn(time.Second)}
		traced(f, transports[0], "01", sendMessage, r, &facadev1.SendMessageResponse{})
		call = f.awaitSpans("jelou.facade.v1.MessageService/SendMessage", 1)[0]
	})
	t.Run("send", func(t *testing.T) {
		f := newFacade(t, same)
		f.checkLinked(f.awaitSpans("send", 1)[0], call)
		if s := f.awaitSpans("POST", 1)[0]; attributeOf(s, "http.response.status_code") != "200" {
			t.Errorf("request: %+v", s)
		}
	})
}

// checkLinked holds an attempt to the call that made its send.
func (f *facade) checkLinked(attempt, call tracetest.SpanStub) {
	f.Helper()
	if len(attempt.Links) != 1 || attempt.Links[0].SpanContext.SpanID() != call.SpanContext.SpanID() || attempt.Links[0].SpanContext.TraceID() != call.SpanContext.TraceID() {
		f.Errorf("%s is not linked to %s: %+v", attempt.Name, call.Name, attempt.Links)
	}
}
