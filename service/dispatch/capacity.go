package dispatch

import (
	"context"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const (
	// useEvery is how often the use of the allowance is noted, useFor over what time it is told.
	useEvery = 10 * time.Second
	useFor   = time.Minute
)

// usage is how many claims were ever made, at a moment.
type usage struct {
	at     time.Time
	all    int64
	served map[string]int64 // by caller
}

// Capacity is what a caller may know of a company.
type Capacity struct {
	Pace       pace.Status
	PauseEnds  time.Time // when at least sending goes on; zero without a pause, or where somebody has to end it
	Window     time.Duration
	Used, Mine float64 // of the allowance over the last minute, by all and by the caller, 0 to 1
	Lanes      [ledger.Bulk + 1]LaneCapacity
}

// LaneCapacity is what waits in a lane.
type LaneCapacity struct {
	Waiting, Mine int64
	Wait          time.Duration // of a new send of the caller; more than a year when nobody can say
}

// Capacity tells how much a company can send now, and how long the caller would wait.
func (d *Dispatcher) Capacity(ctx context.Context, companyID int64, caller string) (Capacity, error) {
	c := d.all()[companyID]
	if err := d.freshen(ctx, c); err != nil {
		return Capacity{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Capacity{Pace: c.status(), Window: c.rule.EachWindow()}
	if out.Pace.Pause != pace.NotPaused && out.Pace.PauseUntil != pace.Never {
		out.PauseEnds = c.clock.local(out.Pace.PauseUntil)
	}
	served := usage{at: c.line.at, served: map[string]int64{}}
	for _, x := range c.line.shares() {
		served.all += x.Served
		served.served[x.Caller] += x.Served
		n := c.line.waiting(share{x.Lane, x.Caller})
		out.Lanes[x.Lane].Waiting += n
		if x.Caller == caller {
			out.Lanes[x.Lane].Mine += n
		}
	}
	for lane := ledger.Urgent; lane <= ledger.Bulk; lane++ {
		out.Lanes[lane].Wait = c.startsIn(place{share{lane, caller}, 0, -1})
	}
	out.Used, out.Mine = c.usedSince(served, caller)
	return out, nil
}

// usedSince is the part of the allowance that was used over the last minute, or since this process began to look.
func (c *company) usedSince(now usage, caller string) (all, mine float64) {
	if len(c.use) == 0 {
		return 0, 0
	}
	before := c.use[0]
	windows := float64(now.at.Sub(before.at)) / float64(c.rule.EachWindow())
	if windows < 1 {
		return 0, 0
	}
	allowed := windows * float64(c.rule.InWindow())
	part := func(n int64) float64 { return min(max(float64(n)/allowed, 0), 1) }
	return part(now.all - before.all), part(now.served[caller] - before.served[caller])
}

// sampleUse notes how much of the allowances is used and what waits, and now and then what this process has seen of itself.
func (d *Dispatcher) sampleUse(ctx context.Context) {
	tick := time.NewTicker(useEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		d.sample(ctx)
		d.sampleBacklogs(ctx)
		d.inspectUnknown(ctx)
		if n%int(time.Minute/useEvery) == 0 {
			d.inspect(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sample reads the claims ever made. While the ledger does not answer, the next one tells of a longer time.
func (d *Dispatcher) sample(ctx context.Context) {
	served, err := d.config.Ledger.Served(ctx)
	if err != nil {
		return
	}
	now := time.Now()
	for id, c := range d.all() {
		u := usage{at: now, served: served[id]}
		for _, n := range u.served {
			u.all += n
		}
		c.mu.Lock()
		c.use = append(c.use, u)
		for len(c.use) > 1 && now.Sub(c.use[1].at) >= useFor {
			c.use = c.use[1:]
		}
		c.mu.Unlock()
	}
}

// Status is the company's pacing now, as far as this process has seen it.
func (d *Dispatcher) Status(companyID int64) pace.Status {
	c := d.all()[companyID]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status()
}

// Until is how long until a moment of the database's clock.
func (d *Dispatcher) Until(at pace.Time) time.Duration { return at.Sub(d.clock.now()) }
