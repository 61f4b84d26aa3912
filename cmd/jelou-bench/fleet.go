package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// fleet is some facades with one ledger that are ended and started again while clients use them.
type fleet struct {
	b      *bench
	path   string // of the configuration
	config *configv1.Config
	seats  []atomic.Pointer[facade] // the latest of each; never nil, but it may be ended
}

// startFleet starts so many replicas as startFacades does, with a configuration that tune may change; nil changes nothing.
func (b *bench) startFleet(replicas int, databaseURL string, tune func(*configv1.Config), all ...*tenant) (*fleet, error) {
	c, err := b.startFacades(0, databaseURL, all...)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(c.config)
	if err != nil {
		return nil, err
	}
	f := &fleet{b: b, path: c.config, config: &configv1.Config{}, seats: make([]atomic.Pointer[facade], replicas)}
	if err := protojson.Unmarshal(text, f.config); err != nil {
		return nil, err
	}
	if tune != nil {
		tune(f.config)
		if text, err = protojson.Marshal(f.config); err != nil {
			return nil, err
		}
		if err := os.WriteFile(c.config, text, 0o600); err != nil {
			return nil, err
		}
	}
	for seat := range f.seats {
		if err := f.start(seat); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// start puts a new process on a seat and waits until it serves.
func (f *fleet) start(seat int) error {
	member, err := f.b.startFacade(f.path)
	if err == nil {
		f.seats[seat].Store(member)
	}
	return err
}

// restart ends the process on a seat, by kill -9 or in order, and starts another one.
func (f *fleet) restart(seat int, s syscall.Signal) error {
	old := f.seats[seat].Load()
	if s == syscall.SIGKILL {
		old.kill()
	} else {
		old.stop()
	}
	return f.start(seat)
}

// any is one of the seats at random. Its process may be gone.
func (f *fleet) any() *facade { return f.seats[rand.IntN(len(f.seats))].Load() }

// stop ends all processes in order.
func (f *fleet) stop() {
	for seat := range f.seats {
		if member := f.seats[seat].Load(); member != nil {
			member.stop()
		}
	}
}

// busy makes a tenant's allowance so high that it does not bound what is measured.
func busy(all []*tenant, requests int, window time.Duration) []*tenant {
	for _, t := range all {
		t.requests, t.window = requests, window
	}
	return all
}

// failure is what a call's error says.
type failure struct {
	code   codes.Code
	reason string
	sendID string // where the server had stored a send
}

func failureOf(err error) failure {
	s := status.Convert(err)
	f := failure{code: s.Code()}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			f.reason, f.sendID = info.Reason, info.Metadata["send_id"]
		}
	}
	return f
}

// mayRepeat reports whether a client with a request_id may call again: nothing was said about the send. A broken connection has no reason.
func (f failure) mayRepeat() bool {
	return f.code == codes.Unavailable || f.code == codes.ResourceExhausted && f.reason != "" || f.code == codes.DeadlineExceeded && f.reason == "" ||
		f.code == codes.Internal && f.reason == "" || f.code == codes.Canceled && f.reason == ""
}

// quiet waits until nothing in the ledger waits any more.
func (f *facade) quiet(ctx context.Context) error {
	sends := facadev1.NewSendServiceClient(f.conn)
	for {
		r, err := sends.ListSends(ctx, &facadev1.ListSendsRequest{
			PageSize: 1, States: []resultState{facadev1.Send_SCHEDULED, facadev1.Send_PENDING, facadev1.Send_SENDING},
		})
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case len(r.Sends) == 0 && r.NextPageToken == "":
			return nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// resident is a process's memory in MiB as the kernel counts it.
func (c *child) resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("the kernel does not tell a process's memory")
}

// processor is the time that a process has spent on processors.
func (c *child) processor() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc: %q", text)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ is 100 wherever Linux shows it to programs
}

// resultState is the state of a result or listed send.
type resultState = facadev1.Send_State

// waits reports whether a send has no final state.
func waits(s resultState) bool {
	return s == facadev1.Send_SCHEDULED || s == facadev1.Send_PENDING || s == facadev1.Send_SENDING
}
