// Package jelou speaks Jelou's REST API: it encodes every kind of message, makes exactly one attempt, and decodes
// every dialect of answer into one kind of result and one kind of error.
//
// What it guarantees:
//   - One call is at most one request on the wire, for sends and reads alike. Nothing is repeated, redirected or sent
//     through a proxy that was not configured, whatever net/http would do by itself.
//   - An error says honestly whether the message may have been sent ([Outcome]) and whether a byte left ([Error.Sent]).
//     Where that is in doubt, it may have been.
//   - No error holds a recipient, a text, a URL or a credential.
package jelou

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"time"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Config says how a company reaches Jelou.
type Config struct {
	// BaseURL is Jelou's address; a path in it is kept in front of Jelou's own. Empty: https://api.jelou.ai.
	BaseURL string
	// Credential gives the company's client id and secret, before every request: it may change. Required.
	Credential func() (id, secret string, err error)
	// AttemptTimeout bounds a whole attempt, with connecting and reading the answer. Zero: 10 s.
	AttemptTimeout time.Duration
	// NotificationPath is where single notifications are read: /v1/bots or /v1/external/bots. Empty: /v1/bots.
	NotificationPath string
	// ProxyURL is an http or https proxy. Empty: none; the environment's is not used.
	ProxyURL string
	// MaxBodyBytes bounds what is read of an answer. Zero: 1 MiB.
	MaxBodyBytes int64
	// RootCAs are trusted to sign Jelou's certificate. Nil: the system's.
	RootCAs *x509.CertPool
}

const (
	defaultBaseURL = "https://api.jelou.ai"
	defaultTimeout = 10 * time.Second
	defaultMaxBody = 1 << 20

	// connectTimeout bounds the dial and, apart from it, the TLS handshake.
	connectTimeout = 5 * time.Second
	// idleTimeout is shorter than what servers usually allow (nginx 75 s, AWS load balancers 60 s): a request that meets
	// the server's own close would be unknown.
	idleTimeout = 45 * time.Second
	// idleConns is more than a company's requests in flight: its rate times the attempt timeout.
	idleConns = 256
	// pingAfter and pingTimeout find a dead HTTP/2 connection.
	pingAfter, pingTimeout = 15 * time.Second, 5 * time.Second
	maxHeaderBytes         = 64 << 10
)

// Client sends a company's requests to Jelou. It may be used by many goroutines.
type Client struct {
	base             *url.URL
	credential       func() (id, secret string, err error)
	attemptTimeout   time.Duration
	notificationPath string
	maxBody          int64
	transport        *http.Transport
	conns            *conns
}

// New checks the configuration and makes a client. It connects to nothing yet.
func New(c Config) (*Client, error) {
	base, err := address("base_url", orElse(c.BaseURL, defaultBaseURL))
	if err != nil {
		return nil, err
	}
	path := orElse(c.NotificationPath, olderNotifications)
	switch {
	case c.Credential == nil:
		return nil, errors.New("credential: is required")
	case c.AttemptTimeout < 0:
		return nil, errors.New("attempt_timeout: must not be negative")
	case c.MaxBodyBytes < 0:
		return nil, errors.New("max_body_bytes: must not be negative")
	case path != olderNotifications && path != newerNotifications:
		return nil, fmt.Errorf("notification_path: must be %s or %s", olderNotifications, newerNotifications)
	}
	conns := &conns{open: map[*conn]bool{}}
	transport := newTransport(conns, c.RootCAs)
	if c.ProxyURL != "" {
		proxy, err := address("proxy_url", c.ProxyURL)
		if err != nil {
			return nil, err
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	return &Client{
		base: base, credential: c.Credential, notificationPath: path, transport: transport, conns: conns,
		attemptTimeout: orElse(c.AttemptTimeout, defaultTimeout), maxBody: orElse(c.MaxBodyBytes, defaultMaxBody),
	}, nil
}

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// address reads a URL. Its text is not repeated in the error: it may hold a password.
func address(field, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s: must be an http or https URL without query", field)
	}
	if field == "base_url" && u.User != nil {
		return nil, fmt.Errorf("%s: must not hold a user or a password", field)
	}
	return u, nil
}

func newTransport(conns *conns, roots *x509.CertPool) *http.Transport {
	dialer := &net.Dialer{
		Timeout: connectTimeout,
		// An idle connection that died is found before a request meets it.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // over TLS, by ALPN
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return conns.add(c)
		},
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connectTimeout,
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: pingTimeout},
		MaxIdleConns:           idleConns,
		MaxIdleConnsPerHost:    idleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true, // answers are small, and none can grow while it is read
	}
}

