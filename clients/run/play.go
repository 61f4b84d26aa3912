package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// playing is one scenario under way.
type playing struct {
	*world
	scenario   scenario
	vars       variables
	background map[string]*call
}

// play runs a scenario and then compares what reached users with what should have.
func (w *world) play(ctx context.Context, s scenario) error {
	now := time.Now().UTC()
	p := &playing{world: w, scenario: s, background: map[string]*call{}, vars: maps.Clone(w.identities)}
	maps.Copy(p.vars, variables{
		"run":     strings.ReplaceAll(s.Name, " ", "-"),
		"in_1s":   now.Add(time.Second).Format(time.RFC3339Nano),
		"in_2s":   now.Add(2 * time.Second).Format(time.RFC3339Nano),
		"in_1h":   now.Add(time.Hour).Format(time.RFC3339Nano),
		"large":   strings.Repeat("a", 5<<20),
		"filling": filling(100),
	})
	if err := w.control(ctx, "/reset", nil, nil); err != nil {
		return err
	}
	for i, step := range s.Steps {
		if err := p.step(ctx, step); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	var report struct{ Accepted, Duplicates int }
	if err := w.control(ctx, "/report", nil, &report); err != nil {
		return err
	}
	if report.Accepted != s.Sent || report.Duplicates != 0 {
		return fmt.Errorf("accepted by Jelou: %d sends, %d of them twice, want %d and none", report.Accepted, report.Duplicates, s.Sent)
	}
	return nil
}

// filling are items, as many as may wait.
func filling(n int) string {
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf(`{"user_id": "593991234567", "message": {"text": {"text": "Relleno %d"}}}`, i)
	}
	return "[" + strings.Join(items, ",") + "]"
}

func (p *playing) step(ctx context.Context, s step) error {
	switch {
	case s.Call != "" || s.HTTP != nil:
		return p.call(s)
	case s.Wait != "":
		c, err := p.named(s.Wait)
		if err != nil {
			return err
		}
		return p.end(c, s)
	case s.Await != "":
		return p.await(s)
	case s.Faults != nil:
		return p.control(ctx, "/faults", s.Faults, nil)
	case s.Inbound != nil:
		return p.control(ctx, "/inbound", s.Inbound, nil)
	case s.Arrived > 0:
		return p.arrived(ctx, s.Arrived)
	case s.Cut:
		for _, server := range p.servers {
			server.grpc.cut()
			server.rest.cut()
		}
		return nil
	case s.Stop != "":
		p.servers[s.Stop].child.stop()
		return nil
	case s.Backup != "":
		return p.backUp(s.Backup)
	case s.Restore != "":
		return p.restore(s.Restore)
	}
	return fmt.Errorf("the step says nothing to do")
}

// call makes a call, or repeats it until its answer is as wanted.
func (p *playing) call(s step) error {
	if s.Answer != nil {
		if err := p.stand.answer(s.Answer); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(callTimeout); ; {
		c, err := p.begin(s)
		if err != nil {
			return err
		}
		if s.Background != "" {
			p.background[s.Background] = c
			return nil
		}
		if s.Until == nil {
			return p.end(c, s)
		}
		out, _, err := p.runner.until(c, nil)
		if err != nil {
			return err
		}
		if p.holds(s.Until, out) {
			return p.end(c, s)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not come to %v", s.Call, s.Until)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *playing) holds(wanted map[string]string, out outcome) bool {
	for path, value := range wanted {
		if out.read(path) != any(value) {
			return false
		}
	}
	return true
}

func (p *playing) begin(s step) (*call, error) {
	command, err := s.command(p.vars)
	if err != nil {
		return nil, err
	}
	if command.Address, err = p.address(s.Server); err != nil {
		return nil, err
	}
	command.TLS = p.files(s.TLS)
	return p.runner.start(command)
}

// end waits for a call, checks it, and keeps what later steps need.
func (p *playing) end(c *call, s step) error {
	out, _, err := p.runner.until(c, nil)
	if err != nil {
		return err
	}
	if err := s.Expect.check(out, p.vars); err != nil {
		return err
	}
	for name, path := range s.Save {
		value, ok := out.read(path).(string)
		if !ok {
			return fmt.Errorf("the answer has no text at %s", path)
		}
		p.vars[name] = value
	}
	return nil
}

func (p *playing) named(name string) (*call, error) {
	if c := p.background[name]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no call runs in the background as %q", name)
}

func (p *playing) await(s step) error {
	c, err := p.named(s.Await)
	if err != nil {
		return err
	}
	_, done, err := p.runner.until(c, func(o outcome) bool { return len(o.byKind()[s.Message]) > 0 })
	if err == nil && done {
		return fmt.Errorf("%s ended before %s came", s.Await, s.Message)
	}
	return err
}

// arrived waits until so many requests have arrived at Jelou.
func (p *playing) arrived(ctx context.Context, n int) error {
	for deadline := time.Now().Add(callTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var report struct{ Arrived int }
		if err := p.control(ctx, "/report", nil, &report); err != nil {
			return err
		}
		if report.Arrived >= n {
			return nil
		}
	}
	return fmt.Errorf("%d requests did not arrive at Jelou", n)
}

// control asks the simulator's control path: the report by GET, all else by POST.
func (w *world) control(ctx context.Context, path string, body json.RawMessage, answer any) error {
	method := http.MethodPost
	if answer != nil {
		method = http.MethodGet
	}
	request, err := http.NewRequestWithContext(ctx, method, w.simulator+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("simulator %s: %s", path, data)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(data, answer)
}
