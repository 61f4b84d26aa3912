package service_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// TestOptions: times and modes in every way of sending; what is refused is refused by its field, and with validate_only too.
func TestOptions(t *testing.T) {
	const day = 24 * time.Hour
	times := func(schedule, expire time.Duration) *facadev1.SendOptions {
		o := &facadev1.SendOptions{}
		for to, in := range map[**timestamppb.Timestamp]time.Duration{&o.ScheduleTime: schedule, &o.ExpireTime: expire} {
			if in != 0 {
				*to = timestampIn(in)
			}
		}
		return o
	}
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		for _, c := range []struct {
			name  string
			mode  facadev1.SendOptions_Mode
			o     *facadev1.SendOptions
			field string // of the refusal
		}{
			{"schedule_time in mode WAIT", facadev1.SendOptions_WAIT, times(time.Hour, 0), "options.schedule_time"},
			{"schedule_time in no mode", facadev1.SendOptions_MODE_UNSPECIFIED, times(time.Hour, 0), "options.schedule_time"},
			{"expire_time before schedule_time", facadev1.SendOptions_QUEUE, times(2*time.Hour, time.Hour), "options.expire_time"},
			{"schedule_time too far ahead", facadev1.SendOptions_QUEUE, times(30*day+time.Hour, 0), "options.schedule_time"},
			{"expire_time too far ahead", facadev1.SendOptions_QUEUE, times(0, 30*day+time.Hour), "options.expire_time"},
			{"schedule_time past", facadev1.SendOptions_QUEUE, times(-time.Hour, 0), "options.schedule_time"},
			{"just in time", facadev1.SendOptions_QUEUE, times(29*day, 30*day-time.Hour), ""},
			{"on the day", facadev1.SendOptions_QUEUE, times(time.Hour, 0), ""},
		} {
			message := textTo(openUser, "opciones "+c.name)
			message.Mode, message.Options = c.mode, c.o
			template := notification("order_ready", "Lucía", c.name)
			template.Mode, template.Options = c.mode, c.o
			for method, r := range map[string]proto.Message{sendMessage: message, sendNotification: template} {
				for _, validate := range []bool{true, false} {
					r.ProtoReflect().Set(r.ProtoReflect().Descriptor().Fields().ByName("validate_only"), protoreflect.ValueOfBool(validate))
					response := responseOf(f, method)
					_, err := tr.call(context.Background(), f, method, r, response)
					violations := detailOf[*errdetails.BadRequest](err).GetFieldViolations()
					if c.field != "" {
						if len(violations) != 1 || violations[0].Field != c.field || reasonOf(err) != "INVALID_FIELD" {
							t.Errorf("%s by %s, validate_only %v: %v", c.name, method, validate, err)
						}
						continue
					}
					send := response.(interface{ GetSend() *facadev1.Send }).GetSend()
					if err != nil || validate != (send == nil) {
						t.Errorf("%s by %s, validate_only %v: %v, %v", c.name, method, validate, send, err)
						continue
					}
					if validate {
						continue
					}
					if !cmp.Equal(send.Options.ScheduleTime.AsTime(), c.o.ScheduleTime.AsTime().Truncate(time.Millisecond)) || send.State != facadev1.Send_SCHEDULED {
						t.Errorf("%s by %s: %v", c.name, method, send)
					}
					want := c.o.ExpireTime.AsTime()
					if c.o.ExpireTime == nil {
						want = c.o.ScheduleTime.AsTime().Add(day) // of a queued send without one
					}
					if got := send.Options.ExpireTime.AsTime(); !got.Equal(want.Truncate(time.Millisecond)) {
						t.Errorf("%s by %s expires at %v, want %v", c.name, method, got, want)
					}
				}
			}
		}
		if n := f.total(); n != (ledger.Totals{Accepted: 4, Waiting: 4}) {
			t.Errorf("stored: %+v", n)
		}
		if n := f.sim.Report().Arrived; n != 0 {
			t.Errorf("%d requests", n)
		}
		// Queued without a time, a notification goes at once.
		now := notification("order_ready", "Lucía", "991")
		now.Mode = facadev1.SendOptions_QUEUE
		queued := &facadev1.SendNotificationResponse{}
		_, err := tr.call(context.Background(), f, sendNotification, now, queued)
		f.must(err)
		f.eventually(func() bool {
			got := &facadev1.GetSendResponse{}
			_, err := tr.call(context.Background(), f, "SendService/GetSend", &facadev1.GetSendRequest{SendId: queued.Send.SendId}, got)
			f.must(err)
			return got.Send.State == facadev1.Send_SENT && len(got.Send.Notifications) == 1
		})
	})
}

