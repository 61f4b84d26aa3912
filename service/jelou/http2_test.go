package jelou

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frameServer is an HTTP/2 server of single frames: it can say what a real one says only in bad moments.
type frameServer struct {
	url      string
	roots    *x509.CertPool
	requests atomic.Int32 // HEADERS frames over all connections
}

// newFrameServer runs answer once for every request, after its last byte.
func newFrameServer(t *testing.T, answer func(f *http2.Framer, stream uint32, number int)) *frameServer {
	t.Helper()
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	certificate, roots := certified.TLS.Certificates, certified.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	certified.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certificate, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &frameServer{url: "https://" + l.Addr().String(), roots: roots}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer func() { _ = c.Close() }()
				s.serve(c, answer)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return s
}

func (s *frameServer) serve(c net.Conn, answer func(*http2.Framer, uint32, int)) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	_ = f.WriteSettings()
	number := 0
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.WritePing(true, frame.Data)
			}
		case *http2.HeadersFrame:
			number = int(s.requests.Add(1))
			if frame.StreamEnded() {
				answer(f, frame.StreamID, number)
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				answer(f, frame.StreamID, number)
			}
		}
	}
}

func accept(kind string) func(*http2.Framer, uint32, int) {
	return func(f *http2.Framer, stream uint32, _ int) {
		var head bytes.Buffer
		_ = hpack.NewEncoder(&head).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true})
		body := acceptedBody
		if kind == "read" {
			body = `{"id":"m-1","destination":"1"}`
		}
		_ = f.WriteData(stream, true, []byte(body))
	}
}

// What the server says in HTTP/2's own words decides: a stream that it did not process was not sent, but is not sent
// again by this client either; everything else is unknown.
func TestHTTP2Endings(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(f *http2.Framer, stream uint32)
		want Outcome
	}{
		"GOAWAY before it": {func(f *http2.Framer, s uint32) { _ = f.WriteGoAway(s-2, http2.ErrCodeNo, nil) }, Unreachable},
		"REFUSED_STREAM":   {func(f *http2.Framer, s uint32) { _ = f.WriteRSTStream(s, http2.ErrCodeRefusedStream) }, Unreachable},
		"PROTOCOL_ERROR":   {func(f *http2.Framer, s uint32) { _ = f.WriteRSTStream(s, http2.ErrCodeProtocol) }, Unknown},
		"INTERNAL_ERROR":   {func(f *http2.Framer, s uint32) { _ = f.WriteRSTStream(s, http2.ErrCodeInternal) }, Unknown},
		"CANCEL":           {func(f *http2.Framer, s uint32) { _ = f.WriteRSTStream(s, http2.ErrCodeCancel) }, Unknown},
		"GOAWAY, then reset": {func(f *http2.Framer, s uint32) {
			_ = f.WriteGoAway(s, http2.ErrCodeNo, nil)
			_ = f.WriteRSTStream(s, http2.ErrCodeInternal)
		}, Unknown},
		"GOAWAY with a fault": {func(f *http2.Framer, s uint32) {
			_ = f.WriteGoAway(s, http2.ErrCodeInternal, nil)
			_ = f.WriteRSTStream(s, http2.ErrCodeCancel)
		}, Unknown},
	} {
		for kind, call := range calls {
			t.Run(name+"/"+kind, func(t *testing.T) {
				// The first request opens the connection: a first stream is never repeated anyway.
				s := newFrameServer(t, func(f *http2.Framer, stream uint32, number int) {
					if number == 2 {
						c.end(f, stream)
						return
					}
					accept(kind)(f, stream, number)
				})
				client := newClient(t, Config{BaseURL: s.url, RootCAs: s.roots})
				if _, err := call(t.Context(), client, t); err != nil {
					t.Fatal(err)
				}
				_, err := call(t.Context(), client, t)
				e := mustFail(t, err)
				if e.Outcome != c.want || c.want == Unknown && e.Reason != unknownReasons[kind] || !e.Sent {
					t.Errorf("%v %v sent %v: %v, want %v", e.Outcome, e.Reason, e.Sent, e, c.want)
				}
				if got := s.requests.Load(); got != 2 {
					t.Errorf("%d requests on the wire for 2 calls", got)
				}
				if _, err := call(t.Context(), client, t); err != nil {
					t.Error("the next call:", err)
				}
			})
		}
	}
}

func TestHTTP2ConnectionLost(t *testing.T) {
	for kind, call := range calls {
		var c net.Conn
		var mu sync.Mutex
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			mu.Lock()
			defer mu.Unlock()
			if r.ProtoMajor != 2 {
				t.Error(r.Proto)
			}
			_ = c.(*tls.Conn).NetConn().Close()
		}))
		server.EnableHTTP2 = true
		server.Config.ConnState = func(accepted net.Conn, state http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			if state == http.StateNew {
				c = accepted
			}
		}
		server.StartTLS()
		client := newClient(t, Config{BaseURL: server.URL, RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})
		_, err := call(t.Context(), client, t)
		e := mustFail(t, err)
		if e.Outcome != Unknown || e.Reason != unknownReasons[kind] || !e.Sent || !e.Timing.Closed {
			t.Errorf("%s: %+v", kind, e)
		}
		server.Close()
	}
}

func TestHTTP2GivingUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := newFrameServer(t, func(*http2.Framer, uint32, int) { cancel() })
	_, err := newClient(t, Config{BaseURL: s.url, RootCAs: s.roots}).Send(ctx, "demo", mustItem(t, textItem))
	if e := mustFail(t, err); e.Outcome != Unknown || !e.Sent || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v", e)
	}
}

// The names of RFC 9113 as net/http writes them. Should it write them otherwise one day, such a send is unknown.
func TestNotProcessed(t *testing.T) {
	for text, want := range map[string]bool{
		"http2: Transport: cannot retry err [stream error: stream ID 3; REFUSED_STREAM; received from peer] after": true,
		"http2: Transport: cannot retry err [stream error: stream ID 3; PROTOCOL_ERROR; received from peer] after": false,
		"stream error: stream ID 3; REFUSED_STREAM":                                                                false,
		"malformed HTTP response \"http2: Transport: cannot retry err [stream error: REFUSED_STREAM\"":             false,
	} {
		if got := notProcessed(errors.New(text)); got != want {
			t.Error(fmt.Sprint(text, got))
		}
	}
}
