package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// simulator is a simulated Jelou in a process of its own.
type simulator struct {
	*child
	api, control string
}

// startSimulator starts one whose random choices come from the run's seed.
func (b *bench) startSimulator(c jelousim.Config) (*simulator, error) {
	c.EveryoneOpen = true
	c.Seed = b.rng.Uint64()>>11 | 1
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	file, err := b.write("jelousim.json", data)
	if err != nil {
		return nil, err
	}
	p, err := b.spawn("jelousim", "-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:0", "-config", file)
	if err != nil {
		return nil, err
	}
	line, err := p.line(b.ctx)
	if err != nil {
		return nil, err
	}
	s := &simulator{child: p}
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "api":
			s.api = value
		case "control":
			s.control = value
		}
	}
	if s.api == "" || s.control == "" {
		return nil, fmt.Errorf("jelousim printed %q", line)
	}
	return s, nil
}

// ask calls the control path.
func ask[T any](ctx context.Context, s *simulator, method, path string, body any) (answer T, err error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return answer, err
		}
		in = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.control+path, in)
	if err != nil {
		return answer, err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return answer, fmt.Errorf("jelousim: %s %s: %s", method, path, text)
	}
	return answer, json.NewDecoder(response.Body).Decode(&answer)
}

// setLimit changes the rate without notice.
func (s *simulator) setLimit(ctx context.Context, r jelousim.Rate) error {
	_, err := ask[struct{}](ctx, s, http.MethodPost, "/limit", r)
	return err
}

// setFaults replaces the faults to be played.
func (s *simulator) setFaults(ctx context.Context, faults ...jelousim.Fault) error {
	_, err := ask[struct{}](ctx, s, http.MethodPost, "/faults", faults)
	return err
}

// reset forgets what arrived.
func (s *simulator) reset(ctx context.Context) error {
	_, err := ask[struct{}](ctx, s, http.MethodPost, "/reset", nil)
	return err
}

// accepted is a send that the simulator took.
type accepted struct {
	ID  string    `json:"id"`
	At  time.Time `json:"at"`
	Bot string    `json:"bot"`

	Text jelousim.Fingerprint `json:"text"`
}

// sends are those that were accepted, oldest first.
func (s *simulator) sends(ctx context.Context) ([]accepted, error) {
	return ask[[]accepted](ctx, s, http.MethodGet, "/sends?limit=1000000", nil)
}

// duplicates is how many sends were accepted that had been accepted before.
func (s *simulator) duplicates(ctx context.Context) (int, error) {
	r, err := ask[struct{ Duplicates, Forgotten int }](ctx, s, http.MethodGet, "/report", nil)
	if err == nil && r.Forgotten > 0 {
		err = errors.New("jelousim has forgotten requests")
	}
	return r.Duplicates, err
}

// arrivals are the requests of one credential as its limiter saw them.
type arrivals struct {
	all       []time.Time
	admitted  []time.Time
	throttled []time.Time
}

// arrivals gives what arrived, by credential.
func (s *simulator) arrivals(ctx context.Context) (map[string]*arrivals, error) {
	requests, err := ask[[]jelousim.Request](ctx, s, http.MethodGet, "/requests?limit=1000000", nil)
	if err != nil {
		return nil, err
	}
	of := map[string]*arrivals{}
	for _, r := range requests {
		a := of[r.Credential]
		if a == nil {
			a = &arrivals{}
			of[r.Credential] = a
		}
		a.all = append(a.all, r.Arrived)
		if r.Status == http.StatusTooManyRequests {
			a.throttled = append(a.throttled, r.Arrived)
		} else {
			a.admitted = append(a.admitted, r.Arrived)
		}
	}
	return of, nil
}

// violations counts the arrivals that made a window hold more than its limit, and the most that a window held.
// Windows are half-open: an arrival exactly one window after another does not meet it.
func violations(times []time.Time, limit int, window time.Duration) (count, worst int) {
	times = slices.SortedFunc(slices.Values(times), time.Time.Compare)
	first := 0
	for i, t := range times {
		for t.Sub(times[first]) >= window {
			first++
		}
		held := i - first + 1
		worst = max(worst, held)
		if held > limit {
			count++
		}
	}
	return count, worst
}

// explain tells about the first windows that held too many: how long before the last arrival each other one came.
func explain(times []time.Time, limit int, window time.Duration) []string {
	times = slices.SortedFunc(slices.Values(times), time.Time.Compare)
	var lines []string
	for i := limit; i < len(times) && len(lines) < 3; i++ {
		if times[i].Sub(times[i-limit]) >= window {
			continue
		}
		var before []string
		for _, t := range times[max(0, i-limit-1):i] {
			before = append(before, times[i].Sub(t).Round(100*time.Microsecond).String())
		}
		lines = append(lines, fmt.Sprintf("the arrival at %s came after others by %s", times[i].Format("15:04:05.000"), strings.Join(before, ", ")))
	}
	return lines
}

// within counts the times from begin on, for so long.
func within(times []time.Time, begin time.Time, long time.Duration) int {
	n := 0
	for _, t := range times {
		if age := t.Sub(begin); age >= 0 && age < long {
			n++
		}
	}
	return n
}

// share is how much of its allowance a tenant got between two times. It is taken from one arrival to another that is a
// multiple of the allowance later, so that it does not depend on where in a cycle the time begins; from begin to end
// where nothing arrived towards the end.
func share(admitted []time.Time, t *tenant, begin, end time.Time) float64 {
	var inside []time.Time
	for _, at := range admitted {
		if !at.Before(begin) && at.Before(end) {
			inside = append(inside, at)
		}
	}
	cycles := (len(inside) - 1) / t.allowed()
	allowed := float64(len(inside)) / float64(t.allowed())
	span := end.Sub(begin)
	if cycles > 0 && end.Sub(inside[len(inside)-1]) < 2*t.every() {
		allowed = float64(cycles)
		span = inside[cycles*t.allowed()].Sub(inside[0])
	}
	return allowed * t.every().Seconds() / span.Seconds()
}
