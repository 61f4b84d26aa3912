package check

import (
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
)

// root is the repository.
const root = "../.."

// facade is the server's program, built once.
var facade string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	folder, err := os.MkdirTemp("", "jelou-deploy-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	facade = filepath.Join(folder, "jelou-facade")
	build := exec.Command("go", "build", "-o", facade, "./cmd/jelou-facade")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// checkConfig asks the server about a configuration file that names files below where, a folder of the pod or machine. They
// are made first, so that only what the configuration says can be wrong. It returns their names below where.
func checkConfig(t *testing.T, config, where string) []string {
	t.Helper()
	folder := t.TempDir()
	named := regexp.MustCompile(regexp.QuoteMeta(where)+`/([A-Za-z0-9._/-]+)`).FindAllStringSubmatch(config, -1)
	var names []string
	for _, match := range named {
		names = append(names, match[1])
		write(t, filepath.Join(folder, match[1]), "x\n")
	}
	certificate, key := newCertificate(t)
	write(t, filepath.Join(folder, "tls/tls.crt"), certificate)
	write(t, filepath.Join(folder, "tls/tls.key"), key)
	file := filepath.Join(folder, "facade.yaml")
	write(t, file, strings.ReplaceAll(config, where, folder))
	if out, err := exec.Command(facade, "config", "check", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, config)
	}
	return names
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newCertificate makes a certificate and its key, PEM.
func newCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "jelou-facade"}, DNSNames: []string{"jelou-facade"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
