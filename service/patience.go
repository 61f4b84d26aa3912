package service

import (
	"context"
	"net/http"
	"time"

	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/tap"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// How long clients may take that hold something of the server's meanwhile.
const (
	// bodyTimeout is for a request to come in, or the first message of a stream. A stream's other messages may take as long as they
	// like: their client may be waiting for results.
	bodyTimeout = 30 * time.Second
	// answerTimeout is for a client to read what is written.
	answerTimeout = 30 * time.Second
)

// maxHeaderFrame is where net/http itself stops reading headers, with an answer of its own; up to there the answer is ours.
const maxHeaderFrame = 4 * maxHeaderBytes

// patient holds REST clients to the times and to the size of headers.
func patient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Time{}) // of the connection's last answer; it may be gone
		if r.ContentLength != 0 {
			_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // until bodyHere
		}
		w = timedWriter{w, control}
		if headerBytes(r) > maxHeaderBytes {
			w.Header().Set("Connection", "close")
			writeError(w, newFault(facadev1.ErrorReason_REQUEST_TOO_LARGE, "the headers are larger than %d KiB", maxHeaderBytes>>10).GRPCStatus())
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bodyHere ends the time that a body may take, where it is complete or a stream's: the deadline would end the call, too. One that
// nobody reads keeps its time.
func bodyHere(w http.ResponseWriter, r *http.Request) {
	if r.Body == http.NoBody {
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a connection that is gone
}

func headerBytes(r *http.Request) int {
	n := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}

// timedWriter gives up on a client that does not read.
type timedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Unwrap is for http.ResponseController.
func (w timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w timedWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(answerTimeout)) // Write says when the client is gone
	return w.ResponseWriter.Write(p)
}

// firstMessages ends gRPC calls whose first message does not come: gRPC has no such bound, and each holds a stream.
type firstMessages struct{}

type firstMessageKey struct{}

// tap begins the time.
func (firstMessages) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	return context.WithValue(ctx, firstMessageKey{}, time.AfterFunc(bodyTimeout, cancel)), nil
}

// TagRPC is stats.Handler's.
func (firstMessages) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC is stats.Handler's.
func (firstMessages) HandleRPC(ctx context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.InPayload, *stats.End:
		if timer, ok := ctx.Value(firstMessageKey{}).(*time.Timer); ok {
			timer.Stop()
		}
	}
}

// TagConn is stats.Handler's.
func (firstMessages) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is stats.Handler's.
func (firstMessages) HandleConn(context.Context, stats.ConnStats) {}
