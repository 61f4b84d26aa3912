package jelousim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// listen serves the simulator on a real connection and gives its address.
func listen(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := HTTPServer(s)
	go server.Serve(s.Listener(l)) // ends with Close
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

// newClient speaks HTTP/1.1 or HTTP/2 in clear text and follows no redirect.
func newClient(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// post sends once: the body cannot be read again, so net/http cannot repeat it.
func post(ctx context.Context, client *http.Client, url, body string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, "POST", url, io.NopCloser(strings.NewReader(body)))
	if err != nil {
		return nil, "", err
	}
	r.ContentLength = int64(len(body))
	r.SetBasicAuth("sandbox", "sandbox")
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return response, string(read), err
}

// TestFaultsOverTheWire plays every fault on a real connection, as seen by a client: the send failed, or it failed
// and happened.
func TestFaultsOverTheWire(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  Fault
		broken bool // the client gets an error instead of an answer
		status int
		says   string
		kept   bool // the send was accepted
	}{
		{"reset before", Fault{Kind: FaultReset}, true, 0, "", false},
		{"reset after", Fault{Kind: FaultReset, Accepted: true}, true, 0, "", true},
		{"close before", Fault{Kind: FaultClose}, true, 0, "", false},
		{"close after", Fault{Kind: FaultClose, Accepted: true}, true, 0, "", true},
		{"hang before", Fault{Kind: FaultHang, Delay: ms(1)}, true, 0, "", false},
		{"hang after", Fault{Kind: FaultHang, Delay: ms(1), Accepted: true}, true, 0, "", true},
		{"server error before", Fault{Kind: FaultServerError}, false, 500, `{"code":"internal_server_error","description":"Unexpected error"}`, false},
		{"server error after", Fault{Kind: FaultServerError, Accepted: true}, false, 500, "internal_server_error", true},
		{"503 in plain text", Fault{Kind: FaultServerError, Status: 503, Dialect: DialectPlain}, false, 503, "Unexpected error\n", false},
		{"504 without a body", Fault{Kind: FaultServerError, Status: 504, Dialect: DialectEmpty, Accepted: true}, false, 504, "", true},
		{"unknown error", Fault{Kind: FaultUnknownError}, false, 500, `"code":"E0000"`, false},
		{"no company", Fault{Kind: FaultNoCompany}, false, 500, `"description":"The token has no company"`, false},
		{"bad gateway", Fault{Kind: FaultBadGateway}, false, 502, "<h1>502 Bad Gateway</h1>", false},
		{"bad gateway after", Fault{Kind: FaultBadGateway, Accepted: true}, false, 502, "<html>", true},
		{"validation", Fault{Kind: FaultValidation}, false, 422, `"validationError":{"userId":[{`, false},
		{"invalid media", Fault{Kind: FaultInvalidMedia}, false, 400, `"code":"INVALID_MEDIA_URL"`, false},
		{"media too large", Fault{Kind: FaultMediaTooLarge}, false, 400, `"code":"MEDIA_TOO_LARGE"`, false},
		{"unsupported media", Fault{Kind: FaultUnsupportedMedia}, false, 400, `"code":"UNSUPPORTED_MEDIA_TYPE"`, false},
		{"failed in 200", Fault{Kind: FaultFailedIn200}, false, 200, `{"message":["Unknown error"],"status":"failed"}`, false},
		{"success false", Fault{Kind: FaultSuccessFalse}, false, 200, `{"success":false}`, false},
		{"status zero", Fault{Kind: FaultStatusZero}, false, 200, `"key":"USER_IN_MANUAL_STATE"`, false},
		{"throttle", Fault{Kind: FaultThrottle}, false, 429, "", false},
		{"throttle with a wait", Fault{Kind: FaultThrottle, RetryAfter: Duration(1500 * time.Millisecond)}, false, 429, "", false},
		{"redirect", Fault{Kind: FaultRedirect}, false, 307, "", false},
		{"latency", Fault{Kind: FaultLatency, Delay: ms(1)}, false, 200, `"success":true`, true},
		{"truncate", Fault{Kind: FaultTruncate}, true, 200, "", true},
		{"swap", Fault{Kind: FaultSwap}, false, 200, `[{"messageId":`, true},
		{"unknown status", Fault{Kind: FaultUnknownStatus}, false, 200, `"status":"PARKED"`, true},
		{"huge", Fault{Kind: FaultHuge}, false, 200, `xxxxxxxx`, true},
		{"connection close", Fault{Kind: FaultConnectionClose}, false, 200, `"success":true`, true},
	} {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(tc.name+" "+protocol, func(t *testing.T) {
				s := New(world())
				url := "http://" + listen(t, s) + sendPath
				if err := s.SetFaults(tc.fault); err != nil {
					t.Fatal(err)
				}
				client := newClient(t, protocol == "HTTP/2.0")
				response, body, err := post(t.Context(), client, url, hello)
				switch {
				case tc.broken != (err != nil):
					t.Fatalf("got %q, %v", body, err)
				case response != nil && (response.StatusCode != tc.status || !strings.Contains(body, tc.says) || response.Proto != protocol):
					t.Errorf("got %s %d %.200s, want %d with %s", response.Proto, response.StatusCode, body, tc.status, tc.says)
				case tc.fault.Kind == FaultReset && protocol == "HTTP/1.1" && !errors.Is(err, syscall.ECONNRESET):
					t.Errorf("got %v, want a reset", err)
				case tc.fault.Kind == FaultClose && protocol == "HTTP/1.1" && !errors.Is(err, io.EOF):
					t.Errorf("got %v, want an end", err)
				case tc.fault.Kind == FaultTruncate && !errors.Is(err, io.ErrUnexpectedEOF):
					t.Errorf("got %v, want an early end", err)
				case tc.fault.Kind == FaultRedirect && response.Header.Get("Location") != sendPath:
					t.Errorf("redirected to %q", response.Header.Get("Location"))
				case tc.fault.RetryAfter != 0 && response.Header.Get("Retry-After") != "2":
					t.Errorf("Retry-After %q", response.Header.Get("Retry-After"))
				case tc.fault.Kind == FaultHuge && len(body) < hugeBody:
					t.Errorf("%d bytes", len(body))
				}
				if kept := len(s.Sends(0)) == 1; kept != tc.kept {
					t.Errorf("accepted is %t, want %t", kept, tc.kept)
				}
				q := s.Requests(0)
				if len(q) != 1 || q[0].Fault != tc.fault.Kind || (q[0].Outcome == Accepted) != tc.kept {
					t.Errorf("recorded %+v", q)
				}
				// The fault is used up.
				if response, body, err := post(t.Context(), client, url, hello); err != nil || response.StatusCode != 200 {
					t.Errorf("the next send: %v %s %v", response, body, err)
				}
			})
		}
	}
}

