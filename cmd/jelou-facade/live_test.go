package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/reload"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
)

// liveWorld is a server whose configuration is in a folder, in front of the simulator.
type liveWorld struct {
	*testing.T
	folder string
	sim    *jelousim.Server
	url    string // of the simulator
	live   *live
	level  *slog.LevelVar
	logs   *lockedBuffer
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newLiveWorld starts a server with the configuration that config makes.
func newLiveWorld(t *testing.T, config func(w *liveWorld) string) *liveWorld {
	t.Helper()
	sim := jelousim.Sandbox()
	sim.Processing, sim.EveryoneOpen = jelousim.Processing{}, true
	sim.Rate = jelousim.Rate{Requests: 20, Window: jelousim.Duration(200 * time.Millisecond)}
	w := &liveWorld{T: t, folder: t.TempDir(), sim: jelousim.New(sim), level: &slog.LevelVar{}, logs: &lockedBuffer{}}
	upstream := httptest.NewServer(w.sim)
	t.Cleanup(upstream.Close)
	w.url = upstream.URL
	write(t, w.folder, "id", "sandbox\n")
	write(t, w.folder, "secret", "sandbox\n")
	write(t, w.folder, "ledger.key", keyring.New())
	w.write(config(w))
	c, err := loadConfig(w.file())
	w.must(err)
	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: w.level}))
	l, err := ledger.Open(t.Context(), ledger.Config{Path: c.Ledger.Path, Replica: t.Name(), Logger: log})
	w.must(err)
	measured, err := telemetry.Open(t.Context(), telemetry.Config{Version: "test"})
	w.must(err)
	audited, err := openAudit(c.Audit)
	w.must(err)
	w.live, err = newLive(t.Context(), serveFlags{config: w.file()}, c, l, w.level, measured, audited, log)
	w.must(err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.live.server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		w.must(<-ended)
		w.live.close()
		w.must(l.CheckInvariant(context.Background()))
		w.must(l.Close())
		w.must(audited.Close())
		w.must(measured.Close(context.Background()))
		search := canary.NewSearch("canary", "593991234567")
		found, err := search.InFiles("database", filepath.Join(w.folder, "ledger.db*"))
		w.must(err)
		for _, one := range append(found, search.In("log", []byte(w.logs.String()))...) {
			t.Errorf("found %s", one)
		}
	})
	return w
}

func (w *liveWorld) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *liveWorld) file() string { return filepath.Join(w.folder, "facade.yaml") }

func (w *liveWorld) write(config string) { write(w.T, w.folder, "facade.yaml", config) }

// plain is a configuration of one company, and what else is given.
func (w *liveWorld) plain(company, rest string) string {
	return fmt.Sprintf(`listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
ledger: {path: ledger.db, encryption_key_file: ledger.key}
admin: {address: "127.0.0.1:0"}
companies:
  - {id: sandbox, base_url: %q, client_id_file: id, client_secret_file: secret, bots: [demo], %s}
%s
`, w.url, company, rest)
}

// status looks at the files and gives how a part is.
func (w *liveWorld) status(part string) reload.Status {
	w.Helper()
	w.live.reloader.Look(w.Context())
	for _, s := range w.live.reloader.Status() {
		if s.Part == part {
			return s
		}
	}
	w.Fatalf("no part %q in %+v", part, w.live.reloader.Status())
	return reload.Status{}
}

