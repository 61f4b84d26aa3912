package service_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// batchStream is one open StreamBatch, over whatever.
type batchStream interface {
	send(*facadev1.StreamBatchRequest) error
	recv() (*facadev1.StreamBatchResponse, error)
	halfClose() error
	cut()
}

// openStream opens a stream over a transport.
func openStream(f *facade, tr transport, open *facadev1.StreamBatchRequest_Open) batchStream {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	f.Cleanup(cancel)
	var s batchStream
	if tr.name == "gRPC" {
		stream, err := facadev1.NewBatchServiceClient(f.conn).StreamBatch(ctx)
		f.must(err)
		s = grpcStream{stream, cancel}
	} else {
		s = newRESTStream(ctx, f, cancel)
	}
	f.must(s.send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}}))
	return s
}

type grpcStream struct {
	grpc.BidiStreamingClient[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse]
	cancel context.CancelFunc
}

func (s grpcStream) send(r *facadev1.StreamBatchRequest) error    { return s.Send(r) }
func (s grpcStream) recv() (*facadev1.StreamBatchResponse, error) { return s.Recv() }
func (s grpcStream) halfClose() error                             { return s.CloseSend() }
func (s grpcStream) cut()                                         { s.cancel() }

// restStream writes and reads lines of one request that goes both ways at once.
type restStream struct {
	f      *facade
	body   *io.PipeWriter
	answer chan *http.Response
	lines  *bufio.Reader
	cancel context.CancelFunc
}

func newRESTStream(ctx context.Context, f *facade, cancel context.CancelFunc) *restStream {
	body, w := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.rest+"/v1/batches:stream", body)
	f.must(err)
	r.Header.Set("Content-Type", "application/x-ndjson")
	s := &restStream{f: f, body: w, answer: make(chan *http.Response, 1), cancel: cancel}
	go func() {
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			close(s.answer)
			return
		}
		s.answer <- answer
	}()
	return s
}

func (s *restStream) send(r *facadev1.StreamBatchRequest) error {
	line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r)
	s.f.must(err)
	var compact bytes.Buffer
	s.f.must(json.Compact(&compact, line))
	_, err = s.body.Write(append(compact.Bytes(), '\n'))
	return err
}

func (s *restStream) recv() (*facadev1.StreamBatchResponse, error) {
	if s.lines == nil {
		answer, ok := <-s.answer
		if !ok {
			return nil, errors.New("no answer")
		}
		s.f.Cleanup(func() { _ = answer.Body.Close() })
		s.lines = bufio.NewReader(answer.Body)
		if answer.StatusCode != http.StatusOK {
			data, err := io.ReadAll(s.lines)
			s.f.must(err)
			return nil, restStatus(s.f, data).Err()
		}
		if kind := answer.Header.Get("Content-Type"); kind != "application/x-ndjson" {
			s.f.Errorf("Content-Type %q", kind)
		}
	}
	line, err := s.lines.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(line, []byte(`{"error":`)) {
		return nil, restStatus(s.f, line).Err()
	}
	var keys map[string]json.RawMessage
	s.f.must(json.Unmarshal(line, &keys))
	if len(keys) != 1 {
		s.f.Errorf("a line with %d keys: %s", len(keys), line)
	}
	event := &facadev1.StreamBatchResponse{}
	return event, protojson.Unmarshal(line, event)
}

func (s *restStream) halfClose() error { return s.body.Close() }
func (s *restStream) cut()             { s.cancel() }

func newBatchOpen(options *facadev1.SendOptions) *facadev1.StreamBatchRequest_Open {
	return &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: &facadev1.BatchSpec{BotId: "demo", Options: options}}}
}

func reopen(batchID, cursor string) *facadev1.StreamBatchRequest_Open {
	return &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_BatchId{BatchId: batchID}, AfterCursor: cursor}
}

func item(sequence int, text string) *facadev1.StreamBatchRequest {
	return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: &facadev1.BatchItem{
		Sequence: int32(sequence), UserId: openUser,
		Content: &facadev1.BatchItem_Message{Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: said(text)}}}},
	}}}
}

func seal(count int) *facadev1.StreamBatchRequest {
	return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: &facadev1.StreamBatchRequest_Seal{ItemCount: int32(count)}}}
}

