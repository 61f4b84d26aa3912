package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// buildFlags are those of jelouctl; the servers are built without.
var buildFlags []string

// binaries is the folder with jelouctl, jelou-facade and jelousim.
var binaries string

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "jelouctl-test-")
	if err != nil {
		log.Fatal(err)
	}
	binaries = folder
	code := 1
	if err := build(); err != nil {
		log.Print(err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(folder)
	os.Exit(code)
}

func build() error {
	for _, args := range [][]string{append(append([]string{}, buildFlags...), "."), {"../jelou-facade", "../jelousim"}} {
		out, err := exec.Command("go", append([]string{"build", "-o", binaries + string(filepath.Separator)}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
}

// world is a server of ours, the simulator behind it, and a user's folders.
type world struct {
	folder  string
	control string // the simulator's
	address string // the server's gRPC
	server  *exec.Cmd
}

// newWorld starts a simulator and a server with this allowance.
func newWorld(t *testing.T, requests int, window time.Duration, change func(*jelousim.Config)) *world {
	t.Helper()
	w := &world{folder: t.TempDir()}
	sim := jelousim.Sandbox()
	sim.Rate.Requests = requests
	sim.Rate.Window = jelousim.Duration(window)
	sim.Processing = jelousim.Processing{}
	if change != nil {
		change(&sim)
	}
	config, err := json.Marshal(sim)
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "sim.json", string(config))
	_, line := w.start(t, "jelousim", func(line string) bool { return strings.HasPrefix(line, "jelousim ") },
		"-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:0", "-config", w.path("sim.json"))
	w.control = value(line, "control")
	w.write(t, "credential", "sandbox\n")
	w.write(t, "facade.yaml", fmt.Sprintf(`
listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0"}
ledger: {path: ledger.db}
log: {level: WARN}
companies:
  - {id: sandbox, base_url: %q, client_id_file: credential, client_secret_file: credential, bots: [demo], allowance: {requests: %d, window: %gs}, attempt_timeout: 2s}
`, value(line, "api"), requests, window.Seconds()))
	w.serve(t)
	return w
}

// serve starts the server; again on the same port where it has served before.
func (w *world) serve(t *testing.T) {
	t.Helper()
	if w.address != "" {
		data, err := os.ReadFile(w.path("facade.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		w.write(t, "facade.yaml", strings.Replace(string(data), "127.0.0.1:0", w.address, 1))
	}
	command, line := w.start(t, "jelou-facade", func(line string) bool { return strings.HasPrefix(line, "gRPC ") }, "serve", "--config", w.path("facade.yaml"))
	w.server, w.address = command, strings.TrimPrefix(line, "gRPC ")
}

// start runs a program until the test ends, and returns the first line that is wanted.
func (w *world) start(t *testing.T, name string, wanted func(string) bool, args ...string) (*exec.Cmd, string) {
	t.Helper()
	command := exec.Command(filepath.Join(binaries, name), args...)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if command.Process.Signal(syscall.SIGTERM) == nil {
			_, _ = io.Copy(io.Discard, out)
			_ = command.Wait()
		}
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if wanted(lines.Text()) {
			return command, lines.Text()
		}
	}
	t.Fatalf("%s said nothing", name)
	return nil, ""
}

// value finds key in a line of key=value.
func value(line, key string) string {
	for _, field := range strings.Fields(line) {
		if v, ok := strings.CutPrefix(field, key+"="); ok {
			return v
		}
	}
	return ""
}

func (w *world) path(name string) string { return filepath.Join(w.folder, name) }

func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// command is a run of jelouctl in the world's folder, with its own configuration and state.
func (w *world) command(args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(binaries, "jelouctl"), args...)
	c.Dir = w.folder
	c.Env = append(os.Environ(), "XDG_CONFIG_HOME="+w.path("config"), "XDG_STATE_HOME="+w.path("state"),
		"JELOUCTL_ADDRESS="+w.address, "JELOUCTL_BOT=demo", "JELOUCTL_API_KEY=", "JELOUCTL_CONTEXT=", "NO_COLOR=", "TZ=UTC")
	return c
}

// answer is what a run of jelouctl said.
type answer struct {
	code     int
	out, err string
}

// ctl runs jelouctl and checks its exit code.
func (w *world) ctl(t *testing.T, code int, args ...string) answer {
	t.Helper()
	return w.run(t, code, w.command(args...))
}

func (w *world) run(t *testing.T, code int, c *exec.Cmd) answer {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	exit, isExit := errors.AsType[*exec.ExitError](err)
	if err != nil && !isExit {
		t.Fatal(err)
	}
	a := answer{out: out.String(), err: errs.String()}
	if isExit {
		a.code = exit.ExitCode()
	}
	if a.code != code {
		t.Fatalf("jelouctl %s: exit code %d instead of %d\n%s%s", strings.Join(c.Args[1:], " "), a.code, code, a.out, a.err)
	}
	return a
}

// report is what the simulator saw.
func (w *world) report(t *testing.T) jelousim.Report {
	t.Helper()
	answer, err := http.Get(w.control + "/report")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var r jelousim.Report
	if err := json.NewDecoder(answer.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// fields decodes a JSON object.
func fields(t *testing.T, text string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return m
}

// contains checks that a text has all of these.
func contains(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}
