package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// process is a real server process. Its files are in a volume as Kubernetes makes it: links to a folder behind a link, ..data, which is
// replaced when any of them changes.
type process struct {
	*testing.T
	volume            string
	files             map[string]string
	versions          int
	command           *exec.Cmd
	grpc, rest, admin string
	stderr            *lockedBuffer
	stop              func()
}

// newVolume makes a volume without a process.
func newVolume(t *testing.T, files map[string]string) *process {
	t.Helper()
	p := &process{T: t, volume: t.TempDir(), files: map[string]string{}, stderr: &lockedBuffer{}}
	p.swap(files)
	return p
}

// swap changes files of the volume, all at once.
func (p *process) swap(files map[string]string) {
	p.Helper()
	p.versions++
	version := fmt.Sprintf("..%d", p.versions)
	p.must(os.Mkdir(filepath.Join(p.volume, version), 0o700))
	for name, text := range files {
		if _, known := p.files[name]; !known {
			p.must(os.Symlink(filepath.Join("..data", name), filepath.Join(p.volume, name)))
		}
		p.files[name] = text
	}
	for name, text := range p.files {
		write(p.T, filepath.Join(p.volume, version), name, text)
	}
	p.must(os.Symlink(version, filepath.Join(p.volume, "..new")))
	p.must(os.Rename(filepath.Join(p.volume, "..new"), filepath.Join(p.volume, "..data")))
	if p.versions > 1 {
		p.must(os.RemoveAll(filepath.Join(p.volume, fmt.Sprintf("..%d", p.versions-1))))
	}
}

// start starts the server, until stop or the end of the test; addresses come with serving.
func (p *process) start(binary string) (serving func()) {
	p.Helper()
	p.command = exec.Command(binary, "serve", "--config", filepath.Join(p.volume, "facade.yaml"))
	p.command.Stderr = p.stderr
	out, err := p.command.StdoutPipe()
	p.must(err)
	p.must(p.command.Start())
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		p.signal(syscall.SIGTERM)
		_, _ = io.Copy(io.Discard, out)
		if err := p.command.Wait(); err != nil {
			p.Errorf("the server: %v\n%s", err, p.stderr)
		}
	}
	p.Cleanup(p.stop)
	return func() {
		p.Helper()
		if _, err := fmt.Fscanf(out, "gRPC %s\nREST %s\nadmin %s\n", &p.grpc, &p.rest, &p.admin); err != nil {
			p.Fatalf("the server does not serve: %v\n%s", err, p.stderr)
		}
	}
}

func (p *process) signal(s os.Signal) {
	p.Helper()
	p.must(p.command.Process.Signal(s))
}

func (p *process) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// eventually waits until something is so.
func (p *process) eventually(what string, within time.Duration, so func() bool) {
	p.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(within)
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			p.Fatalf("%s: did not come to be within %v\n%s", what, within, p.stderr)
		}
	}
}

// get reads a page of the admin port.
func (p *process) get(path string) string {
	p.Helper()
	answer, err := http.Get(p.admin + path)
	p.must(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	p.must(err)
	return string(text)
}

// keyMissing reports whether /readyz says that the process is ready but lacks a key.
func (p *process) keyMissing() bool {
	p.Helper()
	var told struct {
		Ready    bool
		Degraded []string
	}
	p.must(json.Unmarshal([]byte(p.get("/readyz")), &told))
	if !told.Ready {
		p.Errorf("not ready: %s", p.get("/readyz"))
	}
	return len(told.Degraded) == 1 && strings.Contains(told.Degraded[0], "a key is missing")
}

func (p *process) dial() *grpc.ClientConn {
	p.Helper()
	conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	p.must(err)
	p.Cleanup(func() { _ = conn.Close() })
	return conn
}

// newUpstream is a simulator for processes.
func newUpstream(t *testing.T) (*jelousim.Server, string) {
	t.Helper()
	sim := jelousim.Sandbox()
	sim.Processing, sim.EveryoneOpen = jelousim.Processing{}, true
	sim.Rate = jelousim.Rate{Requests: 20, Window: jelousim.Duration(200 * time.Millisecond)}
	s := jelousim.New(sim)
	upstream := httptest.NewServer(s)
	t.Cleanup(upstream.Close)
	return s, upstream.URL
}

// processConfig is a configuration of one company; ledger and rest are fields.
func processConfig(upstream, ledger, listen, rest string) string {
	return fmt.Sprintf(`listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"%s}
ledger: {%s}
admin: {address: "127.0.0.1:0"}
companies:
  - {id: sandbox, base_url: %q, client_id_file: id, client_secret_file: secret, bots: [demo], %s}
%s
`, listen, ledger, upstream, fast, rest)
}

// pausedBatch stores sends that wait until they are resumed.
func (p *process) pausedBatch(text string, items int) string {
	p.Helper()
	request := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: "demo", Paused: true, DisplayName: "rotation"}}
	for i := range items {
		request.Items = append(request.Items, &facadev1.BatchItem{
			UserId:  fmt.Sprintf("5939%08d", i),
			Content: &facadev1.BatchItem_Message{Message: &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: fmt.Sprint(text, " ", i)}}}},
		})
	}
	created, err := facadev1.NewBatchServiceClient(p.dial()).CreateBatch(p.Context(), request)
	p.must(err)
	return created.Batch.BatchId
}

