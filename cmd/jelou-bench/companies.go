package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var companiesBenchmark = benchmark{
	name:  "companies",
	short: "A thousand companies at once, each at its own limit",
	long: `
1,000 companies, all with more waiting than can be sent, through one process on SQLite and then through one on PostgreSQL, against one
simulator that counts each of them in a sliding window: first with 5 requests a second each, which add up to 5,000, as much as the
machine can; then with as many as it can surely carry, 1 a second each, to see whether each gets all of its own. The sends wait as
paused batches and all are resumed together; what is measured begins some seconds later. The simulator, the database and the facade
share this machine, so "per core" is what one second of a processor's time spent in the facade sends.

Fields (SQLite; the same with postgres_ in front): sends_per_second (all companies together), sends_per_core, busiest and idlest (sends
of one company a second), with 5 a second each; at_limit_utilization and at_limit_least (all companies' and the idlest one's part of
their allowances), with 1 a second each. companies, violations (arrivals that made a company's window hold more than its allowance, all
together), http_429.
--quick measures 4 s instead of 30 s, and only with 5 requests a second.`,
	run: companies,
}

// surely is what each company may send a second for every one to get all of it.
const surely = 1

// warming is how long after the start nothing is counted: a company begins with a silent window.
const warming = 4 * time.Second

func companies(b *bench) error {
	count, long := 1000, pick(b, 30*time.Second, 4*time.Second)
	b.found.set("companies", count)
	t := b.found.table(fmt.Sprintf("%d companies, %v", count, long), "ledger", "each may", "sends/s", "per core", "facade's cores",
		"a company's least", "and most sends/s", "violations", "429")
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	violated, throttled := 0, 0
	for _, name := range []string{"sqlite", "postgres"} {
		for _, each := range pick(b, []int{5, surely}, []int{5}) {
			s, err := b.newStore(name, p)
			if err != nil {
				return err
			}
			m, err := b.manyCompanies(s, count, each, long)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			t.add(name, each, m.rate, m.rate/m.cores, m.cores, m.least, m.most, m.violations, m.throttled)
			violated += m.violations
			throttled += m.throttled
			if each == surely {
				b.found.set(s.prefix+"at_limit_utilization", rounded(m.rate/float64(count*each), 3))
				b.found.set(s.prefix+"at_limit_least", rounded(m.least/float64(each), 3))
				b.found.atLeast(s.prefix+"at_limit_least", 0.9)
				continue
			}
			b.found.set(s.prefix+"sends_per_second", rounded(m.rate, 0))
			b.found.set(s.prefix+"sends_per_core", rounded(m.rate/m.cores, 0))
			b.found.set(s.prefix+"idlest", rounded(m.least, 2))
			b.found.set(s.prefix+"busiest", rounded(m.most, 2))
		}
	}
	b.found.set("violations", violated)
	b.found.mustBe("violations", 0)
	b.found.set("http_429", throttled)
	b.found.mustBe("http_429", 0)
	return nil
}

// throng is what many companies did together.
type throng struct {
	rate, cores, least, most float64
	violations, throttled    int
}

func (b *bench) manyCompanies(s *store, count, requests int, long time.Duration) (c throng, err error) {
	all := busy(tenants("shop", count), requests, time.Second)
	sim, err := b.startSimulatorFor(jelousim.Config{Processing: jelousim.Processing{Min: jelousim.Duration(20 * time.Millisecond)}}, all...)
	if err != nil {
		return c, err
	}
	defer sim.kill()
	url := s.ledger.URL
	f, err := b.startFacades(1, url, all...)
	if err != nil {
		return c, err
	}
	defer f.stop()
	each := requests*int((warming+long).Seconds()) + 5
	b.progress("%s: %d companies with %d sends each", s.name, count, each)
	batches, err := f.paused(b.ctx, all, each)
	if err != nil {
		return c, err
	}
	b.progress("%s: all at once", s.name)
	var resuming errgroup.Group
	resuming.SetLimit(adders)
	for _, id := range batches {
		resuming.Go(func() error {
			_, err := f.members[0].batches.ResumeBatch(b.ctx, &facadev1.ResumeBatchRequest{BatchId: id})
			return err
		})
	}
	if err := resuming.Wait(); err != nil {
		return c, err
	}
	if err := b.sleep(warming); err != nil {
		return c, err
	}
	b.progress("%s: counting", s.name)
	begin := time.Now()
	before, err := f.members[0].processor()
	if err != nil {
		return c, err
	}
	if err := b.sleep(long); err != nil {
		return c, err
	}
	after, err := f.members[0].processor()
	if err != nil {
		return c, err
	}
	c.cores = (after - before).Seconds() / long.Seconds()
	return c, c.count(b.ctx, sim, all, begin, long)
}

// count looks at what arrived.
func (c *throng) count(ctx context.Context, sim *simulator, all []*tenant, begin time.Time, long time.Duration) error {
	of, err := sim.arrivals(ctx)
	if err != nil {
		return err
	}
	for i, t := range all {
		a := of[t.name]
		if a == nil {
			a = &arrivals{}
		}
		n := float64(within(a.admitted, begin, long)) / long.Seconds()
		c.rate += n
		c.most = max(c.most, n)
		if i == 0 || n < c.least {
			c.least = n
		}
		violated, _ := violations(a.all, t.allowed(), t.every())
		c.violations += violated
		c.throttled += len(a.throttled)
	}
	return nil
}

// paused stores a paused batch for each tenant.
func (c *cluster) paused(ctx context.Context, all []*tenant, items int) ([]string, error) {
	ids := make([]string, len(all))
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(adders)
	for i, t := range all {
		calls.Go(func() error {
			r := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: t.bot(), Paused: true}}
			for range items {
				user := t.user()
				r.Items = append(r.Items, &facadev1.BatchItem{UserId: user, Content: &facadev1.BatchItem_Message{Message: text("Novedad para " + user)}})
			}
			answer, err := c.any().batches.CreateBatch(ctx, r)
			ids[i] = answer.GetBatch().GetBatchId()
			return err
		})
	}
	return ids, calls.Wait()
}
