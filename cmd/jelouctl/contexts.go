package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// target is a server and how one talks to it. It holds no secret: only where the API key is found.
type target struct {
	Address string      `json:"address,omitempty" yaml:"address,omitempty"` // host:port; 127.0.0.1:50051 when empty
	Bot     string      `json:"bot,omitempty" yaml:"bot,omitempty"`         // of commands without --bot
	TLS     tlsSettings `json:"tls,omitzero" yaml:"tls,omitempty"`
	APIKey  keySource   `json:"api_key,omitzero" yaml:"api_key,omitempty"`
	// Plaintext talks without TLS to a server on another machine. On loopback that is so wherever no TLS file is set.
	Plaintext bool `json:"plaintext,omitempty" yaml:"plaintext,omitempty"`
}

type tlsSettings struct {
	CAFile     string `json:"ca_file,omitempty" yaml:"ca_file,omitempty"` // the system's authorities when empty
	CertFile   string `json:"cert_file,omitempty" yaml:"cert_file,omitempty"`
	KeyFile    string `json:"key_file,omitempty" yaml:"key_file,omitempty"`
	ServerName string `json:"server_name,omitempty" yaml:"server_name,omitempty"`
}

// keySource says where the API key is; at most one is set.
type keySource struct {
	File    string `json:"file,omitempty" yaml:"file,omitempty"`
	Env     string `json:"env,omitempty" yaml:"env,omitempty"`
	Command string `json:"command,omitempty" yaml:"command,omitempty"` // run by the shell; its first line is the key
}

// settings is the file with the contexts.
type settings struct {
	path     string
	Current  string            `yaml:"current,omitempty"`
	Contexts map[string]target `yaml:"contexts"`
}

const defaultAddress = "127.0.0.1:50051"

// readSettings reads the file; none is as an empty one.
func readSettings() (*settings, error) {
	folder, err := os.UserConfigDir()
	if err != nil {
		return nil, fmt.Errorf("where the contexts are: %w", err)
	}
	s := &settings{path: filepath.Join(folder, "jelouctl", "config.yaml"), Contexts: map[string]target{}}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	known := yaml.NewDecoder(bytes.NewReader(data))
	known.KnownFields(true)
	if err := known.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, invalid("%s: %v", s.path, err)
	}
	if s.Contexts == nil {
		s.Contexts = map[string]target{}
	}
	return s, nil
}

func (s *settings) write() error {
	data, err := yaml.Marshal(s)
	if err != nil {
		return err
	}
	return writeWhole(s.path, data)
}

// writeWhole replaces a file at once: a crash leaves the old one or the new one.
func writeWhole(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// target is what this run talks to: the flags, over the environment, over the context.
func (a *app) target() (target, error) {
	s, err := readSettings()
	if err != nil {
		return target{}, err
	}
	name := first(a.contextName, os.Getenv("JELOUCTL_CONTEXT"), s.Current)
	t, ok := s.Contexts[name]
	if !ok && name != "" {
		return target{}, usage("context %q: is none of %s; `jelouctl context list` shows them", name, s.path)
	}
	t.Address = first(a.flags.Address, a.ambient("JELOUCTL_ADDRESS", t.Address), defaultAddress)
	t.Plaintext = t.Plaintext || a.plaintext
	t.TLS.CAFile = first(a.flags.TLS.CAFile, t.TLS.CAFile)
	t.TLS.CertFile = first(a.flags.TLS.CertFile, t.TLS.CertFile)
	t.TLS.KeyFile = first(a.flags.TLS.KeyFile, t.TLS.KeyFile)
	t.TLS.ServerName = first(a.flags.TLS.ServerName, t.TLS.ServerName)
	switch {
	case a.flags.APIKey.File != "":
		t.APIKey = a.flags.APIKey
	case os.Getenv("JELOUCTL_API_KEY") != "" && (a.contextName == "" || t.APIKey == keySource{}):
		t.APIKey = keySource{Env: "JELOUCTL_API_KEY"}
	}
	return t, nil
}

// ambient is the environment's value over the context's; a context that --context names is stronger.
func (a *app) ambient(variable, context string) string {
	if a.contextName != "" {
		return first(context, os.Getenv(variable))
	}
	return first(os.Getenv(variable), context)
}

// bot is the bot that a command is about.
func (a *app) bot(flag string) (string, error) {
	t, err := a.target()
	if err != nil {
		return "", err
	}
	if bot := first(flag, a.ambient("JELOUCTL_BOT", t.Bot)); bot != "" {
		return bot, nil
	}
	return "", usage("--bot: which bot? (JELOUCTL_BOT and `jelouctl context set NAME --bot` set it, too)")
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// keyForm is what a header can carry.
var keyForm = regexp.MustCompile(`^[\x21-\x7e]+$`)

// read finds the API key, empty where there is none. No error has any of it.
func (k keySource) read(ctx context.Context) (string, error) {
	var key, from string
	switch {
	case k.File != "":
		data, err := os.ReadFile(k.File)
		if err != nil {
			return "", invalid("API key: %v", err)
		}
		key, from = string(data), k.File
	case k.Env != "":
		key, from = os.Getenv(k.Env), "environment variable "+k.Env
	case k.Command != "":
		out, err := shell(ctx, k.Command)
		if err != nil {
			return "", invalid("API key: the context's command: %v", err)
		}
		key, from = string(out), "the context's command"
	default:
		return "", nil
	}
	key = strings.TrimSpace(key)
	if !keyForm.MatchString(key) {
		return "", invalid("API key: %s has none: it must be one line of printable characters", from)
	}
	return key, nil
}

// shell runs a command with the user's terminal for its questions, and returns what it prints.
func shell(ctx context.Context, line string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	name, arg := "sh", "-c"
	if runtime.GOOS == "windows" {
		name, arg = "cmd", "/c"
	}
	c := exec.CommandContext(ctx, name, arg, line)
	c.Stdin, c.Stderr = os.Stdin, os.Stderr
	return c.Output()
}

func (a *app) contextCommand() *cobra.Command {
	return group("context", "Keep the addresses and credentials of several servers", a.contextListCommand(), a.contextUseCommand(), a.contextSetCommand(), a.contextDeleteCommand())
}

// namedTarget is a row of `context list`.
type namedTarget struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	target
}

var contextColumns = []column[namedTarget]{
	{"current", short, func(t namedTarget) string { return yes(t.Current) }},
	{"name", short, func(t namedTarget) string { return t.Name }},
	{"address", short, func(t namedTarget) string { return t.Address }},
	{"bot", short, func(t namedTarget) string { return t.Bot }},
	{"transport", short, func(t namedTarget) string { return t.transport() }},
	{"api_key", short, func(t namedTarget) string { return t.APIKey.String() }},
}

// String says where the key is, never what it is. A command may have a secret in it.
func (k keySource) String() string {
	switch {
	case k.File != "":
		return "file " + k.File
	case k.Env != "":
		return "environment " + k.Env
	case k.Command != "":
		return "command"
	}
	return "none"
}

func (a *app) contextListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the contexts; no key is ever shown", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := readSettings()
			if err != nil {
				return err
			}
			current := first(a.contextName, os.Getenv("JELOUCTL_CONTEXT"), s.Current)
			return printAll(a, "contexts", contextColumns, func(yield func(namedTarget) bool) {
				for _, name := range slices.Sorted(maps.Keys(s.Contexts)) {
					t := s.Contexts[name]
					if t.APIKey.Command != "" {
						t.APIKey.Command = "set"
					}
					if !yield(namedTarget{name, name == current, t}) {
						return
					}
				}
			})
		},
	}
}

