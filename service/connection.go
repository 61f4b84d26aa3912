package service

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"google.golang.org/grpc/stats"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Connections bound what clients hold open.
type Connections struct {
	Most      int           // per listener; zero is 2000
	Age       time.Duration // until a client has to open another one, give or take a tenth; zero is 10m
	Grace     time.Duration // for the calls of such a connection; zero is 15m
	Keepalive time.Duration // of silence until a gRPC client is asked whether it is there; zero is 1m

	Streams       int // open at once, over gRPC and REST; zero is 4000
	CallerStreams int // of them one caller's; zero is 1000
}

const (
	defaultConnections = 2000
	defaultAge         = 10 * time.Minute
	defaultGrace       = 15 * time.Minute
	defaultKeepalive   = time.Minute

	defaultStreams       = 4000
	defaultCallerStreams = 1000
	// streamsAgain is when somebody who got no stream may come again.
	streamsAgain = 5 * time.Second

	// keepaliveTimeout is how long an answer to that question may take.
	keepaliveTimeout = 20 * time.Second
	// refusedEvery is how often the log says that connections are refused.
	refusedEvery = time.Minute
)

func (c *Connections) setDefaults() {
	c.Most = orDefault(c.Most, defaultConnections)
	c.Age = orDefault(c.Age, defaultAge)
	c.Grace = orDefault(c.Grace, defaultGrace)
	c.Keepalive = orDefault(c.Keepalive, defaultKeepalive)
	c.Streams = orDefault(c.Streams, defaultStreams)
	c.CallerStreams = orDefault(c.CallerStreams, defaultCallerStreams)
}

// streams is how old a connection becomes before its streams are ended with a cursor: gRPC, which varies the age by a tenth,
// cuts what there is no sooner than after nine tenths of it and the grace.
func (c *Connections) streams() time.Duration {
	return c.Age*9/10 + c.Grace - min(10*time.Second, c.Grace/4)
}

// boundedListener refuses connections beyond a number of open ones, by closing them: one that waited in line would look to its
// client like a server that hangs, and this way it tries another replica.
type boundedListener struct {
	net.Listener
	most    int64
	log     *slog.Logger
	open    atomic.Int64
	refused int64     // since it was logged; only Accept uses it
	logged  time.Time // when it was
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.most {
			return &boundedConn{Conn: c, listener: l}, nil
		}
		l.open.Add(-1)
		_ = c.Close() // it was not used
		l.refused++
		if time.Since(l.logged) >= refusedEvery {
			l.log.Warn("too many connections: new ones are closed", slog.String("address", l.Addr().String()), slog.Int64("open", l.most), slog.Int64("refused", l.refused))
			l.refused, l.logged = 0, time.Now()
		}
	}
}

// boundedConn is one that counts.
type boundedConn struct {
	net.Conn
	listener *boundedListener
	closed   sync.Once
}

func (c *boundedConn) Close() error {
	c.closed.Do(func() { c.listener.open.Add(-1) })
	return c.Conn.Close()
}

// openStreams counts the streams that are open, those of each caller too: each of them holds memory for as long as its client likes.
type openStreams struct {
	most, ofCaller int

	mu  sync.Mutex
	all int
	of  map[string]int // by the caller's name
}

// open takes a stream for a caller, or says why not; the stream's end has to close it.
func (o *openStreams) open(caller string) (closed func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.of[caller] >= o.ofCaller:
		return nil, callerQuota(caller, fmt.Sprintf("%d open streams", o.ofCaller), streamsAgain)
	case o.all >= o.most:
		f := newFault(facadev1.ErrorReason_QUEUE_FULL, "this server has %d open streams, and takes no more; nothing was stored", o.most)
		f.retryAfter = streamsAgain
		return nil, f
	}
	o.all++
	o.of[caller]++
	return func() { o.close(caller) }, nil
}

func (o *openStreams) close(caller string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all--
	if o.of[caller]--; o.of[caller] == 0 {
		delete(o.of, caller)
	}
}

// connection is what is known of one that is open.
type connection struct {
	since   time.Time                     // zero when nobody knows
	trusted atomic.Pointer[x509.CertPool] // the authorities with which its certificate was good
}

type connectionKey struct{}

func withConnection(ctx context.Context) context.Context {
	return context.WithValue(ctx, connectionKey{}, &connection{since: time.Now()})
}

// connectionOf is the connection of a call, over gRPC or REST.
func connectionOf(ctx context.Context) *connection {
	if rest := inprocgrpc.ClientContext(ctx); rest != nil {
		ctx = rest
	}
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		return c
	}
	return &connection{}
}

// connections gives the contexts of gRPC's calls their connection.
type connections struct{}

// TagConn is stats.Handler's.
func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return withConnection(ctx)
}

// HandleConn is stats.Handler's.
func (connections) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC is stats.Handler's.
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC is stats.Handler's.
func (connections) HandleRPC(context.Context, stats.RPCStats) {}

// renewing has the clients of old connections open new ones, as gRPC's server does by itself: HTTP/1.1 is told so by the
// header, and for HTTP/2 net/http makes a GOAWAY of it.
func renewing(age time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if since := connectionOf(r.Context()).since; !since.IsZero() && time.Since(since) > age {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// streamEnd comes when a stream has to end because its connection is old. The timer has to be stopped.
func (s *core) streamEnd(ctx context.Context) *time.Timer {
	left := time.Duration(1<<63 - 1)
	if since := connectionOf(ctx).since; !since.IsZero() {
		left = time.Until(since.Add(s.streamAge))
	}
	return time.NewTimer(left)
}