func (p *process) resume(batch string) {
	p.Helper()
	_, err := facadev1.NewBatchServiceClient(p.dial()).ResumeBatch(p.Context(), &facadev1.ResumeBatchRequest{BatchId: batch})
	p.must(err)
}

// allSent waits for the end of a batch, and checks that all was sent with one attempt each.
func (p *process) allSent(batch string, items int) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
	defer cancel()
	stream, err := facadev1.NewBatchServiceClient(p.dial()).WatchBatch(ctx, &facadev1.WatchBatchRequest{BatchId: batch})
	p.must(err)
	for {
		event, err := stream.Recv()
		if err != nil {
			p.Fatalf("%v\n%s", err, p.stderr)
		}
		if send := event.GetResult().GetSend(); send != nil && (send.State != facadev1.Send_SENT || send.Attempts != 1) {
			p.Errorf("%v after %d attempts", send.State, send.Attempts)
		}
		if end := event.GetEnd(); end != nil {
			if int(end.Batch.Counts.Sent) != items || end.Batch.Spec.DisplayName != "rotation" {
				p.Errorf("%v", end.Batch)
			}
			return
		}
	}
}

// TestKeyRotationTooEarly has one of two replicas begin with a new key before the other one has it. Whoever lacks the key fails nothing and
// counts no attempt; who has it sends; and once the other one's file has it too, it sends as well.
func TestKeyRotationTooEarly(t *testing.T) {
	sim, upstream := newUpstream(t)
	binary, before, after := build(t, "jelou-facade"), keyring.New()+"\n", keyring.New()+"\n"
	config := processConfig(upstream, fmt.Sprintf("url: %q, encryption_key_file: keys", ledgertest.Postgres(t)), "", "")
	replica := func(keys string) *process {
		p := newVolume(t, map[string]string{"facade.yaml": config, "id": "sandbox\n", "secret": "sandbox\n", "keys": keys})
		p.start(binary)()
		return p
	}
	const items = 15
	early, late := replica(after+before), replica(before)
	batch := early.pausedBatch("before", items)
	early.stop()
	late.resume(batch)
	late.eventually("the missing key is shown", 20*time.Second, late.keyMissing)
	if text := late.get("/metrics"); strings.Contains(text, "\njelou_ledger_key_missing_total 0\n") || !strings.Contains(text, "jelou_ledger_key_missing_total") {
		t.Error("the metrics do not tell")
	}
	if n := sim.Report().Accepted; n != 0 {
		t.Errorf("%d were sent without their key", n)
	}
	early = replica(after + before)
	early.allSent(batch, items)
	batches := facadev1.NewBatchServiceClient(late.dial())
	if read, err := batches.GetBatch(t.Context(), &facadev1.GetBatchRequest{BatchId: batch}); err != nil || read.Batch.Counts.Sent != items {
		t.Errorf("the batch without its key: %v, %v", read, err)
	}
	if _, err := facadev1.NewSendServiceClient(late.dial()).ListSends(t.Context(), &facadev1.ListSendsRequest{BatchId: batch}); status.Code(err) != codes.Unavailable {
		t.Errorf("its results without their key: %v", err)
	}

	late.swap(map[string]string{"keys": before + after})
	late.eventually("the key is in force", 20*time.Second, func() bool { return !late.keyMissing() })
	batch = early.pausedBatch("after", items)
	early.stop()
	late.resume(batch)
	late.allSent(batch, items)
	if r := sim.Report(); r.Accepted != 2*items || r.Duplicates != 0 {
		t.Errorf("%+v", r)
	}
}

// TestHangupAtStart: SIGHUP while the server is still opening its ledger does not end it.
func TestHangupAtStart(t *testing.T) {
	_, upstream := newUpstream(t)
	database, err := url.Parse(ledgertest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	server := database.Host
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = door.Close() })
	database.Host = door.Addr().String()
	p := newVolume(t, map[string]string{"facade.yaml": processConfig(upstream, fmt.Sprintf("url: %q", database), "", ""), "id": "sandbox\n", "secret": "sandbox\n"})
	serving := p.start(build(t, "jelou-facade"))
	first, err := door.Accept() // it opens the ledger
	p.must(err)
	p.signal(syscall.SIGHUP)
	go func() {
		for conn := first; err == nil; conn, err = door.Accept() {
			to, err := net.Dial("tcp", server)
			if err != nil {
				_ = conn.Close()
				continue
			}
			for from, to := range map[net.Conn]net.Conn{conn: to, to: conn} {
				go func() { _, _ = io.Copy(to, from); _ = to.Close() }()
			}
		}
	}()
	serving()
	if text := p.get("/livez"); text != "ok\n" {
		t.Error(text)
	}
}

