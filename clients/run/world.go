package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// world is a simulated Jelou, the servers in front of it, and the runner of one language.
type world struct {
	file     *file
	binaries *binaries
	language language
	folder   string
	log      int // number of log files

	simulator string // control URL
	jelou     string // API URL
	servers   map[string]*server
	stand     *standIn
	runner    *runner
	endings   []func()
}

// server is one jelou-facade.
type server struct {
	child      *child
	grpc, rest *proxy
}

func newWorld(f *file, b *binaries, l language) (*world, error) {
	folder, err := os.MkdirTemp("", "jelou-clients-")
	if err != nil {
		return nil, err
	}
	w := &world{file: f, binaries: b, language: l, folder: folder, servers: map[string]*server{}}
	w.atEnd(func() { _ = os.RemoveAll(folder) })
	for _, start := range []func() error{w.startSimulator, w.startStandIn, w.startRunner} {
		if err := start(); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *world) atEnd(f func()) { w.endings = append(w.endings, f) }

// close ends everything, the latest first.
func (w *world) close() {
	for i := len(w.endings) - 1; i >= 0; i-- {
		w.endings[i]()
	}
	w.endings = nil
}

func (w *world) start(words ...string) (*child, error) {
	w.log++
	c, err := startChild(filepath.Join(w.folder, fmt.Sprintf("%d.log", w.log)), words...)
	if err == nil {
		w.atEnd(c.stop)
	}
	return c, err
}

func (w *world) startSimulator() error {
	config := filepath.Join(w.folder, "simulator.json")
	if err := os.WriteFile(config, w.file.World.Simulator, 0o600); err != nil {
		return err
	}
	c, err := w.start(w.binaries.simulator, "-config", config, "-addr", "127.0.0.1:0", "-control-addr", "127.0.0.1:0")
	if err != nil {
		return err
	}
	line, err := c.line("jelousim ")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(line) {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "api":
			w.jelou = value
		case "control":
			w.simulator = value
		}
	}
	return nil
}

func (w *world) startStandIn() (err error) {
	if w.stand, err = newStandIn(); err == nil {
		w.atEnd(w.stand.close)
	}
	return err
}

func (w *world) startRunner() (err error) {
	w.runner, err = newRunner(w.language.runner)
	if err == nil {
		w.atEnd(w.runner.close)
	}
	return err
}

// address is where a server listens for the language, which is started when it is first asked for.
func (w *world) address(name string) (string, error) {
	name = or(name, "main")
	if name == "stand-in" {
		return w.stand.address(w.language.rest), nil
	}
	s := w.servers[name]
	if s == nil {
		var err error
		if s, err = w.startServer(name); err != nil {
			return "", err
		}
		w.servers[name] = s
	}
	if w.language.rest {
		return "http://" + s.rest.address(), nil
	}
	return s.grpc.address(), nil
}

// startServer starts a server by its name: the ledger of held is a copy, as a restored backup is.
func (w *world) startServer(name string) (*server, error) {
	ledger := filepath.Join(w.folder, name+".db")
	if name == "held" {
		first, _, _, err := w.startFacade(name, filepath.Join(w.folder, "original.db"))
		if err != nil {
			return nil, err
		}
		first.stop()
		data, err := os.ReadFile(filepath.Join(w.folder, "original.db"))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(ledger, data, 0o600); err != nil {
			return nil, err
		}
	}
	c, grpc, rest, err := w.startFacade(name, ledger)
	if err != nil {
		return nil, err
	}
	s := &server{child: c}
	if s.grpc, err = newProxy(grpc); err != nil {
		return nil, err
	}
	w.atEnd(s.grpc.close)
	if s.rest, err = newProxy(rest); err != nil {
		return nil, err
	}
	w.atEnd(s.rest.close)
	return s, nil
}

// startFacade starts the server and returns where it listens.
func (w *world) startFacade(name, ledger string) (c *child, grpc, rest string, err error) {
	config := filepath.Join(w.folder, name+".json")
	if err := w.writeConfig(config, ledger); err != nil {
		return nil, "", "", err
	}
	if c, err = w.start(w.binaries.facade, "serve", "--config", config, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"); err != nil {
		return nil, "", "", err
	}
	if grpc, err = c.line("gRPC "); err != nil {
		return nil, "", "", err
	}
	if rest, err = c.line("REST http://"); err != nil {
		return nil, "", "", err
	}
	return c, grpc, rest, nil
}

// writeConfig writes the server's configuration, which is YAML and so may be JSON.
func (w *world) writeConfig(name, ledger string) error {
	var companies []map[string]any
	for _, spec := range w.file.World.Companies {
		credential := filepath.Join(w.folder, spec.ID+".credential")
		if err := os.WriteFile(credential, []byte(spec.ID+"\n"), 0o600); err != nil {
			return err
		}
		company := map[string]any{
			"id": spec.ID, "bots": spec.Bots, "base_url": or(spec.BaseURL, w.jelou), "client_id_file": credential, "client_secret_file": credential,
		}
		if spec.Allowance != nil {
			company["allowance"] = spec.Allowance
		}
		if spec.Answer != nil {
			url, err := w.startAnswer(spec.Answer.Status, spec.Answer.Body)
			if err != nil {
				return err
			}
			company["base_url"] = url
		}
		companies = append(companies, company)
	}
	config := map[string]any{
		"ledger": map[string]any{"path": ledger}, "companies": companies, "bounds": w.file.World.Bounds,
		"admin": map[string]any{"address": "127.0.0.1:0"}, "log": map[string]any{"level": "INFO", "format": "TEXT"}, "shutdown": map[string]any{"drain_timeout": "1s"},
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

// startAnswer is a Jelou that answers the same to everything.
func (w *world) startAnswer(status int, body []byte) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := &http.Server{ReadHeaderTimeout: startTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "answers:", err)
		}
	}()
	w.atEnd(func() { _ = s.Close() })
	return "http://" + l.Addr().String(), nil
}
