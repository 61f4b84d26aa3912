package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"buf.build/go/protovalidate"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	_ "embed"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
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
				if _, err := caller.NewSource(cmd.Context(), nil).Load(c.Callers, c.Authentication); err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good: %d companies, %d bots, %d callers\n", args[0], len(c.Companies), bots, len(c.Callers))
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
	defaultAdmin       = "127.0.0.1:9464"
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
	eachFile(c, func(name string) string { return relativeTo(folder, name) })
	return c, nil
}

// eachFile gives every file that a configuration names another name: the fields that end in _file, and the ledger's path.
func eachFile(c *configv1.Config, rename func(string) string) {
	renameFiles(c.ProtoReflect(), rename)
	if c.Ledger.Path != "" {
		c.Ledger.Path = rename(c.Ledger.Path)
	}
}

func renameFiles(m protoreflect.Message, rename func(string) string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				renameFiles(v.List().Get(i).Message(), rename)
			}
		case f.Message() != nil:
			renameFiles(v.Message(), rename)
		case f.Kind() == protoreflect.StringKind && !f.IsList() && strings.HasSuffix(string(f.Name()), "_file") && v.String() != "":
			m.Set(f, protoreflect.ValueOfString(rename(v.String())))
		}
		return true
	})
}

func relativeTo(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

func parseConfig(data []byte) (*configv1.Config, error) {
	d, err := readYAML(data)
	if err != nil {
		return nil, err
	}
	c := &configv1.Config{}
	if err := protojson.Unmarshal(d.json.Bytes(), c); err != nil {
		return nil, configError(err)
	}
	if err := checkConfig(c, d); err != nil {
		return nil, err
	}
	setDefaults(c)
	return c, nil
}

// configError says on which line of the file protojson stopped. Its column is that of the JSON that the YAML became.
func configError(err error) error {
	text := strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
	text = strings.TrimPrefix(text, "syntax error ")
	if place := jsonPlace.FindStringSubmatch(text); place != nil {
		text = "line " + place[1] + ": " + strings.TrimPrefix(text, place[0])
	}
	text, _, _ = strings.Cut(jsonField.ReplaceAllStringFunc(text, snakeCase), `: "`) // not the value
	return errors.New(text + "; `jelou-facade config example` shows all fields")
}

var jsonPlace = regexp.MustCompile(`^\(line (\d+):\d+\): `)

// jsonField is a field as protojson names it.
var jsonField = regexp.MustCompile(`\bfield [A-Za-z]+`)

// checkConfig holds a configuration to the rules of its proto and to those about more than one field.
func checkConfig(c *configv1.Config, d *document) error {
	if err := protovalidate.Validate(c); err != nil {
		invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
		if !ok {
			return err
		}
		var all []error
		for _, v := range invalid.Violations {
			all = append(all, violation(d, v))
		}
		return errors.Join(all...)
	}
	for i, company := range c.Companies {
		if _, err := paceOf(company); err != nil {
			return d.at(fmt.Sprintf("companies[%d]", i), fmt.Errorf("company %s: %w", company.Id, err))
		}
	}
	if err := checkBots(c, d); err != nil {
		return err
	}
	if err := checkCallers(c, d); err != nil {
		return err
	}
	return checkListen(c, d)
}

// violation is a broken rule at its line. Rules about two fields name theirs in front of a colon.
func violation(d *document, v *protovalidate.Violation) error {
	path, text := protovalidate.FieldPathString(v.Proto.GetField()), v.Proto.GetMessage()
	if name, rest, ok := strings.Cut(text, ": "); ok && fieldName.MatchString(name) {
		path, text = strings.TrimPrefix(path+"."+name, "."), rest
	}
	return d.at(path, errors.New(text))
}

var fieldName = regexp.MustCompile(`^[a-z_]+$`)

func setDefaults(c *configv1.Config) {
	if c.Listen == nil {
		c.Listen = &configv1.Listen{}
	}
	if c.Ledger == nil {
		c.Ledger = &configv1.Ledger{}
	}
	if c.Admin == nil {
		c.Admin = &configv1.Admin{}
	}
	if c.Ledger.Url == "" && c.Ledger.Path == "" {
		c.Ledger.Path = defaultLedgerPath
	}
	setDefault(&c.Listen.Grpc, defaultGRPCAddress)
	setDefault(&c.Listen.Http, defaultHTTPAddress)
	setDefault(&c.Admin.Address, defaultAdmin)
	for _, company := range c.Companies {
		setDefault(&company.BaseUrl, defaultBaseURL)
	}
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

// checkBots finds bots and ids that two companies claim.
func checkBots(c *configv1.Config, d *document) error {
	owner := map[string]string{}
	for i, company := range c.Companies {
		for k, bot := range company.Bots {
			if other, taken := owner[bot]; taken {
				return d.at(fmt.Sprintf("companies[%d].bots[%d]", i, k), fmt.Errorf("the bot is in %s and in %s; it must be in one", other, company.Id))
			}
			owner[bot] = company.Id
		}
	}
	return nil
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

// newLogger is the logger that the file asks for, at a level that may change.
func newLogger(c *configv1.Log, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if c.GetFormat() == configv1.Log_TEXT {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}

var logLevels = map[configv1.Log_Level]slog.Level{
	configv1.Log_DEBUG: slog.LevelDebug, configv1.Log_INFO: slog.LevelInfo, configv1.Log_WARN: slog.LevelWarn, configv1.Log_ERROR: slog.LevelError,
}
