package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
)

// keys are the TLS settings of the listeners. They may be replaced while connections are opened: each takes what is in force.
type keys struct{ inForce atomic.Pointer[tls.Config] }

// newKeys reads the keys; nil without TLS.
func newKeys(c *configv1.Tls) (*keys, error) {
	if c == nil {
		return nil, nil
	}
	k := &keys{}
	return k, k.read(c)
}

// read puts the files of a configuration in force, or leaves what is.
func (k *keys) read(c *configv1.Tls) error {
	if k == nil {
		return nil
	}
	t, err := readTLS(c)
	if err == nil {
		k.set(t)
	}
	return err
}

func (k *keys) set(t *tls.Config) {
	if k != nil {
		k.inForce.Store(t)
	}
}

// config is what the listeners take; nil without TLS.
func (k *keys) config() *tls.Config {
	if k == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12, // what is in force says more
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.inForce.Load(), nil },
	}
}

var tlsVersions = map[configv1.Tls_Version]uint16{
	configv1.Tls_VERSION_UNSPECIFIED: tls.VersionTLS12, configv1.Tls_TLS_1_2: tls.VersionTLS12, configv1.Tls_TLS_1_3: tls.VersionTLS13,
}

// readTLS reads the files of a configuration. Its errors name the files and never what stands in them.
func readTLS(c *configv1.Tls) (*tls.Config, error) {
	certificate, err := os.ReadFile(c.CertFile)
	if err != nil {
		return nil, fmt.Errorf("listen.tls.cert_file: %w", err)
	}
	key, err := os.ReadFile(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("listen.tls.key_file: %w", err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("listen.tls: %s and %s: %w", c.CertFile, c.KeyFile, err)
	}
	t := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tlsVersions[c.MinVersion], NextProtos: []string{"h2", "http/1.1"}}
	if c.ClientCaFile == "" {
		return t, nil
	}
	authorities, err := os.ReadFile(c.ClientCaFile)
	if err != nil {
		return nil, fmt.Errorf("listen.tls.client_ca_file: %w", err)
	}
	t.ClientCAs, t.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !t.ClientCAs.AppendCertsFromPEM(authorities) {
		return nil, errors.New("listen.tls.client_ca_file: " + c.ClientCaFile + " has no certificate")
	}
	return t, nil
}
