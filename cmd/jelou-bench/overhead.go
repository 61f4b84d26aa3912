package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var overheadBenchmark = benchmark{
	name:  "overhead",
	short: "What one send costs more than calling Jelou directly",
	long: `
One urgent send at a time on an idle system: by gRPC, by REST, and directly to the same simulator over HTTP, in random
order. The simulator answers at once and has no limit, and the company's allowance is so high that pacing is not part of
what is measured. What is added is the difference of the percentiles. It holds two durable commits before the answer and
one before the request: the send is stored, claimed and settled; measured with SQLite, and then with PostgreSQL.

Fields: grpc_added_p50_ms, grpc_added_p99_ms, rest_added_p50_ms, rest_added_p99_ms (SQLite), the same with postgres_ in
front, direct_p50_ms, direct_p99_ms, fsync_p50_ms (a write of 4 KiB and fsync in the same folder: the disk's share of a
commit), samples (of each kind).`,
	run: overhead,
}

func overhead(b *bench) error {
	samples := pick(b, 3000, 500)
	b.found.set("samples", samples)
	t := b.found.table(fmt.Sprintf("One send at a time, %d of each kind, ms", samples), "ledger", "way", "p50", "p90", "p99", "added p50", "added p99")
	for _, ledger := range []string{"sqlite", "postgres"} {
		if err := b.overheadOn(ledger, samples, t); err != nil {
			return err
		}
	}
	fsyncs, err := b.fsync(200)
	if err != nil {
		return err
	}
	b.found.set("fsync_p50_ms", rounded(percentile(fsyncs, 50), 3))
	return nil
}

func (b *bench) overheadOn(ledger string, samples int, t *table) error {
	all := tenants("shop", 2) // one through the facade, one directly
	for _, tenant := range all {
		tenant.requests, tenant.window = 100, 100*time.Millisecond
	}
	// More than anybody can use one at a time: the simulator still counts, but never refuses.
	sim, err := b.startSimulatorFor(jelousim.Config{Rate: jelousim.Rate{Requests: 100_000}}, all...)
	if err != nil {
		return err
	}
	defer sim.kill()
	url := ""
	if ledger == "postgres" {
		p, err := b.startPostgres()
		if err != nil {
			return err
		}
		if url, err = p.database(); err != nil {
			return err
		}
	}
	c, err := b.startFacades(1, url, all[0])
	if err != nil {
		return err
	}
	defer c.stop()
	plain := newDirect(all[1])
	browser := &http.Client{}
	ways := []way{
		{"direct", func(ctx context.Context) error { return plain.mustSend(ctx) }},
		{"grpc", func(ctx context.Context) error { return c.members[0].sendNow(ctx, all[0]) }},
		{"rest", func(ctx context.Context) error { return c.members[0].postNow(ctx, browser, all[0]) }},
	}
	b.progress("%s: %d sends of each kind", ledger, samples)
	took, err := b.interleave(ways, samples)
	if err != nil {
		return err
	}
	prefix := map[string]string{"sqlite": "", "postgres": "postgres_"}[ledger]
	base := map[float64]float64{}
	for _, p := range []float64{50, 99} {
		base[p] = percentile(took["direct"], p)
	}
	for _, w := range ways {
		v := took[w.name]
		added := func(p float64) float64 { return rounded(percentile(v, p)-base[p], 3) }
		t.add(ledger, w.name, percentile(v, 50), percentile(v, 90), percentile(v, 99), added(50), added(99))
		if w.name == "direct" {
			if prefix == "" {
				b.found.set("direct_p50_ms", rounded(base[50], 3))
				b.found.set("direct_p99_ms", rounded(base[99], 3))
			}
			continue
		}
		b.found.set(prefix+w.name+"_added_p50_ms", added(50))
		b.found.set(prefix+w.name+"_added_p99_ms", added(99))
	}
	return nil
}

// way is one of several ways to send.
type way struct {
	name string
	send func(context.Context) error
}

// interleave sends so often by each way, one at a time in random order, and gives the milliseconds that each took. The
// first tenth only warms up.
func (b *bench) interleave(ways []way, samples int) (map[string][]float64, error) {
	var order []int
	for i := range ways {
		for range samples + samples/10 {
			order = append(order, i)
		}
	}
	b.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	took := map[string][]float64{}
	for _, i := range order {
		start := time.Now()
		if err := ways[i].send(b.ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", ways[i].name, err)
		}
		took[ways[i].name] = append(took[ways[i].name], ms(time.Since(start)))
	}
	for name, v := range took {
		took[name] = v[samples/10:]
	}
	return took, nil
}

// sendNow sends one urgent message over gRPC and waits for its end.
func (f *facade) sendNow(ctx context.Context, t *tenant) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err := f.messages.SendMessage(ctx, t.message(t.bot(), facadev1.SendOptions_URGENT))
	return err
}

// postNow does the same over REST.
func (f *facade) postNow(ctx context.Context, client *http.Client, t *tenant) error {
	m := t.message(t.bot(), facadev1.SendOptions_URGENT)
	m.BotId = "" // stands in the path
	body, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.rest+"/v1/bots/"+t.bot()+"/messages", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !json.Valid(answer) {
		return fmt.Errorf("REST answered %d: %s", response.StatusCode, answer)
	}
	return nil
}
