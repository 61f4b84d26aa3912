package jelou

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const acceptedBody = `{"success":true,"messageId":"m-1"}`

const acceptedAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n" + acceptedBody

func newClient(t *testing.T, c Config) *Client {
	t.Helper()
	if c.Credential == nil {
		c.Credential = func() (string, string, error) { return "id", "s3cret", nil }
	}
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func mustFail(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("%T %v is no *Error", err, err)
	}
	checkPrivate(t, e)
	return e
}

// rawServer is a TCP server that counts what it gets.
type rawServer struct {
	url      string
	conns    atomic.Int32
	requests atomic.Int32
	heads    sync.Map // requests' number -> *http.Request, body read
}

// newRawServer runs serve for every connection; next reads one whole request.
func newRawServer(t *testing.T, serve func(c *net.TCPConn, next func() bool)) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{url: "http://" + l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			running.Go(func() {
				defer func() { _ = c.Close() }()
				reader := bufio.NewReader(c)
				serve(c.(*net.TCPConn), func() bool { return s.read(reader) })
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return s
}

func (s *rawServer) read(r *bufio.Reader) bool {
	request, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return false
	}
	request.Body = io.NopCloser(strings.NewReader(string(body)))
	s.heads.Store(int(s.requests.Add(1)), request)
	return true
}

func (s *rawServer) check(t *testing.T, requests int) {
	t.Helper()
	if got := int(s.requests.Load()); got != requests {
		t.Errorf("%d requests on the wire, want %d", got, requests)
	}
}

func write(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// unknownReasons are what the two are told without an answer: a read may be repeated.
var unknownReasons = map[string]facadev1.ErrorReason{
	"send": facadev1.ErrorReason_OUTCOME_UNKNOWN, "read": facadev1.ErrorReason_UPSTREAM_UNREACHABLE,
}

// calls are one send and one read: neither may be on the wire twice.
var calls = map[string]func(context.Context, *Client, *testing.T) (Timing, error){
	"send": func(ctx context.Context, c *Client, t *testing.T) (Timing, error) {
		result, err := c.Send(ctx, "demo", mustItem(t, textItem))
		if err != nil {
			return Timing{}, err
		}
		return result.Timing, nil
	},
	"read": func(ctx context.Context, c *Client, _ *testing.T) (Timing, error) {
		_, timing, err := c.GetNotification(ctx, "demo", "m-1")
		return timing, err
	},
}

func TestLostAnswers(t *testing.T) {
	for name, serve := range map[string]func(*net.TCPConn){
		"closed":         func(*net.TCPConn) {},
		"reset":          reset,
		"half a head":    func(c *net.TCPConn) { write(c, acceptedAnswer[:30]) },
		"half a body":    func(c *net.TCPConn) { write(c, acceptedAnswer[:len(acceptedAnswer)-5]) },
		"no HTTP":        func(c *net.TCPConn) { write(c, "593991234567 is not HTTP\r\n\r\n") },
		"endless header": func(c *net.TCPConn) { write(c, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 1<<20)) },
		"other protocol": func(c *net.TCPConn) {
			write(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			hold(c)
		},
		"negative length": func(c *net.TCPConn) { write(c, "HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n") },
	} {
		for kind, call := range calls {
			for _, reused := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/reused=%v", name, kind, reused), func(t *testing.T) {
					first := reused
					s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
						for next() {
							if first {
								first = false
								write(c, answerFor(kind))
								continue
							}
							serve(c)
							return
						}
					})
					client := newClient(t, Config{BaseURL: s.url})
					want := 1
					if reused {
						want = 2
						if _, err := call(t.Context(), client, t); err != nil {
							t.Fatal(err)
						}
					}
					_, err := call(t.Context(), client, t)
					e := mustFail(t, err)
					s.check(t, want)
					if s.conns.Load() != 1 {
						t.Error(s.conns.Load(), "connections")
					}
					if !e.Sent || e.Timing.Started.IsZero() {
						t.Errorf("%+v", e)
					}
					if e.Outcome != Unknown || e.Reason != unknownReasons[kind] {
						t.Errorf("%v %v", e.Outcome, e.Reason)
					}
				})
			}
		}
	}
}