// Host is where the requests go, as the URL names it.
func (c *Client) Host() string { return c.base.Hostname() }

// Close closes the connections, each when its attempts are over. Later calls send nothing.
func (c *Client) Close() {
	c.conns.close()
	c.transport.CloseIdleConnections()
}

// Send makes one attempt to send the item from the bot. Its error is always an [*Error].
func (c *Client) Send(ctx context.Context, botID string, item *facadev1.BatchItem) (*Result, error) {
	r, refused := encode(botID, item)
	if refused != nil {
		return nil, refused
	}
	a, timing, failed := c.do(ctx, r)
	if failed != nil {
		return nil, failed
	}
	result, failed := decodeSend(r, a)
	if failed != nil {
		failed.Timing = timing
		return nil, failed
	}
	result.Status, result.Timing = a.status, timing
	return result, nil
}

// do makes the one request. The transport is used without an http.Client, which would follow redirects; and the body
// has no GetBody and can be read once, so the transport does not repeat it: not after a closed idle connection, not
// after GOAWAY or REFUSED_STREAM. A read has a body too, an empty one, since a request without is repeated.
func (c *Client) do(ctx context.Context, r *request) (answer, Timing, *Error) {
	req, refused := c.newRequest(r)
	if refused != nil {
		return answer{}, Timing{}, refused
	}
	ctx, cancel := context.WithTimeout(ctx, c.attemptTimeout)
	defer cancel()
	a := newAttempt(ctx)
	if c.transport.Proxy != nil {
		a.report = nil // it would be the proxy's acknowledgement
	}
	defer a.end()
	// From here on a crash leaves a request of which nobody knows: whoever calls has claimed the send durably before.
	response, err := c.transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, a.trace(len(r.body)))))
	if err != nil {
		e := noAnswer(r.op, a.left(ctx), a.timing(), err)
		return answer{}, e.Timing, e
	}
	defer func() { _ = response.Body.Close() }() // what matters was read
	if response.StatusCode == http.StatusSwitchingProtocols {
		// Nobody asked for it, and its body does not end with the attempt.
		return answer{response.StatusCode, response.Header, nil, errUnreadable}, a.timing(), nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, c.maxBody+1))
	if err == nil && int64(len(body)) > c.maxBody {
		err = errTooLarge
	}
	return answer{response.StatusCode, response.Header, body, err}, a.timing(), nil
}

func (c *Client) newRequest(r *request) (*http.Request, *Error) {
	id, secret, err := c.credential()
	if err != nil || !usable(id) || strings.Contains(id, ":") || !usable(secret) {
		return nil, &Error{
			Outcome: Unauthorized, Reason: facadev1.ErrorReason_JELOU_UNAUTHORIZED, cause: err,
			Message: "the company's credential cannot be read: an operator must check its files",
		}
	}
	u := *c.base
	u.RawPath = strings.TrimSuffix(c.base.EscapedPath(), "/") + r.path
	u.RawQuery = r.query.Encode()
	if u.Path, err = url.PathUnescape(u.RawPath); err != nil {
		return nil, &Error{Outcome: Refused, Reason: facadev1.ErrorReason_INTERNAL, Message: "the request's path cannot be written"}
	}
	req := &http.Request{
		Method: r.method, URL: &u, Host: u.Host,
		Body: &body{rest: r.body}, ContentLength: int64(len(r.body)),
		Header: http.Header{
			"Accept":          {"application/json"},
			"Accept-Language": {"en"}, // undocumented; Jelou's own front end chooses the language of errors so
			"Content-Type":    {"application/json"},
			"User-Agent":      {"jelou-facade"},
		},
	}
	req.SetBasicAuth(id, secret)
	return req, nil
}

// usable tells whether a part of the credential is there and has no line break or other control character left in it.
func usable(s string) bool {
	return s != "" && !slices.ContainsFunc([]rune(s), func(r rune) bool { return r < ' ' || r == 0x7f })
}
