package main

import (
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/grpc/metadata"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// reloadPlan is for how long the configuration stays, then changes every second, and how many times around.
type reloadPlan struct {
	companies, rounds int
	long              time.Duration
}

// reloads is what companies at full demand did while their configuration stayed and while it changed.
type reloads struct {
	counted
	count           int
	quiet, changing float64 // share of the allowance
	stale, doubled  int
}

// reload puts three replicas under full demand of two callers, and changes their configuration every second for half of the time. The
// halves take turns, so that a machine that is slow for a while is slow in both.
func (b *bench) reload(p *postgres, plan reloadPlan) (*reloads, error) {
	url, err := p.database()
	if err != nil {
		return nil, err
	}
	all := tenants("full", plan.companies)
	sim, err := b.startSimulatorFor(jelousim.Config{
		Network: jelousim.Network{RoundTrip: jelousim.Duration(60 * time.Millisecond), Jitter: jelousim.Duration(4 * time.Millisecond)},
	}, all...)
	if err != nil {
		return nil, err
	}
	keys := []string{caller.NewKey(), caller.NewKey()}
	f, err := b.startFleet(3, url, func(c *configv1.Config) {
		for i, key := range keys {
			c.Callers = append(c.Callers, admin(fmt.Sprintf("caller-%d", i), key))
		}
	}, all...)
	if err != nil {
		return nil, err
	}
	defer f.stop()
	total := learning + 2*time.Duration(plan.rounds)*plan.long
	members := &cluster{b: b}
	for seat := range f.seats {
		members.members = append(members.members, f.seats[seat].Load())
	}
	for _, key := range keys { // each half of it, and a little longer
		if err := members.keepFull(metadata.AppendToOutgoingContext(b.ctx, "x-api-key", key), total/2, all...); err != nil {
			return nil, err
		}
	}
	if err := b.sleep(learning); err != nil {
		return nil, err
	}
	b.progress("full demand, by turns without and with a changed configuration every second")
	var began []time.Time // of quiet and changing spans by turns
	r := &reloads{}
	for range plan.rounds {
		began = append(began, time.Now())
		if err := b.sleep(plan.long); err != nil {
			return nil, err
		}
		began = append(began, time.Now())
		for range int(plan.long / time.Second) {
			if err := f.vary(r.count); err != nil {
				return nil, err
			}
			r.count++
			if err := b.sleep(time.Second); err != nil {
				return nil, err
			}
		}
	}
	if r.stale, err = f.stale(keys[0]); err != nil {
		return nil, err
	}
	if r.counted, err = b.count(sim, learning, total-learning, all); err != nil {
		return nil, err
	}
	b.explain(r.counted)
	if r.doubled, err = sim.duplicates(b.ctx); err != nil {
		return nil, err
	}
	of, err := sim.arrivals(b.ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		for i, at := range began {
			used := &r.quiet
			if i%2 == 1 {
				used = &r.changing
			}
			*used += share(of[t.name].admitted, t, at, at.Add(plan.long)) / float64(len(all)*plan.rounds)
		}
	}
	return r, nil
}

// admin is a caller that may do everything.
func admin(name, key string) *configv1.Caller {
	hash := caller.HashKey(key)
	return &configv1.Caller{Name: name, Companies: []string{"*"}, Admin: true, Keys: []*configv1.Caller_Key{{Sha256: hex.EncodeToString(hash[:])}}}
}

// vary puts the n-th configuration in place: other weights, callers, bounds, log level and rules of the companies, and the same allowance.
func (f *fleet) vary(n int) error {
	c := f.config
	c.Callers[0].Weight, c.Callers[1].Weight = int32(1+n%5), int32(1+n%3)
	c.Callers = c.Callers[:2]
	if n%2 == 0 {
		c.Callers = append(c.Callers, admin("caller-2", caller.NewKey()))
	}
	c.Bounds = &configv1.Bounds{LaneWaiting: int32(100_000 + n)}
	c.Log.Level = []configv1.Log_Level{configv1.Log_WARN, configv1.Log_ERROR}[n%2]
	for _, company := range c.Companies {
		company.LowerLaneFloor = int32(5 + n%2)
	}
	return f.put(c, "")
}