func (w *liveWorld) dial() *grpc.ClientConn {
	conn, err := grpc.NewClient(w.live.server.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.Cleanup(func() { w.must(conn.Close()) })
	return conn
}

const fast = `allowance: {requests: 20, window: 0.2s}`

// TestReloadUnderLoad changes everything that may change, again and again, while there is always something to send: no window is over
// the limit, nothing is lost and nothing is sent twice.
func TestReloadUnderLoad(t *testing.T) {
	w := newLiveWorld(t, func(w *liveWorld) string { return w.plain(fast, "") })
	conn := w.dial()
	batches := facadev1.NewBatchServiceClient(conn)
	request := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: "demo"}}
	const items = 250
	for i := range items {
		request.Items = append(request.Items, &facadev1.BatchItem{
			Sequence: int32(i + 1), UserId: fmt.Sprintf("5939%08d", i),
			Content: &facadev1.BatchItem_Message{Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: fmt.Sprint("hola ", i)}}}},
		})
	}
	created, err := batches.CreateBatch(t.Context(), request)
	w.must(err)
	stream, err := batches.WatchBatch(t.Context(), &facadev1.WatchBatchRequest{BatchId: created.Batch.BatchId})
	w.must(err)
	sent := 0
	for {
		event, err := stream.Recv()
		w.must(err)
		if end := event.GetEnd(); end != nil {
			if end.Batch.Counts.Sent != items {
				t.Errorf("%v", end.Batch.Counts)
			}
			break
		}
		if event.GetResult() == nil {
			continue
		}
		if sent++; sent%10 == 0 && sent < items {
			w.write(w.plain([]string{
				`allowance: {requests: 10, window: 0.2s}, evidence: TRANSPORT`,
				`allowance: {requests: 20, window: 0.2s}, attempt_timeout: 5s`,
				`allowance: {requests: 20, window: 0.4s}, lower_lane_floor: 3`,
			}[sent/10%3], fmt.Sprintf("log: {level: DEBUG}\nbounds: {lane_waiting: %d}", 1000+sent)))
			if s := w.status("configuration"); s.Refused != nil {
				t.Fatal(s.Refused.Error)
			}
		}
	}
	r := w.sim.Report()
	if r.WorstWindow > r.Requests || r.Throttled != 0 || r.Duplicates != 0 || r.Accepted != items {
		t.Errorf("%+v", r)
	}
	if w.level.Level() != slog.LevelDebug {
		t.Errorf("the level is %s", w.level.Level())
	}
}

// TestReloadKeepsConnections: a company whose limits change goes on over the connections that it has; one that is reached in another way does
// not.
func TestReloadKeepsConnections(t *testing.T) {
	w := newLiveWorld(t, func(w *liveWorld) string { return w.plain(fast, "") })
	client := func() *jelou.Client {
		w.live.mu.Lock()
		defer w.live.mu.Unlock()
		return w.live.companies["sandbox"].company.Client
	}
	for _, c := range []struct {
		company string
		same    bool
	}{
		{`allowance: {requests: 10, window: 0.2s}, evidence: TRANSPORT, lower_lane_floor: 3`, true},
		{`allowance: {requests: 10, window: 0.2s}, attempt_timeout: 5s`, false},
		{`allowance: {requests: 20, window: 0.2s}, attempt_timeout: 5s`, true},
	} {
		before := client()
		w.write(w.plain(c.company, ""))
		if s := w.status("configuration"); s.Refused != nil {
			t.Fatal(s.Refused.Error)
		}
		if same := client() == before; same != c.same {
			t.Errorf("%s: the same connections: %t", c.company, same)
		}
		w.must(w.sendNow(w.dial(), c.company))
	}
}