// TestConnectionCloseIsOnTheWire looks at the connection itself: the client's library hides it.
func TestConnectionCloseIsOnTheWire(t *testing.T) {
	s := New(world())
	conn, err := net.Dial("tcp", listen(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.SetFaults(Fault{Kind: FaultConnectionClose}); err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequest("POST", "http://sim"+sendPath, strings.NewReader(hello))
	r.SetBasicAuth("sandbox", "sandbox")
	r.Header.Set("Content-Type", "application/json")
	if err := r.Write(conn); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, r)
	if err != nil || !response.Close || response.StatusCode != 200 {
		t.Fatalf("got %+v, %v", response, err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %v, want the end", err)
	}
}

// TestClientThatLeaves: what was sent arrives and is accepted, but a hang does not outlive its client.
func TestClientThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Network, cfg.Processing = Network{RoundTrip: ms(60)}, Processing{Min: ms(80)}
		s := New(cfg)
		for _, tc := range []struct {
			faults []Fault
			ends   time.Duration
		}{
			{nil, 140 * time.Millisecond},
			{[]Fault{{Kind: FaultHang, Accepted: true}}, 140 * time.Millisecond},
			{[]Fault{{Kind: FaultHang}}, 140 * time.Millisecond},
		} {
			if err := s.SetFaults(tc.faults...); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			ctx, leave := context.WithTimeout(t.Context(), 10*time.Millisecond)
			func() {
				defer func() {
					cut, _ := recover().(error)
					if errors.Is(cut, http.ErrAbortHandler) != (tc.faults != nil) {
						t.Errorf("the handler ended with %v", cut)
					}
				}()
				do(s, "POST", sendPath, hello, func(r *http.Request) { *r = *r.WithContext(ctx) })
			}()
			leave()
			if took := time.Since(began); took != tc.ends {
				t.Errorf("%v took %v, want %v", tc.faults, took, tc.ends)
			}
		}
		if n := len(s.Sends(0)); n != 2 {
			t.Errorf("%d sends, want those of the first two", n)
		}
	})
}

