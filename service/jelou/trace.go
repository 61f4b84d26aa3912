package jelou

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Timing is what an attempt saw, by this machine's monotonic clock.
type Timing struct {
	// Started is when the request was given to the connection. Zero: it never was.
	Started time.Time
	// Seen is when it was first known that the request has arrived or never will: by the first byte of the answer or,
	// with Closed, by the peer's end of the connection. Zero: nothing was seen.
	Seen time.Time
	// Closed says that Seen is no answer.
	Closed bool
	// Trip is from the request's leaving to the answer's first byte, without the making of a connection. Zero: no answer.
	Trip time.Duration
	// Acked and AckTrip are the same for the acknowledgement of [WithAck]. Zero: it was not asked for, or did not come.
	Acked   time.Time
	AckTrip time.Duration
}

// attempt watches one request on its way. Its hooks run in goroutines of the transport.
type attempt struct {
	mu      sync.Mutex
	conn    *conn
	http2   bool
	before  int64 // bytes that the connection had written before
	headers bool  // the transport has begun to write
	got     time.Time
	wrote   time.Time
	seen    time.Time

	report  func(time.Time, time.Duration) // of WithAck; nil: nobody asked
	watch   sync.WaitGroup
	over    chan struct{} // closed by end
	ended   bool
	acked   time.Time
	ackTrip time.Duration
}

func newAttempt(ctx context.Context) *attempt {
	report, _ := ctx.Value(ackKey{}).(func(time.Time, time.Duration))
	return &attempt{report: report, over: make(chan struct{})}
}

func (a *attempt) trace(size int) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn:          func(info httptrace.GotConnInfo) { a.use(info.Conn) },
		WroteHeaderField: func(string, []string) { a.mark(func() { a.headers = true }) },
		WroteHeaders:     func() { a.mark(func() { a.wrote = time.Now() }) },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				a.wroteRequest(size)
			}
		},
		GotFirstResponseByte: func() { a.mark(func() { a.seen = time.Now() }) },
	}
}

func (a *attempt) mark(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// use is told the connection. HTTP/2 may tell another one before it has written anything.
func (a *attempt) use(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leave()
	a.got = time.Now()
	for {
		switch layer := c.(type) {
		case *conn:
			layer.attempts.Add(1)
			a.conn, a.before = layer, layer.written.Load()
			return
		case *tls.Conn:
			a.http2 = a.http2 || layer.ConnectionState().NegotiatedProtocol == "h2"
			c = layer.NetConn()
		default:
			return
		}
	}
}

func (a *attempt) leave() {
	if a.conn != nil {
		a.conn.leave()
		a.conn = nil
	}
}

// end is called once the attempt is over, whatever became of it.
func (a *attempt) end() {
	a.mark(func() { a.ended = true })
	close(a.over)
	a.watch.Wait()
	a.mark(a.leave)
}

// left tells whether a byte of the request may have left. Over HTTP/1.1 the connection is the request's alone, and the
// transport has stopped writing when it returns an error, so the bytes are counted. Over HTTP/2 what the transport
// began to write counts; and all that has a connection when the time is up, since it may begin right after.
func (a *attempt) left(ctx context.Context) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil || a.http2 {
		return a.headers || a.http2 && ctx.Err() != nil
	}
	return a.headers && a.conn.written.Load() > a.before
}

func (a *attempt) timing() Timing {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := Timing{Started: a.wrote, Seen: a.seen, Acked: a.acked, AckTrip: a.ackTrip}
	if t.Started.IsZero() {
		t.Started = a.got
	}
	switch {
	case !a.seen.IsZero() && !a.wrote.IsZero():
		t.Trip = max(a.seen.Sub(a.wrote), 0)
	case a.seen.IsZero() && a.conn != nil:
		if closed := a.conn.closed.Load(); closed != nil {
			t.Seen, t.Closed = *closed, true
		}
	}
	return t
}

// conns are a client's open connections. net/http closes only those that are idle at the time.
type conns struct {
	mu     sync.Mutex
	open   map[*conn]bool
	closed bool
}

// add takes a new connection in, unless the client was closed meanwhile.
func (p *conns) add(raw net.Conn) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = raw.Close() // nobody has used it
		return nil, errClosed
	}
	c := &conn{Conn: raw, pool: p}
	p.open[c] = true
	return c, nil
}

func (p *conns) remove(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

// close closes what no attempt uses; the rest follows when its last attempt is over.
func (p *conns) close() {
	p.mu.Lock()
	p.closed = true
	unused := make([]*conn, 0, len(p.open))
	for c := range p.open {
		if c.attempts.Load() == 0 {
			unused = append(unused, c)
		}
	}
	p.mu.Unlock()
	for _, c := range unused {
		_ = c.Close() // it may be closed already
	}
}

func (p *conns) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// conn is a TCP connection that knows how much was written to it and how it ended.
type conn struct {
	net.Conn
	pool     *conns
	written  atomic.Int64
	attempts atomic.Int32
	closed   atomic.Pointer[time.Time] // when the peer ended it
}

// leave is the end of an attempt.
func (c *conn) leave() {
	if c.attempts.Add(-1) == 0 && c.pool.isClosed() {
		_ = c.Close() // it may be closed already
	}
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		now := time.Now()
		c.closed.CompareAndSwap(nil, &now)
	}
	return n, err
}

// Close resets the connection when a request was given up on: what of it still waits in this machine's kernel must
// not leave after the attempt is over, and the server learns at once that nobody listens.
func (c *conn) Close() error {
	c.pool.remove(c)
	if tcp, ok := c.Conn.(*net.TCPConn); ok && c.attempts.Load() > 0 {
		_ = tcp.SetLinger(0) // fails only on a connection that is closed already
	}
	return c.Conn.Close()
}

// body can be read once and never again: a transport that wanted to send a request twice would have nothing to send.
type body struct {
	rest []byte
}

func (b *body) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *body) Close() error { return nil }
