package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// world is a simulated Jelou, the servers in front of it, and the runner of one language.
type world struct {
	file       *file
	binaries   *binaries
	language   language
	folder     string
	log        int       // number of log files
	identities variables // what servers and callers are known by

	simulator string // control URL
	jelou     string // API URL
	servers   map[string]*server
	stand     *standIn
	runner    *runner
	endings   []func()
}

// server is one jelou-facade with its configuration file, and where it listens itself.
type server struct {
	child      *child
	config     string
	ledger     string
	grpcAt     string
	restAt     string
	scheme     string // of REST
	grpc, rest *proxy
}

// newWorld makes a world without a language: nothing but the simulator runs.
func newWorld(f *file, b *binaries) (*world, error) {
	folder, err := os.MkdirTemp("", "jelou-clients-")
	if err != nil {
		return nil, err
	}
	w := &world{file: f, binaries: b, folder: folder, servers: map[string]*server{}}
	w.atEnd(func() { _ = os.RemoveAll(folder) })
	if err := w.startSimulator(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// inhabit has a language's runner call the servers of the world.
func (w *world) inhabit(ctx context.Context, l language) error {
	w.language = l
	if err := w.makeIdentities(ctx); err != nil {
		return err
	}
	if err := w.startStandIn(); err != nil {
		return err
	}
	return w.startRunner()
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

// address is where a server listens for the language.
func (w *world) address(name string) (string, error) {
	if name == "stand-in" {
		return w.stand.address(w.language.rest), nil
	}
	s, err := w.server(or(name, "main"))
	if err != nil {
		return "", err
	}
	if w.language.rest {
		return s.scheme + "://" + s.rest.address(), nil
	}
	return s.grpc.address(), nil
}

// files are those of a connection where they are.
func (w *world) files(t *exchange.TLS) *exchange.TLS {
	if t == nil {
		return nil
	}
	at := *t
	for _, name := range []*string{&at.CA, &at.Cert, &at.Key} {
		if *name != "" {
			*name = filepath.Join(w.folder, *name)
		}
	}
	return &at
}

// server is the one of a name, which is started when it is first asked for.
func (w *world) server(name string) (*server, error) {
	if s := w.servers[name]; s != nil {
		return s, nil
	}
	s := &server{config: filepath.Join(w.folder, name+".json"), ledger: filepath.Join(w.folder, name+".db"), grpcAt: "127.0.0.1:0", restAt: "127.0.0.1:0"}
	if err := w.writeConfig(name, s); err != nil {
		return nil, err
	}
	if err := w.startFacade(s); err != nil {
		return nil, err
	}
	for _, side := range []struct {
		at    string
		proxy **proxy
	}{{s.grpcAt, &s.grpc}, {s.restAt, &s.rest}} {
		p, err := newProxy(side.at)
		if err != nil {
			return nil, err
		}
		w.atEnd(p.close)
		*side.proxy = p
	}
	w.servers[name] = s
	return s, nil
}

// startFacade starts the server's process, again at the same addresses.
func (w *world) startFacade(s *server) (err error) {
	if s.child, err = w.start(w.binaries.facade, "serve", "--config", s.config, "--grpc-addr", s.grpcAt, "--http-addr", s.restAt); err != nil {
		return err
	}
	if s.grpcAt, err = s.child.line("gRPC "); err != nil {
		return err
	}
	rest, err := s.child.line("REST ")
	if err != nil {
		return err
	}
	s.scheme, s.restAt, _ = strings.Cut(rest, "://")
	return nil
}

// backUp copies a server's ledger: a stopped process leaves everything in the one file.
func (w *world) backUp(name string) error {
	s, err := w.server(name)
	if err != nil {
		return err
	}
	s.child.stop()
	data, err := os.ReadFile(s.ledger)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.ledger+".backup", data, 0o600); err != nil {
		return err
	}
	return w.startFacade(s)
}

// restore puts the copy in the place of the ledger.
func (w *world) restore(name string) error {
	s, err := w.server(name)
	if err != nil {
		return err
	}
	s.child.stop()
	if err := os.Rename(s.ledger+".backup", s.ledger); err != nil {
		return err
	}
	return w.startFacade(s)
}

// writeConfig writes the server's configuration, which is YAML and so may be JSON.
func (w *world) writeConfig(name string, s *server) error {
	own, ok := w.file.World.Servers[name]
	if !ok {
		return fmt.Errorf("the world has no server %q", name)
	}
	companies, err := w.companies()
	if err != nil {
		return err
	}
	config := map[string]any{
		"ledger": map[string]any{"path": s.ledger}, "companies": companies, "bounds": w.file.World.Bounds,
		"admin": map[string]any{"address": "127.0.0.1:0"}, "log": map[string]any{"level": "INFO", "format": "TEXT"}, "shutdown": map[string]any{"drain_timeout": "1s"},
	}
	if err := json.Unmarshal(w.identities.fill(own), &config); err != nil {
		return fmt.Errorf("server %s: %w", name, err)
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(s.config, data, 0o600)
}

// companies are those of every server, as its configuration has them.
func (w *world) companies() ([]map[string]any, error) {
	var companies []map[string]any
	for _, spec := range w.file.World.Companies {
		credential := filepath.Join(w.folder, spec.ID+".credential")
		if err := os.WriteFile(credential, []byte(spec.ID+"\n"), 0o600); err != nil {
			return nil, err
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
				return nil, err
			}
			company["base_url"] = url
		}
		companies = append(companies, company)
	}
	return companies, nil
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