// TestReloadRefused: a bad file changes nothing and is shown with what is wrong, beside what is in force.
func TestReloadRefused(t *testing.T) {
	const audited = "audit: {log_file: audit.jsonl}"
	w := newLiveWorld(t, func(w *liveWorld) string { return w.plain(fast, audited) })
	first := w.status("configuration").Version
	w.checkVersions(first, "")
	w.write(w.plain(fast, audited) + "# another version\n")
	good := w.status("configuration").Version
	w.checkVersions(good, "")
	for _, c := range []struct{ config, says string }{
		{w.plain("allowance: {requests: many}", ""), "line 5: invalid value for int32 field requests"},
		{w.plain(fast, ""), "audit: cannot change while the server runs"},
		{w.plain(fast, "bounds:\n  lane_waiting: -1"), "line 7: bounds.lane_waiting: must be greater than or equal to 0"},
		{strings.Replace(w.plain(fast, audited), "127.0.0.1:0", "127.0.0.1:50051", 1), "listen.grpc: cannot change while the server runs"},
		{strings.Replace(w.plain(fast, audited), "ledger.db", "other.db", 1), "ledger: cannot change while the server runs"},
		{w.plain(fast, audited+"\nlog: {format: TEXT}"), "log.format: cannot change while the server runs"},
		{strings.Replace(w.plain(fast, audited), `"127.0.0.1:0"}`, `"127.0.0.1:0", tls: {cert_file: c, key_file: k}}`, 1), "listen.tls: cannot change while the server runs"},
		{audited + "\n" + w.plain(fast, "") + "  - {id: other, client_id_file: none, client_secret_file: none, bots: [other]}\n", "company other: client_id_file: open"},
	} {
		w.write(c.config)
		s := w.status("configuration")
		if s.Refused == nil || !strings.Contains(s.Refused.Error, c.says) || s.Refused.Version == s.Version {
			t.Errorf("%+v, want %q", s.Refused, c.says)
			continue
		}
		w.checkVersions(good, s.Refused.Version)
	}
	shown := getConfigz(w)
	if shown.Parts[0].Refused == nil || len(shown.Config.Companies) != 1 {
		t.Errorf("%+v", shown)
	}
	w.write(w.plain(fast, audited))
	if s := w.status("configuration"); s.Refused != nil {
		t.Errorf("%+v", s)
	}
	w.checkVersions(first, "")
	lines, err := os.ReadFile(filepath.Join(w.folder, "audit.jsonl"))
	w.must(err)
	for _, want := range []string{
		fmt.Sprintf(`"event":"start","part":"configuration","after":%q,"code":"OK"`, first),
		fmt.Sprintf(`"event":"reload","part":"configuration","before":%q,"after":%q,"code":"OK"`, first, good),
		fmt.Sprintf(`"event":"reload","part":"configuration","before":%q,"after":%q,"code":"OK"`, good, first),
	} {
		if strings.Count(string(lines), want) != 1 {
			t.Errorf("the audit log has not once %s:\n%s", want, lines)
		}
	}
	if n := strings.Count(string(lines), fmt.Sprintf(`"before":%q`, good)); n != 9 { // eight refused, and the one back
		t.Errorf("%d reloads:\n%s", n, lines)
	}
}

// checkVersions checks what metrics and /configz tell about the configuration in force, and about one that is refused.
func (w *liveWorld) checkVersions(inForce, refused string) {
	w.Helper()
	answer, err := http.Get("http://" + w.live.server.AdminAddr().String() + "/metrics")
	w.must(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	w.must(err)
	for state, version := range map[string]string{"in_force": inForce, "refused": refused} {
		line, want := fmt.Sprintf(`jelou_config_info{part="configuration",state=%q,version=%q} 1`, state, version), 1
		if version == "" {
			line, want = fmt.Sprintf(`jelou_config_info{part="configuration",state=%q`, state), 0
		}
		if strings.Count(string(text), line) != want {
			w.Errorf("the metrics have not %d of %s", want, line)
		}
	}
	part := getConfigz(w).Parts[0]
	shown, isRefused := "", 0
	if part.Refused != nil {
		shown, isRefused = part.Refused.Version, 1
	}
	if part.Version != inForce || shown != refused || !strings.Contains(string(text), fmt.Sprintf("jelou_config_refused{part=\"configuration\"} %d\n", isRefused)) {
		w.Errorf("/configz has %+v, want %s in force and %q refused", part, inForce, refused)
	}
}

// shownConfig is what a test reads of /configz.
type shownConfig struct {
	Parts  []reload.Status
	Config struct {
		Companies []struct {
			ID       string
			Bots     []string
			ProxyURL string `json:"proxy_url"`
		}
	}
}

func getConfigz(w *liveWorld) (shown shownConfig) {
	w.Helper()
	answer, err := http.Get(w.live.restURL() + "/configz")
	w.must(err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	w.must(err)
	if answer.StatusCode != http.StatusOK || len(canary.NewSearch("canary").In("configz", data)) > 0 {
		w.Errorf("%s: %s", answer.Status, data)
	}
	w.must(json.Unmarshal(data, &shown))
	return shown
}

// TestConfigzMasks: passwords and phone numbers are not shown.
func TestConfigzMasks(t *testing.T) {
	w := newLiveWorld(t, func(w *liveWorld) string {
		return strings.Replace(w.plain(fast+`, proxy_url: "http://me:canary@proxy:1"`, ""), "[demo]", `["+593991234567"]`, 1)
	})
	company := getConfigz(w).Config.Companies[0]
	if company.Bots[0] != "…4567" || company.ProxyURL != "http://me:xxxxx@proxy:1" {
		t.Errorf("%+v", company)
	}
}

// sendNow sends a text and gives the reason of an error.
func (w *liveWorld) sendNow(conn *grpc.ClientConn, text string) error {
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	_, err := facadev1.NewMessageServiceClient(conn).SendMessage(ctx, &facadev1.SendMessageRequest{
		BotId: "demo", UserId: canary.NewNumber(), Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: text + " " + canary.NewWord()}}},
	})
	return err
}

