// Package deploy holds that what is in this folder works together.
package deploy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/jelou-facade/jelou-facade/internal/canary"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// TestTopology starts what compose.yaml starts, as processes: three facades, PostgreSQL, the simulator and Prometheus, with
// the settings and secrets of compose, and only the addresses changed. Calls through each facade keep one allowance, callers need the
// key that prepare.sh made, Prometheus reads all three and judges them by the alert rules, and the dashboard's questions have answers.
func TestTopology(t *testing.T) {
	c := newCompose(t)
	build(t, c.programs, "jelou-facade", "jelousim")
	c.startPostgres(t)
	control := c.startSimulator(t)
	var rest, admin []string
	for _, name := range []string{"facade-1", "facade-2", "facade-3"} {
		r, a := c.startFacade(t, name)
		rest, admin = append(rest, r), append(admin, a)
	}
	prometheus := c.startPrometheus(t, admin)

	key := c.read(t, "caller-key")
	for _, address := range rest {
		if code, answer := send(t, address, "wrong", "nobody"); code != http.StatusUnauthorized {
			t.Errorf("%s takes a wrong key: %d %s", address, code, answer)
		}
	}
	const each = 6
	var waiting sync.WaitGroup
	for i, address := range rest {
		for n := range each {
			waiting.Go(func() {
				if code, answer := send(t, address, key, fmt.Sprintf("call-%d-%d", i, n)); code != http.StatusOK || !strings.Contains(answer, `"SENT"`) {
					t.Errorf("%s: %d %s", address, code, answer)
				}
			})
		}
	}
	waiting.Wait()
	// The same id again, through another replica, is the same send.
	if code, answer := send(t, rest[1], key, "call-0-0"); code != http.StatusOK {
		t.Errorf("a repeated call: %d %s", code, answer)
	}

	var report jelousim.Report
	getJSON(t, control+"/report", &report)
	if report.Arrived != each*len(rest) || report.Duplicates != 0 || report.WorstWindow > report.Requests {
		t.Errorf("%d requests arrived, %d of them twice, %d within a window of at most %d", report.Arrived, report.Duplicates, report.WorstWindow, report.Requests)
	}
	t.Logf("%d sends through %d facades: worst window %d of %d", report.Accepted, len(rest), report.WorstWindow, report.Requests)
	await(t, "Prometheus to read three facades", func() bool { return prometheus.value(t, `count(up{job="jelou-facade"} == 1)`) == "3" })
	await(t, "Prometheus to evaluate every rule", func() bool { return prometheus.evaluated(t) == len(readRules(t)) })
	for _, expression := range dashboardExpressions(t) {
		if code, answer := get(t, string(prometheus)+"/api/v1/query?query="+url.QueryEscape(expression)); code != http.StatusOK {
			t.Errorf("%s: %d %s", expression, code, answer)
		}
	}
}

// compose is what compose.yaml says, and what stands in for its names here.
type compose struct {
	Services map[string]struct {
		Command, Volumes []string
	}

	programs  string
	local     string            // of prepare.sh
	addresses *strings.Replacer // of the file's settings, to those of this test
	pairs     []string
}

