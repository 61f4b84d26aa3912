package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// start runs the command on free ports and gives its addresses.
func start(t *testing.T, args ...string) (api, control string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, append([]string{"-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:0"}, args...), in, io.Discard)
		in.CloseWithError(err)
		ended <- err
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	line := make([]byte, 256)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(line[:n]))
	if len(words) != 4 || words[0] != "jelousim" || !strings.HasPrefix(words[3], "seed=") {
		t.Fatalf("printed %q", line[:n])
	}
	return strings.TrimPrefix(words[1], "api="), strings.TrimPrefix(words[2], "control=")
}

func call(t *testing.T, client *http.Client, method, url, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("sandbox", "sandbox")
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(read)
}

const hello = `{"type":"text","userId":"593991234567","text":"Hola"}`

func TestSandbox(t *testing.T) {
	api, control := start(t)
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(!http2)
		transport.Protocols.SetUnencryptedHTTP2(http2)
		t.Cleanup(transport.CloseIdleConnections)
		response, body := call(t, &http.Client{Transport: transport}, "POST", api+"/v1/bots/demo/messages", hello)
		if response.StatusCode != 200 || !strings.Contains(body, "messageId") || (response.ProtoMajor == 2) != http2 {
			t.Errorf("%s %d %s", response.Proto, response.StatusCode, body)
		}
	}
	if _, body := call(t, http.DefaultClient, "GET", control+"/report", ""); !strings.Contains(body, `"arrived":2,"accepted":2,"duplicates":1`) {
		t.Errorf("report %s", body)
	}
	if response, _ := call(t, http.DefaultClient, "GET", api+"/report", ""); response.StatusCode != 404 {
		t.Errorf("the control path is on the API's address: %d", response.StatusCode)
	}
}

func TestTLS(t *testing.T) {
	cert, key, pool := newCertificate(t)
	api, _ := start(t, "-tls-cert", cert, "-tls-key", key)
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: http2}
		t.Cleanup(transport.CloseIdleConnections)
		response, body := call(t, &http.Client{Transport: transport}, "POST", api+"/v1/bots/demo/messages", hello)
		if response.StatusCode != 200 || (response.ProtoMajor == 2) != http2 {
			t.Errorf("%s %d %s", response.Proto, response.StatusCode, body)
		}
	}
}

// newCertificate writes httptest's certificate to files.
func newCertificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	server.Close()
	pair := server.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		key:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return cert, key, pool
}

func TestPrintedConfigIsAnExample(t *testing.T) {
	var printed bytes.Buffer
	if err := run(t.Context(), []string{"-print-config"}, &printed, io.Discard); err != nil {
		t.Fatal(err)
	}
	var cfg jelousim.Config
	if err := json.Unmarshal(printed.Bytes(), &cfg); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "sim.json")
	changed := strings.Replace(printed.String(), `"demo"`, `"shop"`, 1)
	if err := os.WriteFile(name, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	api, _ := start(t, "-config", name, "-seed", "5")
	if response, body := call(t, http.DefaultClient, "POST", api+"/v1/bots/shop/messages", hello); response.StatusCode != 200 {
		t.Errorf("%d %s", response.StatusCode, body)
	}
}

func TestHelp(t *testing.T) {
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, io.Discard, &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, says := range []string{"-control-addr", "GET /report", "GET /requests", "GET /sends", "POST /faults", "POST /limit", "POST /inbound", "POST /reset"} {
		if !strings.Contains(help.String(), says) {
			t.Errorf("help does not mention %s", says)
		}
	}
}

func TestStartIsRefused(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "sim.json")
	if err := os.WriteFile(broken, []byte(`{"companys":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"sandbox"}, "flags only"},
		{[]string{"-config", broken}, "companys"},
		{[]string{"-config", broken + ".none"}, "no such file"},
		{[]string{"-tls-cert", broken}, "-tls-cert"},
		{[]string{"-addr", "127.0.0.1:x"}, "-addr 127.0.0.1:x"},
		{[]string{"-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:x"}, "-control-addr 127.0.0.1:x"},
		{[]string{"-port", "1"}, "-port"},
	} {
		if err := run(t.Context(), tc.args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v: got %v, want %q", tc.args, err, tc.says)
		}
	}
}
