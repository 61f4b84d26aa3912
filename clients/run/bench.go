package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/jelou-facade/jelou-facade/clients/exchange"
)

// How the clients are measured.
const (
	benchRounds  = 3
	benchSeconds = 1.5    // of one measurement, about
	benchCalls   = 30_000 // of one measurement, at most
	concurrent   = 16
	benchUsers   = 100 // of each of those who call at the same time
)

// benchWorld is a server whose allowance nobody can use up, with the log of one in production left out.
var benchWorld = file{World: worldSpec{
	Simulator: json.RawMessage(`{"companies": [{"client_id": "shop", "client_secret": "shop", "bots": [{"id": "demo"}]}], "everyone_open": true}`),
	Companies: []companySpec{{ID: "shop", Bots: []string{"demo"}, Allowance: json.RawMessage(`{"requests": 1000, "window": "0.1s"}`)}},
	Bounds:    json.RawMessage(`{}`),
	Servers:   map[string]json.RawMessage{"main": json.RawMessage(`{"log": {"level": "WARN"}}`)},
}}

// benchRequests are those of one of the concurrent callers, to users of its own: sends to the same one wait for each other.
func benchRequests(caller int) []json.RawMessage {
	requests := make([]json.RawMessage, benchUsers)
	for i := range requests {
		requests[i] = json.RawMessage(fmt.Sprintf(`{"bot_id": "demo", "user_id": "5939912%05d", "message": {"text": {"text": "Su pedido 8841 salió de bodega."}}, "options": {"lane": "URGENT"}}`, caller*benchUsers+i))
	}
	return requests
}

// speed is a client's at a number of calls at a time: calls per second, the median of all rounds.
type speed struct {
	AtATime int     `json:"at_a_time"`
	Bare    float64 `json:"bare"`
	Facade  float64 `json:"facade"`
	Ratio   float64 `json:"ratio"`
}

// measured is what came of one client.
type measured struct {
	Client string  `json:"client"`
	Speeds []speed `json:"speeds"`
}

// target is one server that a client calls so many times at once.
type target struct {
	runner  *runner
	address string
	atATime int
	calls   int // of a measurement
	rates   []float64
}

// runBench measures SendMessage of each client to jelou-facade, on an SQLite ledger, and beside it to a bare server that gives the same answer.
// All clients take turns in every round, and the two servers within each turn.
func runBench(ctx context.Context, chosen []language, b *binaries, asJSON bool) error {
	w, err := newWorld(&benchWorld, b)
	if err != nil {
		return err
	}
	defer w.close()
	targets, err := w.benchTargets(ctx, chosen)
	if err != nil {
		return err
	}
	for round := range benchRounds + 1 { // the first one warms up, and finds out how many calls a measurement takes
		for _, t := range targets {
			if err := t.round(ctx, round == 0); err != nil {
				return err
			}
		}
	}
	all := make([]measured, len(chosen))
	for i, l := range chosen {
		all[i].Client = l.name
		for at := 4 * i; at < 4*(i+1); at += 2 {
			bare, facade := median(targets[at].rates), median(targets[at+1].rates)
			all[i].Speeds = append(all[i].Speeds, speed{targets[at].atATime, math.Round(bare), math.Round(facade), math.Round(1000*facade/bare) / 1000})
		}
	}
	if err := printBench(os.Stdout, all); err != nil || !asJSON {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"benchmark": "clients", "rounds": benchRounds, "clients": all})
}

// benchTargets starts both servers and all clients. Each client has four: bare and facade, one at a time and concurrent.
func (w *world) benchTargets(ctx context.Context, chosen []language) ([]*target, error) {
	facade, err := w.server("main")
	if err != nil {
		return nil, err
	}
	bareGRPC, bareREST, err := w.startBare(ctx, facade)
	if err != nil {
		return nil, err
	}
	var targets []*target
	for _, l := range chosen {
		if err := l.prepare(ctx, w.binaries.prepared); err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		r, err := newRunner(l.runner)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		w.atEnd(r.close)
		addresses := []string{bareGRPC, facade.grpcAt}
		if l.rest {
			addresses = []string{bareREST, "http://" + facade.restAt}
		}
		for _, atATime := range []int{1, concurrent} {
			for _, address := range addresses {
				targets = append(targets, &target{runner: r, address: address, atATime: atATime})
			}
		}
	}
	return targets, nil
}

// startBare starts a bare server that answers as the facade did once.
func (w *world) startBare(ctx context.Context, facade *server) (overGRPC, overREST string, err error) {
	build := exec.CommandContext(ctx, "go", "build", "-o", "bin/", "./clients/bare")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", "", err
	}
	response, err := http.Post("http://"+facade.restAt+"/v1/bots/demo/messages", "application/json", strings.NewReader(
		strings.Replace(string(benchRequests(0)[0]), `"bot_id": "demo", `, "", 1)))
	if err != nil {
		return "", "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return "", "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("the facade answered %s", answer)
	}
	name := filepath.Join(w.folder, "answer.json")
	if err := os.WriteFile(name, answer, 0o600); err != nil {
		return "", "", err
	}
	c, err := w.start("bin/bare", name)
	if err != nil {
		return "", "", err
	}
	if overGRPC, err = c.line("gRPC "); err != nil {
		return "", "", err
	}
	overREST, err = c.line("REST ")
	return overGRPC, overREST, err
}

// round measures a target once; a first round finds out how many calls it takes.
func (t *target) round(ctx context.Context, first bool) error {
	if !first {
		rate, err := t.measure(ctx)
		t.rates = append(t.rates, rate)
		return err
	}
	t.calls = 20 * t.atATime
	for range 2 {
		rate, err := t.measure(ctx)
		if err != nil {
			return err
		}
		t.calls = min(max(int(rate*benchSeconds), t.atATime), benchCalls)
	}
	return nil
}

// measure has the client make the calls and returns how many there were in a second. Each of those who call at the same time is a
// command of its own.
func (t *target) measure(ctx context.Context) (float64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	each := t.calls / t.atATime
	var calls []*call
	for i := range t.atATime {
		c, err := t.runner.start(exchange.Command{
			Address: t.address, RPC: "jelou.facade.v1.MessageService/SendMessage", Requests: benchRequests(i), Repeat: each, Concurrency: 1,
		})
		if err != nil {
			return 0, err
		}
		calls = append(calls, c)
	}
	longest := 0.0
	for _, c := range calls {
		out, _, err := t.runner.until(c, nil)
		if err != nil {
			return 0, err
		}
		if out.status != nil {
			return 0, fmt.Errorf("%s %s: %s", out.status.Code, out.status.Reason, out.status.Message)
		}
		longest = max(longest, c.seconds)
	}
	return float64(each*t.atATime) / longest, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func printBench(out io.Writer, all []measured) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "SendMessage, calls per second, medians of %d rounds, SQLite ledger\n\n", benchRounds)
	header := []string{"client"}
	for _, s := range all[0].Speeds {
		header = append(header, fmt.Sprintf("%d at a time: bare", s.AtATime), "facade", "ratio")
	}
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, m := range all {
		fmt.Fprint(w, m.Client)
		for _, s := range m.Speeds {
			fmt.Fprintf(w, "\t%.0f\t%.0f\t%.2f", s.Bare, s.Facade, s.Ratio)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}