func newCompose(t *testing.T) *compose {
	t.Helper()
	c := &compose{programs: t.TempDir(), local: filepath.Join(t.TempDir(), "local"), addresses: strings.NewReplacer()}
	text, err := os.ReadFile("compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, c); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "compose/prepare.sh", c.local).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Everything listens on a free port of this machine only.
	for _, port := range []string{"7070", "7071", "8080", "9464", "50051"} {
		c.replace("0.0.0.0:"+port, "127.0.0.1:0")
	}
	return c
}

// replace has an address of the settings mean another one from here on.
func (c *compose) replace(from, to string) {
	c.pairs = append(c.pairs, from, to)
	c.addresses = strings.NewReplacer(c.pairs...)
}

func (c *compose) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.local, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// startPostgres starts a server that asks the facades for the password of prepare.sh.
func (c *compose) startPostgres(t *testing.T) {
	t.Helper()
	cluster := ledgertest.NewCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, cluster.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var hba string
	if err := conn.QueryRow(ctx, "SHOW hba_file").Scan(&hba); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		fmt.Sprintf("CREATE ROLE facade LOGIN PASSWORD '%s'", c.read(t, "postgres-password")),
		"CREATE DATABASE facade OWNER facade",
		fmt.Sprintf("COPY (VALUES ('host all facade 127.0.0.1/32 scram-sha-256'), ('host all postgres 127.0.0.1/32 trust')) TO '%s'", hba),
		"SELECT pg_reload_conf()",
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(cluster.URL)
	if err != nil {
		t.Fatal(err)
	}
	c.replace("postgres:5432:", u.Host+":") // of pgpass
	c.replace("@postgres:5432/", "@"+u.Host+"/")
}

func (c *compose) startSimulator(t *testing.T) (control string) {
	t.Helper()
	var args []string
	for _, arg := range c.Services["jelousim"].Command {
		args = append(args, c.addresses.Replace(arg))
	}
	lines := start(t, exec.Command(filepath.Join(c.programs, "jelousim"), args...))
	for _, field := range strings.Fields(next(t, lines, "jelousim ")) {
		if api, ok := strings.CutPrefix(field, "api="); ok {
			c.replace("http://jelousim:7070", api)
		}
		if address, ok := strings.CutPrefix(field, "control="); ok {
			control = address
		}
	}
	return control
}

// startFacade starts a facade with a copy of the folder that a container would see.
func (c *compose) startFacade(t *testing.T, name string) (rest, admin string) {
	t.Helper()
	folder := t.TempDir()
	err := os.CopyFS(folder, os.DirFS(filepath.Join(c.local, "facade")))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"facade.yaml", "secrets/pgpass"} {
		path := filepath.Join(folder, file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.addresses.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command(filepath.Join(c.programs, "jelou-facade"), "serve", "--config", filepath.Join(folder, "facade.yaml"))
	command.Env = append(os.Environ(), "PGPASSFILE="+filepath.Join(folder, "secrets/pgpass"))
	lines := start(t, command)
	next(t, lines, "gRPC ")
	rest = next(t, lines, "REST ")
	admin = strings.TrimPrefix(next(t, lines, "admin "), "http://")
	c.replace(name+":9464", admin)
	return rest, admin
}

// prometheus is where Prometheus answers.
type prometheus string

// startPrometheus starts Prometheus with the files that compose mounts.
func (c *compose) startPrometheus(t *testing.T, admin []string) prometheus {
	t.Helper()
	folder := t.TempDir()
	var all strings.Builder
	for _, volume := range c.Services["prometheus"].Volumes {
		source, target, _ := strings.Cut(strings.TrimSuffix(volume, ":ro"), ":")
		file, ok := strings.CutPrefix(target, "/etc/prometheus/")
		if !ok {
			continue // where its data is
		}
		text, err := os.ReadFile(filepath.Join("compose", source))
		if err != nil {
			t.Fatal(err)
		}
		replaced := c.addresses.Replace(string(text))
		all.WriteString(replaced)
		if err := os.WriteFile(filepath.Join(folder, file), []byte(replaced), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, address := range admin {
		if !strings.Contains(all.String(), address) {
			t.Errorf("Prometheus does not read %s", address)
		}
	}
	address := freeAddress(t)
	args := []string{"--web.listen-address=" + address}
	inside := strings.NewReplacer("/etc/prometheus/", folder+"/", "=/prometheus", "="+folder+"/data")
	for _, arg := range c.Services["prometheus"].Command {
		args = append(args, inside.Replace(arg))
	}
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("%v: install it (Debian: prometheus), `make prometheus` does", err)
	}
	start(t, exec.Command(program, args...))
	return prometheus("http://" + address)
}

// value is the first value that a query finds; empty when it finds none, and while Prometheus starts.
func (p prometheus) value(t *testing.T, query string) string {
	t.Helper()
	answer, err := http.Get(string(p) + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	var found struct {
		Data struct{ Result []struct{ Value [2]any } }
	}
	if answer.StatusCode != http.StatusOK || json.NewDecoder(answer.Body).Decode(&found) != nil || len(found.Data.Result) == 0 {
		return ""
	}
	return fmt.Sprint(found.Data.Result[0].Value[1])
}

// evaluated is how many rules were evaluated; one that cannot be is an error.
func (p prometheus) evaluated(t *testing.T) (n int) {
	t.Helper()
	var found struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	getJSON(t, string(p)+"/api/v1/rules", &found)
	for _, g := range found.Data.Groups {
		for _, r := range g.Rules {
			switch r.Health {
			case "ok":
				n++
			case "err":
				t.Fatalf("%s: %s", r.Name, r.LastError)
			}
		}
	}
	return n
}

func dashboardExpressions(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile("grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, strings.ReplaceAll(target.Expr, "$company", ".*")) // the variable, as Grafana fills it in for all
		}
	}
	return all
}

func build(t *testing.T, folder string, names ...string) {
	t.Helper()
	args := []string{"build", "-o", folder + "/"}
	for _, name := range names {
		args = append(args, "../cmd/"+name)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// start runs a program until the test ends, and gives its lines of standard output. What it logs is in a file, and shown where the test
// fails.
func start(t *testing.T, command *exec.Cmd) *bufio.Scanner {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	command.Stderr = log
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM) // fails only when it has ended
		_, _ = io.Copy(io.Discard, out)
		if err := command.Wait(); err != nil || t.Failed() {
			t.Errorf("%s: %v\n%s", filepath.Base(command.Path), err, logOf(t, command))
		}
		for _, one := range canary.NewSearch("593991234567").In("log of "+filepath.Base(command.Path), []byte(logOf(t, command))) {
			t.Errorf("found %s", one)
		}
		_ = log.Close()
	})
	return bufio.NewScanner(out)
}

// logOf is what a program that was started has logged so far.
func logOf(t *testing.T, command *exec.Cmd) string {
	t.Helper()
	text, err := os.ReadFile(command.Stderr.(*os.File).Name())
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// next is the rest of the next line that begins so.
func next(t *testing.T, lines *bufio.Scanner, prefix string) string {
	t.Helper()
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
			return rest
		}
	}
	t.Fatalf("no line with %q was printed", prefix)
	return ""
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// send sends one message over REST, as a caller with the key; without one where there are no callers.
func send(t *testing.T, address, key, id string) (code int, answer string) {
	t.Helper()
	body := fmt.Sprintf(`{"user_id": "593991234567", "message": {"text": {"text": "Hola, %s."}}, "request_id": %q}`, id+" "+canary.Word, id)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address+"/v1/bots/demo/messages", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("X-Api-Key", key)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(text)
}

func getJSON(t *testing.T, address string, into any) {
	t.Helper()
	answer, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// get asks, and answers nothing while nobody listens.
func get(t *testing.T, address string) (code int, answer string) {
	t.Helper()
	response, err := http.Get(address)
	if err != nil {
		return 0, ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, ""
	}
	return response.StatusCode, string(text)
}

// await asks until it is so; a minute is for the slowest machine.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}