// hold keeps a connection until the client has closed it.
func hold(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

func answerFor(kind string) string {
	body := acceptedBody
	if kind == "read" {
		body = record
	}
	body = strings.ReplaceAll(body, "n-1", "m-1")
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func TestPeerCloseIsSeen(t *testing.T) {
	s := newRawServer(t, func(_ *net.TCPConn, next func() bool) { next() })
	_, err := newClient(t, Config{BaseURL: s.url}).Send(t.Context(), "demo", mustItem(t, textItem))
	if e := mustFail(t, err); !e.Timing.Closed || e.Timing.Seen.Before(e.Timing.Started) || e.Timing.Trip != 0 {
		t.Errorf("%+v", e.Timing)
	}
}

// A connection that ends while nobody uses it may meet the next request at any moment. Whatever happens, the request is
// on the wire once at most, and an error that says not sent is right.
func TestIdleCloseRace(t *testing.T) {
	for kind, call := range calls {
		for _, end := range map[string]func(*net.TCPConn){"close": func(*net.TCPConn) {}, "reset": reset} {
			s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
				if next() {
					write(c, answerFor(kind))
				}
				end(c)
			})
			client := newClient(t, Config{BaseURL: s.url})
			for range 50 {
				before := s.requests.Load()
				_, err := call(t.Context(), client, t)
				arrived := s.requests.Load() - before
				e, failed := errors.AsType[*Error](err)
				switch {
				case arrived > 1:
					t.Fatal(arrived, "requests for one call")
				case failed && !e.Sent && arrived != 0:
					t.Fatalf("%s: arrived, and said not sent", kind)
				case failed && !e.Sent && e.Outcome != Unreachable, failed && e.Sent && e.Outcome != Unknown:
					t.Fatalf("%+v", e)
				}
			}
		}
	}
}

func TestNeverSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	stranger := httptest.NewTLSServer(http.NotFoundHandler())
	stranger.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer stranger.Close()
	noTLS := newRawServer(t, func(c *net.TCPConn, _ func() bool) { write(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		config Config
		cause  error
	}{
		"refused":   {t.Context(), Config{BaseURL: nobody}, syscall.ECONNREFUSED},
		"proxy":     {t.Context(), Config{BaseURL: "https://api.jelou.invalid", ProxyURL: nobody}, syscall.ECONNREFUSED},
		"stranger":  {t.Context(), Config{BaseURL: stranger.URL}, nil},
		"no TLS":    {t.Context(), Config{BaseURL: strings.Replace(noTLS.url, "http", "https", 1)}, nil},
		"cancelled": {cancelled, Config{BaseURL: nobody}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newClient(t, c.config).Send(c.ctx, "demo", mustItem(t, textItem))
			e := mustFail(t, err)
			if e.Sent || e.Outcome != Unreachable || e.Reason != facadev1.ErrorReason_UPSTREAM_UNREACHABLE || !e.Timing.Started.IsZero() {
				t.Errorf("%+v", e)
			}
			if c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("%v is not %v", e.Unwrap(), c.cause)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	for want, err := range map[string]error{
		"its name could not be resolved": &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}},
		"it did not answer in time":      &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded},
		"the connection was reset":       &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
		"the TLS handshake failed":       fmt.Errorf("x: %w", x509.UnknownAuthorityError{}),
		"the connection failed":          errors.New(`malformed HTTP response "593991234567"`),
	} {
		if got, _ := describe(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// Giving up resets the connection, so that nothing of the request can leave later.
func TestGivingUpResets(t *testing.T) {
	arrived, ended := make(chan struct{}), make(chan error, 1)
	s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		next()
		close(arrived)
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-arrived
		cancel()
	}()
	_, err := newClient(t, Config{BaseURL: s.url}).Send(ctx, "demo", mustItem(t, textItem))
	if e := mustFail(t, err); e.Outcome != Unknown || !e.Sent || !errors.Is(err, context.Canceled) || !e.Timing.Seen.IsZero() {
		t.Errorf("%+v", e)
	}
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Error("the server saw", err)
	}
}

func TestAttemptTimeout(t *testing.T) {
	for name, answer := range map[string]string{"silence": "", "half": acceptedAnswer[:len(acceptedAnswer)-3]} {
		s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
			next()
			write(c, answer)
			hold(c)
		})
		_, err := newClient(t, Config{BaseURL: s.url, AttemptTimeout: 50 * time.Millisecond}).Send(t.Context(), "demo", mustItem(t, textItem))
		if e := mustFail(t, err); e.Outcome != Unknown || !e.Sent || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %+v", name, e)
		}
		s.check(t, 1)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		next()
		write(c, acceptedAnswer)
	})
	for _, status := range []int{301, 302, 303, 307, 308} {
		for kind, call := range calls {
			s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
				next()
				write(c, fmt.Sprintf("HTTP/1.1 %d Elsewhere\r\nLocation: %s/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, elsewhere.url))
			})
			_, err := call(t.Context(), newClient(t, Config{BaseURL: s.url}), t)
			if e := mustFail(t, err); e.Status != status || strings.Contains(e.Message, "127.0.0.1") || !strings.Contains(e.Message, "base_url") {
				t.Errorf("%d %s: %+v", status, kind, e)
			}
			s.check(t, 1)
		}
	}
	elsewhere.check(t, 0)
}

