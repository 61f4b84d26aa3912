package service_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/audit"
)

// audited are the lines of the audit log.
func (f *facade) audited() (lines []audit.Line) {
	f.Helper()
	text, err := os.ReadFile(f.auditFile)
	f.must(err)
	for line := range strings.Lines(string(text)) {
		var l audit.Line
		f.must(json.Unmarshal([]byte(line), &l))
		lines = append(lines, l)
	}
	return lines
}

// deed is what a test compares of a line.
type deed struct{ Event, Caller, RPC, Resources, Code, Reason string }

// TestAudit: each call that changes something has its line, and each reading by an admin of what is another caller's; a
// caller's reading of its own has none.
func TestAudit(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders := &configv1.Caller{Name: "orders", Companies: []string{"sandbox"}}
		boss := &configv1.Caller{Name: "boss", Companies: []string{"*"}, Admin: true}
		ordersKey, bossKey := keyed(orders, time.Time{}), keyed(boss, time.Time{})
		f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders, boss} })
		var want []deed
		// call makes a call and expects its line, or none where there is no event.
		call := func(event, key, method string, request, response proto.Message, resources ...string) {
			t.Helper()
			_, err := as(tr, key).call(t.Context(), f, method, request, response)
			if event == "" {
				f.must(err)
				return
			}
			d := deed{Event: event, Caller: map[string]string{ordersKey: "orders", bossKey: "boss"}[key], RPC: "jelou.facade.v1." + method, Code: "OK", Resources: strings.Join(resources, " ")}
			if err != nil {
				d.Code, d.Reason = map[codes.Code]string{codes.FailedPrecondition: "FAILED_PRECONDITION"}[status.Code(err)], reasonOf(err)
			}
			want = append(want, d)
		}
		sent, batch := &facadev1.SendMessageResponse{}, &facadev1.CreateBatchResponse{}
		call(audit.Change, ordersKey, "MessageService/SendMessage", textTo(openUser, "Su pedido"), sent)
		id := sent.Send.SendId
		want[0].Resources = "sends/" + id
		items := []*facadev1.BatchItem{{UserId: openUser, Content: &facadev1.BatchItem_Message{Message: textTo("", "Su número").Message}}}
		call(audit.Change, ordersKey, "BatchService/CreateBatch", &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: "demo", Paused: true}, Items: items}, batch)
		batchID := batch.Batch.BatchId
		want[1].Resources = "batches/" + batchID
		call("", ordersKey, "SendService/GetSend", &facadev1.GetSendRequest{SendId: id}, &facadev1.GetSendResponse{})
		call("", ordersKey, "BatchService/ListBatches", &facadev1.ListBatchesRequest{}, &facadev1.ListBatchesResponse{})
		call(audit.Read, bossKey, "SendService/GetSend", &facadev1.GetSendRequest{SendId: id}, &facadev1.GetSendResponse{}, "sends/"+id)
		call(audit.Read, bossKey, "SendService/ListSends", &facadev1.ListSendsRequest{}, &facadev1.ListSendsResponse{})
		call(audit.Change, bossKey, "SendService/ResolveSend", &facadev1.ResolveSendRequest{SendId: id, State: facadev1.Send_SENT}, &facadev1.ResolveSendResponse{}, "sends/"+id)
		call(audit.Change, ordersKey, "SendService/CancelSend", &facadev1.CancelSendRequest{SendId: id}, &facadev1.CancelSendResponse{}, "sends/"+id)
		call(audit.Change, ordersKey, "BatchService/PauseBatch", &facadev1.PauseBatchRequest{BatchId: batchID}, &facadev1.PauseBatchResponse{}, "batches/"+batchID)
		call(audit.Change, ordersKey, "BatchService/CancelBatch", &facadev1.CancelBatchRequest{BatchId: batchID}, &facadev1.CancelBatchResponse{}, "batches/"+batchID)
		call(audit.Change, ordersKey, "BatchService/ResumeBatch", &facadev1.ResumeBatchRequest{BatchId: batchID}, &facadev1.ResumeBatchResponse{}, "batches/"+batchID)
		failed := []facadev1.Send_State{facadev1.Send_FAILED} // there is none
		call(audit.Change, ordersKey, "BatchService/ReplayBatch", &facadev1.ReplayBatchRequest{BatchId: batchID, States: failed}, &facadev1.ReplayBatchResponse{}, "batches/"+batchID)
		var got []deed
		for _, l := range f.audited() {
			got = append(got, deed{l.Event, l.Caller, l.RPC, strings.Join(l.Resources, " "), l.Code, l.Reason})
			company := "sandbox"
			if strings.HasPrefix(l.RPC, "jelou.facade.v1.SendService/List") {
				company = "" // of all
			}
			if l.Authentication != "key" || l.Peer != "127.0.0.1" || l.RequestID == "" || l.TraceID == "" || l.Company != company ||
				!strings.EqualFold(l.Transport, tr.name) || l.Time.IsZero() || l.Log != "audit" {
				t.Errorf("%+v", l)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

// TestAuditRefusals: a thousand calls of strangers are few lines, and no credential is in them.
func TestAuditRefusals(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		orders := &configv1.Caller{Name: "orders", Companies: []string{"sandbox"}}
		keyed(orders, time.Time{})
		f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
		for range 200 {
			if _, _, err := f.sendText(as(tr, "canary-key"), textTo(openUser, "hola")); status.Code(err) != codes.Unauthenticated {
				t.Fatal(err)
			}
		}
		lines := f.audited()
		if len(lines) == 0 || len(lines) > 4 { // unknown, and limited after that
			t.Fatalf("%d lines", len(lines))
		}
		if l := lines[0]; l.Event != audit.Refused || l.Code != "UNAUTHENTICATED" || l.Credential != "unknown" || l.Peer != "127.0.0.1" || l.Caller != "" || l.RPC == "" {
			t.Errorf("%+v", l)
		}
	})
}

