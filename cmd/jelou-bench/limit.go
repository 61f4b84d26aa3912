package main

import (
	"fmt"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var limitBenchmark = benchmark{
	name:  "limit",
	short: "One company at full demand for three minutes: the worst second, and how much of the allowance is used",
	long: `
One process on SQLite, one company with 5 requests a second, more waiting than can be sent, against the simulator's
sliding window over a network of 60 ms and up to 4 ms of jitter. --quick measures 30 s. Utilization is measured after the
first 6 s, in which the facade learns the network's fastest trip.

Fields: worst_window, http_429, utilization, arrived, seconds.`,
	run: limit,
}

func limit(b *bench) error {
	long := pick(b, 3*time.Minute, 30*time.Second)
	all := tenants("shop", 1)
	sim, err := b.startSimulatorFor(jelousim.Config{
		Network: jelousim.Network{RoundTrip: jelousim.Duration(60 * time.Millisecond), Jitter: jelousim.Duration(4 * time.Millisecond)},
	}, all...)
	if err != nil {
		return err
	}
	c, err := b.startFacades(1, "", all...)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.keepFull(b.ctx, learning+long, all...); err != nil {
		return err
	}
	b.progress("full demand for %v", long)
	if err := b.sleep(learning + long + time.Second); err != nil {
		return err
	}
	n, err := b.count(sim, learning, long, all)
	if err != nil {
		return err
	}
	b.explain(n)
	t := b.found.table(fmt.Sprintf("One company, 5 a second, 60 ms, %v", long), "arrived", "worst window", "429", "first 6 s", "utilization")
	t.add(n.arrived, n.worst, n.throttled, n.usedFirst, n.used)
	b.found.set("worst_window", n.worst)
	b.found.mustBe("worst_window", 5)
	b.found.set("http_429", n.throttled)
	b.found.mustBe("http_429", 0)
	b.found.set("utilization", rounded(n.used, 4))
	b.found.atLeast("utilization", 0.94)
	b.found.set("arrived", n.arrived)
	b.found.set("seconds", int(long.Seconds()))
	return nil
}
