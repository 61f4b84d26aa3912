package service_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

// tlsClient calls over connections with one certificate, which stay open.
type tlsClient struct {
	f    *facade
	conn *grpc.ClientConn
	http *http.Client
}

func (f *facade) tlsClient(a *authority, certificate tls.Certificate) tlsClient {
	f.Helper()
	c := &tls.Config{
		RootCAs: a.pool, MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }, // whatever the server asks for
	}
	conn, err := grpc.NewClient(f.grpcAddr, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	f.must(err)
	transport := &http.Transport{TLSClientConfig: c.Clone()}
	f.Cleanup(func() {
		transport.CloseIdleConnections()
		f.must(conn.Close())
	})
	return tlsClient{f, conn, &http.Client{Transport: transport}}
}

// capacity asks for a bot's over both transports, with a key that may be empty.
func (c tlsClient) capacity(key string) (errs [2]error) {
	c.f.Helper()
	ctx, r := c.f.Context(), &facadev1.GetCapacityRequest{BotId: "demo"}
	if key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", key)
	}
	_, errs[0] = facadev1.NewCapacityServiceClient(c.conn).GetCapacity(ctx, r)
	request, err := http.NewRequestWithContext(c.f.Context(), http.MethodGet, c.f.rest+"/v1/bots/demo/capacity", nil)
	c.f.must(err)
	if key != "" {
		request.Header.Set("X-Api-Key", key)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		errs[1] = err
		return errs
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	c.f.must(err)
	if answer.StatusCode != http.StatusOK {
		errs[1] = restStatus(c.f, data).Err()
	}
	return errs
}

// TestRefusedCertificates: handshakes that end for the certificate are counted by reason, and told now and then without its names.
func TestRefusedCertificates(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	f := newFacade(t, func(s *setup) {
		s.tls = a.server()
		s.callers = []*configv1.Caller{{Name: "orders", Companies: []string{"*"}, Certificates: []string{"uri:spiffe://example.ec/canary"}}}
	})
	const name = "spiffe://example.ec/canary"
	if errs := f.tlsClient(a, a.client(name, time.Now().Add(time.Hour))).capacity(""); errs != [2]error{} {
		t.Errorf("a good one: %v", errs)
	}
	const tries = 5
	began := time.Now()
	for reason, certificate := range map[caller.Reason]tls.Certificate{
		caller.Expired: a.client(name, time.Now().Add(-time.Minute)), caller.Invalid: stranger.client(name, time.Now().Add(time.Hour)),
	} {
		for range tries {
			for i, err := range f.tlsClient(a, certificate).capacity("") {
				if err == nil || reasonOf(err) != "" {
					t.Errorf("%s over %s: %v, want no handshake", reason, transports[i].name, err)
				}
			}
		}
		// gRPC's client may have tried more often than it was asked to.
		if n := f.server.RefusedCredentials()[reason]; n < 2*tries {
			t.Errorf("%s: %d are counted", reason, n)
		}
		if !strings.Contains(f.scrape(), fmt.Sprintf("jelou_credentials_refused_total{reason=%q} ", reason)) {
			t.Errorf("%s: no metric", reason)
		}
	}
	lines, most := strings.Count(f.logs.String(), "a client's certificate was refused"), int(time.Since(began)/time.Second)+1
	if lines == 0 || lines > most {
		t.Errorf("%d lines, want 1 to %d", lines, most)
	}
	if strings.Contains(f.logs.String(), "canary") {
		t.Error("a certificate's name is in the log")
	}
}

// TestAuthorityTakenOut: when an authority is trusted no more its certificates are not good any more, over connections that are open
// too; a key over the same connection is.
func TestAuthorityTakenOut(t *testing.T) {
	server, clients, others := newAuthority(t), newAuthority(t), newAuthority(t)
	trusting := func(a *authority) *tls.Config {
		c := server.server()
		c.ClientCAs = a.pool
		return c
	}
	var inForce atomic.Pointer[tls.Config]
	inForce.Store(trusting(clients))
	orders := &configv1.Caller{Name: "orders", Companies: []string{"*"}, Certificates: []string{"uri:spiffe://example.ec/orders"}}
	key := keyed(orders, time.Time{})
	f := newFacade(t, func(s *setup) {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inForce.Load(), nil }}
		s.callers = []*configv1.Caller{orders}
	})
	c := f.tlsClient(server, clients.client("spiffe://example.ec/orders", time.Now().Add(time.Hour)))
	check := func(when, key string, code codes.Code) {
		t.Helper()
		for i, err := range c.capacity(key) {
			if status.Code(err) != code {
				t.Errorf("%s over %s: %v, want %s", when, transports[i].name, err, code)
			}
		}
	}
	check("at first", "", codes.OK)
	stream, err := facadev1.NewCapacityServiceClient(c.conn).WatchCapacity(t.Context(), &facadev1.WatchCapacityRequest{BotId: "demo"})
	f.must(err)
	_, err = stream.Recv()
	f.must(err)

	inForce.Store(trusting(clients)) // read again, and the same
	check("as before", "", codes.OK)
	inForce.Store(trusting(others))
	check("without its authority", "", codes.Unauthenticated)
	check("with a key", key, codes.OK)
	if n := f.server.RefusedCredentials()[caller.Invalid]; n != 2 {
		t.Errorf("%d are counted", n)
	}
	f.server.Update(f.settings)
	for err == nil {
		_, err = stream.Recv()
	}
	if reasonOf(err) != unauthenticated {
		t.Errorf("the stream ended with %v", err)
	}
	inForce.Store(trusting(clients))
	check("with its authority again", "", codes.OK)
}
