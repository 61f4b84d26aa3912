// Command jelou-bench measures jelou-facade against a simulated Jelou: real server processes, a simulator in a process of
// its own, a throw-away PostgreSQL where one is needed, everything on 127.0.0.1.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/jelou-facade/jelou-facade/service/version"
)

// benchmark is one measurement.
type benchmark struct {
	name  string
	short string
	long  string
	run   func(*bench) error
}

// benchmarks in the order in which the help lists them.
var benchmarks = []benchmark{
	overheadBenchmark, pacingBenchmark, limitBenchmark, lanesBenchmark, fairnessBenchmark, overloadBenchmark,
	throttleBenchmark, failoverBenchmark, clockBenchmark, etaBenchmark, crashBenchmark, cutsBenchmark,
	ingestBenchmark, companiesBenchmark, retriesBenchmark, rollingBenchmark, hostileBenchmark,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := newCommand(os.Stdout, os.Stderr).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "jelou-bench:", err)
		os.Exit(1)
	}
}

type flags struct {
	json, quick bool
	seed        uint64
}

func newCommand(stdout, stderr io.Writer) *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "jelou-bench NAME",
		Short: "Measure jelou-facade against a simulated Jelou",
		Long: `jelou-bench measures one thing at a time: it builds jelou-facade and jelousim into a temporary folder, starts them (and a
throw-away PostgreSQL where it needs one) on free ports of 127.0.0.1, puts a bounded load on them, and asks the
simulator what arrived. Everything it started is gone when it ends, also after Ctrl-C.

It must be run inside the repository, because it builds the commands that it measures.

A table goes to standard output and progress to standard error. With --json the last line of standard output is one
JSON object with the fields that each benchmark's help names. Goals are shown beside what was measured. The status is 1
when a goal was missed that must hold on any machine, such as "no window over the limit"; goals of speed only show.`,
		Example: `  jelou-bench overhead --quick
  jelou-bench pacing --json --seed 7 | tail -1
  jelou-bench pacing --help`,
		Version:       version.Read().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().BoolVar(&f.json, "json", false, "print one JSON object on the last line")
	root.PersistentFlags().BoolVar(&f.quick, "quick", false, "a smaller measurement that ends within 50 s")
	root.PersistentFlags().Uint64Var(&f.seed, "seed", 0, "seed of all random choices; 0 draws one, which is printed")
	root.AddCommand(otherCommand())
	for _, b := range benchmarks {
		root.AddCommand(&cobra.Command{
			Use: b.name, Short: b.short, Long: b.short + ".\n\n" + strings.TrimSpace(b.long), Args: cobra.NoArgs,
			Example: fmt.Sprintf("  jelou-bench %[1]s --quick\n  jelou-bench %[1]s --json", b.name),
			RunE:    func(cmd *cobra.Command, _ []string) error { return measure(cmd.Context(), b, f, stdout, stderr) },
		})
	}
	return root
}

// quickFor bounds a quick run from before the first process to after the last; what is built before has no bound.
const quickFor = 48 * time.Second

// measure runs one benchmark and prints what it found.
func measure(ctx context.Context, b benchmark, f flags, stdout, stderr io.Writer) (err error) {
	if f.seed == 0 {
		f.seed = rand.Uint64() >> 11 // 53 bits: exact as a JSON number everywhere
	}
	m := &bench{
		name: b.name, quick: f.quick, seed: f.seed, rng: rand.New(rand.NewPCG(f.seed, 1)),
		stderr: stderr, began: time.Now(),
	}
	if m.folder, err = os.MkdirTemp("", "jelou-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.end()) }()
	m.progress("seed %d", m.seed)
	if err := m.build(ctx, "jelou-facade", "jelousim"); err != nil {
		return err
	}
	m.began = time.Now()
	if f.quick {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, quickFor, errors.New("a quick run has to end within 50 s, and this machine is too slow for it now"))
		defer cancel()
	}
	m.ctx = ctx
	if err := b.run(m); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
		return err
	}
	m.progress("done")
	if err := m.found.print(stdout); err != nil {
		return err
	}
	if f.json {
		line, err := m.found.json(m)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(stdout, line); err != nil {
			return err
		}
	}
	if missed := m.found.missed(true); len(missed) > 0 {
		return fmt.Errorf("%s: missed what must hold: %s", b.name, strings.Join(missed, ", "))
	}
	return nil
}
