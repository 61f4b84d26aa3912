package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var etaBenchmark = benchmark{
	name:  "eta",
	short: "How well the end of a batch is foretold",
	long: `
Batches of 100, 1,000 and 10,000 items over the internet profile, two replicas on PostgreSQL. The larger a batch, the larger its
company's allowance, so that none takes longer than four minutes. Each size once alone and once with newcomers: urgent
sends that take 5% of the allowance. GetBatch is asked every second; an estimate's error is its distance from the real end as
a share of the time that the batch took, from its creation to its end.

Fields: eta_error_p50, eta_error_p95 (of all estimates), eta_error_first_p50 (of each batch's first), the first two with
alone_ and newcomers_ in front, estimates, batches. --quick measures batches of 100 to 1,000 that take about 20 s.`,
	run: eta,
}

// course is a batch on its way.
type course struct {
	tenant    *tenant
	items     int
	newcomers bool
	server    *facade
	id        string
	estimates []estimate
	last      *facadev1.Batch
}

type estimate struct{ made, end time.Time }

func eta(b *bench) error {
	type size struct{ items, requests, batches int }
	sizes := pick(b, []size{{100, 5, 4}, {1000, 10, 3}, {10_000, 50, 1}}, []size{{100, 5, 2}, {300, 15, 2}, {1000, 50, 1}})
	var courses []*course
	var all []*tenant
	for _, s := range sizes {
		of := tenants(fmt.Sprintf("size-%d", s.items), 2*s.batches)
		for i, t := range of {
			t.requests = s.requests
			t.bots = []string{t.name, t.name + "-urgent"}
			courses = append(courses, &course{tenant: t, items: s.items, newcomers: i%2 == 1})
		}
		if _, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkInternet}}, of...); err != nil {
			return err
		}
		all = append(all, of...)
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	url, err := p.database()
	if err != nil {
		return err
	}
	c, err := b.startFacades(2, url, all...)
	if err != nil {
		return err
	}
	defer c.stop()
	b.progress("learning the network")
	if err := c.fill(b.ctx, 40, all...); err != nil {
		return err
	}
	if err := b.sleep(10 * time.Second); err != nil { // 40 at the slowest allowance
		return err
	}
	b.progress("%d batches", len(courses))
	running, ctx := errgroup.WithContext(b.ctx)
	for _, o := range courses {
		rng := rand.New(rand.NewPCG(b.rng.Uint64(), 4))
		o.server = c.any()
		running.Go(func() error { return o.run(ctx, rng) })
	}
	if err := running.Wait(); err != nil {
		return err
	}
	return b.etaFound(courses)
}

// run sends one batch and asks for its end until it has come.
func (o *course) run(ctx context.Context, rng *rand.Rand) (err error) {
	if o.id, err = o.server.batch(ctx, o.tenant, o.items); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var newcomers errgroup.Group
	defer func() {
		stop()
		if came := newcomers.Wait(); err == nil {
			err = came
		}
	}()
	if o.newcomers {
		newcomers.Go(func() error {
			offer(ctx, rng, 0.05*float64(o.tenant.allowed()), func() { _, _ = o.server.urgent(context.WithoutCancel(ctx), o.tenant) })
			return nil
		})
	}
	for {
		asked := time.Now()
		answer, err := o.server.batches.GetBatch(ctx, &facadev1.GetBatchRequest{BatchId: o.id})
		if err != nil {
			return err
		}
		if o.last = answer.Batch; o.last.EndTime != nil {
			return nil
		}
		if o.last.EstimatedEndTime != nil {
			o.estimates = append(o.estimates, estimate{asked, o.last.EstimatedEndTime.AsTime()})
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

func (b *bench) etaFound(courses []*course) error {
	t := b.found.table("Estimates of a batch's end, error as a share of the time it took", "items", "a second", "newcomers", "took s", "estimates", "first", "p50", "p95", "bias")
	var all, first []float64
	apart := map[bool][]float64{}
	for _, o := range courses {
		end, created := o.last.EndTime.AsTime(), o.last.CreateTime.AsTime()
		took := end.Sub(created).Seconds()
		if len(o.estimates) == 0 {
			return fmt.Errorf("a batch of %d items was never given an estimate", o.items)
		}
		var errs []float64
		bias := 0.0
		for _, e := range o.estimates {
			off := e.end.Sub(end).Seconds() / took
			errs = append(errs, math.Abs(off))
			bias += off / float64(len(o.estimates))
		}
		all, first = append(all, errs...), append(first, errs[0])
		apart[o.newcomers] = append(apart[o.newcomers], errs...)
		t.add(o.items, o.tenant.allowed(), o.newcomers, took, len(errs), errs[0], percentile(errs, 50), percentile(errs, 95), bias)
	}
	b.found.set("eta_error_p50", rounded(percentile(all, 50), 4))
	b.found.atMost("eta_error_p50", 0.02)
	b.found.set("eta_error_p95", rounded(percentile(all, 95), 4))
	b.found.atMost("eta_error_p95", 0.10)
	b.found.set("eta_error_first_p50", rounded(percentile(first, 50), 4))
	for _, newcomers := range []bool{false, true} {
		name := map[bool]string{false: "alone_", true: "newcomers_"}[newcomers]
		b.found.set(name+"eta_error_p50", rounded(percentile(apart[newcomers], 50), 4))
		b.found.set(name+"eta_error_p95", rounded(percentile(apart[newcomers], 95), 4))
	}
	b.found.set("estimates", len(all))
	b.found.set("batches", len(courses))
	return nil
}
