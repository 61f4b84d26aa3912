package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// sandbox is a simulator of Jelou on two loopback ports, and a configuration that leads to it.
type sandbox struct {
	folder  string
	config  *configv1.Config
	api     *http.Server
	control *http.Server
	seen    string // where the simulator shows what arrived
}

// newSandbox starts the simulator and writes the files that a configuration names.
func newSandbox() (_ *sandbox, err error) {
	simulated := jelousim.Sandbox()
	sim := jelousim.New(simulated)
	b := &sandbox{}
	if b.folder, err = os.MkdirTemp("", "jelou-facade-sandbox-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	api, apiURL, err := serveLoopback(sim)
	if err != nil {
		return nil, err
	}
	b.api = api
	control, controlURL, err := serveLoopback(sim.Control())
	if err != nil {
		return nil, err
	}
	b.control, b.seen = control, controlURL+"/sends"

	company := simulated.Companies[0]
	files := map[string]string{"client-id": company.ClientID, "client-secret": company.ClientSecret}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.folder, name), []byte(text+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	var bots []string
	for _, bot := range company.Bots {
		bots = append(bots, bot.ID)
	}
	b.config = &configv1.Config{
		Ledger: &configv1.Ledger{Path: filepath.Join(b.folder, defaultLedgerPath)},
		Companies: []*configv1.Company{{
			Id: "sandbox", BaseUrl: apiURL, Bots: bots,
			ClientIdFile: filepath.Join(b.folder, "client-id"), ClientSecretFile: filepath.Join(b.folder, "client-secret"),
		}},
		Admin: &configv1.Admin{Address: "127.0.0.1:0"}, // beside another server's
		Log:   &configv1.Log{Level: configv1.Log_INFO, Format: configv1.Log_TEXT},
	}
	setDefaults(b.config)
	return b, nil
}

// serveLoopback serves on a free loopback port.
func serveLoopback(handler http.Handler) (*http.Server, string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Println("sandbox:", err)
		}
	}()
	return server, "http://" + l.Addr().String(), nil
}

func (b *sandbox) close() error {
	var errs []error
	for _, s := range []*http.Server{b.api, b.control} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.folder))...)
}

// welcome says where everything is, and what to try.
func (b *sandbox) welcome(out io.Writer, s *service.Server) {
	rest := "http://" + s.HTTPAddr().String()
	fmt.Fprintf(out, `jelou-facade sandbox: nothing reaches Jelou, and everything is forgotten at the end (Ctrl-C).

  gRPC   %[2]s
  REST   %[1]s
  docs   %[1]s/docs
  admin  http://%[4]s/metrics
  what arrived at the simulated Jelou: curl -s %[3]s

Send a message, a notification, and the same over gRPC:

  curl -s %[1]s/v1/bots/demo/messages -H 'Content-Type: application/json' -d '{"user_id": "593991234567", "message": {"text": {"text": "Su pedido 8841 salió de bodega."}}, "request_id": "order-8841"}'

  curl -s %[1]s/v1/bots/demo/notifications -H 'Content-Type: application/json' -d '{"notification": {"element_name": "order_ready", "language": "es", "destinations": ["593991234567"], "parameters": ["Lucía", "991"]}}'

  go run github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4 -plaintext -d '{"bot_id": "demo", "user_id": "593991234567", "message": {"text": {"text": "Su pedido 8842 salió de bodega."}}}' %[2]s jelou.facade.v1.MessageService/SendMessage

`, rest, s.GRPCAddr(), b.seen, s.AdminAddr())
}