func TestBodyBound(t *testing.T) {
	for status, want := range map[int]Outcome{200: Unknown, 400: Refused} {
		s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
			next()
			write(c, fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Length: 2000000\r\n\r\n%s", status, strings.Repeat(" ", 2_000_000)))
		})
		_, err := newClient(t, Config{BaseURL: s.url}).Send(t.Context(), "demo", mustItem(t, textItem))
		if e := mustFail(t, err); e.Outcome != want || e.Status != status {
			t.Errorf("%d: %+v", status, e)
		}
	}
}

// The request is exactly this: nothing of a caller's headers could come along, and the `+` of an id survives.
func TestRequestOnTheWire(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		write(w, acceptedBody)
	}))
	defer server.Close()
	client := newClient(t, Config{BaseURL: server.URL + "/a%2Fb/"})
	if _, err := client.Send(t.Context(), "+593900000000", mustItem(t, textItem)); err != nil {
		t.Fatal(err)
	}
	if want := "/a%2Fb/v1/bots/%2B593900000000/messages"; got.RequestURI != want {
		t.Errorf("%s, want %s", got.RequestURI, want)
	}
	want := http.Header{
		"Accept": {"application/json"}, "Accept-Language": {"en"}, "Authorization": {"Basic aWQ6czNjcmV0"},
		"Content-Length": {"82"}, "Content-Type": {"application/json"}, "User-Agent": {"jelou-facade"},
	}
	if diff := cmp.Diff(want, got.Header); diff != "" {
		t.Error(diff)
	}
}

func TestReadsOnTheWire(t *testing.T) {
	var got *http.Request
	body := record
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		write(w, body)
	}))
	defer server.Close()
	older, newer := newClient(t, Config{BaseURL: server.URL}), newClient(t, Config{BaseURL: server.URL, NotificationPath: "/v1/external/bots"})
	for want, call := range map[string]func() (Timing, error){
		"/v1/bots/%2B1/notifications/n-1": func() (Timing, error) {
			_, timing, err := older.GetNotification(t.Context(), "+1", "n-1")
			return timing, err
		},
		"/v1/external/bots/%2B1/notifications?messageId=n-1": func() (Timing, error) {
			_, timing, err := newer.GetNotification(t.Context(), "+1", "n-1")
			return timing, err
		},
		"/v1/external/bots/demo/notifications?limit=10&page=1": func() (Timing, error) {
			_, timing, err := older.ListNotifications(t.Context(), "demo", ListQuery{})
			return timing, err
		},
		"/v1/external/bots/demo/notifications?campaignId=c+1&elementName=e&from=2026-01-15T13%3A05%3A09.412Z&limit=50&page=3&to=2026-01-16T00%3A00%3A00.000Z": func() (Timing, error) {
			_, timing, err := newer.ListNotifications(t.Context(), "demo", ListQuery{
				Page: 3, Limit: 99, ElementName: "e", CampaignID: "c 1",
				From: time.Date(2026, 1, 15, 8, 5, 9, 412e6, time.FixedZone("ECT", -5*3600)), To: time.Date(2026, 1, 16, 0, 0, 0, 0, time.UTC),
			})
			return timing, err
		},
	} {
		timing, err := call()
		if err != nil || timing.Trip <= 0 {
			t.Errorf("%s: %+v %v", want, timing, err)
		}
		if got.Method != http.MethodGet || got.RequestURI != want || got.Header.Get("Content-Type") != "application/json" || got.ContentLength != 0 || got.TransferEncoding != nil {
			t.Errorf("%s %s %d %v %v, want %s", got.Method, got.RequestURI, got.ContentLength, got.TransferEncoding, got.Header, want)
		}
	}
	for _, id := range []string{"", "..", "."} {
		if _, _, err := older.GetNotification(t.Context(), "demo", id); mustFail(t, err).Reason != facadev1.ErrorReason_INVALID_FIELD {
			t.Error(id, err)
		}
	}
}

