package service

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"google.golang.org/grpc/stats"
)

// Connections bound what clients hold open.
type Connections struct {
	Most      int           // per listener; zero is 2000
	Age       time.Duration // until a client has to open another one, give or take a tenth; zero is 10m
	Grace     time.Duration // for the calls of such a connection; zero is 15m
	Keepalive time.Duration // of silence until a gRPC client is asked whether it is there; zero is 1m
}

const (
	defaultConnections = 2000
	defaultAge         = 10 * time.Minute
	defaultGrace       = 15 * time.Minute
	defaultKeepalive   = time.Minute
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

// sinceKey is where a context has the time at which its connection was opened.
type sinceKey struct{}

func withSince(ctx context.Context) context.Context {
	return context.WithValue(ctx, sinceKey{}, time.Now())
}

// connectedSince is when the connection of a call was opened, over gRPC or REST; zero when nobody knows.
func connectedSince(ctx context.Context) time.Time {
	if rest := inprocgrpc.ClientContext(ctx); rest != nil {
		ctx = rest
	}
	since, _ := ctx.Value(sinceKey{}).(time.Time)
	return since
}

// connectionTimes notes in the contexts of gRPC's calls when their connection was opened.
type connectionTimes struct{}

// TagConn is stats.Handler's.
func (connectionTimes) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return withSince(ctx)
}

// HandleConn is stats.Handler's.
func (connectionTimes) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC is stats.Handler's.
func (connectionTimes) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC is stats.Handler's.
func (connectionTimes) HandleRPC(context.Context, stats.RPCStats) {}

// renewing has the clients of old connections open new ones, as gRPC's server does by itself: HTTP/1.1 is told so by the
// header, and for HTTP/2 net/http makes a GOAWAY of it.
func renewing(age time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if since := connectedSince(r.Context()); !since.IsZero() && time.Since(since) > age {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// streamEnd comes when a stream has to end because its connection is old. The timer has to be stopped.
func (s *core) streamEnd(ctx context.Context) *time.Timer {
	left := time.Duration(1<<63 - 1)
	if since := connectedSince(ctx); !since.IsZero() {
		left = time.Until(since.Add(s.streamAge))
	}
	return time.NewTimer(left)
}