// TestReloadCredential: a credential that cannot be used is refused and the one in force stays; a good one holds from the
// next request on.
func TestReloadCredential(t *testing.T) {
	w := newLiveWorld(t, func(w *liveWorld) string { return w.plain(fast, "") })
	conn := w.dial()
	write(t, w.folder, "secret", "canary\ncanary\n")
	if s := w.status("credential of sandbox"); s.Refused == nil || !strings.Contains(s.Refused.Error, "must have exactly one line") {
		t.Errorf("%+v", s)
	}
	w.must(w.sendNow(conn, "with the old one"))
	write(t, w.folder, "secret", "canary\n")
	if s := w.status("credential of sandbox"); s.Refused != nil {
		t.Errorf("%+v", s)
	}
	if err := w.sendNow(conn, "with a wrong one"); err == nil || !strings.Contains(err.Error(), "refused the company's credential") {
		t.Errorf("with a wrong one: %v", err)
	}
	write(t, w.folder, "secret", "sandbox\n")
	w.status("credential of sandbox")
	w.must(w.sendNow(conn, "with the right one"))
}

// TestReloadCompanies: a new company sends, and one that is gone is not known any more.
func TestReloadCompanies(t *testing.T) {
	w := newLiveWorld(t, func(w *liveWorld) string {
		return strings.Replace(w.plain(fast, ""), "bots: [demo]", "bots: [none]", 1)
	})
	conn := w.dial()
	if err := w.sendNow(conn, "nobody has the bot"); err == nil {
		t.Error("nobody has the bot, and it was sent")
	}
	w.write(w.plain(fast, "") + "  - {id: other, client_id_file: id, client_secret_file: secret, bots: [other]}\n")
	if s := w.status("credential of other"); s.Refused != nil {
		t.Errorf("%+v", s)
	}
	w.must(w.sendNow(conn, "now one has"))
	w.write(strings.Replace(w.plain(fast, ""), "id: sandbox", "id: renamed", 1))
	w.status("credential of renamed")
	w.must(w.sendNow(conn, "another one has"))
	if log := w.logs.String(); !strings.Contains(log, `"company removed; what waits for it stays in the ledger and is sent when it is configured again","company":"sandbox","waiting":0`) {
		t.Errorf("the log does not tell what is left behind: %s", log)
	}
}

// newCertificate writes a certificate of its own authority, and gives that.
func newCertificate(t *testing.T, folder, cert, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "facade"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(t, folder, cert, string(certificate))
	write(t, folder, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certificate)
	return pool
}

// overTLS calls both listeners, each over a new connection, and gives the errors.
func (w *liveWorld) overTLS(c *tls.Config) (overGRPC, overREST error) {
	w.Helper()
	conn, err := grpc.NewClient(w.live.server.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(c.Clone())))
	w.must(err)
	defer conn.Close()
	overGRPC = w.sendNow(conn, "over TLS")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c.Clone(), ForceAttemptHTTP2: true, DisableKeepAlives: true}}
	answer, overREST := client.Get(w.live.restURL() + "/healthz")
	if overREST == nil {
		if answer.ProtoMajor != 2 {
			w.Errorf("REST over TLS speaks %s", answer.Proto)
		}
		w.must(answer.Body.Close())
	}
	return overGRPC, overREST
}