func TestFaultsAreMatchedInOrder(t *testing.T) {
	s := New(world())
	err := s.SetFaults(
		Fault{Kind: FaultBadGateway, User: "593987654321"},
		Fault{Kind: FaultServerError, Contains: "seventeen", Times: 2},
		Fault{Kind: FaultUnknownError, Endpoint: HSM},
		Fault{Kind: FaultValidation, Bot: "disabled"},
		Fault{Kind: FaultNoCompany, Endpoint: Messages},
	)
	if err != nil {
		t.Fatal(err)
	}
	to := func(user, text string) string { return `{"type":"text","userId":"` + user + `","text":"` + text + `"}` }
	for i, tc := range []struct {
		path, body string
		fault      FaultKind
	}{
		{sendPath, to("593991234567", "seventeen"), FaultServerError},
		{sendPath, to("593991234567", "one"), FaultNoCompany},
		{sendPath, to("593991234567", "two"), ""},
		{sendPath, to("593987654321", "seventeen"), FaultBadGateway},
		{sendPath, to("593987654321", "seventeen"), FaultServerError},
		{sendPath, to("593987654321", "seventeen"), ""},
		{"/v1/bots/disabled/messages", to("593991234567", "one"), FaultValidation},
		{hsmPath, ready, FaultUnknownError},
		{hsmPath, ready, ""},
		{"/v1/whatsapp/messages", `{"botId":"disabled"}`, ""},
	} {
		do(s, "POST", tc.path, tc.body)
		if got := s.Requests(1)[0].Fault; got != tc.fault {
			t.Errorf("request %d: fault %q, want %q", i, got, tc.fault)
		}
	}
	if err := s.SetFaults(Fault{Kind: FaultBadGateway, User: "593987654321"}); err != nil {
		t.Fatal(err)
	}
	do(s, "POST", hsmPath, strings.Replace(ready, `"593991234567"`, `"593991234567","593987654321"`, 1))
	if got := s.Requests(1)[0].Fault; got != FaultBadGateway {
		t.Errorf("one of two destinations: fault %q", got)
	}
}

func TestThrottledRequestsUseUpNoFault(t *testing.T) {
	cfg := world()
	cfg.Rate = Rate{Requests: 1, Window: Duration(time.Hour)}
	cfg.Faults = []Fault{{Kind: FaultServerError, Contains: "b"}}
	s := New(cfg)
	do(s, "POST", sendPath, message(`"type":"text","text":"a"`))
	do(s, "POST", sendPath, message(`"type":"text","text":"b"`))
	if err := s.SetLimit(Rate{}); err != nil {
		t.Fatal(err)
	}
	if got := do(s, "POST", sendPath, message(`"type":"text","text":"b"`)); got.status != 500 {
		t.Errorf("got %d %s, want the fault", got.status, got.body)
	}
}

