package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// runner is a language's program that makes the calls.
type runner struct {
	command *exec.Cmd
	stdin   io.WriteCloser
	mu      sync.Mutex
	next    int
	calls   map[int]*call
	gone    chan struct{}
}

// call is one command under way.
type call struct {
	mu      sync.Mutex
	out     outcome
	seconds float64
	changed chan struct{} // closed and replaced by every reply
	done    bool
}

func newRunner(words []string) (*runner, error) {
	r := &runner{command: exec.Command(words[0], words[1:]...), calls: map[int]*call{}, gone: make(chan struct{})}
	r.command.Stderr = os.Stderr
	var err error
	if r.stdin, err = r.command.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := r.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.command.Start(); err != nil {
		return nil, err
	}
	go r.read(stdout)
	return r, nil
}

// read hands every reply to its call.
func (r *runner) read(stdout io.Reader) {
	defer close(r.gone)
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			_ = r.command.Wait() // who waits for a call is told that the runner has gone
			return
		}
		var reply exchange.Reply
		if err := json.Unmarshal(line, &reply); err != nil {
			fmt.Fprintf(os.Stderr, "a runner's line is no reply: %s", line)
			continue
		}
		r.mu.Lock()
		c := r.calls[reply.ID]
		r.mu.Unlock()
		if c != nil {
			c.take(reply)
		}
	}
}

func (c *call) take(reply exchange.Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case reply.Message != nil:
		c.out.messages = append(c.out.messages, reply.Message)
	case reply.Status != nil:
		c.out.status, c.done = reply.Status, true
	default:
		c.seconds, c.done = reply.Seconds, true
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// start gives the runner a command.
func (r *runner) start(command exchange.Command) (*call, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	command.ID = r.next
	line, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	c := &call{changed: make(chan struct{})}
	r.calls[command.ID] = c
	_, err = r.stdin.Write(append(line, '\n'))
	return c, err
}

// callTimeout is more than any call of a scenario takes on a busy machine.
const callTimeout = 3 * time.Minute

var errGone = errors.New("the runner has ended")

// until waits until the call is as wanted, or over, and returns what has come by then.
func (r *runner) until(c *call, wanted func(outcome) bool) (outcome, bool, error) {
	timeout := time.After(callTimeout)
	for {
		c.mu.Lock()
		out, done, changed := c.out, c.done, c.changed
		c.mu.Unlock()
		if done || wanted != nil && wanted(out) {
			return out, done, nil
		}
		select {
		case <-changed:
		case <-r.gone:
			return out, false, errGone
		case <-timeout:
			return out, false, fmt.Errorf("the call did not end within %s; %d messages came", callTimeout, len(out.messages))
		}
	}
}

// close ends the runner, which stops when its input ends.
func (r *runner) close() {
	_ = r.stdin.Close()
	select {
	case <-r.gone:
	case <-time.After(10 * time.Second):
		_ = r.command.Process.Kill()
		<-r.gone
	}
}