// TestHangup: on SIGHUP the configuration is read at once, though nothing else has told that it changed, and the audit log goes on
// in a new file.
func TestHangup(t *testing.T) {
	_, upstream := newUpstream(t)
	folder, elsewhere := t.TempDir(), t.TempDir()
	p := &process{T: t, volume: folder, stderr: &lockedBuffer{}}
	config := func(lane int) string {
		return processConfig(upstream, "path: ledger.db", "", fmt.Sprintf("audit: {log_file: audit.jsonl}\nbounds: {lane_waiting: %d}", lane))
	}
	write(t, folder, "id", "sandbox\n")
	write(t, folder, "secret", "sandbox\n")
	write(t, elsewhere, "facade.yaml", config(1000)) // behind a link, whose folder tells nothing
	p.must(os.Symlink(filepath.Join(elsewhere, "facade.yaml"), filepath.Join(folder, "facade.yaml")))
	p.start(build(t, "jelou-facade"))()
	w := &liveWorld{T: t}
	p.must(w.sendNow(p.dial(), "uno"))

	audit := filepath.Join(folder, "audit.jsonl")
	p.must(os.Rename(audit, audit+".1"))
	write(t, elsewhere, "facade.yaml", config(1001))
	p.signal(syscall.SIGHUP)
	p.eventually("the new configuration is in force", 10*time.Second, func() bool {
		answer, err := http.Get(p.rest + "/configz")
		p.must(err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		p.must(err)
		return strings.Contains(string(text), "1001")
	})
	p.eventually("the audit log is opened again", 10*time.Second, func() bool { _, err := os.Stat(audit); return err == nil })
	p.must(w.sendNow(p.dial(), "dos"))
	for file, want := range map[string]int{audit + ".1": 1, audit: 1} {
		text, err := os.ReadFile(file)
		p.must(err)
		if n := strings.Count(string(text), "MessageService/SendMessage"); n != want {
			t.Errorf("%s has %d sends, want %d:\n%s", filepath.Base(file), n, want, text)
		}
	}
}

// TestVolumeSwap replaces the whole volume of a running server at once, as Kubernetes does: configuration, credential, TLS key and
// encryption keys are followed.
func TestVolumeSwap(t *testing.T) {
	sim, upstream := newUpstream(t)
	certificates := t.TempDir()
	pair := func(name string) (*tls.Config, map[string]string) {
		pool := newCertificate(t, certificates, name+".crt", name+".key")
		files := map[string]string{}
		for _, part := range []string{".crt", ".key"} {
			text, err := os.ReadFile(filepath.Join(certificates, name+part))
			if err != nil {
				t.Fatal(err)
			}
			files["tls"+part] = string(text)
		}
		return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}, files
	}
	first, files := pair("first")
	before, after := keyring.New()+"\n", keyring.New()+"\n"
	config := func(rest string) string {
		return processConfig(upstream, fmt.Sprintf("path: %q, encryption_key_file: keys", filepath.Join(t.TempDir(), "ledger.db")), ", tls: {cert_file: tls.crt, key_file: tls.key}", rest)
	}
	files["facade.yaml"], files["id"], files["secret"], files["keys"] = config(""), "sandbox\n", "wrong\n", before
	p := newVolume(t, files)
	p.start(build(t, "jelou-facade"))()
	sendOver := func(c *tls.Config, text string) error {
		conn, err := grpc.NewClient(p.grpc, grpc.WithTransportCredentials(credentials.NewTLS(c)))
		p.must(err)
		defer conn.Close()
		return (&liveWorld{T: t}).sendNow(conn, text)
	}
	if err := sendOver(first, "uno"); err == nil || !strings.Contains(err.Error(), "refused the company's credential") {
		t.Errorf("with a wrong credential: %v", err)
	}

	second, files := pair("second")
	files["facade.yaml"] = strings.Replace(p.files["facade.yaml"], "bots: [demo]", "bots: [demo, other]", 1)
	files["secret"], files["keys"] = "sandbox\n", after+before
	p.swap(files)
	p.eventually("all is followed", 10*time.Second, func() bool { return sendOver(second, "dos") == nil })
	if err := sendOver(first, "tres"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with the old authority: %v", err)
	}
	log := p.stderr.String()
	for _, part := range []string{"configuration", "credential of sandbox", "TLS keys", "encryption keys"} {
		if n := strings.Count(log, fmt.Sprintf(`"msg":"reloaded","part":%q`, part)); n != 1 {
			t.Errorf("%s was reloaded %d times:\n%s", part, n, log)
		}
	}
	if r := sim.Report(); r.Accepted != 1 {
		t.Errorf("%+v", r)
	}
}
