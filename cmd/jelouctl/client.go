package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/version"
)

// client is a connection and the services behind it.
type client struct {
	facadev1.MessageServiceClient
	facadev1.NotificationServiceClient
	facadev1.SendServiceClient
	facadev1.BatchServiceClient
	facadev1.CapacityServiceClient

	app     *app
	conn    *grpc.ClientConn
	address string
	left    departures
}

// connect prepares a connection; the first call makes it.
func (a *app) connect(ctx context.Context) (*client, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	transport, secure, err := t.credentials()
	if err != nil {
		return nil, err
	}
	key, err := t.APIKey.read(ctx)
	if err != nil {
		return nil, err
	}
	if key != "" && !secure && !t.loopback() {
		return nil, usage("%s: an API key is only sent over TLS, or to this machine", t.Address)
	}
	c := &client{app: a, address: t.Address}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithStatsHandler(&c.left),
		grpc.WithUserAgent("jelouctl/" + version.Read().Version),
		grpc.WithDisableServiceConfig(), // it alone decides what is tried again
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	}
	if key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{key, secure}))
	}
	if c.conn, err = grpc.NewClient(t.Address, options...); err != nil {
		return nil, usage("--address %s: %v", t.Address, err)
	}
	c.MessageServiceClient = facadev1.NewMessageServiceClient(c.conn)
	c.NotificationServiceClient = facadev1.NewNotificationServiceClient(c.conn)
	c.SendServiceClient = facadev1.NewSendServiceClient(c.conn)
	c.BatchServiceClient = facadev1.NewBatchServiceClient(c.conn)
	c.CapacityServiceClient = facadev1.NewCapacityServiceClient(c.conn)
	return c, nil
}

// maxAnswer is more than a page of a thousand sends with long errors.
const maxAnswer = 64 << 20

func (c *client) close() { c.conn.Close() }

// loopback tells whether the server is on this machine.
func (t target) loopback() bool {
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// transport says how the server is talked to.
func (t target) transport() string {
	switch {
	case t.TLS.CertFile != "":
		return "mTLS"
	case t.TLS != (tlsSettings{}):
		return "TLS"
	case t.Plaintext || t.loopback():
		return "plaintext"
	}
	return "TLS"
}

// credentials are those of the transport: plaintext on loopback and where it was asked for, TLS otherwise.
func (t target) credentials() (_ credentials.TransportCredentials, secure bool, err error) {
	if t.transport() == "plaintext" {
		return insecure.NewCredentials(), false, nil
	}
	if t.Plaintext {
		return nil, false, usage("--plaintext and --tls-… exclude each other")
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.TLS.ServerName}
	if t.TLS.CAFile != "" {
		pem, err := os.ReadFile(t.TLS.CAFile)
		if err != nil {
			return nil, false, invalid("--tls-ca: %v", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, false, invalid("--tls-ca %s: has no PEM certificate", t.TLS.CAFile)
		}
	}
	if t.TLS.CertFile != "" || t.TLS.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(t.TLS.CertFile, t.TLS.KeyFile)
		if err != nil {
			return nil, false, invalid("--tls-cert, --tls-key: %v", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(cfg), true, nil
}

// bearer sends the API key with every call.
type bearer struct {
	key    string
	secure bool
}

// GetRequestMetadata is the header.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.key}, nil
}

// RequireTransportSecurity makes gRPC itself refuse to send the key in the clear, where TLS was meant.
func (b bearer) RequireTransportSecurity() bool { return b.secure }

// departures notes whether any request was ever written to a connection: what never left is not unknown.
type departures struct{ left atomic.Bool }

// TagRPC is of stats.Handler.
func (*departures) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC notes a request that was written.
func (d *departures) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutPayload); ok {
		d.left.Store(true)
	}
}

// TagConn is of stats.Handler.
func (*departures) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is of stats.Handler.
func (*departures) HandleConn(context.Context, stats.ConnStats) {}

// maxAttempts bounds the tries of one call. Every call may be repeated: sends and replays carry a request_id, the others
// read, or change nothing the second time.
const maxAttempts = 5

// call makes one call within the app's time, and repeats it where that can help.
func call[Q, R any](ctx context.Context, c *client, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	bounded, cancel := context.WithTimeout(ctx, c.app.timeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		answer, err := rpc(bounded, request)
		wait, again := retryAfter(err, attempt)
		if !again || attempt == maxAttempts || !inTime(bounded, wait) {
			return answer, err
		}
		if sleep(bounded, wait) != nil {
			return answer, err
		}
	}
}

// retryAfter says whether to try again, and when: where the server says that it helps, and where it was not reached.
func retryAfter(err error, attempt int) (time.Duration, bool) {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return 0, false
	}
	wait := backoff(attempt)
	if retry := detail[*errdetails.RetryInfo](st); retry != nil {
		return max(wait, retry.RetryDelay.AsDuration()), true
	}
	return wait, st.Code() == codes.Unavailable && detail[*errdetails.ErrorInfo](st) == nil
}

// backoff doubles from 200 ms to 10 s, and is spread so that many clients do not come back at once.
func backoff(attempt int) time.Duration {
	longest := min(200*time.Millisecond<<min(attempt-1, 10), 10*time.Second)
	return longest/2 + rand.N(longest/2)
}

// inTime tells whether a wait ends before the deadline.
func inTime(ctx context.Context, wait time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return !ok || time.Until(deadline) > wait
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
