package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const canaryKey = "canary-key-7f3a"

// TestContexts: a context keeps where things are, the key is found where it says, and nothing ever shows it.
func TestContexts(t *testing.T) {
	w := &world{folder: t.TempDir(), address: ""}
	w.write(t, "key", canaryKey+"\n")
	w.ctl(t, 0, "context", "set", "one", "--address", "127.0.0.1:1", "--bot", "demo", "--api-key-file", "key")
	w.ctl(t, 0, "context", "set", "two", "--address", "facade.internal:443", "--api-key-command", "echo "+canaryKey)
	w.ctl(t, 0, "context", "set", "three", "--address", "127.0.0.1:2", "--api-key-env", "MY_KEY")
	list := w.ctl(t, 0, "context", "list")
	contains(t, list.out, "yes      one", w.path("key"), "facade.internal:443", "TLS", "command", "environment MY_KEY", "plaintext")
	w.ctl(t, 0, "context", "use", "two")
	contains(t, w.ctl(t, 0, "context", "list").out, "yes      two")
	w.ctl(t, 0, "context", "delete", "two")
	contains(t, w.ctl(t, 0, "__complete", "context", "use", "").out, "one\nthree\n")
	contains(t, w.ctl(t, exitUsage, "context", "use", "two").err, `context "two"`)
	contains(t, w.ctl(t, exitUsage, "capacity", "--context", "two").err, `context "two"`)
	contains(t, w.ctl(t, exitUsage, "context", "set", "a b").err, "letters")
	contains(t, w.ctl(t, exitUsage, "context", "set", "x", "--api-key-file", "key", "--api-key-env", "MY_KEY").err, "exclude each other")

	unreached := w.ctl(t, exitUnavailable, "capacity", "--context", "one")
	list = w.ctl(t, 0, "context", "list", "--output", "json")
	for _, said := range []string{unreached.err, unreached.out, list.out, list.err} {
		if strings.Contains(said, canaryKey) {
			t.Errorf("the key is shown: %s", said)
		}
	}
	contains(t, w.ctl(t, exitInvalid, "capacity", "--context", "three").err, "MY_KEY")
	w.write(t, "key", "two\nlines "+canaryKey)
	if a := w.ctl(t, exitInvalid, "capacity", "--context", "one"); strings.Contains(a.err, canaryKey) {
		t.Errorf("a bad key is shown: %s", a.err)
	}
	file := filepath.Join(w.path("config"), "jelouctl", "config.yaml")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	w.write(t, filepath.Join("config", "jelouctl", "config.yaml"), "contxts: {}\n")
	contains(t, w.ctl(t, exitInvalid, "context", "list").err, "contxts")
}

