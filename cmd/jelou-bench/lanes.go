package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var lanesBenchmark = benchmark{
	name:  "lanes",
	short: "How long an urgent send waits while a campaign takes every slot, and whether the campaign goes on",
	long: `
Three replicas on PostgreSQL, some companies with 5 requests a second each over the internet profile (60 ms), and more bulk
sends waiting than can be sent: 10,000 for the first company. Then, for each company, one urgent send at a time with random
pauses. An urgent send's wait is from the call to the moment when its request left for Jelou.

After that ten callers of each company send urgently without a pause: what the bulk lane still gets is the floor, one
request in five, in any 60 s (--quick: in any 8 s). Arrivals are counted at the simulator.

Meanwhile, with a ledger and dispatcher inside of jelou-bench because callers have no names at the API without authentication:
one caller has 100 batches and another one has 1; and a caller cancels a batch of a million items (--quick: 20,000) and
sends once more.

Fields: urgent_wait_p50_ms, urgent_wait_p99_ms, urgent_wait_max_ms, urgent_sends, bulk_waiting (of the first company),
bulk_share_alone (of the allowance, with one urgent send at a time), bulk_share_min (of the arrivals in the worst window
under the flood), bulk_floor_kept, starved (companies whose bulk lane got nothing for 5 s), violations, claims_wasted (the
share of the replicas' claims that got nothing), one_batch_share (what the caller with 1 batch got beside the one with 100),
cancelled_items, cancel_ms (of the call), cancel_to_next_ms (from the cancel to the arrival of the next send).`,
	run: lanes,
}

func lanes(b *bench) error {
	companies, calm, flood := pick(b, 8, 3), pick(b, 200*time.Second, 14*time.Second), pick(b, 90*time.Second, 13*time.Second)
	all := tenants("shop", companies)
	for _, t := range all {
		t.bots = []string{t.name + "-bulk", t.name + "-urgent"}
	}
	sim, err := b.startSimulatorFor(jelousim.Config{
		Network: jelousim.Network{Profile: jelousim.NetworkInternet}, Processing: jelousim.Processing{Min: jelousim.Duration(20 * time.Millisecond)},
	}, all...)
	if err != nil {
		return err
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	url, err := p.database()
	if err != nil {
		return err
	}
	camps, err := b.startCampaigns(p)
	if err != nil {
		return err
	}
	c, err := b.startFacades(3, url, all...)
	if err != nil {
		return err
	}
	defer c.stop()
	most, some := pick(b, 10_000, 2000), int((calm+flood).Seconds()*5)+200
	b.progress("%d bulk sends for the first company, %d for each other", most, some)
	b.found.set("bulk_waiting", most)
	items := most
	for _, t := range all {
		if _, err := c.any().batch(b.ctx, t, items); err != nil {
			return err
		}
		items = some
	}
	if err := b.sleep(learning); err != nil {
		return err
	}
	b.progress("one urgent send at a time for %v", calm)
	began := time.Now()
	waits, err := b.urgently(c, calm, 1, 2*time.Second, all)
	if err != nil {
		return err
	}
	ended := time.Now()
	b.progress("ten urgent callers of each company for %v", flood)
	flooded := time.Now()
	if _, err := b.urgently(c, flood, 10, 0, all); err != nil {
		return err
	}
	until := time.Now()
	b.found.set("urgent_wait_p50_ms", rounded(percentile(waits, 50), 1))
	b.found.set("urgent_wait_p99_ms", rounded(percentile(waits, 99), 1))
	b.found.set("urgent_wait_max_ms", rounded(percentile(waits, 100), 1))
	b.found.set("urgent_sends", len(waits))
	b.found.atMost("urgent_wait_p50_ms", 150)
	b.found.atMost("urgent_wait_p99_ms", 400)
	b.found.atMost("urgent_wait_max_ms", 1200)
	t := b.found.table(fmt.Sprintf("Urgent sends among bulk, %d companies, 3 replicas, ms from the call to the request", companies), "sends", "p50", "p90", "p99", "worst")
	t.add(len(waits), percentile(waits, 50), percentile(waits, 90), percentile(waits, 99), percentile(waits, 100))
	if err := b.bulkFloor(sim, all, began, ended, flooded, until); err != nil {
		return err
	}
	counts, err := b.count(sim, 0, until.Sub(began), all)
	if err != nil {
		return err
	}
	b.explain(counts)
	b.found.set("violations", counts.violations)
	b.found.mustBe("violations", 0)
	if err := b.claimsWasted(p, url); err != nil {
		return err
	}
	return camps.found()
}

// urgently has so many callers of each tenant send urgently one send at a time, with pauses up to so long, and gives
// the milliseconds from each call to its request.
func (b *bench) urgently(c *cluster, long time.Duration, callers int, pause time.Duration, all []*tenant) ([]float64, error) {
	var mu sync.Mutex
	var waits []float64
	ctx, cancel := context.WithTimeout(b.ctx, long)
	defer cancel()
	var running errgroup.Group
	for _, t := range all {
		for range callers {
			rng := rand.New(rand.NewPCG(b.rng.Uint64(), 2))
			running.Go(func() error {
				for ctx.Err() == nil {
					if pause > 0 && sleep(ctx, time.Duration(rng.Int64N(int64(pause)))) != nil {
						return nil
					}
					wait, err := c.any().urgent(b.ctx, t)
					if err != nil {
						return err
					}
					mu.Lock()
					waits = append(waits, ms(wait))
					mu.Unlock()
				}
				return nil
			})
		}
	}
	return waits, running.Wait()
}

// urgent sends one urgent message and gives the time from the call to the request.
func (f *facade) urgent(ctx context.Context, t *tenant) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	called := time.Now()
	answer, err := f.messages.SendMessage(ctx, t.message(t.bots[len(t.bots)-1], facadev1.SendOptions_URGENT))
	if err != nil {
		return 0, err
	}
	// The database's clock, which stamps it, is this machine's.
	return answer.Send.GetSendTime().AsTime().Sub(called), nil
}

