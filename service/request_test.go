package service_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

// lines are what the log has of calls that reached no method.
func (f *facade) lines() (lines []map[string]any) {
	f.Helper()
	for text := range strings.Lines(f.logs.String()) {
		line := map[string]any{}
		f.must(json.Unmarshal([]byte(text), &line))
		if line["msg"] == "call" && line["rpc"] == "_OTHER" {
			lines = append(lines, line)
		}
	}
	return lines
}

// A page that panics with what is private is answered with INTERNAL over a real connection; newFacade looks for its value.
func TestPanicOfAPage(t *testing.T) {
	f := newFacade(t, func(s *setup) {
		s.configuration = func() ([]byte, error) { panic("to " + openUser) }
	})
	code, body := f.get(f.rest + "/configz")
	st := restStatus(f, []byte(body))
	if code != http.StatusInternalServerError || st.Code() != codes.Internal || reasonOf(st.Err()) != "INTERNAL" {
		t.Errorf("%d %s", code, body)
	}
	if metrics := f.scrape(); !strings.Contains(metrics, `jelou_call_errors_total{caller="anonymous",reason="INTERNAL"} 1`) {
		t.Error("it is not counted")
	}
	if lines := f.lines(); len(lines) != 1 || lines[0]["level"] != "ERROR" || !strings.Contains(lines[0]["cause"].(string), "request_test.go") {
		t.Errorf("%v", lines)
	}
}

// What reaches no method is authenticated over gRPC, has an error of the table, one line in the log and one count, and its name is in
// neither.
func TestWhatReachesNoMethod(t *testing.T) {
	orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}}
	key := keyed(orders, time.Time{})
	f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
	overGRPC := func(method, key string) error {
		return f.conn.Invoke(metadata.AppendToOutgoingContext(t.Context(), "x-api-key", key), method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	overREST := func(verb, path, key, body string) error {
		r, err := http.NewRequestWithContext(t.Context(), verb, f.rest+path, strings.NewReader(body))
		f.must(err)
		r.Header.Set("X-Api-Key", key)
		r.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(r)
		f.must(err)
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		f.must(err)
		return restStatus(f, data).Err()
	}
	for i, test := range []struct {
		err    error
		code   codes.Code
		reason string
		caller string
		over   string
	}{
		{overGRPC("/jelou.facade.v1.MessageService/Canary", key), codes.Unimplemented, "NOT_BUILT_YET", "orders", "grpc"},
		{overGRPC("/canary.Service/Canary", key), codes.Unimplemented, "NOT_BUILT_YET", "orders", "grpc"},
		{overGRPC("/grpc.health.v1.Health/Canary", ""), codes.Unauthenticated, unauthenticated, "none", "grpc"},
		{overGRPC("/canary.Service/Canary", caller.NewKey()), codes.Unauthenticated, unauthenticated, "none", "grpc"},
		{overREST(http.MethodGet, "/v1/canary", key, ""), codes.NotFound, "ROUTE_NOT_FOUND", "none", "rest"}, // nobody looks at the key
		{overREST(http.MethodPost, "/v1/bots/demo/messages", key, `{"user_id": `), codes.InvalidArgument, "INVALID_JSON", "orders", "rest"},
		{overREST(http.MethodPost, "/v1/bots/demo/messages?canary=1", key, "{}"), codes.InvalidArgument, "INVALID_FIELD", "orders", "rest"},
	} {
		if status.Code(test.err) != test.code || reasonOf(test.err) != test.reason {
			t.Errorf("%d: %v, want %s %s", i, test.err, test.code, test.reason)
		}
		f.eventually(func() bool { return len(f.lines()) > i }) // the line comes after the answer
		if line := f.lines()[i]; line["reason"] != test.reason || line["caller"] != test.caller || line["transport"] != test.over || line["request_id"] == "" {
			t.Errorf("%d: %v", i, line)
		}
	}
	metrics := f.scrape()
	for _, want := range []string{
		`rpc_server_call_duration_seconds_count{rpc_method="_OTHER",rpc_response_status_code="UNIMPLEMENTED",rpc_system_name="grpc",transport="grpc"} 2`,
		`rpc_server_call_duration_seconds_count{rpc_method="_OTHER",rpc_response_status_code="UNAUTHENTICATED",rpc_system_name="grpc",transport="grpc"} 2`,
		`rpc_server_call_duration_seconds_count{rpc_method="_OTHER",rpc_response_status_code="NOT_FOUND",rpc_system_name="grpc",transport="rest"} 1`,
		`rpc_server_call_duration_seconds_count{rpc_method="_OTHER",rpc_response_status_code="INVALID_ARGUMENT",rpc_system_name="grpc",transport="rest"} 2`,
		`jelou_call_errors_total{caller="orders",reason="NOT_BUILT_YET"} 2`, `jelou_credentials_refused_total{reason="unknown"} 1`,
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if n := len(f.lines()); n != 7 {
		t.Errorf("%d lines", n)
	}
	if strings.Contains(strings.ToLower(f.logs.String()+metrics), "canary") {
		t.Error("a name that a client chose is in the log or in a metric")
	}
}

// Who is not let in is refused by the method's guard before its body is read, whatever else is wrong with the request.
func TestRefusedBeforeTheBody(t *testing.T) {
	orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}}
	keyed(orders, time.Time{})
	f := newFacade(t, func(s *setup) { s.callers = []*configv1.Caller{orders} })
	for _, path := range []string{"/v1/bots/demo/messages?canary=1", "/v1/batches:stream"} {
		body, never := io.Pipe() // of which nothing comes
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.rest+path, body)
		f.must(err)
		r.Header.Set("Grpc-Timeout", "canary")
		answer, err := http.DefaultClient.Do(r)
		f.must(err)
		data, err := io.ReadAll(answer.Body)
		f.must(err)
		f.must(answer.Body.Close())
		f.must(never.Close())
		if answer.StatusCode != http.StatusUnauthorized || reasonOf(restStatus(f, data).Err()) != unauthenticated {
			t.Errorf("%s: %s %s", path, answer.Status, data)
		}
	}
	if counts := f.server.RefusedCredentials(); counts[caller.Missing] != 2 || len(f.lines()) != 0 {
		t.Errorf("%v, %v", counts, f.lines())
	}
}

