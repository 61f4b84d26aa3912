// Command jelouctl is the command line of jelou-facade for people and scripts: it sends messages and whole files, watches
// what becomes of them, and explains every error. It is a client of the gRPC API and knows nothing else of the server.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/jelou-facade/jelou-facade/service/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is one run of the program: its streams and the flags that every command has.
type app struct {
	in       io.Reader
	out, err io.Writer

	output      string // one of the formats
	contextName string // empty: JELOUCTL_CONTEXT, or the current one
	flags       target // what the flags set, over what the context says
	plaintext   bool
	timeout     time.Duration

	running bool // the command line was right: what fails from here on is no misuse
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	a := &app{in: in, out: out, err: errs}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.running {
		a.output = outputOf(args)
		err = &failure{exit: exitUsage, text: err.Error(), next: "jelouctl --help lists the commands, and --help after a command its flags"}
	}
	return a.report(ctx, err)
}

// outputOf finds --output in a command line that is wrong, whatever stands before it.
func outputOf(args []string) string {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	output := flags.StringP("output", "o", formatTable, "")
	_ = flags.Parse(args) // what is wrong is known
	return *output
}

// command builds the whole tree.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "jelouctl",
		Short: "Send WhatsApp messages and files of them through jelou-facade, and watch what becomes of them",
		Long: `jelouctl talks to a jelou-facade server over gRPC. It sends single messages and notifications, whole files of them with a
progress bar, goes on by itself where it was cut, and explains every error.

Without a context it talks to 127.0.0.1:50051, where "jelou-facade serve --sandbox" listens:

  jelouctl send --bot demo --to 593991234567 --text 'Su pedido 8841 salió de bodega.'
  jelouctl batch send clients.csv --bot demo --map user_id=phone --text 'Hola {{.name}}'
  jelouctl capacity --bot demo

Contexts keep the address, the credentials and the bot of several servers: "jelouctl context set --help".
Standard output has the answer, standard error everything else; "jelouctl exit-codes" lists what a script can tell from the exit code.

Environment: JELOUCTL_CONTEXT, JELOUCTL_ADDRESS, JELOUCTL_API_KEY and JELOUCTL_BOT take the place of flags, but what a context has that
--context names is stronger; NO_COLOR turns colours off.`,
		Version:           version.Read().String(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", formatTable, "`format` of the answer: "+strings.Join(formats, ", "))
	flags.StringVar(&a.contextName, "context", "", "`name` of the context to use instead of the current one")
	flags.StringVar(&a.flags.Address, "address", "", "`host:port` of the server's gRPC, instead of the context's")
	flags.StringVar(&a.flags.APIKey.File, "api-key-file", "", "`file` with the API key, one line")
	flags.StringVar(&a.flags.TLS.CAFile, "tls-ca", "", "PEM `file` with the authorities that sign the server's certificate")
	flags.StringVar(&a.flags.TLS.CertFile, "tls-cert", "", "PEM `file` with the client's certificate")
	flags.StringVar(&a.flags.TLS.KeyFile, "tls-key", "", "PEM `file` with the client certificate's key")
	flags.StringVar(&a.flags.TLS.ServerName, "tls-server-name", "", "`name` in the server's certificate, where the address has another")
	flags.BoolVar(&a.plaintext, "plaintext", false, "talk without TLS to a server that is not on this machine")
	flags.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long one call may take, its retries included; streams go on for as long as they need")

	root.AddCommand(
		a.sendCommand(), a.notifyCommand(), a.batchCommand(), a.sendsCommand(), a.capacityCommand(),
		a.errorsCommand(), a.ledgerCommand(), a.contextCommand(), exitCodesTopic(),
	)
	a.mark(root)
	must(root.RegisterFlagCompletionFunc("output", fixed(formats...)))
	must(root.RegisterFlagCompletionFunc("context", a.completeContexts))
	return root
}

// mark makes every command note that it has begun and check the flags that all commands share.
func (a *app) mark(c *cobra.Command) {
	if begin := c.RunE; begin != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := checkFormat(a.output); err != nil {
				return err
			}
			a.running = true
			return begin(c, args)
		}
	}
	for _, child := range c.Commands() {
		a.mark(child)
	}
}

// group is a command that only has others below it.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return usage("%s: which one? %s", c.CommandPath(), strings.Join(names(c), ", "))
	}}
	c.AddCommand(children...)
	return c
}

func names(c *cobra.Command) []string {
	var all []string
	for _, child := range c.Commands() {
		all = append(all, child.Name())
	}
	return all
}

// must is for what only a slip in this program can break.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// note tells a person something that is no part of the answer.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.err, printable(fmt.Sprintf(format, args...)))
}
