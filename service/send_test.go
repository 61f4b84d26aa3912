package service_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// TestSendMessage sends one text and finds it at the simulator.
func TestSendMessage(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		send, h, err := f.sendText(tr, textTo("+"+openUser+"@c.us", "Su pedido 8841 salió de bodega."))
		f.must(err)
		arrived := f.sim.SendsWithText(said("Su pedido 8841 salió de bodega."))
		if len(arrived) != 1 || arrived[0].Recipient != openUser {
			t.Fatalf("arrived: %+v", arrived)
		}
		if send.MessageId != arrived[0].ID || send.State != facadev1.Send_SENT || send.Attempts != 1 || send.Kind != "text" || send.BotId != "demo" {
			t.Errorf("send: %v", send)
		}
		if send.CreateTime == nil || send.SendTime == nil || send.EndTime == nil || send.CreateTime.Nanos%1e6 != 0 {
			t.Errorf("times: %v", send)
		}
		if got := h.Get("RateLimit-Policy"); got != `"jelou";q=50;w=1` {
			t.Errorf("RateLimit-Policy %q", got)
		}
		if h.Get("RateLimit") == "" || h.Get("X-Request-Id") == "" {
			t.Errorf("headers: %v", h)
		}
	})
}

// TestSendNotification sends one template to two users and reads Jelou's records of it.
func TestSendNotification(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		r := notification("order_ready", "Lucía", "991")
		r.Notification.Destinations = []string{openUser, "+" + secondUser}
		response := &facadev1.SendNotificationResponse{}
		_, err := tr.call(ctx, f, sendNotification, r, response)
		f.must(err)
		if n := response.Send.Notifications; len(n) != 2 || n[1].Destination != secondUser || response.Send.Kind != "notification" {
			t.Fatalf("send: %v", response.Send)
		}
		id := response.Send.Notifications[1].NotificationId
		one := &facadev1.GetNotificationResponse{}
		_, err = tr.call(ctx, f, getNotification, &facadev1.GetNotificationRequest{BotId: "demo", NotificationId: id}, one)
		f.must(err)
		if one.Notification.NotificationId != id || one.Notification.ElementName != "order_ready" || one.Notification.Status == facadev1.Notification_STATUS_UNSPECIFIED {
			t.Errorf("notification: %v", one.Notification)
		}
		list := &facadev1.ListNotificationsResponse{}
		_, err = tr.call(ctx, f, "NotificationService/ListNotifications", &facadev1.ListNotificationsRequest{BotId: "demo", PageSize: 1}, list)
		f.must(err)
		if len(list.Notifications) != 1 || list.NextPageToken == "" || list.TotalSize != 2 {
			t.Fatalf("list: %v", list)
		}
		_, err = tr.call(ctx, f, "NotificationService/ListNotifications", &facadev1.ListNotificationsRequest{BotId: "demo", PageSize: 1, PageToken: list.NextPageToken}, list)
		f.must(err)
		if len(list.Notifications) != 1 || list.NextPageToken != "" {
			t.Errorf("second page: %v", list)
		}
		_, err = tr.call(ctx, f, "NotificationService/ListNotifications", &facadev1.ListNotificationsRequest{BotId: "demo", PageSize: 1, ElementName: "other", PageToken: list.NextPageToken + "x"}, list)
		if reasonOf(err) != "INVALID_FIELD" {
			t.Errorf("page_token of other filters: %v", err)
		}
	})
}

// TestDuplicateDestinations are found once normalised.
func TestDuplicateDestinations(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		r := notification("order_ready", "Lucía", "991")
		r.Notification.Destinations = []string{openUser, "+" + openUser}
		_, err := tr.call(context.Background(), f, sendNotification, r, &facadev1.SendNotificationResponse{})
		if reasonOf(err) != "INVALID_FIELD" {
			t.Errorf("%v", err)
		}
	})
}

// TestRequestID: the same id and content is the same send, whatever the transport and however many call at once.
func TestRequestID(t *testing.T) {
	f := newFacade(t, func(s *setup) { s.sim.Processing.Min = jelousim.Duration(100 * time.Millisecond) })
	var wg sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		wg.Go(func() {
			send, _, err := f.sendText(transports[i%2], withID(textTo(openUser, "solo una vez"), "order-8841"))
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = send.SendId
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several sends: %v", ids)
		}
	}
	if n := len(f.sim.SendsWithText(said("solo una vez"))); n != 1 {
		t.Errorf("%d messages", n)
	}
}

