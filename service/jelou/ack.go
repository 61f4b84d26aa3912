package jelou

import (
	"context"
	"net"
	"time"
)

// WithAck makes a call report, while it still waits for the answer, that the peer's kernel has acknowledged the whole
// request: the request has arrived at Jelou's edge, whatever happens to it there. trip is how long that took, rather
// too short than too long. f is called once at most, before the call returns, and must not block.
//
// It costs a system call per millisecond of the way. There is no report off Linux, through a proxy, where the answer
// came first, and over HTTP/1.1 for requests that do not fit into one write.
func WithAck(ctx context.Context, f func(at time.Time, trip time.Duration)) context.Context {
	return context.WithValue(ctx, ackKey{}, f)
}

type ackKey struct{}

// oneWrite is a body that leaves in one piece with its head: net/http's buffer has 4 KiB.
const oneWrite = 2 << 10

const (
	// pollEvery is how often the kernel is asked, and how wrong the report's time may be.
	pollEvery = time.Millisecond
	// pollSlower makes the questions rarer the longer it takes: their distance is a part of the time.
	pollSlower = 16
	// pollFirst is when the kernel is asked for the first time at the latest. It is asked earlier where the connection
	// was faster lately: after three quarters of that.
	pollFirst = 50 * time.Millisecond
)

// wroteRequest is told that the transport is done with writing; over HTTP/1.1 the last piece is still in its buffer.
func (a *attempt) wroteRequest(size int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.report == nil || a.ended || a.conn == nil || !a.http2 && size > oneWrite {
		return
	}
	tcp, ok := a.conn.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	c, before, wrote, direct := a.conn, a.before, a.wrote, a.http2
	a.watch.Go(func() {
		at, trip, ok := awaitAck(tcp, wrote, a.over, func() bool { return direct || c.written.Load() > before })
		if !ok {
			return
		}
		a.mark(func() { a.acked, a.ackTrip = at, trip })
		a.report(at, trip)
	})
}

// awaitAck waits until everything that was written is acknowledged, or the attempt is over.
func awaitAck(tcp *net.TCPConn, wrote time.Time, over <-chan struct{}, left func() bool) (at time.Time, trip time.Duration, ok bool) {
	state, ok := readTCP(tcp)
	if !ok {
		return at, 0, false
	}
	pending := wrote // when it was not acknowledged yet, as far as is known
	timer := time.NewTimer(min(max(state.fastest*3/4, pollEvery), pollFirst))
	defer timer.Stop()
	for {
		select {
		case <-over:
			return at, 0, false
		case <-timer.C:
		}
		now := time.Now()
		if state, ok = readTCP(tcp); !ok {
			return at, 0, false
		}
		if state.acknowledged && left() {
			return time.Now(), max(pending.Sub(wrote), time.Microsecond), true
		}
		pending = now
		timer.Reset(max(now.Sub(wrote)/pollSlower, pollEvery))
	}
}

// tcpState is what the kernel knows of a connection.
type tcpState struct {
	acknowledged bool          // nothing waits to be sent or to be acknowledged
	fastest      time.Duration // round trip of the last minutes; very large where there was none
}
