// Command jelou-facade is the server: a gRPC and REST facade in front of Jelou's REST API.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/jelou-facade/jelou-facade/service/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "jelou-facade:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "jelou-facade",
		Short: "A gRPC and REST facade in front of Jelou: one limiter, nothing lost, nothing sent twice",
		Long: `jelou-facade sends WhatsApp messages and notifications through Jelou for all services of a company: typed gRPC
and REST in front, one exact limiter in the middle, an honest Jelou client behind.

Begin with the sandbox, which needs nothing else:

  jelou-facade serve --sandbox

Then write a configuration file, check it, and serve:

  jelou-facade config example > facade.yaml
  jelou-facade config check facade.yaml
  jelou-facade serve --config facade.yaml`,
		Version:       version.Read().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newServeCommand(), newConfigCommand(), newCallerCommand(), newLedgerCommand(), newRehearseCommand())
	return root
}