// TestIdempotencyKey is the REST spelling of request_id, bare or as an RFC 8941 string.
func TestIdempotencyKey(t *testing.T) {
	f := newFacade(t, nil)
	post := func(key, body string) (int, string) {
		r, err := http.NewRequest(http.MethodPost, f.rest+"/v1/bots/demo/messages", strings.NewReader(body))
		f.must(err)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		answer, err := http.DefaultClient.Do(r)
		f.must(err)
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		f.must(err)
		var sent struct {
			Send struct {
				SendID string `json:"send_id"`
			}
		}
		f.must(json.Unmarshal(data, &sent))
		return answer.StatusCode, sent.Send.SendID
	}
	body := `{"user_id": "` + openUser + `", "message": {"text": {"text": "con llave"}}}`
	code, first := post(`"key-1"`, body)
	_, second := post(`key-1`, body)
	if code != 200 || first == "" || first != second {
		t.Errorf("%d, %q and %q", code, first, second)
	}
	if code, _ := post("key-2", strings.Replace(body, `{`, `{"request_id": "key-3", `, 1)); code != 400 {
		t.Errorf("another request_id in the body: %d", code)
	}
}

// TestUnknownIsHeld: an answer that was lost is never made up for by a second send.
func TestUnknownIsHeld(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultClose, Accepted: true}))
		r := withID(textTo(openUser, "quién sabe"), "order-7")
		for range 3 {
			_, _, err := f.sendText(tr, r)
			if status.Code(err) != codes.Unknown || reasonOf(err) != "OUTCOME_UNKNOWN" {
				t.Fatal(err)
			}
		}
		if n := len(f.sim.SendsWithText(said("quién sabe"))); n != 1 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestCallerLeft: what its caller no longer waits for is not sent.
func TestCallerLeft(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) { s.pace = pace.Config{Requests: 1, Window: time.Second} })
		_, _, err := f.sendText(tr, textTo(openUser, "la primera"))
		f.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		left := make(chan struct{})
		go func() {
			defer close(left)
			_, err := tr.call(ctx, f, sendMessage, textTo(openUser, "la segunda"), &facadev1.SendMessageResponse{})
			if err == nil {
				t.Error("no error")
			}
		}()
		f.waitFor(func(n ledger.Totals) bool { return n.Accepted == 2 })
		cancel()
		<-left
		f.waitFor(func(n ledger.Totals) bool { return n.Expired == 1 })
		_, _, err = f.sendText(tr, textTo(openUser, "la tercera"))
		f.must(err)
		if n := len(f.sim.SendsWithText(said("la segunda"))); n != 0 {
			t.Error("it was sent after its caller had left")
		}
	})
}

// waitFor polls the ledger's totals until they are as wanted.
func (f *facade) waitFor(ok func(ledger.Totals) bool) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := f.ledger.Totals(ctx)
		f.must(err)
		if ok(n) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Fatalf("totals stay %+v", n)
		}
	}
}

