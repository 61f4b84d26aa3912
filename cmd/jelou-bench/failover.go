package main

import (
	"slices"
	"syscall"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var failoverBenchmark = benchmark{
	name:  "failover",
	short: "What a killed replica and a restarted PostgreSQL cost under full demand",
	long: `
Three replicas on PostgreSQL, companies at full demand over the internet profile. One replica is ended by kill -9, and later started
again; then PostgreSQL is stopped (fast shutdown) and started again. Recovery is from the event to the first moment from which on
two seconds have 90% of the arrivals that there were before, over all companies; PostgreSQL's holds its own downtime.

Fields: violations, http_429, recovery_ms (the kill), postgres_recovery_ms, postgres_down_ms, rate_after_kill (arrivals in the 16 s after the
kill as a share of those before: what was under way in the dead process keeps its slots until its lease has ended),
unknown (sends of the dead process that may have been sent), doubled, lost (accepted sends that are neither sent, unknown, nor waiting).`,
	run: failover,
}

func failover(b *bench) error {
	companies, calm, after := pick(b, 12, 6), pick(b, 20*time.Second, 8*time.Second), pick(b, 25*time.Second, 11*time.Second)
	all := tenants("shop", companies)
	sim, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkInternet}}, all...)
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
	c, err := b.startFacades(3, url, all...)
	if err != nil {
		return err
	}
	if err := c.keepFull(b.ctx, calm+2*after+5*time.Second, all...); err != nil {
		return err
	}
	if err := b.sleep(calm); err != nil {
		return err
	}
	killed := time.Now()
	c.members[1].kill()
	b.progress("killed a replica")
	if err := b.sleep(after); err != nil {
		return err
	}
	if c.members[1], err = b.startFacade(c.config); err != nil {
		return err
	}
	if err := b.sleep(2 * time.Second); err != nil {
		return err
	}
	stopped := time.Now()
	p.signal(syscall.SIGINT)
	if err := p.start(); err != nil {
		return err
	}
	down := time.Since(stopped)
	b.progress("PostgreSQL was away for %v", down.Round(time.Millisecond))
	if err := b.sleep(after); err != nil {
		return err
	}
	counts, err := b.count(sim, 0, time.Since(killed), all)
	if err != nil {
		return err
	}
	b.explain(counts)
	of, err := sim.arrivals(b.ctx)
	if err != nil {
		return err
	}
	var times []time.Time
	for _, a := range of {
		times = append(times, a.admitted...)
	}
	slices.SortFunc(times, time.Time.Compare)
	before := calm - learning
	rate := float64(within(times, killed.Add(-before), before)) / before.Seconds()
	kill, restart := rateBack(times, killed, rate), rateBack(times, stopped, rate)
	tail := min(after, 16*time.Second)
	b.found.set("violations", counts.violations)
	b.found.mustBe("violations", 0)
	b.found.set("http_429", counts.throttled)
	b.found.set("recovery_ms", rounded(ms(kill), 0))
	b.found.set("postgres_recovery_ms", rounded(ms(restart), 0))
	b.found.set("postgres_down_ms", rounded(ms(down), 0))
	b.found.set("rate_after_kill", rounded(float64(within(times, killed, tail))/tail.Seconds()/rate, 3))
	t := b.found.table("Full demand, three replicas, arrivals a second over all companies", "", "arrivals a second", "90% again after ms")
	t.add("before", rate, "")
	t.add("kill -9 of a replica", float64(within(times, killed, tail))/tail.Seconds(), ms(kill))
	t.add("PostgreSQL stopped and started", float64(within(times, stopped, after))/after.Seconds(), ms(restart))
	c.stop()
	return b.failoverLedger(p, url, sim)
}

// rateBack is how long after an event two seconds begin that have 90% of a rate.
func rateBack(times []time.Time, event time.Time, rate float64) time.Duration {
	const span = 2 * time.Second
	for begin := event; len(times) > 0 && !begin.Add(span).After(times[len(times)-1]); begin = begin.Add(10 * time.Millisecond) {
		if float64(within(times, begin, span)) >= 0.9*rate*span.Seconds() {
			return begin.Sub(event)
		}
	}
	return never
}

// failoverLedger looks at what the ledger says of all sends.
func (b *bench) failoverLedger(p *postgres, url string, sim *simulator) error {
	var accepted, good, unknown int
	err := p.row(url, `SELECT count(*), count(*) FILTER (WHERE state IN ('sent', 'unknown', 'pending', 'sending')), count(*) FILTER (WHERE state IN ('unknown', 'sending')) FROM send`,
		&accepted, &good, &unknown)
	if err != nil {
		return err
	}
	doubled, err := sim.duplicates(b.ctx)
	if err != nil {
		return err
	}
	b.found.set("accepted", accepted)
	b.found.set("unknown", unknown)
	b.found.set("lost", accepted-good)
	b.found.mustBe("lost", 0)
	b.found.set("doubled", doubled)
	b.found.mustBe("doubled", 0)
	return nil
}
