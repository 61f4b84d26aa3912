package service_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// TestListSends: every filter alone, some together, over rows that differ in each.
func TestListSends(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultMediaTooLarge, Contains: "lista 4"}))
		var rows []*facadev1.Send // oldest first
		send := func(r *facadev1.SendMessageRequest) *facadev1.Send {
			t.Helper()
			r.Mode = facadev1.SendOptions_QUEUE
			stored, _, err := f.sendText(tr, r)
			f.must(err)
			rows = append(rows, stored)
			return stored
		}
		labelled := func(r *facadev1.SendMessageRequest, schedule time.Duration, labels ...string) *facadev1.SendMessageRequest {
			r.Options = &facadev1.SendOptions{Labels: map[string]string{}}
			for i := 0; i < len(labels); i += 2 {
				r.Options.Labels[labels[i]] = labels[i+1]
			}
			if schedule != 0 {
				r.Options.ScheduleTime = timestampIn(schedule)
			}
			return r
		}
		send(labelled(withID(textTo(openUser, "lista 0"), "first"), 0, "shop", "north"))
		send(labelled(withBot(textTo(openUser, "lista 1"), "disabled"), 0, "shop", "north"))
		send(labelled(withID(textTo(openUser, "lista 2"), "third"), time.Hour, "shop", "south"))
		cancelled := send(labelled(textTo(openUser, "lista 3"), time.Hour, "shop", "north", "campaign", "enero"))
		send(textTo(openUser, "lista 4"))
		_, err := tr.call(context.Background(), f, "SendService/CancelSend", &facadev1.CancelSendRequest{SendId: cancelled.SendId}, &facadev1.CancelSendResponse{})
		f.must(err)
		batch := batchOf(1, "por lote ")
		created := &facadev1.CreateBatchResponse{}
		_, err = tr.call(context.Background(), f, "BatchService/CreateBatch", batch, created)
		f.must(err)
		f.finished(tr, created.Batch.BatchId)
		list := func(r *facadev1.ListSendsRequest) ([]int, string, error) {
			response := &facadev1.ListSendsResponse{}
			_, err := tr.call(context.Background(), f, "SendService/ListSends", r, response)
			found := []int{}
			for _, s := range response.Sends {
				i := slices.IndexFunc(rows, func(row *facadev1.Send) bool { return row.SendId == s.SendId })
				if i < 0 && s.BatchId == created.Batch.BatchId {
					i = 5
				}
				found = append(found, i)
			}
			return found, response.NextPageToken, err
		}
		f.eventually(func() bool {
			waiting, _, err := list(&facadev1.ListSendsRequest{States: []facadev1.Send_State{facadev1.Send_PENDING, facadev1.Send_SENDING}})
			return err == nil && len(waiting) == 0
		})
		sent, failed, scheduled, ended := facadev1.Send_SENT, facadev1.Send_FAILED, facadev1.Send_SCHEDULED, facadev1.Send_CANCELLED
		from := rows[2].CreateTime
		for name, c := range map[string]struct {
			r    *facadev1.ListSendsRequest
			want []int
		}{
			"all":              {&facadev1.ListSendsRequest{}, []int{5, 4, 3, 2, 1, 0}},
			"a batch":          {&facadev1.ListSendsRequest{BatchId: created.Batch.BatchId}, []int{5}},
			"a bot":            {&facadev1.ListSendsRequest{BotId: "disabled"}, []int{1}},
			"a state":          {&facadev1.ListSendsRequest{States: []facadev1.Send_State{failed}}, []int{4, 1}},
			"several states":   {&facadev1.ListSendsRequest{States: []facadev1.Send_State{scheduled, ended}}, []int{3, 2}},
			"a reason":         {&facadev1.ListSendsRequest{ErrorReasons: []string{"MEDIA_TOO_LARGE"}}, []int{4}},
			"several reasons":  {&facadev1.ListSendsRequest{ErrorReasons: []string{"FORBIDDEN_BOT", "CANCELLED"}}, []int{3, 1}},
			"a request_id":     {&facadev1.ListSendsRequest{RequestId: "third"}, []int{2}},
			"from a time":      {&facadev1.ListSendsRequest{CreateTimeFrom: from}, []int{5, 4, 3, 2}},
			"before a time":    {&facadev1.ListSendsRequest{CreateTimeTo: from}, []int{1, 0}},
			"between times":    {&facadev1.ListSendsRequest{CreateTimeFrom: rows[1].CreateTime, CreateTimeTo: rows[3].CreateTime}, []int{2, 1}},
			"a label":          {&facadev1.ListSendsRequest{Labels: map[string]string{"shop": "north"}}, []int{3, 1, 0}},
			"two labels":       {&facadev1.ListSendsRequest{Labels: map[string]string{"shop": "north", "campaign": "enero"}}, []int{3}},
			"label and state":  {&facadev1.ListSendsRequest{Labels: map[string]string{"shop": "north"}, States: []facadev1.Send_State{sent}}, []int{0}},
			"state and bot":    {&facadev1.ListSendsRequest{States: []facadev1.Send_State{failed}, BotId: "demo"}, []int{4}},
			"reason and time":  {&facadev1.ListSendsRequest{ErrorReasons: []string{"FORBIDDEN_BOT", "CANCELLED"}, CreateTimeFrom: from}, []int{3}},
			"id and label":     {&facadev1.ListSendsRequest{RequestId: "third", Labels: map[string]string{"shop": "north"}}, []int{}},
			"id and state":     {&facadev1.ListSendsRequest{RequestId: "first", States: []facadev1.Send_State{sent}}, []int{0}},
			"id and late time": {&facadev1.ListSendsRequest{RequestId: "first", CreateTimeFrom: from}, []int{}},
			"batch and state":  {&facadev1.ListSendsRequest{BatchId: created.Batch.BatchId, States: []facadev1.Send_State{failed}}, []int{}},
		} {
			if got, _, err := list(c.r); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s: rows %v, %v, want %v", name, got, err, c.want)
			}
			checkPages(t, name, c.want, func(size int32, token string) ([]int, string, error) {
				paged := proto.CloneOf(c.r)
				paged.PageSize, paged.PageToken = size, token
				return list(paged)
			})
		}
		_, token, err := list(&facadev1.ListSendsRequest{PageSize: 1})
		f.must(err)
		for name, other := range map[string]*facadev1.ListSendsRequest{
			"batch": {BatchId: created.Batch.BatchId}, "bot": {BotId: "demo"}, "state": {States: []facadev1.Send_State{sent}}, "reason": {ErrorReasons: []string{"EXPIRED"}},
			"request_id": {RequestId: "first"}, "from": {CreateTimeFrom: from}, "to": {CreateTimeTo: from}, "label": {Labels: map[string]string{"shop": "north"}},
		} {
			other.PageSize, other.PageToken = 1, token
			if _, _, err := list(other); token == "" || reasonOf(err) != "INVALID_FIELD" {
				t.Errorf("page_token with another %s: %v", name, err)
			}
		}
	})
}