// collected is what a stream said until it ended.
type collected struct {
	opened  *facadev1.BatchOpened
	acked   int32
	results map[int32]*facadev1.BatchResult
	cursor  string
	end     *facadev1.Batch
}

// collect reads a stream to its end or error, and holds it to the contract on the way.
func (c *collected) collect(f *facade, s batchStream, until func(*collected) bool) error {
	f.Helper()
	if c.results == nil {
		c.results = map[int32]*facadev1.BatchResult{}
	}
	for until == nil || !until(c) {
		event, err := s.recv()
		if err != nil {
			return err
		}
		switch e := event.Event.(type) {
		case *facadev1.StreamBatchResponse_Opened:
			c.opened = e.Opened
		case *facadev1.StreamBatchResponse_Ack:
			if e.Ack.ThroughSequence <= c.acked {
				f.Errorf("ack %d after %d", e.Ack.ThroughSequence, c.acked)
			}
			c.acked = e.Ack.ThroughSequence
		case *facadev1.StreamBatchResponse_Result:
			seq := e.Result.Send.Sequence
			if before, seen := c.results[seq]; seen && before.Cursor != e.Result.Cursor {
				f.Errorf("item %d has two results: %v, %v", seq, before, e.Result)
			}
			c.results[seq] = e.Result
			c.cursor = e.Result.Cursor
		case *facadev1.StreamBatchResponse_End:
			c.end = e.End.Batch
			return nil
		}
	}
	return nil
}

// TestStreamBatch uploads a batch with one bad item and gets one result for each.
func TestStreamBatch(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		s := openStream(f, tr, newBatchOpen(&facadev1.SendOptions{Labels: map[string]string{"campaign": "enero"}}))
		for i := 1; i <= 30; i++ {
			text := fmt.Sprint("número ", i)
			if i == 7 {
				text = " "
			}
			f.must(s.send(item(i, text)))
		}
		f.must(s.send(seal(30)))
		f.must(s.halfClose())
		var c collected
		f.must(c.collect(f, s, nil))
		if c.opened == nil || c.opened.NextSequence != 1 || c.acked != 30 || len(c.results) != 30 || c.end == nil {
			t.Fatalf("opened %v, acked %d, %d results, end %v", c.opened, c.acked, len(c.results), c.end)
		}
		for i, r := range c.results {
			want := facadev1.Send_SENT
			if i == 7 {
				want = facadev1.Send_FAILED
			}
			if r.Send.State != want || r.Send.BatchId != c.opened.BatchId {
				t.Errorf("item %d: %v", i, r.Send)
			}
		}
		if bad := c.results[7].Send; bad.ErrorReason != "INVALID_FIELD" {
			t.Errorf("the bad item: %v", bad)
		}
		if c.end.State != facadev1.Batch_COMPLETED || c.end.Counts.Sent != 29 || c.end.Counts.Failed != 1 || c.end.Counts.Accepted != 30 || c.end.EndTime == nil {
			t.Errorf("end: %v", c.end)
		}
		// The list has them all, by sequence and by filter.
		list := &facadev1.ListSendsResponse{}
		_, err := tr.call(context.Background(), f, "SendService/ListSends", &facadev1.ListSendsRequest{BatchId: c.opened.BatchId, States: []facadev1.Send_State{facadev1.Send_FAILED}}, list)
		f.must(err)
		if len(list.Sends) != 1 || list.Sends[0].Sequence != 7 {
			t.Errorf("failed ones: %v", list.Sends)
		}
	})
}