func TestCredential(t *testing.T) {
	s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		for next() {
			write(c, acceptedAnswer)
		}
	})
	broken := errors.New("open secret: no such file")
	id, secret, failure := "", "", broken
	client := newClient(t, Config{BaseURL: s.url, Credential: func() (string, string, error) { return id, secret, failure }})
	for _, c := range []struct {
		id, secret string
		err        error
	}{{"", "", broken}, {"", "x", nil}, {"x", "", nil}, {"a:b", "x", nil}, {"x", "y\n", nil}} {
		id, secret, failure = c.id, c.secret, c.err
		_, err := client.Send(t.Context(), "demo", mustItem(t, textItem))
		if e := mustFail(t, err); e.Outcome != Unauthorized || e.Reason != facadev1.ErrorReason_JELOU_UNAUTHORIZED || e.Sent || c.err != nil && !errors.Is(err, broken) {
			t.Errorf("%+v", e)
		}
	}
	s.check(t, 0)
	id, secret, failure = "new", "new", nil
	if _, err := client.Send(t.Context(), "demo", mustItem(t, textItem)); err != nil {
		t.Error("the credential is read again:", err)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		for next() {
			write(c, acceptedAnswer)
		}
	})
	client := newClient(t, Config{BaseURL: s.url})
	for range 5 {
		result, err := client.Send(t.Context(), "demo", mustItem(t, textItem))
		if err != nil {
			t.Fatal(err)
		}
		if result.MessageID != "m-1" || result.Timing.Trip <= 0 || result.Timing.Seen.Before(result.Timing.Started) || result.Timing.Closed {
			t.Errorf("%+v", result)
		}
	}
	s.check(t, 5)
	if s.conns.Load() != 1 {
		t.Error(s.conns.Load(), "connections")
	}
}

// Close ends what is idle at once and the rest with its attempt; afterwards nothing is sent.
func TestClose(t *testing.T) {
	arrived, answer, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		if !next() {
			return
		}
		close(arrived)
		<-answer
		write(c, acceptedAnswer)
		hold(c)
		close(ended)
	})
	client := newClient(t, Config{BaseURL: s.url})
	go func() {
		<-arrived
		client.Close()
		close(answer)
	}()
	if _, err := client.Send(t.Context(), "demo", mustItem(t, textItem)); err != nil {
		t.Error("under way:", err)
	}
	<-ended
	_, err := client.Send(t.Context(), "demo", mustItem(t, textItem))
	if e := mustFail(t, err); e.Outcome != Unreachable || e.Sent {
		t.Errorf("%+v", e)
	}
	s.check(t, 1)
}

func TestManyAtOnce(t *testing.T) {
	var arrived atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		write(w, acceptedBody)
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a cold start dials more often than it needs
	server.StartTLS()
	defer server.Close()
	client := newClient(t, Config{BaseURL: server.URL, RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})
	var sends sync.WaitGroup
	for range 100 {
		sends.Go(func() {
			if _, err := client.Send(t.Context(), "demo", mustItem(t, textItem)); err != nil {
				t.Error(err)
			}
		})
	}
	sends.Wait()
	if arrived.Load() != 100 {
		t.Error(arrived.Load(), "requests")
	}
}

func TestProxy(t *testing.T) {
	s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		next()
		write(c, acceptedAnswer)
	})
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	if newClient(t, Config{}).transport.Proxy != nil {
		t.Error("a proxy although none is configured")
	}
	if _, err := newClient(t, Config{BaseURL: "http://api.jelou.invalid", ProxyURL: s.url}).Send(t.Context(), "demo", mustItem(t, textItem)); err != nil {
		t.Fatal(err)
	}
	r, _ := s.heads.Load(1)
	if got := r.(*http.Request).RequestURI; got != "http://api.jelou.invalid/v1/bots/demo/messages" {
		t.Error(got)
	}
}

func TestNewRefuses(t *testing.T) {
	credential := func() (string, string, error) { return "a", "b", nil }
	for field, c := range map[string]Config{
		"credential":        {},
		"base_url":          {Credential: credential, BaseURL: "ftp://x"},
		"base_url: must":    {Credential: credential, BaseURL: "https://user:hunter2@x"},
		"proxy_url":         {Credential: credential, ProxyURL: "http://hunter2@%zz"},
		"attempt_timeout":   {Credential: credential, AttemptTimeout: -1},
		"max_body_bytes":    {Credential: credential, MaxBodyBytes: -1},
		"notification_path": {Credential: credential, NotificationPath: "/v3"},
	} {
		if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), field) || strings.Contains(err.Error(), "hunter2") {
			t.Error(field, err)
		}
	}
}