// checkPages holds a list read one row at a time to the rows that it must have.
func checkPages(t *testing.T, name string, want []int, list func(size int32, token string) ([]int, string, error)) {
	t.Helper()
	got := []int{}
	for token := ""; ; {
		page, next, err := list(1, token)
		if err != nil || len(page) > 1 {
			t.Errorf("%s by pages: %v, %v", name, page, err)
			return
		}
		got = append(got, page...)
		if token = next; token == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s by pages: rows %v, want %v", name, got, want)
	}
}

// TestListBatches is the same for batches.
func TestListBatches(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		ctx := context.Background()
		var ids []string // oldest first
		var times []*timestamppb.Timestamp
		create := func(bot, requestID string, paused bool, labels map[string]string) string {
			t.Helper()
			r := batchOf(1, "lista ")
			r.Spec = &facadev1.BatchSpec{BotId: bot, RequestId: requestID, Paused: paused, Options: &facadev1.SendOptions{Labels: labels}}
			created := &facadev1.CreateBatchResponse{}
			_, err := tr.call(ctx, f, "BatchService/CreateBatch", r, created)
			f.must(err)
			ids, times = append(ids, created.Batch.BatchId), append(times, created.Batch.CreateTime)
			return created.Batch.BatchId
		}
		f.finished(tr, create("demo", "first", false, map[string]string{"shop": "north"}))
		f.finished(tr, create("disabled", "", false, map[string]string{"shop": "north"}))
		create("demo", "third", true, map[string]string{"shop": "south"})
		_, err := tr.call(ctx, f, "BatchService/CancelBatch", &facadev1.CancelBatchRequest{BatchId: create("demo", "", true, map[string]string{"shop": "north", "campaign": "enero"})}, &facadev1.CancelBatchResponse{})
		f.must(err)
		s := openStream(f, tr, newBatchOpen(nil))
		if tr.name == "REST" {
			f.must(s.send(item(1, "para empezar")))
		}
		var c collected
		f.must(c.collect(f, s, func(c *collected) bool { return c.opened != nil }))
		ids = append(ids, c.opened.BatchId)
		s.cut()
		list := func(r *facadev1.ListBatchesRequest) ([]int, string, error) {
			response := &facadev1.ListBatchesResponse{}
			_, err := tr.call(ctx, f, "BatchService/ListBatches", r, response)
			found := []int{}
			for _, b := range response.Batches {
				found = append(found, slices.Index(ids, b.BatchId))
			}
			return found, response.NextPageToken, err
		}
		open, running, completed, cancelled := facadev1.Batch_OPEN, facadev1.Batch_RUNNING, facadev1.Batch_COMPLETED, facadev1.Batch_CANCELLED
		for name, c := range map[string]struct {
			r    *facadev1.ListBatchesRequest
			want []int
		}{
			"all":              {&facadev1.ListBatchesRequest{}, []int{4, 3, 2, 1, 0}},
			"a bot":            {&facadev1.ListBatchesRequest{BotId: "disabled"}, []int{1}},
			"open":             {&facadev1.ListBatchesRequest{States: []facadev1.Batch_State{open}}, []int{4}},
			"running":          {&facadev1.ListBatchesRequest{States: []facadev1.Batch_State{running}}, []int{2}},
			"completed":        {&facadev1.ListBatchesRequest{States: []facadev1.Batch_State{completed}}, []int{1, 0}},
			"several states":   {&facadev1.ListBatchesRequest{States: []facadev1.Batch_State{cancelled, completed}}, []int{3, 1, 0}},
			"a request_id":     {&facadev1.ListBatchesRequest{RequestId: "third"}, []int{2}},
			"from a time":      {&facadev1.ListBatchesRequest{CreateTimeFrom: times[2]}, []int{4, 3, 2}},
			"before a time":    {&facadev1.ListBatchesRequest{CreateTimeTo: times[2]}, []int{1, 0}},
			"between times":    {&facadev1.ListBatchesRequest{CreateTimeFrom: times[1], CreateTimeTo: times[3]}, []int{2, 1}},
			"a label":          {&facadev1.ListBatchesRequest{Labels: map[string]string{"shop": "north"}}, []int{3, 1, 0}},
			"two labels":       {&facadev1.ListBatchesRequest{Labels: map[string]string{"shop": "north", "campaign": "enero"}}, []int{3}},
			"label and state":  {&facadev1.ListBatchesRequest{Labels: map[string]string{"shop": "north"}, States: []facadev1.Batch_State{completed}}, []int{1, 0}},
			"state and bot":    {&facadev1.ListBatchesRequest{States: []facadev1.Batch_State{completed}, BotId: "demo"}, []int{0}},
			"label and time":   {&facadev1.ListBatchesRequest{Labels: map[string]string{"shop": "north"}, CreateTimeFrom: times[2]}, []int{3}},
			"id and bot":       {&facadev1.ListBatchesRequest{RequestId: "first", BotId: "disabled"}, []int{}},
			"id and late time": {&facadev1.ListBatchesRequest{RequestId: "first", CreateTimeFrom: times[2]}, []int{}},
		} {
			if got, _, err := list(c.r); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s: rows %v, %v, want %v", name, got, err, c.want)
			}
			checkPages(t, name, c.want, func(size int32, token string) ([]int, string, error) {
				paged := proto.CloneOf(c.r)
				paged.PageSize, paged.PageToken = size, token
				return list(paged)
			})
		}
		_, token, err := list(&facadev1.ListBatchesRequest{PageSize: 1})
		f.must(err)
		for name, other := range map[string]*facadev1.ListBatchesRequest{
			"bot": {BotId: "demo"}, "state": {States: []facadev1.Batch_State{open}}, "request_id": {RequestId: "first"},
			"from": {CreateTimeFrom: times[0]}, "to": {CreateTimeTo: times[3]}, "label": {Labels: map[string]string{"shop": "north"}},
		} {
			other.PageSize, other.PageToken = 1, token
			if _, _, err := list(other); token == "" || reasonOf(err) != "INVALID_FIELD" {
				t.Errorf("page_token with another %s: %v", name, err)
			}
		}
	})
}
