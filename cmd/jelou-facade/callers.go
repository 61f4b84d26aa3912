package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

func newCallerCommand() *cobra.Command {
	var expires time.Duration
	create := &cobra.Command{
		Use:   "new NAME",
		Short: "Make an API key and print it, this once, with what to put into the configuration file",
		Long: `Make an API key for the caller NAME. The key is printed to standard output, this once: give it to the service that calls. What
stands in the configuration file is its hash, of which nobody can make the key; it is printed to standard error.`,
		Example: "  jelou-facade caller new orders\n  jelou-facade caller new orders --expires 2160h > orders.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !callerName.MatchString(args[0]) {
				return errors.New("NAME must be 1 to 63 lower-case letters, digits and dashes")
			}
			if expires < 0 {
				return errors.New("--expires must not be negative")
			}
			key := caller.NewKey()
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), key); err != nil {
				return err
			}
			return printCaller(cmd.ErrOrStderr(), args[0], key, expires)
		},
	}
	create.Flags().DurationVar(&expires, "expires", 0, "refuse the key after so much `time` from now on, for example 2160h; never by default")
	hash := &cobra.Command{
		Use:     "hash",
		Short:   "Print the hash of the API key on standard input",
		Example: "  jelou-facade caller hash < orders.key",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1<<10)).ReadString('\n')
			if key = strings.TrimRight(key, "\r\n"); err != nil && !errors.Is(err, io.EOF) || key == "" {
				return errors.New("standard input must have one line, the key")
			}
			if !caller.IsKey(key) {
				return errors.New("this is no key that `jelou-facade caller new` made, and others may be easy to guess")
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), hashOf(key))
			return err
		},
	}
	command := &cobra.Command{Use: "caller", Short: "Make API keys for the services that call"}
	command.AddCommand(create, hash)
	return command
}

var callerName = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

func hashOf(key string) string {
	hash := caller.HashKey(key)
	return hex.EncodeToString(hash[:])
}

// printCaller prints the caller as the configuration file has it.
func printCaller(out io.Writer, name, key string, expires time.Duration) error {
	until := ""
	if expires > 0 {
		until = "\n        expire_time: " + time.Now().Add(expires).UTC().Format(time.RFC3339)
	}
	_, err := fmt.Fprintf(out, `
Above is the key of %[1]s: it is shown only now, so give it to the service that calls. It sends it as
  authorization: Bearer KEY        or        x-api-key: KEY

Put this into the configuration file; where %[1]s is there already, only the two lines of the key, below its others:

callers:
  - name: %[1]s
    keys:
      - sha256: %[2]s%[3]s
    companies: ["*"] # or the ids of those that it may use
`, name, hashOf(key), until)
	return err
}

// checkCallers finds callers who are given what there is not.
func checkCallers(c *configv1.Config, d *document) error {
	bots := map[string]string{}
	companies := map[string]bool{"*": true}
	for _, company := range c.Companies {
		companies[company.Id] = true
		for _, bot := range company.Bots {
			bots[bot] = company.Id
		}
	}
	for i, known := range c.Callers {
		for j, id := range known.Companies {
			if !companies[id] {
				return d.at(fmt.Sprintf("callers[%d].companies[%d]", i, j), fmt.Errorf("there is no company %s", id))
			}
		}
		for j, bot := range known.Bots {
			if bots[bot] == "" {
				return d.at(fmt.Sprintf("callers[%d].bots[%d]", i, j), fmt.Errorf("no company has the bot %s", bot))
			}
		}
		if len(known.Certificates) > 0 && c.GetListen().GetTls().GetClientCaFile() == "" {
			return d.at(fmt.Sprintf("callers[%d].certificates", i), errors.New("needs listen.tls.client_ca_file: client certificates are not asked for without it"))
		}
	}
	return nil
}
