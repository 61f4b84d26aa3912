package service

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Streams over REST are handlers of ours over the same in-process connection: the generated ones turn a broken upload into
// a clean end, nest every message in {"result": …}, and have another shape of errors. docs/streaming.md is their contract.

// registerStreams puts the streaming routes over the generated ones.
func registerStreams(mux *runtime.ServeMux, conn grpc.ClientConnInterface) error {
	batches := facadev1.NewBatchServiceClient(conn)
	routes := []struct {
		method, path, rpc string
		open              func(ctx context.Context, r *http.Request, path map[string]string, reading *sync.WaitGroup) (receiver, error)
	}{
		{http.MethodPost, "/v1/batches:stream", facadev1.BatchService_StreamBatch_FullMethodName,
			func(ctx context.Context, r *http.Request, _ map[string]string, reading *sync.WaitGroup) (receiver, error) {
				stream, err := batches.StreamBatch(ctx)
				if err != nil {
					return nil, err
				}
				return upload(r, stream, reading), nil
			}},
		{http.MethodGet, "/v1/batches/{batch_id}:watch", facadev1.BatchService_WatchBatch_FullMethodName,
			func(ctx context.Context, r *http.Request, path map[string]string, _ *sync.WaitGroup) (receiver, error) {
				request := &facadev1.WatchBatchRequest{BatchId: path["batch_id"]}
				if err := streamQuery(r, request); err != nil {
					return nil, err
				}
				request.AfterCursor = orDefault(request.AfterCursor, r.Header.Get("Last-Event-ID"))
				return receiving[facadev1.WatchBatchResponse](ctx, conn, facadev1.BatchService_WatchBatch_FullMethodName, request)
			}},
		{http.MethodGet, "/v1/bots/{bot_id}/capacity:watch", facadev1.CapacityService_WatchCapacity_FullMethodName,
			func(ctx context.Context, r *http.Request, path map[string]string, _ *sync.WaitGroup) (receiver, error) {
				request := &facadev1.WatchCapacityRequest{BotId: path["bot_id"]}
				if err := streamQuery(r, request); err != nil {
					return nil, err
				}
				return receiving[facadev1.WatchCapacityResponse](ctx, conn, facadev1.CapacityService_WatchCapacity_FullMethodName, request)
			}},
	}
	for _, route := range routes {
		err := mux.HandlePath(route.method, route.path, func(w http.ResponseWriter, r *http.Request, path map[string]string) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			ctx, err := runtime.AnnotateContext(ctx, mux, r, route.rpc)
			if err != nil {
				writeError(w, gatewayStatus(r, err))
				return
			}
			bodyHere(w, r)
			var reading sync.WaitGroup
			if r.Method == http.MethodPost {
				// Without it the server closes the request's body with the first byte of the answer.
				_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 has it always, and says that it cannot set it
				if r.ProtoMajor == 1 {
					// An upload may be answered before its end. net/http then reads on, and where it comes to the end it panics with the next
					// request of the connection.
					w.Header().Set("Connection", "close")
				}
				defer func() { // nobody may read a request's body when its handler is over
					cancel()
					_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // of a connection that may be gone
					reading.Wait()
				}()
			}
			receive, err := route.open(ctx, r, path, &reading)
			if err != nil {
				writeError(w, gatewayStatus(r, err))
				return
			}
			newEventWriter(w, r).copy(receive)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// streamQuery fills a request from the query, as strictly as on other routes.
func streamQuery(r *http.Request, request proto.Message) error {
	return (&strictQuery{}).Parse(request, r.URL.Query(), utilities.NewDoubleArray(nil))
}

// A receiver gives the events of a stream, then io.EOF or the stream's error.
type receiver func() (proto.Message, error)

// receiving opens a stream that only the server writes to. It is not the generated client's: that one gives up without the
// stream's error when the server has refused the call before it read the request, which the in-process connection tells by io.EOF.
func receiving[T any, M interface {
	*T
	proto.Message
}](ctx context.Context, conn grpc.ClientConnInterface, method string, request proto.Message) (receiver, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return func() (proto.Message, error) {
		event := M(new(T))
		return event, stream.RecvMsg(event)
	}, nil
}

// upload feeds the request's lines to the stream while its events are received. A broken or malformed upload is an error
// of the stream, never its end: only `seal` ends a batch.
func upload(r *http.Request, stream grpc.BidiStreamingClient[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse], reading *sync.WaitGroup) receiver {
	failed := make(chan error, 1)
	reading.Go(func() {
		defer func() {
			if panicked := recover(); panicked != nil {
				failed <- crashOf(panicked) // which goes on in the handler's goroutine
			}
		}()
		if err := sendLines(r, stream); err != nil {
			failed <- err
			return
		}
		failed <- stream.CloseSend()
	})
	events := make(chan proto.Message)
	ended := make(chan error, 1) // apart, so that the end is told even when the call's time is up
	ctx := stream.Context()
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case events <- m:
			case <-ctx.Done(): // the next Recv says why
			}
		}
	}()
	return func() (proto.Message, error) {
		for {
			select {
			case m := <-events:
				return m, nil
			case err := <-ended:
				return nil, err
			case err := <-failed:
				if c, ok := errors.AsType[crash](err); ok {
					panic(c)
				}
				if err != nil {
					return nil, err
				}
				failed = nil // the upload is complete; the rest are events
			}
		}
	}
}