// gate is a log's disk that may be full.
type gate struct{ full atomic.Bool }

func (g *gate) Write(p []byte) (int, error) {
	if g.full.Load() {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

// TestAuditRequired: while a required log cannot be written nothing is changed, what is asked is answered, and alarm is given;
// one that is not required stops nobody.
func TestAuditRequired(t *testing.T) {
	for _, required := range []bool{true, false} {
		onEach(t, func(t *testing.T, tr transport) {
			disk := &gate{}
			f := newFacade(t, func(s *setup) { s.audit = audit.Config{Writer: disk, Required: required} })
			_, _, err := f.sendText(tr, textTo(openUser, "1"))
			f.must(err)
			disk.full.Store(true)
			_, _, err = f.sendText(tr, textTo(openUser, "2")) // it is not known yet
			f.must(err)
			_, h, err := f.sendText(tr, textTo(openUser, "3"))
			if required != (reasonOf(err) == "AUDIT_UNAVAILABLE" && status.Code(err) == codes.Unavailable) || required != (err != nil) {
				t.Errorf("%v %v", err, h)
			}
			_, err = tr.call(t.Context(), f, "SendService/ListSends", &facadev1.ListSendsRequest{}, &facadev1.ListSendsResponse{})
			f.must(err)
			if !strings.Contains(f.scrape(), "\njelou_audit_waiting 2\n") && !strings.Contains(f.scrape(), "\njelou_audit_waiting 3\n") {
				t.Error("no metric tells that lines wait")
			}
			disk.full.Store(false)
			_, _, err = f.sendText(tr, textTo(openUser, "4"))
			f.must(err)
			if !strings.Contains(f.scrape(), "\njelou_audit_waiting 0\n") {
				t.Error("lines wait still")
			}
			if sent, want := f.sim.Report().Accepted, map[bool]int{true: 3, false: 4}[required]; sent != want {
				t.Errorf("%d were sent, want %d", sent, want)
			}
		})
	}
}
