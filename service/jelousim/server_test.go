package jelousim

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// world is the sandbox without waiting and without a limit.
func world() Config {
	c := Sandbox()
	c.Rate, c.Processing = Rate{}, Processing{}
	return c
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do calls the handler directly, as company sandbox.
func do(s *Server, method, target, body string, edits ...func(*http.Request)) reply {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.SetBasicAuth("sandbox", "sandbox")
	r.Header.Set("Content-Type", "application/json")
	for _, edit := range edits {
		edit(r)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.String()}
}

const (
	sendPath = "/v1/bots/demo/messages"
	hsmPath  = "/v2/whatsapp/demo/hsm"
	hello    = `{"type":"text","userId":"593991234567","text":"Hola"}`
	ready    = `{"elementName":"order_ready","language":"es","destinations":["593991234567"],"parameters":["Lucia","991"]}`
)

func TestAuthorization(t *testing.T) {
	cfg := world()
	cfg.Companies = append(cfg.Companies,
		Company{ClientID: "other", ClientSecret: "s", Bots: []Bot{{ID: "theirs"}, {ID: "+593900000000"}}},
		Company{ClientID: "lost", ClientSecret: "s", NoCompany: true})
	as := func(id, secret string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(id, secret) }
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for _, tc := range []struct {
		name, method, path, body string
		edit                     func(*http.Request)
		status                   int
		says                     string
	}{
		{"accepted", "POST", sendPath, hello, nil, 200, `"success":true`},
		{"charset", "POST", sendPath, hello, header("Content-Type", "application/json; charset=utf-8"), 200, "messageId"},
		{"no credentials", "POST", sendPath, hello, func(r *http.Request) { r.Header.Del("Authorization") }, 401, `{"message":"Authentication failed"}`},
		{"wrong secret", "POST", sendPath, hello, as("sandbox", "Sandbox"), 401, "Authentication failed"},
		{"unknown client", "POST", sendPath, hello, as("nobody", "sandbox"), 401, "Authentication failed"},
		{"raw credentials", "POST", sendPath, hello, header("Authorization", "sandbox:sandbox"), 401, "Authentication failed"},
		{"bearer", "POST", sendPath, hello, header("Authorization", "Bearer x"), 401, "Authentication failed"},
		{"no content type", "POST", sendPath, hello, func(r *http.Request) { r.Header.Del("Content-Type") }, 422, "Content-Type"},
		{"no content type on a read", "GET", "/v1/bots/demo/notifications", "", func(r *http.Request) { r.Header.Del("Content-Type") }, 422, "Content-Type"},
		{"other content type", "POST", sendPath, hello, header("Content-Type", "text/plain"), 422, "Content-Type"},
		{"other charset", "POST", sendPath, hello, header("Content-Type", "application/json; charset=latin1"), 422, "Content-Type"},
		{"idempotency key", "POST", sendPath, hello, header("Idempotency-Key", "k"), 422, "Idempotency-Key"},
		{"compressed", "POST", sendPath, hello, header("Content-Encoding", "gzip"), 422, "Content-Encoding"},
		{"no company", "POST", sendPath, hello, as("lost", "s"), 500, `"code":"internal_server_error","description":"The token has no company"`},
		{"unknown bot", "POST", "/v1/bots/none/messages", hello, nil, 404, `"code":"bot_not_found"`},
		{"another's bot", "POST", "/v1/bots/theirs/messages", hello, nil, 404, `"code":"bot_not_found"`},
		{"disabled bot", "POST", "/v1/bots/disabled/messages", hello, nil, 403, `"code":"forbidden_bot"`},
		{"unknown bot, read", "GET", "/v1/bots/none/notifications", "", nil, 404, `"code":"E1019"`},
		{"plus in the path", "POST", "/v1/bots/+593900000000/messages", hello, as("other", "s"), 200, "messageId"},
		{"plus as %2B", "POST", "/v1/bots/%2B593900000000/messages", hello, as("other", "s"), 200, "messageId"},
		{"other method", "GET", sendPath, "", nil, 404, "No such route"},
		{"other path", "POST", "/v1/bots/demo/message", hello, nil, 404, "No such route"},
		{"unclean path", "POST", "/v1/bots//demo/messages", hello, nil, 404, "No such route"},
		{"1 MiB and a bit", "POST", sendPath, `{"type":"text","text":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413, "1 MiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := New(cfg)
			var edits []func(*http.Request)
			if tc.edit != nil {
				edits = append(edits, tc.edit)
			}
			got := do(s, tc.method, tc.path, tc.body, edits...)
			if got.status != tc.status || !strings.Contains(got.body, tc.says) {
				t.Errorf("got %d %s, want %d with %s", got.status, got.body, tc.status, tc.says)
			}
			requests := s.Requests(0)
			if len(requests) != 1 || requests[0].Status != tc.status {
				t.Errorf("recorded %+v, want one request with status %d", requests, tc.status)
			}
			if accepted := len(s.Sends(0)); (accepted == 1) != (tc.status == 200) {
				t.Errorf("accepted %d sends with status %d", accepted, tc.status)
			}
		})
	}
}

func TestResetGoesBackToTheConfiguration(t *testing.T) {
	cfg := world()
	cfg.Faults = []Fault{{Kind: FaultUnknownError}}
	s := New(cfg)
	for range 2 {
		if got := do(s, "POST", sendPath, hello); got.status != 500 {
			t.Fatalf("first send: got %d, want the configured fault", got.status)
		}
		do(s, "POST", sendPath, hello)
		do(s, "POST", sendPath, hello)
		if err := s.SetLimit(Rate{Requests: 1}); err != nil {
			t.Fatal(err)
		}
		if r := s.Report(); r.Arrived != 3 || r.Accepted != 2 || r.Duplicates != 1 || r.Requests != 1 {
			t.Errorf("before the reset: %+v", r)
		}
		s.Reset()
		if r := s.Report(); r.Arrived != 0 || r.Accepted != 0 || r.Duplicates != 0 || r.Requests != 0 {
			t.Errorf("after the reset: %+v", r)
		}
	}
}

func TestRecordsAreBounded(t *testing.T) {
	cfg := world()
	cfg.Records = 3
	s := New(cfg)
	var ids []string
	for range 5 {
		var sent []struct{ ID string }
		if err := json.Unmarshal([]byte(do(s, "POST", hsmPath, ready).body), &sent); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, sent[0].ID)
	}
	if r := s.Report(); r.Arrived != 3 || r.Accepted != 3 || r.Duplicates != 2 || r.Forgotten != 4 {
		t.Errorf("report %+v, want 3 of each and 4 forgotten", r)
	}
	for i, want := range []int{404, 404, 200, 200, 200} {
		if got := do(s, "GET", "/v1/bots/demo/notifications/"+ids[i], ""); got.status != want {
			t.Errorf("notification %d: got %d, want %d", i, got.status, want)
		}
	}
	if sends := s.Sends(2); len(sends) != 2 || sends[1].ID != ids[4] {
		t.Errorf("newest two: %+v, want to end with %s", sends, ids[4])
	}
}

func TestSameSeedSameIDs(t *testing.T) {
	cfg := world()
	cfg.Seed = 7
	a, b := do(New(cfg), "POST", hsmPath, ready), do(New(cfg), "POST", hsmPath, ready)
	if a.body != b.body {
		t.Errorf("with one seed got %s and %s", a.body, b.body)
	}
	cfg.Seed = 0
	if one, other := New(cfg).Seed(), New(cfg).Seed(); one == other {
		t.Error("two servers without a seed drew the same one")
	}
}

func TestNewPanicsOnAnInvalidConfiguration(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a negative session window was taken")
		}
	}()
	New(Config{SessionWindow: Duration(-time.Second)})
}
