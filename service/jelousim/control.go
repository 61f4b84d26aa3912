package jelousim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// controlRoutes are the control path: what a test asks of the simulator, and tells it. Bodies and answers are JSON.
var controlRoutes = []struct {
	pattern, about string
	serve          func(*Server, *http.Request) (any, error)
}{
	{"GET /report", "arrivals, worst window, share of the allowance used, duplicates, number of 429",
		func(s *Server, r *http.Request) (any, error) { return s.Report(), noQuery(r) }},
	{"GET /requests", "requests that arrived, oldest first; ?limit=N for the newest N (default 1000)",
		func(s *Server, r *http.Request) (any, error) { return limited(r, s.Requests) }},
	{"GET /sends", "sends that were accepted, oldest first, contents as fingerprints; ?limit=N (default 1000)",
		func(s *Server, r *http.Request) (any, error) { return limited(r, s.Sends) }},
	{"POST /faults", `replaces the faults to play: [{"kind":"reset","accepted":true,"contains":"order 17"}, ...]; [] for none`,
		func(s *Server, r *http.Request) (any, error) {
			faults, err := read[[]Fault](r)
			if err != nil {
				return nil, err
			}
			return done, s.SetFaults(faults...)
		}},
	{"POST /limit", `changes the rate at once: {"requests":2,"window":"1s","kind":"sliding|fixed|token_bucket|even"}`,
		func(s *Server, r *http.Request) (any, error) {
			rate, err := read[Rate](r)
			if err != nil {
				return nil, err
			}
			return done, s.SetLimit(rate)
		}},
	{"POST /inbound", `a message from a user opens the 24-hour window: {"bot":"demo","user":"593991234567"}`,
		func(s *Server, r *http.Request) (any, error) {
			talk, err := read[struct{ Bot, User string }](r)
			if err != nil {
				return nil, err
			}
			return done, s.Inbound(talk.Bot, talk.User)
		}},
	{"POST /reset", "forgets what happened and goes back to the configuration",
		func(s *Server, r *http.Request) (any, error) {
			if err := noQuery(r); err != nil {
				return nil, err
			}
			s.Reset()
			return done, nil
		}},
}

var done = map[string]any{"ok": true}

// ControlRoutes describes the control path, one route a line.
func ControlRoutes() string {
	var b strings.Builder
	for _, r := range controlRoutes {
		fmt.Fprintf(&b, "  %-15s %s\n", r.pattern, r.about)
	}
	return b.String()
}

// Control is the handler of the control path. It has no authentication: keep it on loopback. What it refuses it
// answers with 400 and {"error": "…"}.
func (s *Server) Control() http.Handler {
	mux := http.NewServeMux()
	for _, to := range controlRoutes {
		mux.HandleFunc(to.pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			v, err := to.serve(s, r)
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				v = map[string]any{"error": err.Error()}
			}
			_ = json.NewEncoder(w).Encode(v) // fails only when the caller has left
		})
	}
	return mux
}

func read[T any](r *http.Request) (v T, err error) {
	if err := noQuery(r); err != nil {
		return v, err
	}
	err = readStrict(r.Body, &v)
	return v, err
}

func noQuery(r *http.Request) error {
	if r.URL.RawQuery != "" {
		return fmt.Errorf("query: takes no parameters")
	}
	return nil
}

func limited[T any](r *http.Request, newest func(int) []T) (any, error) {
	limit := 1000
	for name, values := range r.URL.Query() {
		n, err := strconv.Atoi(values[0])
		if name != "limit" || len(values) > 1 || err != nil || n < 1 {
			return nil, fmt.Errorf("query: takes one parameter, limit, a number from 1")
		}
		limit = n
	}
	return newest(limit), nil
}
