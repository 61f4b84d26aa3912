package service_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// keyed gives a caller a key, good until then (zero: for ever).
func keyed(c *configv1.Caller, expires time.Time) (key string) {
	key = caller.NewKey()
	c.Keys = append(c.Keys, keyHash(key, expires))
	return key
}

func keyHash(key string, expires time.Time) *configv1.Caller_Key {
	hash := caller.HashKey(key)
	k := &configv1.Caller_Key{Sha256: hex.EncodeToString(hash[:])}
	if !expires.IsZero() {
		k.ExpireTime = timestamppb.New(expires)
	}
	return k
}

// as makes every call of a transport with a key.
func as(tr transport, key string) transport {
	return transport{tr.name, func(ctx context.Context, f *facade, method string, request, response proto.Message) (http.Header, error) {
		if tr.name == "gRPC" {
			return tr.call(metadata.AppendToOutgoingContext(ctx, "x-api-key", key), f, method, request, response)
		}
		return overRESTWith(ctx, f, method, request, response, http.Header{"X-Api-Key": {key}})
	}}
}

// setCallers changes who may call.
func (f *facade) setCallers(callers ...*configv1.Caller) {
	f.Helper()
	set, err := f.source.Load(callers, nil)
	f.must(err)
	f.settings.Callers = set
	f.server.Update(f.settings)
}

// watchEnds opens the stream of a method, waits for its first message, then changes something, and gives the stream's end.
func watchEnds(f *facade, key, method string, request proto.Message, change func()) error {
	f.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(f.Context(), "x-api-key", key), 30*time.Second)
	defer cancel()
	stream, err := f.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/jelou.facade.v1."+method)
	f.must(err)
	f.must(stream.SendMsg(request))
	if method != "BatchService/StreamBatch" {
		f.must(stream.CloseSend())
	}
	f.must(stream.RecvMsg(responseOf(f, method)))
	change()
	for {
		if err := stream.RecvMsg(responseOf(f, method)); err != nil {
			return err
		}
	}
}

// resultsOf counts the results of a batch to its end.
func (f *facade) resultsOf(key, batchID string) (results int) {
	f.Helper()
	ctx := metadata.AppendToOutgoingContext(f.Context(), "x-api-key", key)
	stream, err := facadev1.NewBatchServiceClient(f.conn).WatchBatch(ctx, &facadev1.WatchBatchRequest{BatchId: batchID})
	f.must(err)
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return results
		case err != nil:
			f.Fatal(err)
		case event.GetResult() != nil:
			results++
		}
	}
}

// A stream ends when its caller's key is revoked or expires, or may not be used any more for what it shows; it goes on elsewhere
// with a good one, and nothing is missing.
func TestStreamsEndWithTheirCredential(t *testing.T) {
	newCaller := func() *configv1.Caller { return &configv1.Caller{Name: "orders", Companies: []string{"sandbox"}} }
	orders := newCaller()
	first, second := keyed(orders, time.Time{}), keyed(orders, time.Time{})
	for _, test := range []struct {
		name   string
		change func(*configv1.Caller)
		batch  string // the reason that ends StreamBatch
		status string // the reason that ends WatchCapacity
	}{
		{"revoked", func(c *configv1.Caller) { c.Keys = []*configv1.Caller_Key{keyHash(second, time.Time{})} }, unauthenticated, unauthenticated},
		{"expires", func(c *configv1.Caller) {
			c.Keys = []*configv1.Caller_Key{keyHash(first, time.Now().Add(300*time.Millisecond)), keyHash(second, time.Time{})}
		}, unauthenticated, unauthenticated},
		{"another's now", func(c *configv1.Caller) { c.Name, c.Companies = "other", []string{"*"}; c.Bots = []string{"disabled"} }, notFound, forbidden},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders}; s.rival = true })
			r := batchOf(3, "hola ")
			created := &facadev1.CreateBatchResponse{}
			_, err := as(transports[0], first).call(t.Context(), f, "BatchService/CreateBatch", r, created)
			f.must(err)
			changed := proto.CloneOf(orders)
			for _, method := range []string{"BatchService/StreamBatch", "CapacityService/WatchCapacity"} {
				f.setCallers(orders)
				want := test.status
				var request proto.Message = &facadev1.WatchCapacityRequest{BotId: "demo"}
				if method == "BatchService/StreamBatch" {
					r := batchOf(3, "en pausa ")
					r.Spec.Paused = true
					paused := &facadev1.CreateBatchResponse{}
					_, err := as(transports[0], first).call(t.Context(), f, "BatchService/CreateBatch", r, paused)
					f.must(err)
					want = test.batch
					request = &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: reopen(paused.Batch.BatchId, "")}}
				}
				err := watchEnds(f, first, method, request, func() {
					changed = proto.CloneOf(orders)
					test.change(changed)
					f.setCallers(changed)
				})
				if reasonOf(err) != want {
					t.Errorf("%s ended with %v, want %s", method, err, want)
				}
			}
			if test.batch == unauthenticated { // the same caller comes again
				if n := f.resultsOf(second, created.Batch.BatchId); n != 3 {
					t.Errorf("%d results with the other key", n)
				}
			}
		})
	}
}