// bulkFloor looks at what the bulk lane got while urgent sends came one at a time, and while they came without a pause.
func (b *bench) bulkFloor(sim *simulator, all []*tenant, began, ended, flooded, until time.Time) error {
	window := pick(b, time.Minute, 8*time.Second)
	sends, err := sim.sends(b.ctx)
	if err != nil {
		return err
	}
	of := map[string][]time.Time{} // by bot
	for _, s := range sends {
		of[s.Bot] = append(of[s.Bot], s.At)
	}
	t := b.found.table(fmt.Sprintf("The bulk lane beside urgent sends; worst of any %v under the flood", window), "company", "bulk, one urgent at a time", "bulk, flood", "urgent, flood", "worst window's bulk share")
	alone, least, kept, starved := 1.0, 1.0, true, 0
	for _, tenant := range all {
		bulk, urgent := of[tenant.bots[0]], of[tenant.bots[1]]
		calm := float64(within(bulk, began, ended.Sub(began))) / ended.Sub(began).Seconds() / float64(tenant.allowed())
		alone = min(alone, calm)
		worst := 1.0
		for begin := flooded.Add(time.Second); !begin.Add(window).After(until); begin = begin.Add(250 * time.Millisecond) {
			low, high := within(bulk, begin, window), within(urgent, begin, window)
			worst = min(worst, float64(low)/float64(max(low+high, 1)))
			if low < (low+high)/5 { // a window may begin right after bulk's turn: rounded down
				kept = false
			}
		}
		for begin := flooded.Add(time.Second); !begin.Add(5 * time.Second).After(until); begin = begin.Add(time.Second) {
			if within(bulk, begin, 5*time.Second) == 0 {
				starved++
				break
			}
		}
		least = min(least, worst)
		t.add(tenant.name, calm, within(bulk, flooded, until.Sub(flooded)), within(urgent, flooded, until.Sub(flooded)), worst)
	}
	b.found.set("bulk_share_alone", rounded(alone, 3))
	b.found.set("bulk_share_min", rounded(least, 3))
	b.found.set("bulk_floor_kept", kept)
	b.found.mustBe("bulk_floor_kept", 1)
	b.found.set("starved", starved)
	b.found.mustBe("starved", 0)
	return nil
}

// claimsWasted compares the claims that the replicas tried with those that gave a send. A claim looks at one company or
// at several that are due together, so what was tried is the larger of the statements and the companies in them.
func (b *bench) claimsWasted(p *postgres, url string) error {
	if err := p.exec(url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		return err
	}
	var tried, claimed float64
	err := p.row(url, `SELECT greatest(sum(calls), sum(rows))::float8, (SELECT sum(claim_no)::float8 FROM company)
		FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
		WHERE d.datname = current_database() AND query LIKE '%FROM company%SKIP LOCKED%' AND query NOT LIKE '%pg_stat%'`, &tried, &claimed)
	if err != nil {
		return fmt.Errorf("count the claims: %w", err)
	}
	b.found.set("claims_wasted", rounded(1-min(claimed/tried, 1), 3))
	b.found.atMost("claims_wasted", 0.20)
	return nil
}