// TestBatchOptions: an item's options stand over its batch's, one by one, and validate_only stores nothing of a batch.
func TestBatchOptions(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		ctx := context.Background()
		r := batchOf(3, "por defecto ")
		hour, day := timestampIn(time.Hour), timestampIn(24*time.Hour)
		r.Spec.Paused = true
		r.Spec.Options = &facadev1.SendOptions{OnUnknown: facadev1.SendOptions_FAIL, ExpireTime: hour, Labels: map[string]string{"campaign": "enero", "city": "Quito"}}
		r.Items[1].Options = &facadev1.SendOptions{OnUnknown: facadev1.SendOptions_RETRY, ExpireTime: day, Labels: map[string]string{"city": "Cuenca"}}
		r.Items[2].Options = &facadev1.SendOptions{ScheduleTime: timestampIn(30 * time.Minute)}
		r.ValidateOnly = true
		created := &facadev1.CreateBatchResponse{}
		_, err := tr.call(ctx, f, "BatchService/CreateBatch", r, created)
		f.must(err)
		list := &facadev1.ListBatchesResponse{}
		_, err = tr.call(ctx, f, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, list)
		f.must(err)
		if created.Batch != nil || len(list.Batches) != 0 || f.total().Accepted != 0 {
			t.Errorf("validate_only: %v, stored %v", created, list)
		}
		bad := proto.CloneOf(r)
		bad.Items[0].UserId = ""
		if _, err := tr.call(ctx, f, "BatchService/CreateBatch", bad, created); reasonOf(err) != "INVALID_FIELD" {
			t.Errorf("validate_only of a bad item: %v", err)
		}
		named := proto.CloneOf(r)
		named.Spec.RequestId = "enero"
		if _, err := tr.call(ctx, f, "BatchService/CreateBatch", named, created); reasonOf(err) != "INVALID_FIELD" {
			t.Errorf("validate_only with request_id: %v", err)
		}
		r.ValidateOnly = false
		_, err = tr.call(ctx, f, "BatchService/CreateBatch", r, created)
		f.must(err)
		sends := &facadev1.ListSendsResponse{}
		_, err = tr.call(ctx, f, "SendService/ListSends", &facadev1.ListSendsRequest{BatchId: created.Batch.BatchId}, sends)
		f.must(err)
		for i, want := range []struct {
			onUnknown facadev1.SendOptions_OnUnknown
			expire    *timestamppb.Timestamp
			city      string
			state     facadev1.Send_State
		}{
			{facadev1.SendOptions_FAIL, hour, "Quito", facadev1.Send_PENDING},
			{facadev1.SendOptions_RETRY, day, "Cuenca", facadev1.Send_PENDING},
			{facadev1.SendOptions_FAIL, hour, "Quito", facadev1.Send_SCHEDULED},
		} {
			s := sends.Sends[i]
			if s.Options.OnUnknown != want.onUnknown || !s.Options.ExpireTime.AsTime().Equal(want.expire.AsTime().Truncate(time.Millisecond)) || s.State != want.state ||
				!cmp.Equal(s.Options.Labels, map[string]string{"campaign": "enero", "city": want.city}) {
				t.Errorf("item %d: %v, want %v", i+1, s, want)
			}
		}
	})
}
