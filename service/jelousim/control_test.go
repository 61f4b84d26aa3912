package jelousim

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestControl(t *testing.T) {
	s := New(world())
	control := s.Control()
	for i, step := range []struct {
		method, target, body string
		status               int
		says                 string
	}{
		{"POST", "/faults", `[{"kind":"bad_gateway","accepted":true,"contains":"Hola"}]`, 200, `{"ok":true}`},
		{"send", sendPath, hello, 502, "<html>"},
		{"send", sendPath, hello, 200, "messageId"},
		{"GET", "/report", "", 200, `"arrived":2,"accepted":2,"duplicates":1,"throttled":0,"worst_window":2,"window":"1s"`},
		{"GET", "/requests?limit=2", "", 200, `"credential":"sandbox","outcome":"accepted","status":502,"fault":"bad_gateway"`},
		{"GET", "/sends", "", 200, `"bot":"demo","kind":"text","fingerprint":"`},
		{"POST", "/limit", `{"requests":1,"window":"1h","kind":"fixed","retry_after":"seconds"}`, 200, `{"ok":true}`},
		{"send", sendPath, hello, 200, "messageId"},
		{"send", sendPath, hello, 429, ""},
		{"POST", "/reset", "", 200, `{"ok":true}`},
		{"GET", "/report", "", 200, `"arrived":0,`},
		{"send", sendPath, strings.Replace(hello, "593991234567", "593900000001", 1), 400, "24-hour"},
		{"POST", "/inbound", `{"bot":"demo","user":"593900000001"}`, 200, `{"ok":true}`},
		{"send", sendPath, strings.Replace(hello, "593991234567", "593900000001", 1), 200, "messageId"},

		{"POST", "/faults", `[{"kind":"gremlin"}]`, 400, "no fault is called"},
		{"POST", "/faults", `[{"kind":"reset","user_id":"1"}]`, 400, "user_id"},
		{"POST", "/faults", `{}`, 400, "[]jelousim.Fault"},
		{"POST", "/limit", `{"requests":-1}`, 400, "rate.requests"},
		{"POST", "/limit", `{"window":"1 second"}`, 400, "is not a duration"},
		{"POST", "/limit", `{"requests":1}{}`, 400, "one JSON value"},
		{"POST", "/limit?requests=1", `{}`, 400, "no parameters"},
		{"POST", "/inbound", `{"bot":"none","user":"593900000001"}`, 400, "bot"},
		{"POST", "/reset?now", ``, 400, "no parameters"},
		{"GET", "/requests?limit=0", "", 400, "limit"},
		{"GET", "/sends?first=1", "", 400, "limit"},
		{"GET", "/reset", "", 405, ""},
		{"GET", "/nothing", "", 404, ""},
	} {
		var got reply
		if step.method == "send" {
			got = do(s, "POST", step.target, step.body)
		} else {
			w := httptest.NewRecorder()
			control.ServeHTTP(w, httptest.NewRequest(step.method, step.target, strings.NewReader(step.body)))
			got = reply{w.Code, w.Header(), w.Body.String()}
		}
		if got.status != step.status || !strings.Contains(got.body, step.says) {
			t.Errorf("step %d, %s %s: got %d %s, want %d with %s", i, step.method, step.target, got.status, got.body, step.status, step.says)
		}
	}
}

// TestControlTellsNothingPrivate: what the control path shows may be kept in a CI log.
func TestControlTellsNothingPrivate(t *testing.T) {
	s := New(world())
	do(s, "POST", sendPath, `{"type":"text","userId":"593991234567","text":"canary text"}`)
	do(s, "POST", hsmPath, strings.Replace(ready, "Lucia", "canary value", 1))
	for _, target := range []string{"/report", "/requests", "/sends"} {
		w := httptest.NewRecorder()
		s.Control().ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		if body := w.Body.String(); strings.Contains(body, "593991234567") || strings.Contains(body, "canary") {
			t.Errorf("%s shows a recipient or a text: %s", target, body)
		}
	}
}
