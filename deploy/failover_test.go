package deploy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// TestFailoverLosesTheTail: PostgreSQL fails over to a standby that has not seen the last sends. The facade, which runs on, finds that
// its ledger went back in time: it sends nothing, also not what was sent already and is asked for again, and says so to callers and
// to its probes, until a person releases it.
func TestFailoverLosesTheTail(t *testing.T) {
	c := newCompose(t)
	build(t, c.programs, "jelou-facade", "jelousim")
	primary := ledgertest.NewCluster(t)
	standby := primary.NewStandby(t)
	control := c.startSimulator(t)
	config := writeFailoverConfig(t, c.addresses.Replace("http://jelousim:7070"), primary, standby)
	facade := filepath.Join(c.programs, "jelou-facade")
	lines := start(t, exec.Command(facade, "serve", "--config", config))
	rest, admin := next(t, lines, "REST "), next(t, lines, "admin ")

	mustSend(t, rest, "kept")
	standby.CutOff(t, primary)
	mustSend(t, rest, "lost-1")
	mustSend(t, rest, "lost-2")
	if err := primary.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	standby.TakeOver(t)

	await(t, "the probes to say that the ledger went back", func() bool {
		code, answer := get(t, admin+"/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(answer, "ledger release")
	})
	for _, id := range []string{"lost-1", "new"} {
		if code, answer := send(t, rest, "", id); code != http.StatusServiceUnavailable || !strings.Contains(answer, "LEDGER_") {
			t.Errorf("%s: %d %s", id, code, answer)
		}
	}
	var report jelousim.Report
	getJSON(t, control+"/report", &report)
	if report.Arrived != 3 || report.Duplicates != 0 {
		t.Errorf("%d requests arrived, %d of them twice", report.Arrived, report.Duplicates)
	}

	if out, err := exec.Command(facade, "ledger", "release", "--config", config, "--unsent", "unknown").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	await(t, "the probes to say that it sends again", func() bool {
		code, _ := get(t, admin+"/readyz")
		return code == http.StatusOK
	})
	mustSend(t, rest, "new")
}

// writeFailoverConfig writes a configuration whose ledger is on whichever server takes writes.
func writeFailoverConfig(t *testing.T, api string, servers ...*ledgertest.Cluster) string {
	t.Helper()
	var hosts []string
	for _, s := range servers {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, u.Host)
	}
	folder := t.TempDir()
	config := filepath.Join(folder, "facade.yaml")
	for file, text := range map[string]string{"id": "sandbox\n", "secret": "sandbox\n", "facade.yaml": fmt.Sprintf(`
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0"}
ledger: {url: "postgres://postgres@%s/postgres?sslmode=disable&target_session_attrs=read-write"}
companies: [{id: sandbox, base_url: %q, client_id_file: id, client_secret_file: secret, bots: [demo]}]
`, strings.Join(hosts, ","), api)} {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return config
}

func mustSend(t *testing.T, address, id string) {
	t.Helper()
	code, answer := send(t, address, "", id)
	var sent struct{ Send struct{ State string } }
	if err := json.Unmarshal([]byte(answer), &sent); code != http.StatusOK || err != nil || sent.Send.State != "SENT" {
		t.Fatalf("%s: %d %s", id, code, answer)
	}
}