// TestStreamIsReopened: after a cut in the middle the batch goes on from the last durable item, and no result is lost or twice.
func TestStreamIsReopened(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		var c collected
		s := openStream(f, tr, newBatchOpen(nil))
		for i := 1; i <= 20; i++ {
			f.must(s.send(item(i, fmt.Sprint("antes ", i))))
		}
		f.must(c.collect(f, s, func(c *collected) bool { return c.acked >= 20 && len(c.results) >= 5 }))
		s.cut()
		id := c.opened.BatchId
		s = openStream(f, tr, reopen(id, c.cursor))
		c.acked = 0
		f.must(c.collect(f, s, func(c *collected) bool { return c.opened != nil }))
		for i := 15; i <= 40; i++ { // 15 to 20 once more
			f.must(s.send(item(i, fmt.Sprint("antes ", i))))
		}
		f.must(s.send(seal(40)))
		f.must(c.collect(f, s, nil))
		if c.opened.BatchId != id || len(c.results) != 40 || c.end.Counts.Sent != 40 {
			t.Errorf("%d results, end %v", len(c.results), c.end)
		}
		if n := f.sim.Report().Accepted; n != 40 {
			t.Errorf("%d messages", n)
		}
		// A watcher that comes late sees every result, from a cursor on the rest.
		results, end := watch(f, tr, id, "")
		if len(results) != 40 || end == nil {
			t.Errorf("watch: %d results, end %v", len(results), end)
		}
		if rest, _ := watch(f, tr, id, results[29].Cursor); len(rest) != 10 {
			t.Errorf("watch from the 30th on: %d results", len(rest))
		}
	})
}

// watch reads WatchBatch to its end.
func watch(f *facade, tr transport, batchID, after string) (results []*facadev1.BatchResult, end *facadev1.Batch) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var next func() (*facadev1.WatchBatchResponse, error)
	if tr.name == "gRPC" {
		stream, err := facadev1.NewBatchServiceClient(f.conn).WatchBatch(ctx, &facadev1.WatchBatchRequest{BatchId: batchID, AfterCursor: after})
		f.must(err)
		next = stream.Recv
	} else {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.rest+"/v1/batches/"+batchID+":watch?after_cursor="+after, nil)
		f.must(err)
		answer, err := http.DefaultClient.Do(r)
		f.must(err)
		defer answer.Body.Close()
		lines := bufio.NewReader(answer.Body)
		next = func() (*facadev1.WatchBatchResponse, error) {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return nil, err
			}
			event := &facadev1.WatchBatchResponse{}
			return event, protojson.Unmarshal(line, event)
		}
	}
	for {
		event, err := next()
		if errors.Is(err, io.EOF) {
			return results, end
		}
		f.must(err)
		if r := event.GetResult(); r != nil {
			results = append(results, r)
		}
		if e := event.GetEnd(); e != nil {
			end = e.Batch
		}
	}
}

// TestStreamErrors: what breaks the conversation ends the stream and stores nothing of it.
func TestStreamErrors(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		begun := 0
		begin := func() (batchStream, string) {
			begun++
			s := openStream(f, tr, newBatchOpen(nil))
			f.must(s.send(item(1, fmt.Sprint("uno ", begun))))
			var c collected
			f.must(c.collect(f, s, func(c *collected) bool { return c.acked == 1 }))
			return s, c.opened.BatchId
		}
		for _, r := range []struct {
			name, reason string
			code         codes.Code
			requests     []*facadev1.StreamBatchRequest
		}{
			{"gap", "SEQUENCE_MISMATCH", codes.FailedPrecondition, []*facadev1.StreamBatchRequest{item(3, "tres")}},
			{"other content", "SEQUENCE_MISMATCH", codes.FailedPrecondition, []*facadev1.StreamBatchRequest{item(1, "otro")}},
			{"wrong count", "SEQUENCE_MISMATCH", codes.FailedPrecondition, []*facadev1.StreamBatchRequest{seal(2)}},
		} {
			t.Run(r.name, func(t *testing.T) {
				s, _ := begin()
				for _, request := range r.requests {
					f.must(s.send(request))
				}
				var c collected
				err := c.collect(f, s, func(c *collected) bool { return false })
				if status.Code(err) != r.code || reasonOf(err) != r.reason {
					t.Errorf("%v", err)
				}
			})
		}
		t.Run("item after seal", func(t *testing.T) {
			r := newBatchOpen(nil)
			r.GetSpec().Paused = true // so that it does not end with its seal
			s := openStream(f, tr, r)
			for _, request := range []*facadev1.StreamBatchRequest{item(1, "sellado"), seal(1), item(2, "tarde")} {
				f.must(s.send(request))
			}
			err := (&collected{}).collect(f, s, nil)
			if status.Code(err) != codes.FailedPrecondition || reasonOf(err) != "BATCH_SEALED" {
				t.Errorf("%v", err)
			}
		})
		t.Run("replaced", func(t *testing.T) {
			old, id := begin()
			newer := openStream(f, tr, reopen(id, ""))
			var c collected
			f.must(c.collect(f, newer, func(c *collected) bool { return c.opened != nil }))
			err := (&collected{}).collect(f, old, nil)
			if status.Code(err) != codes.Aborted || reasonOf(err) != "STREAM_REPLACED" {
				t.Errorf("%v", err)
			}
			newer.cut()
		})
		t.Run("repeated without request_id", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "x-envoy-attempt-count", "2"), 10*time.Second)
			defer cancel()
			if tr.name != "gRPC" {
				r := retried(post("/v1/batches:stream", "application/x-ndjson", `{"open": {"spec": {"bot_id": "demo"}}}`))(f)
				answer, err := http.DefaultClient.Do(r.WithContext(ctx))
				f.must(err)
				defer answer.Body.Close()
				body, err := io.ReadAll(answer.Body)
				f.must(err)
				if !strings.Contains(string(body), "RETRY_WITHOUT_REQUEST_ID") {
					t.Errorf("%s %s", answer.Status, body)
				}
				return
			}
			for id, want := range map[string]string{"": "RETRY_WITHOUT_REQUEST_ID", "otra-vez": ""} {
				stream, err := facadev1.NewBatchServiceClient(f.conn).StreamBatch(ctx)
				f.must(err)
				open := newBatchOpen(nil)
				open.GetSpec().RequestId = id
				f.must(stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}}))
				if _, err := stream.Recv(); reasonOf(err) != want {
					t.Errorf("with request_id %q: %v", id, err)
				}
			}
		})
		t.Run("no open", func(t *testing.T) {
			if tr.name != "gRPC" {
				return
			}
			stream, err := facadev1.NewBatchServiceClient(f.conn).StreamBatch(context.Background())
			f.must(err)
			f.must(stream.Send(seal(1)))
			if _, err := stream.Recv(); reasonOf(err) != "INVALID_FIELD" {
				t.Errorf("%v", err)
			}
		})
	})
}