// A stream whose caller may not call any more takes nothing in either.
func TestUploadsEndWithTheirCredential(t *testing.T) {
	orders := &configv1.Caller{Name: "orders", Companies: []string{"sandbox"}}
	key := keyed(orders, time.Time{})
	f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
	stream, err := facadev1.NewBatchServiceClient(f.conn).StreamBatch(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+key))
	f.must(err)
	f.must(stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: newBatchOpen(nil)}}))
	opened, err := stream.Recv()
	f.must(err)
	another := &configv1.Caller{Name: "another", Companies: []string{"sandbox"}, Admin: true}
	admin := keyed(another, time.Time{})
	f.setCallers(another)
	for err == nil {
		_, err = stream.Recv()
	}
	if reasonOf(err) != unauthenticated {
		t.Errorf("ended with %v", err)
	}
	b := &facadev1.GetBatchResponse{}
	_, err = as(transports[0], admin).call(t.Context(), f, "BatchService/GetBatch", &facadev1.GetBatchRequest{BatchId: opened.GetOpened().BatchId}, b)
	f.must(err)
	if b.Batch.NextSequence != 1 || b.Batch.State != facadev1.Batch_OPEN {
		t.Errorf("%v", b.Batch)
	}
}

// checkQuota holds what a caller is told whose quota is used up.
func checkQuota(t *testing.T, tr transport, h http.Header, err error, describes string) {
	t.Helper()
	retry, quota := detailOf[*errdetails.RetryInfo](err), detailOf[*errdetails.QuotaFailure](err)
	if status.Code(err) != codes.ResourceExhausted || reasonOf(err) != "CALLER_QUOTA" || retry.GetRetryDelay().AsDuration() <= 0 ||
		quota.GetViolations()[0].GetSubject() != "caller:orders" || !strings.Contains(quota.GetViolations()[0].GetDescription(), describes) {
		t.Errorf("%v, %v, %v", err, retry, quota)
	}
	if tr.name == "REST" && h.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestRate(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders, other := &configv1.Caller{Name: "orders", Companies: []string{"*"}, CallsPerSecond: 2}, &configv1.Caller{Name: "other", Companies: []string{"*"}}
		key, otherKey := keyed(orders, time.Time{}), keyed(other, time.Time{})
		f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders, other} })
		call := func(key string) (http.Header, error) {
			return as(tr, key).call(t.Context(), f, "CapacityService/GetCapacity", &facadev1.GetCapacityRequest{BotId: "demo"}, &facadev1.GetCapacityResponse{})
		}
		for {
			if h, err := call(key); err != nil {
				checkQuota(t, tr, h, err, "2 calls a second")
				break
			}
		}
		_, err := call(otherKey)
		f.must(err)
	})
}

func TestDailyQuota(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}, DailySends: 3}
		key := keyed(orders, time.Time{})
		f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
		tr = as(tr, key)
		for i := range 7 { // a midnight may come in between, but not two
			_, h, err := f.sendText(tr, withID(textTo(openUser, fmt.Sprint("hola ", i)), fmt.Sprint("order-", i)))
			if err == nil {
				continue
			}
			checkQuota(t, tr, h, err, "3 sends a day")
			if i < 3 {
				t.Errorf("refused after %d", i)
			}
			again, _, err := f.sendText(tr, withID(textTo(openUser, fmt.Sprint("hola ", i-1)), fmt.Sprint("order-", i-1)))
			if err != nil || again.State != facadev1.Send_SENT {
				t.Errorf("a repeated call: %v, %v", again, err)
			}
			_, err = tr.call(t.Context(), f, "BatchService/CreateBatch", batchOf(4, "muchas "), &facadev1.CreateBatchResponse{})
			checkQuota(t, tr, http.Header{"Retry-After": {"1"}}, err, "3 sends a day")
			list := &facadev1.ListBatchesResponse{}
			_, err = tr.call(t.Context(), f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, list)
			if err != nil || len(list.Batches) != 0 {
				t.Errorf("of a refused batch there is %v, %v", list, err)
			}
			return
		}
		t.Error("never refused")
	})
}

