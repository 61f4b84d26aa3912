package service_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// sendEachWay sends a text by a waiting call, a queued one and a batch, to a user each, with one choice of on_unknown. It returns the
// waiting call's error and the rows once all are final.
func sendEachWay(f *facade, tr transport, choice facadev1.SendOptions_OnUnknown) (rows map[string]*facadev1.Send, waited error) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	options := &facadev1.SendOptions{OnUnknown: choice}
	inQueue := textTo("593987654321", "en cola")
	inQueue.Mode, inQueue.Options = facadev1.SendOptions_QUEUE, options
	later := &facadev1.SendMessageResponse{}
	_, err := tr.call(ctx, f, sendMessage, inQueue, later)
	f.must(err)
	batch := batchOf(1, "en lote ")
	batch.Items[0].UserId, batch.Spec.Options = "EC.8h3Kq0Zt", options
	created := &facadev1.CreateBatchResponse{}
	_, err = tr.call(ctx, f, "BatchService/CreateBatch", batch, created)
	f.must(err)
	wait := withID(textTo(openUser, "en línea"), "waiting")
	wait.Options = options
	_, waited = tr.call(ctx, f, sendMessage, wait, &facadev1.SendMessageResponse{})
	f.finished(tr, created.Batch.BatchId)
	find := func(r *facadev1.ListSendsRequest) (send *facadev1.Send) {
		f.eventually(func() bool {
			list := &facadev1.ListSendsResponse{}
			_, err := tr.call(ctx, f, "SendService/ListSends", r, list)
			f.must(err)
			for _, s := range list.Sends {
				if s.SendId == later.Send.SendId || r.RequestId+r.BatchId != "" {
					send = s
				}
			}
			return send != nil && send.EndTime != nil
		})
		return send
	}
	return map[string]*facadev1.Send{
		"WAIT": find(&facadev1.ListSendsRequest{RequestId: "waiting"}), "QUEUE": find(&facadev1.ListSendsRequest{}),
		"batch": find(&facadev1.ListSendsRequest{BatchId: created.Batch.BatchId}),
	}, waited
}

// TestRetryUnknown: what nobody can tell about is sent again once the lost attempt's lease is over, where its caller chose so.
func TestRetryUnknown(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.attemptTimeout = 500 * time.Millisecond })
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultClose, Times: 3}))
		began := time.Now()
		rows, err := sendEachWay(f, tr, facadev1.SendOptions_RETRY)
		if err != nil {
			t.Errorf("the waiting call: %v", err)
		}
		for way, s := range rows {
			if s.State != facadev1.Send_SENT || s.Attempts != 2 || s.Options.OnUnknown != facadev1.SendOptions_RETRY {
				t.Errorf("%s: %v", way, s)
			}
			if at := s.EndTime.AsTime(); at.Sub(began) < 5*time.Second { // of a lease, beside the attempt's time
				t.Errorf("%s: sent again %v after it was lost", way, at.Sub(began))
			}
		}
		if r := f.sim.Report(); r.Arrived != 6 || r.Accepted != 3 {
			t.Errorf("%d requests, %d accepted", r.Arrived, r.Accepted)
		}
	})
}

// TestFailUnknown: what nobody can tell about is failed at once, where its caller chose so, and never sent again.
func TestFailUnknown(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultClose, Accepted: true, Times: 3}))
		rows, err := sendEachWay(f, tr, facadev1.SendOptions_FAIL)
		if status.Code(err) != codes.Unknown || reasonOf(err) != "OUTCOME_UNKNOWN" {
			t.Errorf("the waiting call: %v", err)
		}
		for way, s := range rows {
			if s.State != facadev1.Send_FAILED || s.ErrorReason != "OUTCOME_UNKNOWN" || codes.Code(s.Error.GetCode()) != codes.Unknown || s.Attempts != 1 || s.Options.OnUnknown != facadev1.SendOptions_FAIL {
				t.Errorf("%s: %v", way, s)
			}
		}
		if r := f.sim.Report(); r.Arrived != 3 {
			t.Errorf("%d requests", r.Arrived)
		}
	})
}
