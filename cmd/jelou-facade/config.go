package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"buf.build/go/protovalidate"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	_ "embed"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
)

//go:embed facade.yaml
var exampleConfig string

func newConfigCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "config",
		Short: "Check a configuration file, or print a commented example",
	}
	command.AddCommand(
		&cobra.Command{
			Use:     "check FILE",
			Short:   "Check a configuration file and the files that it names; changes nothing",
			Example: "  jelou-facade config check facade.yaml",
			Args:    cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := loadConfig(args[0])
				if err != nil {
					return err
				}
				bots := 0
				for _, company := range c.Companies {
					if _, _, err := readCredential(company); err != nil {
						return fmt.Errorf("%s: company %s: %w", args[0], company.Id, err)
					}
					bots += len(company.Bots)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good: %d companies, %d bots\n", args[0], len(c.Companies), bots)
				return err
			},
		},
		&cobra.Command{
			Use:     "example",
			Short:   "Print a commented configuration file",
			Example: "  jelou-facade config example > facade.yaml",
			Args:    cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprint(cmd.OutOrStdout(), exampleConfig)
				return err
			},
		},
	)
	return command
}

// Where the server listens when the file says nothing.
const (
	defaultGRPCAddress = "127.0.0.1:50051"
	defaultHTTPAddress = "127.0.0.1:8080"
	defaultLedgerPath  = "jelou-facade.db"
	defaultBaseURL     = "https://api.jelou.ai"
)

// loadConfig reads a file strictly, fills in the defaults and checks everything that can be checked without opening
// anything else.
func loadConfig(path string) (*configv1.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Files are named relative to the configuration file, wherever the server is started.
	folder := filepath.Dir(path)
	for _, company := range c.Companies {
		company.ClientIdFile = relativeTo(folder, company.ClientIdFile)
		company.ClientSecretFile = relativeTo(folder, company.ClientSecretFile)
	}
	if c.Ledger.Path != "" {
		c.Ledger.Path = relativeTo(folder, c.Ledger.Path)
	}
	return c, nil
}

func relativeTo(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

func parseConfig(data []byte) (*configv1.Config, error) {
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	c := &configv1.Config{}
	if err := protojson.Unmarshal(asJSON, c); err != nil {
		return nil, configError(err)
	}
	if err := protovalidate.Validate(c); err != nil {
		return nil, err
	}
	for _, company := range c.Companies {
		if _, err := paceOf(company); err != nil {
			return nil, fmt.Errorf("company %s: %w", company.Id, err)
		}
	}
	setDefaults(c)
	return c, errors.Join(checkBots(c), checkAddress("listen.grpc", c.Listen.Grpc), checkAddress("listen.http", c.Listen.Http))
}

// configError drops protojson's line and column: they count in the JSON that the YAML became.
func configError(err error) error {
	text := strings.TrimPrefix(err.Error(), "proto:")
	text = strings.TrimLeft(text, " \u00a0")
	if strings.HasPrefix(text, "(line ") {
		if _, rest, ok := strings.Cut(text, "): "); ok {
			text = rest
		}
	}
	return errors.New(text + "; `jelou-facade config example` shows all fields")
}

func setDefaults(c *configv1.Config) {
	if c.Listen == nil {
		c.Listen = &configv1.Listen{}
	}
	if c.Ledger == nil {
		c.Ledger = &configv1.Ledger{}
	}
	if c.Ledger.Url == "" && c.Ledger.Path == "" {
		c.Ledger.Path = defaultLedgerPath
	}
	setDefault(&c.Listen.Grpc, defaultGRPCAddress)
	setDefault(&c.Listen.Http, defaultHTTPAddress)
	for _, company := range c.Companies {
		setDefault(&company.BaseUrl, defaultBaseURL)
	}
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

// checkBots finds bots that two companies claim.
func checkBots(c *configv1.Config) error {
	owner := map[string]string{}
	for _, company := range c.Companies {
		for _, bot := range company.Bots {
			if other, taken := owner[bot]; taken {
				return fmt.Errorf("companies: bot %q is in %s and in %s; it must be in one", bot, other, company.Id)
			}
			owner[bot] = company.Id
		}
	}
	return nil
}

// checkAddress refuses what would let anybody on the network send in the company's name.
func checkAddress(field, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s: %s is not a loopback address, and this server has no authentication yet: listen on 127.0.0.1 and put a proxy that authenticates in front", field, address)
}

// readCredential reads a company's credential from its files.
func readCredential(c *configv1.Company) (id, secret string, err error) {
	if id, err = readSecret("client_id_file", c.ClientIdFile); err != nil {
		return "", "", err
	}
	secret, err = readSecret("client_secret_file", c.ClientSecretFile)
	return id, secret, err
}

// readSecret reads a file of one line. Its errors name the file and never what stands in it.
func readSecret(field, path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" || strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("%s: %s must have exactly one line", field, path)
	}
	return secret, nil
}

// newLogger is the logger that the file asks for.
func newLogger(c *configv1.Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: logLevels[c.GetLevel()]}
	if c.GetFormat() == configv1.Log_TEXT {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}

var logLevels = map[configv1.Log_Level]slog.Level{
	configv1.Log_DEBUG: slog.LevelDebug, configv1.Log_INFO: slog.LevelInfo, configv1.Log_WARN: slog.LevelWarn, configv1.Log_ERROR: slog.LevelError,
}