func TestMostWaiting(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders, other := &configv1.Caller{Name: "orders", Companies: []string{"*"}, MostWaiting: 2}, &configv1.Caller{Name: "other", Companies: []string{"*"}}
		key, otherKey := keyed(orders, time.Time{}), keyed(other, time.Time{})
		f := newFacade(t, func(s *setup) {
			s.callers = []*configv1.Caller{orders, other}
			s.pace = pace.Config{Requests: 1, Window: time.Minute}
		})
		var err error
		for i := 0; i < 10 && err == nil; i++ {
			_, _, err = f.sendText(as(tr, key), queued(fmt.Sprint("hola ", i)))
		}
		if reasonOf(err) != "QUEUE_FULL" {
			t.Errorf("%v", err)
		}
		_, _, err = f.sendText(as(tr, otherKey), queued("otra"))
		f.must(err)
	})
}

// Two callers who choose the same request id do not meet.
func TestRequestIDsAreTheCallers(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders, other := &configv1.Caller{Name: "orders", Companies: []string{"*"}}, &configv1.Caller{Name: "other", Companies: []string{"*"}}
		keys := []string{keyed(orders, time.Time{}), keyed(other, time.Time{})}
		f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders, other} })
		ids := map[string]bool{}
		for i, key := range keys {
			send, _, err := f.sendText(as(tr, key), withID(textTo(openUser, fmt.Sprint("hola ", i)), "order-1"))
			f.must(err)
			ids[send.SendId] = true
			list := &facadev1.ListSendsResponse{}
			_, err = as(tr, key).call(t.Context(), f, "SendService/ListSends", &facadev1.ListSendsRequest{RequestId: "order-1"}, list)
			f.must(err)
			if len(list.Sends) != 1 || list.Sends[0].SendId != send.SendId {
				t.Errorf("caller %d lists %v", i, list.Sends)
			}
		}
		if len(ids) != 2 {
			t.Errorf("%v", ids)
		}
	})
}

// An address that fails again and again is not listened to any more, but for who was good before; every refusal is counted.
func TestFailedAttempts(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}}
		known, fresh := keyed(orders, time.Time{}), keyed(orders, time.Time{})
		f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
		call := func(key string) error {
			_, err := as(tr, key).call(t.Context(), f, "CapacityService/GetCapacity", &facadev1.GetCapacityRequest{BotId: "demo"}, &facadev1.GetCapacityResponse{})
			return err
		}
		f.must(call(known))
		limited := func(err error) bool {
			return strings.Contains(status.Convert(err).Message(), "too many failed attempts")
		}
		tries := int64(0)
		for err := error(nil); !limited(err); tries++ {
			if err = call(caller.NewKey()); reasonOf(err) != unauthenticated {
				t.Fatal(err)
			}
		}
		f.must(call(known))
		counts := f.server.RefusedCredentials()
		if counts[caller.Unknown]+counts[caller.Limited] != tries || counts[caller.Limited] == 0 || tries < 20 {
			t.Errorf("%d tries, counted %v", tries, counts)
		}
		f.setCallers(orders) // whoever mends the configuration is not made to wait
		f.must(call(fresh))
	})
}

// What the gateway's library would take for metadata of gRPC is no credential.
func TestHeadersThatAreNoCredentials(t *testing.T) {
	orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}}
	key := keyed(orders, time.Time{})
	f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
	for _, h := range []http.Header{
		{"Grpc-Metadata-X-Api-Key": {key}}, {"Grpc-Metadata-Authorization": {"Bearer " + key}}, {"Cookie": {"x-api-key=" + key}},
		{"Authorization": {"Basic " + key}}, {"X-Api-Key": {key, caller.NewKey()}},
	} {
		_, err := overRESTWith(t.Context(), f, "CapacityService/GetCapacity", &facadev1.GetCapacityRequest{BotId: "demo"}, &facadev1.GetCapacityResponse{}, h)
		if reasonOf(err) != unauthenticated {
			t.Errorf("%v: %v", h, err)
		}
	}
}
