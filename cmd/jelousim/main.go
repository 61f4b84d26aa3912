// Command jelousim is an imitation of Jelou's REST API that a test can be run against.
//
// It prints one line once it serves:
//
//	jelousim api=http://127.0.0.1:7070 control=http://127.0.0.1:7071 seed=1234
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "jelousim:", err)
		os.Exit(1)
	}
}

const usage = `jelousim imitates Jelou's REST API, more strictly than Jelou.

Without -config it is a sandbox: company and secret "sandbox", bot "demo", user 593991234567 with an open
window, template order_ready with two parameters, five requests a second.

  curl -u sandbox:sandbox -H 'Content-Type: application/json' http://127.0.0.1:7070/v1/bots/demo/messages \
       -d '{"type":"text","userId":"593991234567","text":"Hola"}'

Flags:
`

// run serves until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("jelousim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		addr        = flags.String("addr", "127.0.0.1:7070", "`address` of Jelou's API, HTTP/1.1 and HTTP/2; port 0: a free one")
		controlAddr = flags.String("control-addr", "127.0.0.1:7071", "`address` of the control path, which has no authentication; port 0: a free one")
		configFile  = flags.String("config", "", "JSON `file`; see -print-config")
		printConfig = flags.Bool("print-config", false, "print the sandbox's configuration as an example, and stop")
		seed        = flags.Uint64("seed", 0, "seed of the random choices instead of the configuration's; 0: that one, or a drawn one")
		certFile    = flags.String("tls-cert", "", "PEM `file` with a certificate: serve Jelou's API by TLS, with -tls-key")
		keyFile     = flags.String("tls-key", "", "PEM `file` with the certificate's key")
		showVersion = flags.Bool("version", false, "print which build this is, and stop")
	)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
		fmt.Fprintf(stderr, "\nThe control path:\n%s", jelousim.ControlRoutes())
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: takes flags only; see -help", flags.Arg(0))
	}
	if *showVersion {
		_, err := fmt.Fprintln(stdout, "jelousim version", version.Read())
		return err
	}
	if *printConfig {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		return e.Encode(jelousim.Sandbox())
	}

	cfg, err := readConfig(*configFile)
	if err != nil {
		return err
	}
	if *seed != 0 {
		cfg.Seed = *seed
	}
	sim := jelousim.New(cfg)
	api, scheme, err := listen(sim, *addr, *certFile, *keyFile)
	if err != nil {
		return err
	}
	defer api.Close()
	control, err := net.Listen("tcp", *controlAddr)
	if err != nil {
		return fmt.Errorf("-control-addr %s: %w", *controlAddr, err)
	}
	defer control.Close()
	fmt.Fprintf(stdout, "jelousim api=%s://%s control=http://%s seed=%d\n", scheme, api.Addr(), control.Addr(), sim.Seed())
	return serve(ctx, []endpoint{
		{jelousim.HTTPServer(sim), api},
		{jelousim.HTTPServer(sim.Control()), control},
	})
}

func readConfig(name string) (jelousim.Config, error) {
	if name == "" {
		return jelousim.Sandbox(), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return jelousim.Config{}, err
	}
	defer f.Close()
	cfg, err := jelousim.ReadConfig(f)
	if err != nil {
		return jelousim.Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return cfg, nil
}

func listen(sim *jelousim.Server, addr, certFile, keyFile string) (l net.Listener, scheme string, err error) {
	var certificates []tls.Certificate
	if certFile != "" || keyFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, "", fmt.Errorf("-tls-cert, -tls-key: %w", err)
		}
		certificates = append(certificates, pair)
	}
	if l, err = net.Listen("tcp", addr); err != nil {
		return nil, "", fmt.Errorf("-addr %s: %w", addr, err)
	}
	l = sim.Listener(l)
	if certificates == nil {
		return l, "http", nil
	}
	return tls.NewListener(l, &tls.Config{Certificates: certificates, NextProtos: []string{"h2", "http/1.1"}}), "https", nil
}

// endpoint is a server and where it listens.
type endpoint struct {
	server   *http.Server
	listener net.Listener
}

// serve runs the servers until ctx ends or one of them fails, then gives requests under way five seconds.
func serve(ctx context.Context, endpoints []endpoint) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, e := range endpoints {
		go func() {
			if err := e.server.Serve(e.listener); !errors.Is(err, http.ErrServerClosed) {
				stop(err)
			}
		}()
	}
	<-ctx.Done()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, e := range endpoints {
		if e.server.Shutdown(bounded) != nil {
			e.server.Close()
		}
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