// TestReloadTLS: keys that change are used from the next connection on, a bad pair is refused, and only what is allowed is spoken.
func TestReloadTLS(t *testing.T) {
	var roots *x509.CertPool
	listen := func(w *liveWorld, min string) string {
		return strings.Replace(w.plain(fast, ""), `"127.0.0.1:0"}`, `"127.0.0.1:0", tls: {cert_file: tls.crt, key_file: tls.key, client_ca_file: clients.crt, min_version: `+min+`}}`, 1)
	}
	w := newLiveWorld(t, func(w *liveWorld) string {
		roots = newCertificate(w.T, w.folder, "tls.crt", "tls.key")
		newCertificate(w.T, w.folder, "clients.crt", "clients.key")
		return listen(w, "TLS_1_2")
	})
	check := func(name string, c *tls.Config, good bool) {
		t.Helper()
		overGRPC, overREST := w.overTLS(c)
		if (overGRPC == nil) != good || (overREST == nil) != good {
			t.Errorf("%s: gRPC %v, REST %v", name, overGRPC, overREST)
		}
	}
	check("as it began", &tls.Config{RootCAs: roots}, true)
	pair := func(cert, key string) []tls.Certificate {
		c, err := tls.LoadX509KeyPair(filepath.Join(w.folder, cert), filepath.Join(w.folder, key))
		w.must(err)
		return []tls.Certificate{c}
	}
	check("with a client's certificate", &tls.Config{RootCAs: roots, Certificates: pair("clients.crt", "clients.key")}, true)
	stranger := pair("tls.crt", "tls.key")
	check("with a stranger's", &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger[0], nil }}, false)
	check("with TLS 1.2", &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}, true)

	w.must(os.WriteFile(filepath.Join(w.folder, "tls.key"), []byte("canary"), 0o600))
	if s := w.status("TLS keys"); s.Refused == nil || !strings.Contains(s.Refused.Error, "tls.key") || strings.Contains(s.Refused.Error, "canary") {
		t.Errorf("%+v", s)
	}
	check("after a bad key", &tls.Config{RootCAs: roots}, true)
	next := newCertificate(t, w.folder, "tls.crt", "tls.key")
	if s := w.status("TLS keys"); s.Refused != nil {
		t.Errorf("%+v", s)
	}
	check("the old certificate", &tls.Config{RootCAs: roots}, false)
	check("the new certificate", &tls.Config{RootCAs: next}, true)
	w.write(listen(w, "TLS_1_3"))
	if s := w.status("configuration"); s.Refused != nil {
		t.Errorf("%+v", s)
	}
	check("with TLS 1.2, now too old", &tls.Config{RootCAs: next, MaxVersion: tls.VersionTLS12}, false)
	check("with TLS 1.3", &tls.Config{RootCAs: next}, true)
}

// TestReloadCallers: who may call changes without a restart, and only admins see the configuration.
func TestReloadCallers(t *testing.T) {
	orders, boss := caller.NewKey(), caller.NewKey()
	callers := func(keys ...string) string {
		text := "callers:\n"
		for i, key := range keys {
			text += fmt.Sprintf("  - {name: c%d, companies: ['*'], admin: %t, keys: [{sha256: %x}]}\n", i, key == boss, caller.HashKey(key))
		}
		return text
	}
	w := newLiveWorld(t, func(w *liveWorld) string { return w.plain(fast, callers(orders)) })
	configz := func(key string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.live.restURL()+"/configz", nil)
		w.must(err)
		r.Header.Set("X-Api-Key", key)
		answer, err := http.DefaultClient.Do(r)
		w.must(err)
		w.must(answer.Body.Close())
		return answer.StatusCode
	}
	for _, c := range []struct {
		key  string
		want int
	}{{boss, http.StatusUnauthorized}, {orders, http.StatusForbidden}, {"", http.StatusUnauthorized}} {
		if got := configz(c.key); got != c.want {
			t.Errorf("status %d, want %d", got, c.want)
		}
	}
	w.write(w.plain(fast, callers(boss)))
	if s := w.status("configuration"); s.Refused != nil {
		t.Error(s.Refused.Error)
	}
	if got := configz(boss); got != http.StatusOK {
		t.Errorf("a new admin gets status %d", got)
	}
	if got := configz(orders); got != http.StatusUnauthorized {
		t.Errorf("a caller who is gone gets status %d", got)
	}
	text, err := w.live.configuration()
	w.must(err)
	if hash := fmt.Sprintf("%x", caller.HashKey(boss)); strings.Contains(string(text), hash) || !strings.Contains(string(text), hash[:4]+"…") {
		t.Errorf("the key's hash is not masked: %s", text)
	}
}