// TestJoined: a call that joins another one's send waits as long as it likes, and ends nothing but itself.
func TestJoined(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		call := func(f *facade, within time.Duration, r *facadev1.SendMessageRequest) (*facadev1.Send, error) {
			ctx, cancel := context.WithTimeout(context.Background(), within)
			defer cancel()
			response := &facadev1.SendMessageResponse{}
			_, err := tr.call(ctx, f, sendMessage, r, response)
			return response.Send, err
		}
		// undecided holds what a call is told whose send goes on. Its client may have given up a moment before.
		undecided := func(t *testing.T, f *facade, err error) {
			t.Helper()
			if reason := reasonOf(err); err == nil || reason != "OUTCOME_UNKNOWN" && (reason != "" || status.Code(err) == codes.Unknown) {
				t.Errorf("who left first is told %v", err)
			}
			if n := f.total().Expired; n != 0 {
				t.Errorf("%d sends expired", n)
			}
		}
		t.Run("queued for later", func(t *testing.T) {
			f := newFacade(t, nil)
			r := withID(queued("luego"), "luego")
			r.Options = &facadev1.SendOptions{ScheduleTime: timestampIn(3 * time.Second)}
			later, err := call(f, 10*time.Second, r)
			f.must(err)
			_, err = call(f, time.Second, withID(textTo(openUser, "luego"), "luego"))
			undecided(t, f, err)
			sent, err := call(f, 20*time.Second, withID(textTo(openUser, "luego"), "luego"))
			if err != nil || sent.SendId != later.SendId {
				t.Errorf("%v, %v", sent, err)
			}
		})
		t.Run("the long wait first", func(t *testing.T) {
			f := newFacade(t, func(s *setup) { s.pace = pace.Config{Requests: 1, Window: 4 * time.Second} })
			_, _, err := f.sendText(tr, textTo(openUser, "la primera"))
			f.must(err)
			long := make(chan error)
			go func() {
				_, err := call(f, 30*time.Second, withID(textTo(openUser, "la larga"), "both"))
				long <- err
			}()
			f.waitFor(func(n ledger.Totals) bool { return n.Accepted == 2 })
			_, err = call(f, time.Second, withID(textTo(openUser, "la larga"), "both"))
			undecided(t, f, err)
			if err := <-long; err != nil {
				t.Errorf("who waited longer: %v", err)
			}
		})
		t.Run("the short wait first", func(t *testing.T) {
			f := newFacade(t, nil)
			f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle, RetryAfter: jelousim.Duration(4 * time.Second)}))
			short := make(chan error)
			go func() {
				_, err := call(f, 2*time.Second, withID(textTo(openUser, "la corta"), "both"))
				short <- err
			}()
			f.waitFor(func(n ledger.Totals) bool { return n.Accepted == 1 })
			if _, err := call(f, 30*time.Second, withID(textTo(openUser, "la corta"), "both")); err != nil {
				t.Errorf("who waited longer: %v", err)
			}
			if err := <-short; err == nil {
				t.Error("it was told of a send within its 2 s")
			}
			if n := len(f.sim.SendsWithText(said("la corta"))); n != 1 {
				t.Errorf("%d messages", n)
			}
		})
	})
}

// total is the ledger's count of sends.
func (f *facade) total() ledger.Totals {
	f.Helper()
	n, err := f.ledger.Totals(context.Background())
	f.must(err)
	return n
}

// TestQueue answers once the send is stored, and sends it afterwards.
func TestQueue(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		r := textTo(openUser, "en cola")
		r.Mode = facadev1.SendOptions_QUEUE
		r.Options = &facadev1.SendOptions{Lane: facadev1.SendOptions_BULK, Labels: map[string]string{"app": "shop"}}
		send, _, err := f.sendText(tr, r)
		f.must(err)
		if send.State == facadev1.Send_FAILED || send.Options.Lane != facadev1.SendOptions_BULK {
			t.Errorf("send: %v", send)
		}
		if diff := cmp.Diff(map[string]string{"app": "shop"}, send.Options.Labels); diff != "" {
			t.Error(diff)
		}
		f.waitFor(func(n ledger.Totals) bool { return n.Sent == 1 })
		if n := len(f.sim.SendsWithText(said("en cola"))); n != 1 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestValidateOnly sends and stores nothing.
func TestValidateOnly(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		r := textTo(openUser, "solo mirar")
		r.ValidateOnly = true
		send, _, err := f.sendText(tr, r)
		f.must(err)
		if send != nil {
			t.Errorf("send: %v", send)
		}
		if n := f.sim.Report().Arrived; n != 0 {
			t.Errorf("%d requests", n)
		}
		if _, _, err := f.sendText(tr, withID(r, "x")); reasonOf(err) != "INVALID_FIELD" {
			t.Errorf("validate_only with an id: %v", err)
		}
	})
}

// TestThrottled: a 429 costs the send nothing but time.
func TestThrottled(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, nil)
		f.must(f.sim.SetFaults(jelousim.Fault{Kind: jelousim.FaultThrottle}))
		send, _, err := f.sendText(tr, textTo(openUser, "con paciencia"))
		f.must(err)
		if send.Attempts != 1 {
			t.Errorf("attempts %d", send.Attempts)
		}
	})
}

