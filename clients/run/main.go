// Command run runs the scenarios of clients/scenarios.json with the client of every language, against real servers and a
// simulated Jelou, and compares all that comes.
//
//	go run ./clients/run                       all languages: install, build, example, scenarios
//	go run ./clients/run -only python          one language
//	go run ./clients/run -scenarios '^batch'   some scenarios
//	go run ./clients/run -bench                measure calls per second, instead
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "clients/run:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	var (
		only    = flags.String("only", "", "comma-separated `languages`; all when empty")
		pattern = flags.String("scenarios", "", "run the scenarios whose names match the `regular expression`")
		bench   = flags.Bool("bench", false, "play no scenarios: measure calls per second to jelou-facade and to a bare server")
		asJSON  = flags.Bool("json", false, "with -bench: print one JSON object on the last line")
		verbose = flags.Bool("v", false, "print each scenario with its time")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	f, err := readFile(scenarioFile)
	if err != nil {
		return err
	}
	f.Scenarios = slices.DeleteFunc(f.Scenarios, func(s scenario) bool { return !wanted.MatchString(s.Name) })
	binaries, err := buildServers(ctx)
	if err != nil {
		return err
	}

	if *bench {
		return runBench(ctx, chosen, binaries, *asJSON)
	}

	table := results{file: f}
	for _, l := range chosen {
		column, err := runLanguage(ctx, l, f, binaries, *pattern == "", *verbose)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		table.columns = append(table.columns, column)
	}
	table.print(os.Stdout)
	return table.err()
}

// column is what came of one language.
type column struct {
	language string
	problems map[string]error // by scenario; nil: as expected
	example  error
}

// runLanguage installs, builds and runs one language.
func runLanguage(ctx context.Context, l language, f *file, b *binaries, withExample, verbose bool) (*column, error) {
	c := &column{language: l.name, problems: map[string]error{}}
	start := time.Now()
	if err := l.prepare(ctx, b.prepared); err != nil {
		return c, err
	}
	prepared := time.Since(start)
	var example sync.WaitGroup // it mostly waits for its turn
	defer example.Wait()
	if withExample && l.example != nil {
		example.Go(func() { c.example = runExample(ctx, l, b) })
	}
	w, err := newWorld(f, b)
	if err != nil {
		return c, err
	}
	defer w.close()
	if err := w.inhabit(ctx, l); err != nil {
		return c, err
	}
	for _, s := range f.Scenarios {
		if !s.runsOn(l) {
			continue
		}
		began := time.Now()
		err := w.play(ctx, s)
		c.problems[s.Name] = err
		if verbose || err != nil {
			fmt.Printf("%-12s %5.1f s  %s: %s\n", l.name, time.Since(began).Seconds(), s.Name, verdict(err))
		}
		if ctx.Err() != nil {
			return c, ctx.Err()
		}
	}
	example.Wait()
	fmt.Printf("%-12s prepared in %.0f s, ran in %.0f s\n", l.name, prepared.Seconds(), (time.Since(start) - prepared).Seconds())
	return c, nil
}

func verdict(err error) string {
	if err != nil {
		return "FAILED: " + err.Error()
	}
	return "ok"
}

// results is the table language by scenario.
type results struct {
	file    *file
	columns []*column
}

func (r results) print(out *os.File) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	header := []string{"scenario"}
	for _, c := range r.columns {
		header = append(header, c.language)
	}
	fmt.Fprintf(w, "\n%s\n", strings.Join(header, "\t"))
	for _, s := range r.file.Scenarios {
		row := []string{s.Name}
		for _, c := range r.columns {
			err, ran := c.problems[s.Name]
			switch {
			case !ran:
				row = append(row, "-")
			case err != nil:
				row = append(row, "FAILED")
			default:
				row = append(row, "ok")
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
	passed, failed := r.count()
	fmt.Fprintf(out, "\n%d passed, %d failed\n", passed, failed)
}

func (r results) count() (passed, failed int) {
	for _, c := range r.columns {
		if c.example != nil {
			failed++
		}
		for _, err := range c.problems {
			if err != nil {
				failed++
			} else {
				passed++
			}
		}
	}
	return passed, failed
}

func (r results) err() error {
	var errs []error
	for _, c := range r.columns {
		if c.example != nil {
			errs = append(errs, fmt.Errorf("%s: example: %w", c.language, c.example))
		}
	}
	if _, failed := r.count(); failed > 0 {
		errs = append(errs, fmt.Errorf("%d failed", failed))
	}
	return errors.Join(errs...)
}
