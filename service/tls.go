package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

// Client certificates are held to their authorities here and not by crypto/tls: it tells nobody which ones it refuses, and what it
// has taken once it never looks at again.

// tlsInForce is the listeners' TLS now: it may change while they listen.
func tlsInForce(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if c.GetConfigForClient == nil {
		return c, nil
	}
	return c.GetConfigForClient(hello)
}

// guardTLS has the doors look at the client certificates of handshakes.
func (d *doors) guardTLS(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	guarded := c.Clone()
	guarded.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		now, err := tlsInForce(c, hello)
		if err != nil || now.ClientAuth != tls.VerifyClientCertIfGiven {
			return now, err
		}
		own := now.Clone()
		own.GetConfigForClient, own.ClientAuth = nil, tls.RequestClientCert
		own.VerifyConnection = func(s tls.ConnectionState) error { // of resumed sessions too
			err := checkCertificate(s.PeerCertificates, now.ClientCAs)
			if err != nil {
				d.refuseCertificate(hello, err)
			}
			return err
		}
		return own, nil
	}
	return guarded
}

// errUntrusted quotes nothing of the certificate: names in it may be personal.
var errUntrusted = errors.New("the certificate is of no authority that is trusted, or not a client's")

// checkCertificate holds a client's certificate, and those that lead to its authority, to the authorities; no certificate is good.
func checkCertificate(chain []*x509.Certificate, authorities *x509.CertPool) error {
	if len(chain) == 0 {
		return nil
	}
	if authorities == nil { // which Verify would take for the machine's
		return &caller.Error{Reason: caller.Invalid, Err: errUntrusted}
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	flaw, ok := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case err == nil:
		return nil
	case ok && flaw.Reason == x509.Expired:
		return &caller.Error{Reason: caller.Expired}
	}
	return &caller.Error{Reason: caller.Invalid, Err: errUntrusted}
}

// refuseCertificate counts a certificate that ended its handshake, and says so at most once a second.
func (d *doors) refuseCertificate(hello *tls.ClientHelloInfo, err error) {
	refused, ok := errors.AsType[*caller.Error](err)
	if !ok {
		return
	}
	d.refused[refused.Reason].Add(1)
	from, _ := netip.ParseAddrPort(hello.Conn.RemoteAddr().String()) // without one all such handshakes count together
	ctx := context.WithValue(hello.Context(), visitKey{}, &visit{from: from.Addr(), roster: &roster{}})
	d.count(ctx, facadev1.ErrorReason_CALLER_UNAUTHENTICATED, refused.Reason)
	d.handshakes.Do(func() {
		d.log.Warn("a client's certificate was refused; more of them within a second are only counted", slog.String("credential", string(refused.Reason)))
	})
}

// trusts reports whether the certificate of a call's connection is of an authority that is still trusted. That is found out once
// for each connection, and again when the authorities are others.
func (d *doors) trusts(ctx context.Context, chain []*x509.Certificate) error {
	now, err := tlsInForce(d.tls, &tls.ClientHelloInfo{})
	if err != nil {
		return err
	}
	conn := connectionOf(ctx)
	if now.ClientCAs != nil && conn.trusted.Load() == now.ClientCAs {
		return nil // whether it has expired is looked at with every call
	}
	if err := checkCertificate(chain, now.ClientCAs); err != nil {
		return err
	}
	conn.trusted.Store(now.ClientCAs)
	return nil
}
