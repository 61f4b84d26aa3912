package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

func newLedgerCommand() *cobra.Command {
	var config, unsent string
	command := &cobra.Command{
		Use:   "ledger",
		Short: "Look at the ledger, or release one that is held",
	}
	status := &cobra.Command{
		Use:     "status",
		Short:   "Count the sends by state, and say whether the ledger is held",
		Example: "  jelou-facade ledger status --config facade.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withLedger(cmd.Context(), config, func(l *ledger.Ledger, _ *configv1.Config) error {
				return printStatus(cmd.Context(), cmd.OutOrStdout(), l)
			})
		},
	}
	release := &cobra.Command{
		Use:   "release",
		Short: "Let a held ledger send again",
		Long: `Release ends the hold of a ledger that went back in time: a restored backup, a copied file, a failover that lost the
last commits. What it calls unsent may have been sent before, and only a person can say what to do about it:

  --unsent unknown   those sends become UNKNOWN: nothing is sent twice, and a person settles them with ResolveSend or ReplayBatch
  --unsent pending   they are sent, some of them perhaps a second time

Who released it, and how, is a line in the audit log where there is one.

A SQLite ledger can be released while its server is stopped, a PostgreSQL ledger at any time.`,
		Example: "  jelou-facade ledger release --config facade.yaml --unsent unknown",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, ok := map[string]ledger.State{"unknown": ledger.Unknown, "pending": ledger.Pending}[unsent]
			if !ok {
				return errors.New("--unsent: must be unknown or pending; `jelou-facade ledger release --help` says what they mean")
			}
			return withLedger(cmd.Context(), config, func(l *ledger.Ledger, c *configv1.Config) error {
				release := func() error { return l.Release(cmd.Context(), state) }
				if err := audited(c.Audit, "ledger release --unsent "+unsent, release); err != nil {
					return err
				}
				return printStatus(cmd.Context(), cmd.OutOrStdout(), l)
			})
		},
	}
	release.Flags().StringVar(&unsent, "unsent", "", "what becomes of sends that the ledger calls unsent: `unknown or pending`")
	for _, c := range []*cobra.Command{status, release} {
		c.Flags().StringVar(&config, "config", "", "configuration `file` of the server")
		if err := c.MarkFlagRequired("config"); err != nil {
			panic(err) // the flag is defined above
		}
	}
	command.AddCommand(status, release, newKeyCommand())
	return command
}

func newKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print a new key for ledger.encryption_key_file",
		Long: `Key prints one line for the file that ledger.encryption_key_file names. The first line of the file encrypts what is stored of a
send's content and recipients, and all lines decrypt. To change the key: add the new line at the end of the file of every
replica, then move it to the top of all of them; delete the old line once nothing is kept that it encrypted: docs/configuration.md says
when that is, and what changes meanwhile. Whoever loses the file loses what waits.`,
		Example: "  (umask 077; jelou-facade ledger key > ledger.key)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), keyring.New())
			return err
		},
	}
}

// withLedger opens the ledger of a configuration file. Opening is the check of where it lives.
func withLedger(ctx context.Context, file string, use func(*ledger.Ledger, *configv1.Config) error) (err error) {
	config, err := loadConfig(file)
	if err != nil {
		return err
	}
	l, err := ledger.Open(ctx, ledger.Config{
		Path: config.Ledger.Path, URL: config.Ledger.Url, ListenURL: config.Ledger.ListenUrl,
		Replica: uuid.NewString(), Logger: newLogger(config.Log, logLevels[config.Log.GetLevel()]),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return use(l, config)
}

func printStatus(ctx context.Context, out io.Writer, l *ledger.Ledger) error {
	halt, err := l.Halt(ctx)
	if err != nil {
		return err
	}
	n, err := l.Totals(ctx)
	if err != nil {
		return err
	}
	state := "sends"
	switch {
	case halt.Rewound:
		state = "held: it went back in time"
	case halt.Held:
		state = "held: it is another database than before"
	}
	_, err = fmt.Fprintf(out, "%s\naccepted %d = waiting %d + sent %d + failed %d + unknown %d + cancelled %d + expired %d\n",
		state, n.Accepted, n.Waiting, n.Sent, n.Failed, n.Unknown, n.Cancelled, n.Expired)
	return err
}