// TestReloadAuthorities: a client whose authority is taken out of its file is nobody any more, over the connection that it has.
func TestReloadAuthorities(t *testing.T) {
	var roots *x509.CertPool
	w := newLiveWorld(t, func(w *liveWorld) string {
		roots = newCertificate(w.T, w.folder, "tls.crt", "tls.key")
		newCertificate(w.T, w.folder, "clients.crt", "clients.key") // its common name is `facade`
		return strings.Replace(w.plain(fast, "callers: [{name: orders, companies: ['*'], certificates: ['cn:facade']}]"),
			`"127.0.0.1:0"}`, `"127.0.0.1:0", tls: {cert_file: tls.crt, key_file: tls.key, client_ca_file: clients.crt}}`, 1)
	})
	own, err := tls.LoadX509KeyPair(filepath.Join(w.folder, "clients.crt"), filepath.Join(w.folder, "clients.key"))
	w.must(err)
	conn, err := grpc.NewClient(w.live.server.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}})))
	w.must(err)
	defer conn.Close()
	w.must(w.sendNow(conn, "with its authority"))
	stream, err := facadev1.NewCapacityServiceClient(conn).WatchCapacity(t.Context(), &facadev1.WatchCapacityRequest{BotId: "demo"})
	w.must(err)
	_, err = stream.Recv()
	w.must(err)
	newCertificate(t, w.folder, "clients.crt", "clients.key")
	if s := w.status("TLS keys"); s.Refused != nil {
		t.Fatal(s.Refused.Error)
	}
	if err := w.sendNow(conn, "without"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a call: %v", err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stream: %v", err)
	}
}

// TestReloadPublicKeys: an issuer's keys that are replaced on disk are followed, and a file that is none changes nothing.
func TestReloadPublicKeys(t *testing.T) {
	sign := func(id string) (jwks, token string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: id}})
		if err != nil {
			t.Fatal(err)
		}
		set, err := json.Marshal(map[string]any{"keys": []any{public.Marshal()}})
		if err != nil {
			t.Fatal(err)
		}
		unsigned := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": "i", "aud": "facade", "sub": "svc-orders", "exp": time.Now().Add(time.Hour).Unix()})
		unsigned.Header["kid"] = id
		if token, err = unsigned.SignedString(key); err != nil {
			t.Fatal(err)
		}
		return string(set), token
	}
	first, old := sign("one")
	second, fresh := sign("two")
	w := newLiveWorld(t, func(w *liveWorld) string {
		write(w.T, w.folder, "keys.json", first)
		return w.plain(fast, `callers: [{name: orders, companies: ['*'], tokens: [{subject: svc-orders}]}]
authentication: {issuers: [{issuer: i, audiences: [facade], jwks_file: keys.json}]}`)
	})
	conn := w.dial()
	check := func(when string, good, bad string) {
		t.Helper()
		for token, want := range map[string]codes.Code{good: codes.OK, bad: codes.Unauthenticated} {
			_, err := facadev1.NewCapacityServiceClient(conn).GetCapacity(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), &facadev1.GetCapacityRequest{BotId: "demo"})
			if status.Code(err) != want {
				t.Errorf("%s: %v, want %s", when, err, want)
			}
		}
	}
	check("at first", old, fresh)
	write(t, w.folder, "keys.json", "{")
	if s := w.status("public keys of issuers"); s.Refused == nil {
		t.Error("a broken file is taken")
	}
	check("after a broken file", old, fresh)
	write(t, w.folder, "keys.json", second)
	if s := w.status("public keys of issuers"); s.Refused != nil {
		t.Error(s.Refused.Error)
	}
	check("replaced", fresh, old)
}