// A stream that is answered before its request's body is read leaves a connection that is good, or that the client knows is not: with
// what is left of the body net/http would panic.
func TestStreamsAnsweredEarly(t *testing.T) {
	f := newFacade(t, nil)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	const unknown = `{"open":{"batch_id":"b06jvqpp3tewx781msr7w8"}}` + "\n"
	for range 20 {
		for _, test := range []struct{ method, path, kind, body, reason string }{
			{http.MethodGet, "/v1/bots/nobody/capacity:watch", "application/json", unknown, "BOT_NOT_FOUND"},
			{http.MethodPost, "/v1/batches:stream", "text/plain", unknown, "INVALID_JSON"},
			{http.MethodPost, "/v1/batches:stream", "application/x-ndjson", unknown + strings.Repeat("\n", 1000), "RESOURCE_NOT_FOUND"},
		} {
			r, err := http.NewRequestWithContext(t.Context(), test.method, f.rest+test.path, strings.NewReader(test.body))
			f.must(err)
			r.Header.Set("Content-Type", test.kind)
			answer, err := client.Do(r)
			f.must(err)
			data, err := io.ReadAll(answer.Body)
			f.must(err)
			f.must(answer.Body.Close())
			if reason := reasonOf(restStatus(f, data).Err()); reason != test.reason || answer.Close != (test.method == http.MethodPost) {
				t.Errorf("%s: %s, want %s; closed: %v", test.path, reason, test.reason, answer.Close)
			}
		}
	}
	if strings.Contains(f.logs.String(), "panic") {
		t.Error("net/http panicked")
	}
}

// An upload whose client goes on after its answer is not read on.
func TestUploadAnsweredEarly(t *testing.T) {
	f := newFacade(t, nil)
	var uploads sync.WaitGroup
	var answered atomic.Int64
	for range 40 {
		uploads.Go(func() {
			body, more := io.Pipe()
			go func() {
				_, _ = io.WriteString(more, `{"open":{"batch_id":"b06jvqpp3tewx781msr7w8"}}`+"\n") // there is none
				for range 100 {
					if _, err := io.WriteString(more, "\n"); err != nil {
						return
					}
				}
			}()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.rest+"/v1/batches:stream", body)
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Content-Type", "application/x-ndjson")
			answer, err := http.DefaultClient.Do(r)
			if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
				return // it was writing still when the connection went: HTTP/1 has no way to tell it then
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			answered.Add(1)
			if data, err := io.ReadAll(answer.Body); err != nil || !strings.Contains(string(data), "RESOURCE_NOT_FOUND") || !answer.Close {
				t.Errorf("%s %s, %v, closed: %v", answer.Status, data, err, answer.Close)
			}
			_ = more.Close()
		})
	}
	uploads.Wait()
	f.eventually(func() bool {
		return strings.Count(f.logs.String(), `"rpc":"jelou.facade.v1.BatchService/StreamBatch"`) == 40
	})
	if strings.Contains(f.logs.String(), "panic") {
		t.Error("net/http panicked")
	}
	if n := answered.Load(); n < 20 {
		t.Errorf("%d of 40 had their answer", n)
	}
}

// TestWrongMethod: 405 tells by Allow which methods the path has, also where what stands behind a colon could be read as a part of an id.
func TestWrongMethod(t *testing.T) {
	f := newFacade(t, nil)
	for _, c := range []struct{ method, path, allow string }{
		{http.MethodDelete, "/v1/sends/s-1", "GET"},
		{http.MethodPut, "/v1/batches", "GET, POST"},
		{http.MethodGet, "/v1/sends/s-1:cancel", "POST"},
		{http.MethodPost, "/v1/batches/b-1:watch", "GET"},
		{http.MethodGet, "/v1/batches:stream", "POST"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, f.rest+c.path, nil)
		f.must(err)
		answer, err := http.DefaultClient.Do(r)
		f.must(err)
		_ = answer.Body.Close()
		allow := strings.Split(answer.Header.Get("Allow"), ", ")
		slices.Sort(allow)
		if got := strings.Join(allow, ", "); answer.StatusCode != http.StatusMethodNotAllowed || got != c.allow {
			t.Errorf("%s %s: %s, Allow %q, want %q", c.method, c.path, answer.Status, got, c.allow)
		}
	}
}