// TestLimit: 20 calls at once at 5 a second all arrive, and never more than 5 in any second.
func TestLimit(t *testing.T) {
	f := newFacade(t, func(s *setup) {
		s.pace = pace.Config{}
		s.sim.Rate = jelousim.Rate{Requests: 5}
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, _, err := f.sendText(transports[i%2], textTo(openUser, fmt.Sprint("número ", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r := f.sim.Report()
	if r.WorstWindow > 5 || r.Throttled != 0 || r.Accepted != 20 {
		t.Errorf("worst window %d, 429 %d, accepted %d", r.WorstWindow, r.Throttled, r.Accepted)
	}
}

// TestSameAnswer: gRPC and REST answer the same message.
func TestSameAnswer(t *testing.T) {
	f := newFacade(t, nil)
	r := withID(textTo(openUser, "igual"), "same")
	one, _, err := f.sendText(transports[0], r)
	f.must(err)
	two, _, err := f.sendText(transports[1], r)
	f.must(err)
	if diff := cmp.Diff(one, two, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestPages: health, OpenAPI and its page come from the binary.
func TestPages(t *testing.T) {
	f := newFacade(t, nil)
	for path, piece := range map[string]string{"/healthz": "SERVING", "/openapi.json": "/v1/bots/{bot_id}/messages", "/docs/": "<html"} {
		answer, err := http.Get(f.rest + path)
		f.must(err)
		body, err := io.ReadAll(answer.Body)
		f.must(err)
		f.must(answer.Body.Close())
		if answer.StatusCode != 200 || !strings.Contains(string(body), piece) {
			t.Errorf("%s: %d %.200s", path, answer.StatusCode, body)
		}
	}
	h, err := healthv1.NewHealthClient(f.conn).Check(context.Background(), &healthv1.HealthCheckRequest{})
	f.must(err)
	if h.Status != healthv1.HealthCheckResponse_SERVING {
		t.Error(h)
	}
}

// TestStop: a server that stops answers who waits, and what is under way finishes.
func TestStop(t *testing.T) {
	onEach(t, func(t *testing.T, tr transport) {
		f := newFacade(t, func(s *setup) {
			s.pace = pace.Config{Requests: 1, Window: 3 * time.Second}
			s.sim.Processing.Min = jelousim.Duration(300 * time.Millisecond)
		})
		type result struct {
			send *facadev1.Send
			err  error
		}
		results := make(chan result, 2)
		for i := range 2 {
			go func() {
				send, _, err := f.sendText(tr, textTo(openUser, fmt.Sprint("al parar ", i)))
				results <- result{send, err}
			}()
		}
		f.waitFor(func(n ledger.Totals) bool { return n.Accepted == 2 })
		f.eventually(func() bool { return f.sim.Report().Arrived > 0 })
		f.stop()
		sent, drained := 0, 0
		for range 2 {
			switch r := <-results; {
			case r.err == nil:
				sent++
			case reasonOf(r.err) == "DRAINING" && status.Code(r.err) == codes.Unavailable:
				drained++
			default:
				t.Error(r.err)
			}
		}
		if sent != 1 || drained != 1 {
			t.Errorf("%d sent, %d refused", sent, drained)
		}
	})
}

// TestRequestIDsOfCalls: a caller's own id goes into the log and the audit log, unless it may be a phone number.
func TestRequestIDsOfCalls(t *testing.T) {
	f := newFacade(t, nil)
	for _, c := range []struct {
		id    string
		taken bool
	}{
		{"order-8841", true}, {"884100", true}, {"2026-11-29", true}, {"8841000a", true},
		{openUser, false}, {"+" + openUser, false}, {"8841000", false}, {"two words", false}, {strings.Repeat("a", 129), false},
	} {
		onGRPC := metadata.MD{}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", c.id)
		if _, err := facadev1.NewMessageServiceClient(f.conn).SendMessage(ctx, textTo(openUser, "uno "+c.id), grpc.Header(&onGRPC)); err != nil {
			t.Error(err)
		}
		onREST, err := overRESTWith(t.Context(), f, "MessageService/SendMessage", textTo(openUser, "dos "+c.id), &facadev1.SendMessageResponse{}, http.Header{"X-Request-Id": {c.id}})
		if err != nil {
			t.Error(err)
		}
		unrouted, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.rest+"/nowhere", nil)
		f.must(err)
		unrouted.Header.Set("X-Request-Id", c.id)
		answer, err := http.DefaultClient.Do(unrouted)
		f.must(err)
		f.must(answer.Body.Close())
		for over, got := range map[string]string{"gRPC": strings.Join(onGRPC.Get("x-request-id"), ","), "REST": onREST.Get("X-Request-Id"), "no route": answer.Header.Get("X-Request-Id")} {
			if got == "" || (got == c.id) != c.taken {
				t.Errorf("%s: %q is answered with %q", over, c.id, got)
			}
		}
	}
}
