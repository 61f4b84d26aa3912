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

The configuration and the files that it names are read again when they change, and on SIGHUP. What cannot be used is refused with its
line and what was in force stays; /configz shows both. SIGHUP also opens the audit log again, after it was renamed.

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

// override puts the addresses of the flags in place of the file's.
func (f serveFlags) override(config *configv1.Config) {
	if f.grpcAddr != "" {
		config.Listen.Grpc = f.grpcAddr
	}
	if f.httpAddr != "" {
		config.Listen.Http = f.httpAddr
	}
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, flags serveFlags, out io.Writer) (err error) {
	var hung hangups
	if !flags.sandbox { // which ends with its terminal
		var stop func()
		hung, stop = catchHangups() // before anything that takes time
		defer stop()
	}
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
	flags.override(config)
	if err := checkListen(config, nil); err != nil {
		return err
	}
	level := &slog.LevelVar{}
	log, replica := newLogger(config.Log, level), uuid.NewString()
	measured, closeTelemetry, err := openTelemetry(ctx, config.Telemetry, replica, log)
	if err != nil {
		return err
	}
	defer closeTelemetry()
	audited, err := openAudit(config.Audit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, audited.Close()) }()
	l, err := ledger.Open(ctx, ledger.Config{
		Path: config.Ledger.Path, URL: config.Ledger.Url, ListenURL: config.Ledger.ListenUrl,
		Replica: replica, Logger: log, Meter: measured.Meter(), Retention: ledger.Retention{Final: config.Ledger.Retention.AsDuration()},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	live, err := newLive(ctx, flags, config, l, level, measured, audited, log)
	if err != nil {
		return err
	}
	defer live.close()
	if box != nil {
		box.welcome(out, live.server)
	} else {
		fmt.Fprintf(out, "gRPC %s\nREST %s\nadmin http://%s\n", live.server.GRPCAddr(), live.restURL(), live.server.AdminAddr())
		stop := live.follow(ctx, hung)
		defer stop()
	}
	return live.server.Run(ctx)
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
