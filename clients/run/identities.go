package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What servers and callers of a world are known by is made anew for every world, into its folder, and good for an hour:
// certificates NAME.crt with NAME.key, the authorities themselves among them, and issuer.json with the public key of a JWT's issuer.

// certificates are made in this order. Each is of the authority by, or its own authority.
var certificates = []struct {
	name, by string
	template x509.Certificate
}{
	{name: "authority"},
	{name: "other-authority"},
	{name: "server", by: "authority", template: x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}},
	{name: "orders", by: "authority", template: x509.Certificate{DNSNames: []string{"orders.example.ec"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
	{name: "visitor", by: "authority", template: x509.Certificate{DNSNames: []string{"visitor.example.ec"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
	{name: "forged", by: "other-authority", template: x509.Certificate{DNSNames: []string{"orders.example.ec"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
}

// tokens are JWTs, as ${NAME}: what each has in place of the claims of a good one.
var tokens = map[string]jwt.MapClaims{
	"token":         {},
	"expired.token": {"exp": time.Now().Add(-time.Hour).Unix()},
	"foreign.token": {"aud": "another-service"},
}

func (w *world) makeIdentities(ctx context.Context) error {
	w.identities = variables{}
	for _, create := range []func(context.Context) error{w.makeCertificates, w.makeTokens, w.makeKeys} {
		if err := create(ctx); err != nil {
			return err
		}
	}
	return nil
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func (w *world) makeCertificates(context.Context) error {
	authorities := map[string]authority{}
	for i, c := range certificates {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		t := c.template
		t.SerialNumber, t.Subject = big.NewInt(int64(i+1)), pkix.Name{CommonName: c.name}
		t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		t.KeyUsage = x509.KeyUsageDigitalSignature
		by := authorities[c.by]
		if c.by == "" {
			t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
			t.Subject.CommonName = "authority" // of all: a client shows its certificate only to who names the authority of it
			by = authority{&t, key}
		}
		der, err := x509.CreateCertificate(rand.Reader, &t, by.certificate, key.Public(), by.key)
		if err != nil {
			return err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		for name, block := range map[string]*pem.Block{c.name + ".crt": {Type: "CERTIFICATE", Bytes: der}, c.name + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
			if err := os.WriteFile(filepath.Join(w.folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
				return err
			}
		}
		authorities[c.name] = authority{&t, key}
	}
	return nil
}

func (w *world) makeTokens(context.Context) error {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	set := fmt.Sprintf(`{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": %q}]}`, base64.RawURLEncoding.EncodeToString(public))
	if err := os.WriteFile(filepath.Join(w.folder, "issuer.json"), []byte(set), 0o600); err != nil {
		return err
	}
	for name, differs := range tokens {
		claims := jwt.MapClaims{"iss": "https://login.example.ec", "aud": "jelou-facade", "sub": "svc-orders", "exp": time.Now().Add(time.Hour).Unix()}
		for claim, value := range differs {
			claims[claim] = value
		}
		token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
		token.Header["kid"] = "1"
		if w.identities[name], err = token.SignedString(key); err != nil {
			return err
		}
	}
	return nil
}

var keyHash = regexp.MustCompile(`sha256: ([0-9a-f]{64})`)

// makeKeys makes API keys as an operator does.
func (w *world) makeKeys(ctx context.Context) error {
	for _, name := range w.file.World.Keys {
		var explained strings.Builder
		command := exec.CommandContext(ctx, w.binaries.facade, "caller", "new", name)
		command.Stderr = &explained
		key, err := command.Output()
		hash := keyHash.FindStringSubmatch(explained.String())
		if err != nil {
			return fmt.Errorf("caller new %s: %w: %s", name, err, &explained)
		}
		if hash == nil {
			return fmt.Errorf("caller new %s printed no hash: %s", name, &explained)
		}
		w.identities[name+".key"], w.identities[name+".sha256"] = strings.TrimSpace(string(key)), hash[1]
	}
	return nil
}
