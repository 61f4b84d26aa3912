package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

type serveFlags struct {
	config, grpcAddr, httpAddr string
	sandbox                    bool
}

func newServeCommand() *cobra.Command {
	var flags serveFlags
	command := &cobra.Command{
		Use:   "serve",
		Short: "Serve gRPC and REST",
		Long: `Serve listens for gRPC and REST, stores every send in the ledger and sends it through Jelou under the company's allowance.

With --sandbox it runs against a simulator of Jelou in the same process: nothing else is needed, nothing reaches
Jelou, and what was stored is gone at the end. The sandbox has the company "sandbox", the bot "demo", the user
593991234567 with an open 24-hour window, and the approved template "order_ready" with two parameters.

SIGINT or SIGTERM stops it: running calls finish within shutdown.drain_timeout.`,
		Example: `  jelou-facade serve --sandbox
  jelou-facade serve --config facade.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), flags, cmd.OutOrStdout()) },
	}
	command.Flags().StringVar(&flags.config, "config", "", "configuration `file` (see: jelou-facade config example)")
	command.Flags().BoolVar(&flags.sandbox, "sandbox", false, "run against a simulator of Jelou in this process")
	command.Flags().StringVar(&flags.grpcAddr, "grpc-addr", "", "listen for gRPC on `host:port` instead of the configured address; port 0 takes a free one")
	command.Flags().StringVar(&flags.httpAddr, "http-addr", "", "listen for REST on `host:port` instead of the configured address; port 0 takes a free one")
	command.MarkFlagsMutuallyExclusive("config", "sandbox")
	command.MarkFlagsOneRequired("config", "sandbox")
	return command
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, flags serveFlags, out io.Writer) (err error) {
	var config *configv1.Config
	var box *sandbox
	if flags.sandbox {
		if box, err = newSandbox(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, box.close()) }()
		config = box.config
	} else if config, err = loadConfig(flags.config); err != nil {
		return err
	}
	if flags.grpcAddr != "" {
		config.Listen.Grpc = flags.grpcAddr
	}
	if flags.httpAddr != "" {
		config.Listen.Http = flags.httpAddr
	}
	if err := checkListen(config, nil); err != nil {
		return err
	}
	log := newLogger(config.Log)
	l, err := ledger.Open(ctx, ledger.Config{
		Path: config.Ledger.Path, URL: config.Ledger.Url, ListenURL: config.Ledger.ListenUrl,
		Replica: uuid.NewString(), Logger: log, Retention: ledger.Retention{Final: config.Ledger.Retention.AsDuration()},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	server, closeClients, err := newServer(ctx, config, l, log)
	if err != nil {
		return err
	}
	defer closeClients()
	if box != nil {
		box.welcome(out, server)
	} else {
		fmt.Fprintf(out, "gRPC %s\nREST http://%s\n", server.GRPCAddr(), server.HTTPAddr())
	}
	return server.Run(ctx)
}

// newServer makes the companies of the configuration and the server that sends for them.
func newServer(ctx context.Context, config *configv1.Config, l *ledger.Ledger, log *slog.Logger) (*service.Server, func(), error) {
	var clients []*jelou.Client
	closeClients := func() {
		for _, c := range clients {
			c.Close()
		}
	}
	bots := map[string]*dispatch.Company{}
	for _, c := range config.Companies {
		company, err := newCompany(ctx, c, l)
		if err != nil {
			closeClients()
			return nil, nil, fmt.Errorf("company %s: %w", c.Id, err)
		}
		clients = append(clients, company.Client)
		for _, bot := range c.Bots {
			bots[bot] = company
		}
	}
	callers, err := caller.NewSource(ctx, log).Load(config.Callers, config.Authentication)
	if err != nil {
		closeClients()
		return nil, nil, err
	}
	k, err := newKeys(config.Listen.Tls)
	if err != nil {
		closeClients()
		return nil, nil, err
	}
	server, err := service.New(service.Config{
		GRPCAddress: config.Listen.Grpc, HTTPAddress: config.Listen.Http, TLS: k.config(),
		Connections: service.Connections{
			Most: int(config.Listen.MaxConnections), Age: config.Listen.MaxConnectionAge.AsDuration(),
			Grace: config.Listen.MaxConnectionAgeGrace.AsDuration(), Keepalive: config.Listen.Keepalive.AsDuration(),
		},
		Ledger: l, Settings: settingsOf(config, bots, callers), Logger: log,
	})
	if err != nil {
		closeClients()
		return nil, nil, err
	}
	return server, closeClients, nil
}

// settingsOf is what may change while the server runs.
func settingsOf(config *configv1.Config, bots map[string]*dispatch.Company, callers *caller.Set) service.Settings {
	return service.Settings{
		Bots: bots, Callers: callers, DrainTimeout: config.Shutdown.GetDrainTimeout().AsDuration(),
		Bounds: service.Bounds{
			Company: int64(config.Bounds.GetCompanyWaiting()), Lane: int64(config.Bounds.GetLaneWaiting()), Caller: int64(config.Bounds.GetCallerWaiting()),
		},
	}
}

var evidence = map[configv1.Company_Evidence]pace.Evidence{
	configv1.Company_TRANSPORT: pace.EvidenceTransport, configv1.Company_AUTO: pace.EvidenceAuto,
}

// paceOf is the rule by which a company sends.
func paceOf(c *configv1.Company) (pace.Config, error) {
	rule := pace.Config{
		Requests: int(c.Allowance.GetRequests()), Window: c.Allowance.GetWindow().AsDuration(),
		Evidence: evidence[c.Evidence], LowerFloor: int(c.LowerLaneFloor),
	}
	if rule.Evidence != pace.EvidenceReply && c.ProxyUrl != "" {
		return rule, errors.New("evidence: must be REPLY with proxy_url: the acknowledgements would be the proxy's, and not Jelou's")
	}
	return rule, rule.Validate()
}

func newCompany(ctx context.Context, c *configv1.Company, l *ledger.Ledger) (*dispatch.Company, error) {
	rule, err := paceOf(c)
	if err != nil {
		return nil, err
	}
	// Read for every request: a credential that was changed holds from the next one on.
	credential := func() (string, string, error) { return readCredential(c) }
	if _, _, err := credential(); err != nil {
		return nil, err
	}
	client, err := jelou.New(jelou.Config{
		BaseURL: c.BaseUrl, NotificationPath: c.NotificationPath, ProxyURL: c.ProxyUrl, AttemptTimeout: c.AttemptTimeout.AsDuration(),
		Credential: credential,
	})
	if err != nil {
		return nil, err
	}
	id, err := l.Company(ctx, c.Id)
	if err != nil {
		client.Close()
		return nil, err
	}
	return &dispatch.Company{
		ID: id, Name: c.Id, Client: client, Pace: rule, Credential: credential,
		AttemptTimeout: c.AttemptTimeout.AsDuration(), RecipientInterval: c.RecipientInterval.AsDuration(),
	}, nil
}
