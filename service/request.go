package service

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/status"
)

// answer notes what is answered to a request over HTTP, and what the log needs where no method is reached.
type answer struct {
	http.ResponseWriter
	code   int            // zero: nothing yet
	status *status.Status // of an error
	visit  *visit         // nil: nobody has looked
	told   atomic.Bool    // the log has its line
}

type answerKey struct{}

// answerOf is the answer to a request; nil on the admin port.
func answerOf(ctx context.Context) *answer {
	a, _ := ctx.Value(answerKey{}).(*answer)
	return a
}

// WriteHeader is http.ResponseWriter's.
func (a *answer) WriteHeader(code int) {
	if code >= http.StatusOK {
		a.code = code
	}
	a.ResponseWriter.WriteHeader(code)
}

// Write is http.ResponseWriter's.
func (a *answer) Write(p []byte) (int, error) {
	a.code = orDefault(a.code, http.StatusOK)
	return a.ResponseWriter.Write(p)
}

// FlushError is http.ResponseController's.
func (a *answer) FlushError() error {
	a.code = orDefault(a.code, http.StatusOK)
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Flush is http.Flusher's, which gRPC asks for.
func (a *answer) Flush() { _ = a.FlushError() } // whoever writes on learns it

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// noteStatus lets the answer that a writer leads to know the status of an error.
func noteStatus(w http.ResponseWriter, st *status.Status) {
	for {
		if a, ok := w.(*answer); ok {
			a.status = st
			return
		}
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = outer.Unwrap()
	}
}

// err is what an answer that no method gave says.
func (a *answer) err(r *http.Request) error {
	switch {
	case a.status != nil:
		return statusError{a.status.Proto()}
	case a.code >= http.StatusBadRequest && a.code < http.StatusInternalServerError: // a page's; /healthz has its 503 for an answer
		return routingFault(r, a.code)
	}
	return nil
}

// requests stands around all of REST: it gives each request an id, and the answer the same, measures it, and writes a line for those
// that reach no method, which have none of the guard.
func (g *guard) requests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, a := time.Now(), &answer{ResponseWriter: w}
		r = r.WithContext(context.WithValue(r.Context(), answerKey{}, a))
		r.Header.Set(headerRequestID, requestIDOrNew(r.Header.Get(headerRequestID)))
		w.Header().Set(headerRequestID, r.Header.Get(headerRequestID))
		defer func() {
			g.metrics.request(r, time.Since(began), orDefault(a.code, http.StatusOK))
			if !a.told.Load() {
				_ = g.tell(a, r, began, nil, a.err(r)) // it is answered
			}
		}()
		g.recovering(next).ServeHTTP(a, r)
	})
}

// tell ends what no method has ended.
func (g *guard) tell(a *answer, r *http.Request, began time.Time, panicked any, err error) error {
	a.told.Store(true)
	ctx := r.Context()
	if a.visit != nil {
		ctx = context.WithValue(ctx, visitKey{}, a.visit)
	}
	c := &call{id: a.Header().Get(headerRequestID), method: otherMethod, transport: g.transport, span: trace.SpanFromContext(ctx), start: began}
	return g.end(ctx, c, panicked, err)
}

// recovering stands around a port's handler: a panic is INTERNAL to the client where nothing is written yet, and else cuts the
// connection; it is told and counted as one in a method is, without its value, which net/http would print.
func (g *guard) recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := w.(*answer)
		if !ok {
			a = &answer{ResponseWriter: w}
		}
		began := time.Now()
		defer func() {
			panicked := recover()
			if panicked == nil {
				return
			}
			if err, ok := panicked.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(panicked)
			}
			id := a.Header().Get(headerRequestID)
			err := g.tell(a, r, began, panicked, nil)
			if a.code != 0 {
				panic(http.ErrAbortHandler)
			}
			clear(a.Header()) // of the answer that was not given
			if id != "" {
				a.Header().Set(headerRequestID, id)
			}
			writeError(timedWriter{a, http.NewResponseController(a)}, status.Convert(err))
		}()
		next.ServeHTTP(a, r)
	})
}