func TestRandomFaultsFollowTheSeed(t *testing.T) {
	play := func(seed uint64) (faults int, order string) {
		cfg := world()
		cfg.Seed = seed
		cfg.Faults = []Fault{{Kind: FaultServerError, Probability: 0.3}}
		s := New(cfg)
		for range 1000 {
			do(s, "POST", sendPath, hello)
		}
		for _, q := range s.Requests(0) {
			order += string(q.Fault) + " "
			if q.Fault != "" {
				faults++
			}
		}
		return faults, order
	}
	n, order := play(3)
	if n < 240 || n > 360 {
		t.Errorf("%d faults in 1000 requests at 0.3", n)
	}
	if _, again := play(3); again != order {
		t.Error("the same seed played other faults")
	}
}

func TestLatencyComesBeforeOrAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(world())
		if err := s.SetFaults(Fault{Kind: FaultLatency, Delay: Duration(time.Second)}, Fault{Kind: FaultLatency, Delay: Duration(time.Second), Accepted: true}); err != nil {
			t.Fatal(err)
		}
		for i, want := range []time.Duration{time.Second, 0} {
			began := time.Now()
			if got := do(s, "POST", sendPath, hello); got.status != 200 || time.Since(began) != time.Second {
				t.Errorf("fault %d: %d after %v", i, got.status, time.Since(began))
			}
			if at := s.Sends(1)[0].At.Sub(began); at != want {
				t.Errorf("fault %d: accepted after %v, want %v", i, at, want)
			}
		}
	})
}

func TestReadsAreSpoiled(t *testing.T) {
	s := New(world())
	id := sendTemplate(t, s, ready)
	for _, tc := range []struct {
		kind FaultKind
		path string
		says string
	}{
		{FaultUnknownStatus, "/v1/bots/demo/notifications/" + id, `"sentStatus":"PARKED"`},
		{FaultUnknownStatus, "/v1/external/bots/demo/notifications", `"sentStatus":"PARKED"`},
		{FaultSwap, "/v1/bots/demo/notifications/" + id, `[{"campaignId"`},
		{FaultSwap, "/v1/whatsapp/demo/hsm", `{"results":[`},
	} {
		if err := s.SetFaults(Fault{Kind: tc.kind}); err != nil {
			t.Fatal(err)
		}
		if got := do(s, "GET", tc.path, ""); got.status != 200 || !strings.Contains(got.body, tc.says) {
			t.Errorf("%s on %s: %d %s", tc.kind, tc.path, got.status, got.body)
		}
	}
	if err := s.SetFaults(Fault{Kind: FaultUnknownStatus}); err != nil {
		t.Fatal(err)
	}
	if got := do(s, "POST", hsmPath, ready); !strings.Contains(got.body, `"status":"PARKED"`) || !json.Valid([]byte(got.body)) {
		t.Errorf("a send: %s", got.body)
	}
}

func TestFaultsThatMakeNoSense(t *testing.T) {
	s := New(world())
	for _, f := range []Fault{
		{}, {Kind: "gremlin"}, {Kind: FaultLatency}, {Kind: FaultReset, Probability: 1.5}, {Kind: FaultReset, Times: -1},
		{Kind: FaultReset, Probability: 0.5, Times: 2}, {Kind: FaultThrottle, Accepted: true}, {Kind: FaultRedirect, Accepted: true},
		{Kind: FaultReset, Status: 500}, {Kind: FaultSwap, Dialect: DialectA}, {Kind: FaultServerError, Status: 99},
		{Kind: FaultServerError, Dialect: "Z"}, {Kind: FaultReset, Endpoint: "hms"}, {Kind: FaultReset, Delay: Duration(time.Hour)},
		{Kind: FaultReset, RetryAfter: Duration(time.Second)},
	} {
		if err := s.SetFaults(f); err == nil {
			t.Errorf("%+v was taken", f)
		}
	}
}