// sendLines sends one message a line. io.EOF from the stream means that it has ended: its error comes with the events.
func sendLines(r *http.Request, stream grpc.BidiStreamingClient[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse]) error {
	if r.Body == http.NoBody {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-ndjson" && kind != "application/json" {
		return newFault(facadev1.ErrorReason_INVALID_JSON, "Content-Type: must be application/x-ndjson")
	}
	lines := bufio.NewReaderSize(r.Body, 64<<10)
	for number := 1; ; number++ {
		line, err := readLine(lines)
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			request := &facadev1.StreamBatchRequest{}
			if err := jsonIn.Unmarshal(line, request); err != nil {
				f := jsonFault(line, err)
				f.message = "line " + strconv.Itoa(number) + ": " + f.message
				return f
			}
			if err := stream.Send(request); err != nil {
				return nil // the stream has ended; Recv says why
			}
		}
		if last {
			return nil
		}
	}
}

// readLine reads up to a newline, at most a request's bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxRequestBytes:
			return nil, newFault(facadev1.ErrorReason_REQUEST_TOO_LARGE, "a line is larger than %d MiB", maxRequestBytes>>20)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, newFault(facadev1.ErrorReason_INVALID_JSON, "the upload was cut; reopen the batch and go on from next_sequence").because(err)
		}
		return line, err
	}
}

// eventWriter writes a stream's events as lines of JSON or as server-sent events.
type eventWriter struct {
	w       http.ResponseWriter
	flush   *http.ResponseController
	sse     bool
	resumed bool // the client has seen events before: Last-Event-ID
	begun   bool
}

func newEventWriter(w http.ResponseWriter, r *http.Request) *eventWriter {
	return &eventWriter{
		w: w, flush: http.NewResponseController(w),
		sse:     strings.Contains(r.Header.Get("Accept"), "text/event-stream"),
		resumed: r.Header.Get("Last-Event-ID") != "",
	}
}

// copy writes all events. An error that comes first is a plain answer; one in mid-stream is the last event.
func (e *eventWriter) copy(receive receiver) {
	for {
		event, err := receive()
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil && !e.begun:
			writeError(e.w, streamStatus(err))
			return
		case err != nil:
			e.write("error", "", errorBody(streamStatus(err)))
			return
		}
		key, cursor := eventKey(event)
		if !e.begun && e.sse && e.resumed && key == "end" {
			// EventSource reconnects after every end; 204 is how it is told to stop.
			e.w.WriteHeader(http.StatusNoContent)
			return
		}
		data, err := jsonOut.Marshal(event)
		if err != nil || !e.write(key, cursor, data) {
			return
		}
	}
}

// streamStatus is the status of a stream's error.
func streamStatus(err error) *status.Status {
	if f, ok := errors.AsType[*fault](err); ok {
		return f.GRPCStatus()
	}
	return gatewayStatus(nil, err)
}

// eventKey is the one field that is set, and the cursor of a result.
func eventKey(event proto.Message) (key, cursor string) {
	m := event.ProtoReflect()
	if o := m.Descriptor().Oneofs(); o.Len() > 0 {
		if f := m.WhichOneof(o.Get(0)); f != nil {
			key = string(f.Name())
		}
	} else {
		key = string(m.Descriptor().Fields().Get(0).Name())
	}
	if r, ok := event.(interface{ GetResult() *facadev1.BatchResult }); ok {
		cursor = r.GetResult().GetCursor()
	}
	return key, cursor
}

// write writes one event; data is an object with the key as its one member. It reports whether the client is still there.
func (e *eventWriter) write(key, cursor string, data []byte) bool {
	if !e.begun {
		e.begun = true
		kind := "application/x-ndjson"
		if e.sse {
			kind = "text/event-stream"
		}
		e.w.Header().Set("Content-Type", kind)
		e.w.Header().Set("Cache-Control", "no-store")
		e.w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	}
	var b bytes.Buffer
	if e.sse {
		var value map[string]json.RawMessage
		if json.Unmarshal(data, &value) != nil {
			return false
		}
		b.WriteString("event: " + key + "\n")
		if cursor != "" {
			b.WriteString("id: " + cursor + "\n")
		}
		b.WriteString("data: ")
		_ = json.Compact(&b, value[key]) // it was just written as JSON
		b.WriteString("\n\n")
	} else {
		_ = json.Compact(&b, data) // it was just written as JSON
		b.WriteByte('\n')
	}
	if _, err := e.w.Write(b.Bytes()); err != nil {
		return false
	}
	return e.flush.Flush() == nil
}
