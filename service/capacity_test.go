package service_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const getCapacity = "CapacityService/GetCapacity"

func (f *facade) capacity(tr transport) *facadev1.Capacity {
	f.Helper()
	response := &facadev1.GetCapacityResponse{}
	_, err := tr.call(f.Context(), f, getCapacity, &facadev1.GetCapacityRequest{BotId: "demo"}, response)
	f.must(err)
	return response.Capacity
}

// queue stores sends to users of their own, and does not wait for them.
func (f *facade) queue(tr transport, lane facadev1.SendOptions_Lane, sends int) {
	f.Helper()
	for i := range sends {
		r := textTo(fmt.Sprintf(canary.Number+"1%04d", i), "hola")
		r.Mode, r.Options = facadev1.SendOptions_QUEUE, &facadev1.SendOptions{Lane: lane}
		if _, _, err := f.sendText(tr, r); err != nil {
			f.Fatal(err)
		}
	}
}

func TestCapacityIdle(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.pace = pace.Config{} })
		if _, _, err := f.sendText(tr, textTo(openUser, "hola")); err != nil { // the silent window is over
			t.Fatal(err)
		}
		want := &facadev1.Capacity{CompanyId: "sandbox", Requests: 5, Window: durationpb.New(time.Second), DurableFailover: true}
		for _, lane := range []facadev1.SendOptions_Lane{facadev1.SendOptions_URGENT, facadev1.SendOptions_NORMAL, facadev1.SendOptions_BULK} {
			want.Lanes = append(want.Lanes, &facadev1.Capacity_LaneQueue{Lane: lane})
		}
		got := f.capacity(tr)
		if wait := got.Lanes[0].ExpectedWait.AsDuration(); wait != 0 {
			t.Errorf("an urgent send would wait %v", wait)
		}
		if wait := got.Lanes[2].ExpectedWait.AsDuration(); wait > 250*time.Millisecond {
			t.Errorf("a bulk send would wait %v", wait)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&facadev1.Capacity_LaneQueue{}, "expected_wait"),
			protocmp.IgnoreFields(&facadev1.Capacity{}, "used_share", "used_share_mine")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCapacityWithWaiting(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.pace = pace.Config{Requests: 1, Window: time.Minute} })
		f.queue(tr, facadev1.SendOptions_BULK, 4)
		f.queue(tr, facadev1.SendOptions_URGENT, 1)
		var c *facadev1.Capacity
		f.eventually(func() bool { // what was added a moment ago may be counted twice for that moment
			c = f.capacity(tr)
			return c.Lanes[2].ExpectedWait.AsDuration() <= 9*time.Minute
		})
		urgent, normal, bulk := c.Lanes[0], c.Lanes[1], c.Lanes[2]
		if urgent.Waiting+bulk.Waiting < 4 || urgent.WaitingMine != urgent.Waiting || bulk.WaitingMine != bulk.Waiting || normal.Waiting != 0 {
			t.Errorf("waiting: %v", c.Lanes)
		}
		if wait := bulk.ExpectedWait.AsDuration(); wait < 4*time.Minute {
			t.Errorf("a bulk send would wait %v", wait)
		}
		if urgent.ExpectedWait.AsDuration() > normal.ExpectedWait.AsDuration() || normal.ExpectedWait.AsDuration() >= bulk.ExpectedWait.AsDuration() {
			t.Errorf("the lanes' waits are not in their order: %v", c.Lanes)
		}
	})
}

func TestCapacityPaused(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.secret = "other-secret" })
		if _, _, err := f.sendText(tr, textTo(openUser, "hola")); reasonOf(err) != "JELOU_UNAUTHORIZED" {
			t.Fatal(err)
		}
		p := f.capacity(tr).Pause
		if p.GetReason() != "JELOU_UNAUTHORIZED" || time.Until(p.UntilTime.AsTime()) < time.Second {
			t.Errorf("pause: %v", p)
		}
		// Who could not be answered before the next probe hears of the credential too, and not of a wait.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := tr.call(ctx, f, sendMessage, textTo(openUser, "otra vez"), &facadev1.SendMessageResponse{})
		if reasonOf(err) != "JELOU_UNAUTHORIZED" || status.Code(err) != codes.Unauthenticated || detailOf[*errdetails.RetryInfo](err) != nil {
			t.Errorf("while the company is paused: %v", err)
		}
		if n, err := f.ledger.Totals(t.Context()); err != nil || n.Accepted != 1 {
			t.Errorf("stored %+v, %v", n, err)
		}
	})
}

func TestWatchCapacity(t *testing.T) {
	f := newFacade(t, func(s *setup) { s.pace = pace.Config{Requests: 1, Window: time.Minute} })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	watch, err := facadev1.NewCapacityServiceClient(f.conn).WatchCapacity(ctx, &facadev1.WatchCapacityRequest{BotId: "demo"})
	f.must(err)
	first, err := watch.Recv()
	f.must(err)
	if n := first.Capacity.Lanes[1].Waiting; n != 0 {
		t.Errorf("%d wait before anything was sent", n)
	}
	f.queue(transports[0], facadev1.SendOptions_NORMAL, 3)
	for waiting := int32(0); waiting < 2; {
		next, err := watch.Recv()
		f.must(err)
		waiting = next.Capacity.Lanes[1].Waiting
	}
	f.stop()
	for {
		if _, err = watch.Recv(); err != nil {
			break
		}
	}
	if status.Code(err) != codes.Unavailable || reasonOf(err) != "DRAINING" {
		t.Errorf("a watch ended with %v", err)
	}
}

// TestCapacityThrottled is a company that Jelou throttles.
func TestCapacityThrottled(t *testing.T) {
	f := newFacade(t, nil)
	f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle, Times: 50, RetryAfter: jelousim.Duration(30 * time.Second)}))
	f.queue(transports[0], facadev1.SendOptions_NORMAL, 1)
	deadline := time.Now().Add(10 * time.Second)
	for f.capacity(transports[0]).Pause.GetReason() != "UPSTREAM_RATE_LIMITED" {
		if time.Now().After(deadline) {
			t.Fatal("the pause does not show")
		}
	}
}