func (a *app) contextUseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return changeContext(args[0], func(s *settings) { s.Current = args[0] })
		},
	}
}

func (a *app) contextDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Forget a context", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return changeContext(args[0], func(s *settings) {
				delete(s.Contexts, args[0])
				if s.Current == args[0] {
					s.Current = ""
				}
			})
		},
	}
}

// changeContext changes the settings where the context is there.
func changeContext(name string, change func(*settings)) error {
	s, err := readSettings()
	if err != nil {
		return err
	}
	if _, ok := s.Contexts[name]; !ok {
		return usage("context %q: is none of %s", name, s.path)
	}
	change(s)
	return s.write()
}

var contextName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func (a *app) contextSetCommand() *cobra.Command {
	var key keySource
	var bot string
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Make or change a context; what is not said stays as it is",
		Long: `Makes or changes a context from the flags --address, --bot, --tls-…, --plaintext and one of --api-key-file, --api-key-env and
--api-key-command. The key itself is never stored: only where it is found. The first context becomes the current one.`,
		Example: `  jelouctl context set sandbox --address 127.0.0.1:50051 --bot demo
  jelouctl context set tienda --address facade.internal:443 --tls-ca ca.pem --api-key-command 'pass show jelou/tienda'`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(c *cobra.Command, args []string) error {
			if !contextName.MatchString(args[0]) {
				return usage("context %q: must be 1 to 64 letters, digits, dots, dashes or underscores", args[0])
			}
			s, err := readSettings()
			if err != nil {
				return err
			}
			if key != (keySource{}) && a.flags.APIKey.File != "" {
				return usage("--api-key-file, --api-key-env and --api-key-command exclude each other")
			}
			key.File = a.flags.APIKey.File
			t, err := a.changed(s.Contexts[args[0]], key, bot, c.Flags().Changed("plaintext"))
			if err != nil {
				return err
			}
			s.Contexts[args[0]] = t
			if s.Current == "" {
				s.Current = args[0]
			}
			return s.write()
		},
	}
	c.Flags().StringVar(&bot, "bot", "", "`id` of the bot of commands without --bot")
	c.Flags().StringVar(&key.Env, "api-key-env", "", "`name` of the environment variable with the API key")
	c.Flags().StringVar(&key.Command, "api-key-command", "", "shell `command` that prints the API key, such as that of a password store")
	c.MarkFlagsMutuallyExclusive("api-key-env", "api-key-command")
	return c
}

// changed is a context with what the flags say. Files are kept with their whole path: the next run is elsewhere.
func (a *app) changed(t target, key keySource, bot string, plaintext bool) (target, error) {
	t.Address, t.Bot = first(a.flags.Address, t.Address, defaultAddress), first(bot, t.Bot)
	if plaintext {
		t.Plaintext = a.plaintext
	}
	if key != (keySource{}) {
		t.APIKey = key
	}
	t.TLS.CAFile = first(a.flags.TLS.CAFile, t.TLS.CAFile)
	t.TLS.CertFile = first(a.flags.TLS.CertFile, t.TLS.CertFile)
	t.TLS.KeyFile = first(a.flags.TLS.KeyFile, t.TLS.KeyFile)
	t.TLS.ServerName = first(a.flags.TLS.ServerName, t.TLS.ServerName)
	for _, file := range []*string{&t.APIKey.File, &t.TLS.CAFile, &t.TLS.CertFile, &t.TLS.KeyFile} {
		if *file == "" {
			continue
		}
		whole, err := filepath.Abs(*file)
		if err != nil {
			return t, err
		}
		*file = whole
	}
	return t, nil
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	s, err := readSettings()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.Sorted(maps.Keys(s.Contexts)), cobra.ShellCompDirectiveNoFileComp
}
