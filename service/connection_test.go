package service_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service"
)

// TestConnectionsBounded: a connection too many is closed at once, and one that ends makes room.
func TestConnectionsBounded(t *testing.T) {
	f := newFacade(t, func(s *setup) { s.connections.Most = 2 })
	for _, address := range []string{f.grpcAddr, f.rest[len("http://"):], f.admin[len("http://"):]} {
		var open []net.Conn
		refused := func() bool {
			c, err := net.Dial("tcp", address)
			f.must(err)
			t.Cleanup(func() { _ = c.Close() })
			f.must(c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
			_, err = io.Copy(io.Discard, c) // gRPC's server speaks first, REST's does not: neither ends
			if errors.Is(err, os.ErrDeadlineExceeded) {
				open = append(open, c)
				return false
			}
			return true
		}
		for range 2 {
			if refused() {
				t.Fatal("a connection within the bound was closed")
			}
		}
		if !refused() {
			t.Error("a third connection is open")
		}
		f.must(open[0].Close())
		f.eventually(func() bool { return !refused() })
	}
}

// pausedBatch is a batch from which nothing leaves.
func pausedBatch(f *facade, tr transport) string {
	f.Helper()
	r := batchOf(3, "en pausa ")
	r.Spec.Paused = true
	created := &facadev1.CreateBatchResponse{}
	_, err := tr.call(f.Context(), f, "BatchService/CreateBatch", r, created)
	f.must(err)
	return created.Batch.BatchId
}

// checkDrained is how a stream ends that may go on elsewhere.
func checkDrained(f *facade, batchID string, err error) {
	f.Helper()
	info := detailOf[*errdetails.ErrorInfo](err)
	if status.Code(err) != codes.Unavailable || info.GetReason() != "DRAINING" || info.GetMetadata()["batch_id"] != batchID || detailOf[*errdetails.RetryInfo](err) == nil {
		f.Errorf("the stream ended with %v, %v", err, info)
	}
}

// endOf reads a stream to its end.
func endOf(s batchStream) error {
	for {
		if _, err := s.recv(); err != nil {
			return err
		}
	}
}

// TestStreamsOfOldConnections: a stream is ended in words before its connection is cut, and goes on over another one.
func TestStreamsOfOldConnections(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) {
			s.connections = service.Connections{Age: 100 * time.Millisecond, Grace: 4 * time.Second}
		})
		id := pausedBatch(f, tr)
		checkDrained(f, id, endOf(openStream(f, tr, reopen(id, ""))))
		_, err := tr.call(t.Context(), f, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: id}, &facadev1.ResumeBatchResponse{})
		f.must(err)
		if results, end := watch(f, tr, id, ""); len(results) != 3 || end.Counts.Sent != 3 {
			t.Errorf("%v, %v", results, end)
		}
	})
}

// TestOldConnectionsREST: who comes again over an old connection is told to open another one.
func TestOldConnectionsREST(t *testing.T) {
	f := newFacade(t, func(s *setup) { s.connections.Age = time.Nanosecond })
	answer, err := http.Post(f.rest+"/v1/bots/demo/messages", "application/json", bytes.NewReader([]byte("{}")))
	f.must(err)
	f.must(answer.Body.Close())
	if answer.StatusCode != http.StatusBadRequest || !answer.Close {
		t.Errorf("%s, closed: %v", answer.Status, answer.Close)
	}
}

// TestStopEndsStreams: a stop ends streams in words, and within its time though the client goes on.
func TestStopEndsStreams(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		id := pausedBatch(f, tr)
		s := openStream(f, tr, reopen(id, ""))
		if opened, err := s.recv(); err != nil || opened.GetOpened() == nil {
			t.Fatal(opened, err)
		}
		f.stop()
		checkDrained(f, id, endOf(s))
	})
}

// TestStreamsBounded: the open streams of a caller, and of all, are bounded, those that watch health too; one that ends makes room.
func TestStreamsBounded(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders, other := &configv1.Caller{Name: "orders", Companies: []string{"*"}}, &configv1.Caller{Name: "other", Companies: []string{"*"}}
		key, otherKey := keyed(orders, time.Time{}), keyed(other, time.Time{})
		f := newFacade(t, func(s *setup) {
			s.callers = []*configv1.Caller{orders, other}
			s.connections.Streams, s.connections.CallerStreams = 4, 2
		})
		watch := func(key string) (end func(), err error) {
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			return cancel, firstCapacity(ctx, f, tr, key)
		}
		end, err := watch(key)
		f.must(err)
		_, err = watch(key)
		f.must(err)
		_, err = watch(key)
		checkQuota(t, tr, http.Header{"Retry-After": {"5"}}, err, "2 open streams")
		_, err = watch(otherKey)
		f.must(err)

		health, err := healthv1.NewHealthClient(f.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
		f.must(err)
		_, err = health.Recv()
		f.must(err)
		_, err = watch(otherKey)
		if status.Code(err) != codes.ResourceExhausted || reasonOf(err) != "QUEUE_FULL" || detailOf[*errdetails.RetryInfo](err).GetRetryDelay().AsDuration() != 5*time.Second {
			t.Errorf("a stream too many: %v", err)
		}
		refused, err := healthv1.NewHealthClient(f.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
		f.must(err)
		if _, err = refused.Recv(); reasonOf(err) != "QUEUE_FULL" {
			t.Errorf("another watcher of health: %v", err)
		}
		end()
		f.eventually(func() bool {
			_, err := watch(key)
			return err == nil
		})
	})
}

// firstCapacity opens a stream that goes on until ctx ends, and waits for its first event.
func firstCapacity(ctx context.Context, f *facade, tr transport, key string) error {
	f.Helper()
	if tr.name == "gRPC" {
		stream, err := facadev1.NewCapacityServiceClient(f.conn).WatchCapacity(metadata.AppendToOutgoingContext(ctx, "x-api-key", key), &facadev1.WatchCapacityRequest{BotId: "demo"})
		f.must(err)
		_, err = stream.Recv()
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.rest+"/v1/bots/demo/capacity:watch", nil)
	f.must(err)
	r.Header.Set("X-Api-Key", key)
	answer, err := http.DefaultClient.Do(r)
	f.must(err)
	line, err := bufio.NewReader(answer.Body).ReadBytes('\n') // of an error all
	if answer.StatusCode == http.StatusOK {
		f.Cleanup(func() { _ = answer.Body.Close() })
		return err
	}
	f.must(answer.Body.Close())
	return restStatus(f, line).Err()
}