// TestMalformedLine: a broken upload is an error in the stream's shape and leaves the batch open.
func TestMalformedLine(t *testing.T) {
	f := newFacade(t, nil)
	for name, lines := range map[string]string{
		"no JSON":       `{"item": {"sequence": 2, `,
		"unknown field": `{"item": {"sequence": 2, "user": "` + openUser + `"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := openStream(f, transports[1], newBatchOpen(nil)).(*restStream)
			f.must(s.send(item(1, "uno "+name)))
			_, err := s.body.Write([]byte(lines + "\n"))
			f.must(err)
			var c collected
			err = c.collect(f, s, nil)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), "line 3") {
				t.Errorf("%v", err)
			}
			if c.opened == nil {
				return
			}
			b := &facadev1.GetBatchResponse{}
			_, err = overREST(context.Background(), f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: c.opened.BatchId}, b)
			f.must(err)
			if b.Batch.State != facadev1.Batch_OPEN {
				t.Errorf("the batch is %v", b.Batch)
			}
		})
	}
}

// TestWriteThenRead: a client that writes everything before it reads anything works, and so does a server with
// more results than it may write at once.
func TestWriteThenRead(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		open := newBatchOpen(nil)
		open.GetSpec().Paused = true
		s := openStream(f, tr, open)
		const n = 3 * 1000 // of max_unacknowledged
		for i := 1; i <= n; i++ {
			f.must(s.send(item(i, "todo primero")))
		}
		f.must(s.send(seal(n)))
		var c collected
		f.must(c.collect(f, s, func(c *collected) bool { return c.acked == n }))
		_, err := tr.call(context.Background(), f, "BatchService/CancelBatch", &facadev1.CancelBatchRequest{BatchId: c.opened.BatchId}, &facadev1.CancelBatchResponse{})
		f.must(err)
		f.must(c.collect(f, s, nil))
		if len(c.results) != n || c.end.Counts.Cancelled != n {
			t.Errorf("%d results, %v", len(c.results), c.end.Counts)
		}
	})
}

func batchOf(n int, text string) *facadev1.CreateBatchRequest {
	r := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: "demo"}}
	for i := range n {
		r.Items = append(r.Items, proto.CloneOf(item(i+1, fmt.Sprint(text, i)).GetItem()))
	}
	return r
}

// TestBatchLifecycle: created paused, listed, resumed, cancelled in the middle, and what must be refused is.
func TestBatchLifecycle(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		ctx := context.Background()
		r := batchOf(20, "ciclo ")
		r.Spec.Paused, r.Spec.RequestId = true, "enero"
		created := &facadev1.CreateBatchResponse{}
		_, err := tr.call(ctx, f, "BatchService/CreateBatch", r, created)
		f.must(err)
		again := &facadev1.CreateBatchResponse{}
		_, err = tr.call(ctx, f, "BatchService/CreateBatch", r, again)
		f.must(err)
		id := created.Batch.BatchId
		if again.Batch.BatchId != id || !created.Batch.Paused || created.Batch.State != facadev1.Batch_RUNNING || created.Batch.Counts.Pending != 20 {
			t.Fatalf("created %v, again %v", created.Batch, again.Batch)
		}
		list := &facadev1.ListBatchesResponse{}
		_, err = tr.call(ctx, f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{RequestId: "enero"}, list)
		f.must(err)
		if len(list.Batches) != 1 || list.Batches[0].BatchId != id {
			t.Errorf("list: %v", list)
		}
		if f.sim.Report().Arrived != 0 {
			t.Error("a paused batch sends")
		}
		_, err = tr.call(ctx, f, "BatchService/CancelBatch", &facadev1.CancelBatchRequest{BatchId: id}, &facadev1.CancelBatchResponse{})
		f.must(err)
		results, end := watch(f, tr, id, "")
		if len(results) != 20 || end == nil || end.Counts.Cancelled != 20 || results[0].Send.ErrorReason != "CANCELLED" {
			t.Errorf("after the cancel: %d results, %v", len(results), end)
		}
		_, err = tr.call(ctx, f, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: id}, &facadev1.ResumeBatchResponse{})
		if reasonOf(err) != "BATCH_ENDED" {
			t.Errorf("resume of an ended batch: %v", err)
		}
		_, err = tr.call(ctx, f, "BatchService/ReplayBatch", &facadev1.ReplayBatchRequest{BatchId: id, States: []facadev1.Send_State{facadev1.Send_FAILED}}, &facadev1.ReplayBatchResponse{})
		if reasonOf(err) != "NOTHING_TO_REPLAY" {
			t.Errorf("replay: %v", err)
		}
		_, err = tr.call(ctx, f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: "b123"}, &facadev1.GetBatchResponse{})
		if reasonOf(err) != "RESOURCE_NOT_FOUND" {
			t.Errorf("no such batch: %v", err)
		}
	})
}

// TestReplay sends the failed items again, once.
func TestReplay(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		ctx := context.Background()
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultMediaTooLarge, Times: 3}))
		created := &facadev1.CreateBatchResponse{}
		_, err := tr.call(ctx, f, "BatchService/CreateBatch", batchOf(10, "otra vez "), created)
		f.must(err)
		if _, end := watch(f, tr, created.Batch.BatchId, ""); end.Counts.Failed != 3 || end.Counts.Sent != 7 {
			t.Fatalf("first: %v", end)
		}
		replay := &facadev1.ReplayBatchRequest{BatchId: created.Batch.BatchId, States: []facadev1.Send_State{facadev1.Send_FAILED}}
		replayed := &facadev1.ReplayBatchResponse{}
		_, err = tr.call(ctx, f, "BatchService/ReplayBatch", replay, replayed)
		f.must(err)
		results, end := watch(f, tr, replayed.Batch.BatchId, "")
		if end.Counts.Sent != 3 || end.SourceBatchId != created.Batch.BatchId || results[0].Send.SourceSendId == "" {
			t.Errorf("replay: %v, %v", end, results[0].Send)
		}
		if _, err = tr.call(ctx, f, "BatchService/ReplayBatch", replay, replayed); reasonOf(err) != "NOTHING_TO_REPLAY" {
			t.Errorf("a second replay: %v", err)
		}
	})
}

// TestReplayChoices: a replay takes what its filters name and nothing else, with its own options, and once for each request_id.
func TestReplayChoices(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.attemptTimeout = 500 * time.Millisecond })
		ctx := context.Background()
		f.must(f.sim.SetFaults(
			jelousim.Fault{Kind: jelousim.FaultMediaTooLarge, Contains: "elegido 0"}, jelousim.Fault{Kind: jelousim.FaultUnsupportedMedia, Contains: "elegido 1"},
			jelousim.Fault{Kind: jelousim.FaultClose, Contains: "elegido 2"},
		))
		r := batchOf(5, "elegido ")
		r.Spec.Paused = true
		r.Items[3].Options = &facadev1.SendOptions{ExpireTime: timestampIn(time.Second)}
		created := &facadev1.CreateBatchResponse{}
		_, err := tr.call(ctx, f, "BatchService/CreateBatch", r, created)
		f.must(err)
		id := created.Batch.BatchId
		f.waitFor(func(n ledger.Totals) bool { return n.Expired == 1 })
		_, err = tr.call(ctx, f, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: id}, &facadev1.ResumeBatchResponse{})
		f.must(err)
		results, _ := watch(f, tr, id, "")
		sequence := map[string]int32{}
		for _, result := range results {
			sequence[result.Send.SendId] = result.Send.Sequence
		}
		replay := func(r *facadev1.ReplayBatchRequest) (*facadev1.Batch, error) {
			r.BatchId = id
			replayed := &facadev1.ReplayBatchResponse{}
			_, err := tr.call(ctx, f, "BatchService/ReplayBatch", r, replayed)
			return replayed.Batch, err
		}
		expire := timestampIn(time.Hour)
		chosen := &facadev1.ReplayBatchRequest{
			States: []facadev1.Send_State{facadev1.Send_FAILED}, ErrorReasons: []string{"MEDIA_TOO_LARGE"}, RequestId: "otra", Paused: true, ExpireTime: expire,
		}
		paused, err := replay(chosen)
		f.must(err)
		if !paused.Paused || paused.Counts.Accepted != 1 || paused.Counts.Pending != 1 || paused.Spec.RequestId != "otra" || paused.SourceBatchId != id {
			t.Errorf("paused replay: %v", paused)
		}
		if again, err := replay(chosen); err != nil || again.BatchId != paused.BatchId {
			t.Errorf("the same request_id: %v, %v", again, err)
		}
		other := proto.CloneOf(chosen)
		other.ErrorReasons = []string{"UNSUPPORTED_MEDIA_TYPE"}
		if _, err := replay(other); reasonOf(err) != "REQUEST_ID_REUSED" {
			t.Errorf("the same request_id for another choice: %v", err)
		}
		for _, c := range []struct {
			state   facadev1.Send_State
			reasons []string
			refused string
			item    int32 // the one that is sent again
		}{
			{facadev1.Send_SENT, nil, "INVALID_FIELD", 0},
			{facadev1.Send_UNKNOWN, []string{"UNSUPPORTED_MEDIA_TYPE"}, "NOTHING_TO_REPLAY", 0},
			{facadev1.Send_FAILED, nil, "", 2}, // the first one waits in the paused replay
			{facadev1.Send_FAILED, nil, "NOTHING_TO_REPLAY", 0},
			{facadev1.Send_EXPIRED, nil, "", 4},
			{facadev1.Send_UNKNOWN, nil, "", 3},
		} {
			b, err := replay(&facadev1.ReplayBatchRequest{States: []facadev1.Send_State{c.state}, ErrorReasons: c.reasons})
			if err != nil || c.refused != "" {
				if reasonOf(err) != c.refused {
					t.Errorf("replay of %v %v: %v", c.state, c.reasons, err)
				}
				continue
			}
			results, end := watch(f, tr, b.BatchId, "")
			if len(results) != 1 || sequence[results[0].Send.SourceSendId] != c.item || end.Counts.Sent != 1 {
				t.Errorf("replay of %v: %v, %v", c.state, results, end)
			}
		}
		_, err = tr.call(ctx, f, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: paused.BatchId}, &facadev1.ResumeBatchResponse{})
		f.must(err)
		results, end := watch(f, tr, paused.BatchId, "")
		if len(results) != 1 || sequence[results[0].Send.SourceSendId] != 1 || end.Counts.Sent != 1 {
			t.Fatalf("the paused replay: %v, %v", results, end)
		}
		if got := results[0].Send.Options.ExpireTime.AsTime(); got.Sub(expire.AsTime()).Abs() > time.Millisecond {
			t.Errorf("it expires at %v, want %v", got, expire.AsTime())
		}
	})
}

// TestCreateBatchRefusals: one bad item refuses all, by name, and nothing is stored.
func TestCreateBatchRefusals(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		bad := batchOf(5, "malo ")
		bad.Items[3].GetMessage().GetText().Text = ""
		_, err := tr.call(context.Background(), f, "BatchService/CreateBatch", bad, &facadev1.CreateBatchResponse{})
		if reasonOf(err) != "INVALID_FIELD" || !strings.Contains(err.Error(), "items[3].message.text.text") {
			t.Errorf("%v", err)
		}
		list := &facadev1.ListBatchesResponse{}
		_, err = tr.call(context.Background(), f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, list)
		f.must(err)
		if len(list.Batches) != 0 {
			t.Errorf("stored: %v", list)
		}
	})
}

// TestServerSentEvents: the same events for a browser, and 204 once nothing is left.
func TestServerSentEvents(t *testing.T) {
	f := newFacade(t, nil)
	created := &facadev1.CreateBatchResponse{}
	_, err := overREST(context.Background(), f, "BatchService/CreateBatch", batchOf(3, "evento "), created)
	f.must(err)
	events := func(last string) (int, string) {
		r, err := http.NewRequest(http.MethodGet, f.rest+"/v1/batches/"+created.Batch.BatchId+":watch", nil)
		f.must(err)
		r.Header.Set("Accept", "text/event-stream, */*")
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		answer, err := http.DefaultClient.Do(r)
		f.must(err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		f.must(err)
		return answer.StatusCode, string(body)
	}
	code, body := events("")
	if code != 200 || strings.Count(body, "event: result\nid: ") != 3 || !strings.Contains(body, "event: end\ndata: {\"batch\":") || !strings.HasSuffix(body, "\n\n") {
		t.Errorf("%d\n%s", code, body)
	}
	last := body[strings.LastIndex(body, "id: ")+4:]
	last = last[:strings.IndexByte(last, '\n')]
	if code, body := events(last); code != 204 || body != "" {
		t.Errorf("after the last event: %d %s", code, body)
	}
	if code, body := events("zz-zz"); code != 400 || !strings.Contains(body, "INVALID_FIELD") {
		t.Errorf("no cursor: %d %s", code, body)
	}
}

// TestSendService: a queued send is cancelled in time, a sent one is too late, an unknown one is settled by a person.
func TestSendService(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.pace = pace.Config{Requests: 1, Window: 2 * time.Second} })
		ctx := context.Background()
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultReset, Accepted: true}))
		_, _, err := f.sendText(tr, withID(textTo(openUser, "perdido"), "lost-1"))
		if reasonOf(err) != "OUTCOME_UNKNOWN" {
			t.Fatal(err)
		}
		list := &facadev1.ListSendsResponse{}
		_, err = tr.call(ctx, f, "SendService/ListSends", &facadev1.ListSendsRequest{RequestId: "lost-1"}, list)
		f.must(err)
		if len(list.Sends) != 1 || list.Sends[0].State != facadev1.Send_UNKNOWN || list.Sends[0].ErrorReason != "OUTCOME_UNKNOWN" {
			t.Fatalf("list: %v", list)
		}
		id := list.Sends[0].SendId
		resolved := &facadev1.ResolveSendResponse{}
		_, err = tr.call(ctx, f, "SendService/ResolveSend", &facadev1.ResolveSendRequest{SendId: id, State: facadev1.Send_SENT}, resolved)
		f.must(err)
		if resolved.Send.State != facadev1.Send_SENT || !resolved.Send.Resolved {
			t.Errorf("resolved: %v", resolved.Send)
		}
		_, err = tr.call(ctx, f, "SendService/ResolveSend", &facadev1.ResolveSendRequest{SendId: id, State: facadev1.Send_FAILED}, resolved)
		if reasonOf(err) != "NOT_UNKNOWN" {
			t.Errorf("resolved again: %v", err)
		}
		_, err = tr.call(ctx, f, "SendService/CancelSend", &facadev1.CancelSendRequest{SendId: id}, &facadev1.CancelSendResponse{})
		if reasonOf(err) != "ALREADY_SENDING" {
			t.Errorf("cancel of a sent one: %v", err)
		}
		queued := textTo(openUser, "mejor no")
		queued.Mode = facadev1.SendOptions_QUEUE
		send, _, err := f.sendText(tr, queued)
		f.must(err)
		if send.State != facadev1.Send_PENDING || send.EstimatedSendTime == nil {
			t.Errorf("queued: %v", send)
		}
		cancelled := &facadev1.CancelSendResponse{}
		_, err = tr.call(ctx, f, "SendService/CancelSend", &facadev1.CancelSendRequest{SendId: send.SendId}, cancelled)
		f.must(err)
		if cancelled.Send.State != facadev1.Send_CANCELLED || cancelled.Send.ErrorReason != "CANCELLED" {
			t.Errorf("cancelled: %v", cancelled.Send)
		}
		got := &facadev1.GetSendResponse{}
		_, err = tr.call(ctx, f, "SendService/GetSend", &facadev1.GetSendRequest{SendId: send.SendId}, got)
		f.must(err)
		if !proto.Equal(got.Send, cancelled.Send) {
			t.Errorf("GetSend says %v, CancelSend %v", got.Send, cancelled.Send)
		}
		_, err = tr.call(ctx, f, "SendService/GetSend", &facadev1.GetSendRequest{SendId: send.SendId + "x"}, got)
		if reasonOf(err) != "RESOURCE_NOT_FOUND" {
			t.Errorf("no such send: %v", err)
		}
	})
}

func timestampIn(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(d))
}

// TestExpired: a queued send whose time passes before its turn is not sent, and says so.
func TestExpired(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		ctx := context.Background()
		r := batchOf(1, "tarde ")
		r.Spec.Paused = true
		r.Spec.Options = &facadev1.SendOptions{ExpireTime: timestampIn(time.Second)}
		created := &facadev1.CreateBatchResponse{}
		_, err := tr.call(ctx, f, "BatchService/CreateBatch", r, created)
		f.must(err)
		results, end := watch(f, tr, created.Batch.BatchId, "")
		if len(results) != 1 || results[0].Send.State != facadev1.Send_EXPIRED || results[0].Send.ErrorReason != "EXPIRED" || end.Counts.Expired != 1 {
			t.Errorf("%v, %v", results, end)
		}
		if f.sim.Report().Arrived != 0 {
			t.Error("it was sent")
		}
	})
}

// TestScheduled: a send waits for its time.
func TestScheduled(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		r := textTo(openUser, "a su hora")
		r.Mode, r.Options = facadev1.SendOptions_QUEUE, &facadev1.SendOptions{ScheduleTime: timestampIn(400 * time.Millisecond)}
		due := r.Options.ScheduleTime.AsTime()
		send, _, err := f.sendText(tr, r)
		f.must(err)
		if send.State != facadev1.Send_SCHEDULED || send.EstimatedSendTime == nil {
			t.Errorf("%v", send)
		}
		f.eventually(func() bool { return len(f.sim.SendsWithText(said("a su hora"))) == 1 })
		if at := f.sim.SendsWithText(said("a su hora"))[0].At; at.Before(due) {
			t.Errorf("sent %v early", due.Sub(at))
		}
	})
}

// TestBatchSpecIsSealed: what a caller says of a batch is read again, also by a replay, and is not in the database as it was said.
func TestBatchSpecIsSealed(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil) // which looks at the end for this name in what is stored
		const name = "Cumpleaños de Lucía"
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultMediaTooLarge, Times: 1}))
		request, created := batchOf(1, "feliz "), &facadev1.CreateBatchResponse{}
		request.Spec.DisplayName = name
		_, err := tr.call(t.Context(), f, "BatchService/CreateBatch", request, created)
		f.must(err)
		_, watched := watch(f, tr, created.Batch.BatchId, "")
		replayed := &facadev1.ReplayBatchResponse{}
		_, err = tr.call(t.Context(), f, "BatchService/ReplayBatch", &facadev1.ReplayBatchRequest{BatchId: watched.BatchId, States: []facadev1.Send_State{facadev1.Send_FAILED}}, replayed)
		f.must(err)
		for _, b := range []*facadev1.Batch{created.Batch, watched, replayed.Batch} {
			if b.GetSpec().GetDisplayName() != name {
				t.Errorf("%v", b)
			}
		}
	})
}