// TestCredentials: API keys and client certificates open a server that asks who calls, over TLS; the key is never shown, and
// never sent in the clear to another machine.
func TestCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100, time.Second, nil)
	w.authority(t)
	made := w.run(t, 0, exec.Command(filepath.Join(binaries, "jelou-facade"), "caller", "new", "ventas"))
	hash := regexp.MustCompile(`[0-9a-f]{64}`).FindString(made.err)
	key := strings.TrimSpace(made.out)
	w.write(t, "key", key+"\n")
	w.write(t, "wrong", key[:len(key)-6]+"aaaaaa\n")
	config, err := os.ReadFile(w.path("facade.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "facade.yaml", strings.NewReplacer(`http: "127.0.0.1:0"`, `http: "127.0.0.1:0", tls: {cert_file: cert.pem, key_file: key.pem, client_ca_file: ca.pem}`,
		"ledger.db", "second.db").Replace(string(config))+fmt.Sprintf(`
callers:
  - {name: ventas, keys: [{sha256: %s}], companies: [sandbox], lanes: [NORMAL]}
  - {name: certified, certificates: ["dns:facade.test"], companies: [sandbox]}
`, hash))
	w.address = ""
	w.serve(t)

	secure := []string{"--address", w.address, "--tls-ca", "ca.pem", "--tls-server-name", "facade.test"}
	with := func(more ...string) []string {
		return append(append([]string{"send", "--to", "593991234567", "--text", "Hola", "--timeout", "10s"}, secure...), more...)
	}
	for _, c := range []struct {
		name string
		code int
		args []string
		said string
	}{
		{"key", 0, with("--api-key-file", "key"), "SENT"},
		{"certificate", 0, with("--tls-cert", "cert.pem", "--tls-key", "key.pem"), "SENT"},
		{"wrong key", exitAuth, with("--api-key-file", "wrong"), "CALLER_UNAUTHENTICATED"},
		{"nothing", exitAuth, with(), "CALLER_UNAUTHENTICATED"},
		{"another lane", exitAuth, with("--api-key-file", "key", "--lane", "urgent"), "CALLER_FORBIDDEN"},
		{"another name", exitUnavailable, with("--api-key-file", "key", "--tls-server-name", "other.test"), "cannot reach the server"},
		{"no TLS", exitUnavailable, []string{"capacity", "--address", w.address, "--api-key-file", "key"}, "cannot reach the server"},
		{"plaintext elsewhere", exitUsage, []string{"capacity", "--address", "192.0.2.1:443", "--plaintext", "--api-key-file", "key"}, "only sent over TLS"},
		{"both", exitUsage, with("--plaintext"), "exclude each other"},
		{"no such authority", exitInvalid, with("--tls-ca", "key"), "has no PEM certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.ctl(t, c.code, c.args...)
			contains(t, a.out+a.err, c.said)
			if strings.Contains(a.out+a.err, key) {
				t.Errorf("the key is shown: %s", a.err)
			}
		})
	}
	w.ctl(t, 0, append([]string{"context", "set", "tienda", "--api-key-command", "cat " + w.path("key")}, secure...)...)
	command := w.command("sends", "list", "--context", "tienda")
	command.Env = append(command.Env, "JELOUCTL_ADDRESS=")
	contains(t, w.run(t, 0, command).out, "SENT")
}

// authority writes a certificate that is good for both sides.
func (w *world) authority(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "facade.test"}, DNSNames: []string{"facade.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	w.write(t, "ca.pem", string(certPEM))
	w.write(t, "cert.pem", string(certPEM))
	w.write(t, "key.pem", string(keyPEM))
}

// TestRetryAfter: a call is repeated where the server says that it helps, and where nobody answered; nowhere else.
func TestRetryAfter(t *testing.T) {
	withDetails := func(code codes.Code, reason string, wait time.Duration) error {
		st, err := status.New(code, "").WithDetails(&errdetails.ErrorInfo{Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		if wait > 0 {
			if st, err = st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}); err != nil {
				t.Fatal(err)
			}
		}
		return st.Err()
	}
	for _, c := range []struct {
		name    string
		err     error
		again   bool
		atLeast time.Duration
	}{
		{"success", nil, false, 0},
		{"cut", status.Error(codes.Unavailable, "reset"), true, 100 * time.Millisecond},
		{"drains", withDetails(codes.Unavailable, "DRAINING", time.Second), true, time.Second},
		{"full", withDetails(codes.ResourceExhausted, "QUEUE_FULL", 3*time.Second), true, 3 * time.Second},
		{"held", withDetails(codes.Unavailable, "LEDGER_HELD", 0), false, 0},
		{"unknown", withDetails(codes.Unknown, "OUTCOME_UNKNOWN", 0), false, 0},
		{"refused", withDetails(codes.InvalidArgument, "INVALID_FIELD", 0), false, 0},
		{"too slow", status.Error(codes.DeadlineExceeded, ""), false, 0},
		{"interrupted", context.Canceled, false, 0},
	} {
		wait, again := retryAfter(c.err, 1)
		if again != c.again || again && wait < c.atLeast {
			t.Errorf("%s: %v after %s", c.name, again, wait)
		}
	}
	for attempt := 1; attempt < 100; attempt++ {
		if wait := backoff(attempt); wait < 100*time.Millisecond || wait > 10*time.Second {
			t.Errorf("attempt %d: %s", attempt, wait)
		}
	}
}
