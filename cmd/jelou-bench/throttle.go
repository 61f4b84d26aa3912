package main

import (
	"fmt"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var throttleBenchmark = benchmark{
	name:  "throttle",
	short: "What 429 cost: a limit that is halved without notice, and bursts of 429",
	long: `
Three replicas on PostgreSQL, companies at full demand over the internet profile. One simulator goes from 5 requests a second to 2
without notice. Another one answers a scripted burst of 429 to each company, half of them with Retry-After in seconds, half
without; a third does so with Retry-After as a date. The sends that met a 429 have to be sent later, by the same attempt.

An extra 429 is one beyond the first of the halving, or beyond a burst's script; the field is the worst company's. Recovery
is from a company's last 429 to the first request from which on four windows run at 90% of the limit in force; disturbed is
the same from the first 429. A Retry-After that is a date has whole seconds and so asks for up to 2 s: its recovery is a
field of its own.

Fields: extra_429 (the worst company's), extra_429_halving, extra_429_bursts, lost (accepted sends that are neither sent nor
waiting), attempts_changed (sent with another count of attempts than 1), doubled, recovery_ms, recovery_date_ms,
disturbed_ms (the worst of each), recovery_p50_ms.`,
	run: throttle,
}

// throttled is one way in which 429 come.
type throttledCase struct {
	name     string
	form     jelousim.RetryAfter
	halve    bool
	scripted int
	tenants  []*tenant
	sim      *simulator
}

const (
	halved     = 2 // of 5
	burstOf429 = 3
)

func throttle(b *bench) error {
	each, long := pick(b, 6, 3), pick(b, 25*time.Second, 14*time.Second)
	cases := []*throttledCase{
		{name: "limit 5 → 2", halve: true},
		{name: "burst, no Retry-After", scripted: burstOf429, form: jelousim.RetryAfterNone},
		{name: "burst, Retry-After in seconds", scripted: burstOf429, form: jelousim.RetryAfterSeconds},
		{name: "burst, Retry-After as a date", scripted: burstOf429, form: jelousim.RetryAfterDate},
	}
	var all []*tenant
	var err error
	for i, c := range cases {
		c.tenants = tenants(fmt.Sprintf("t%d", i), each)
		all = append(all, c.tenants...)
		c.sim, err = b.startSimulatorFor(jelousim.Config{
			Network: jelousim.Network{Profile: jelousim.NetworkInternet}, Rate: jelousim.Rate{Requests: 5, RetryAfter: c.form},
		}, c.tenants...)
		if err != nil {
			return err
		}
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	url, err := p.database()
	if err != nil {
		return err
	}
	facades, err := b.startFacades(3, url, all...)
	if err != nil {
		return err
	}
	const calm = learning + 2*time.Second
	if err := facades.keepFull(b.ctx, calm+long, all...); err != nil {
		return err
	}
	if err := b.sleep(calm); err != nil {
		return err
	}
	b.progress("429 begin, for %v", long)
	for _, c := range cases {
		if err := c.begin(b); err != nil {
			return err
		}
	}
	if err := b.sleep(long); err != nil {
		return err
	}
	if err := b.throttleFound(cases); err != nil {
		return err
	}
	facades.stop() // what is under way is settled
	doubled := 0
	for _, c := range cases {
		n, err := c.sim.duplicates(b.ctx)
		if err != nil {
			return err
		}
		doubled += n
	}
	return b.throttleLedger(p, url, doubled)
}

// begin lets the 429 come.
func (c *throttledCase) begin(b *bench) error {
	if c.halve {
		return c.sim.setLimit(b.ctx, jelousim.Rate{Requests: halved, RetryAfter: c.form})
	}
	var faults []jelousim.Fault
	for _, t := range c.tenants {
		f := jelousim.Fault{Kind: jelousim.FaultThrottle, Bot: t.bot(), Times: c.scripted}
		if c.form != jelousim.RetryAfterNone {
			f.RetryAfter = jelousim.Duration(time.Second)
		}
		faults = append(faults, f)
	}
	return c.sim.setFaults(b.ctx, faults...)
}

// throttleFound looks at what arrived.
func (b *bench) throttleFound(cases []*throttledCase) error {
	t := b.found.table("429 and what came after, three replicas", "429 by", "company", "429", "extra", "recovery ms", "disturbed ms")
	extra := map[bool]int{}
	var recoveries, dated, disturbed []float64
	for _, c := range cases {
		of, err := c.sim.arrivals(b.ctx)
		if err != nil {
			return err
		}
		limit, known := 5, c.scripted
		if c.halve {
			limit, known = halved, 1
		}
		for _, tenant := range c.tenants {
			a := of[tenant.name]
			if a == nil || len(a.throttled) == 0 {
				return fmt.Errorf("company %s met no 429", tenant.name)
			}
			more := len(a.throttled) - known
			extra[c.halve] = max(extra[c.halve], more)
			last, first := a.throttled[len(a.throttled)-1], a.throttled[0]
			recovery := recovered(a.admitted, last, limit, time.Second)
			if c.form == jelousim.RetryAfterDate {
				dated = append(dated, ms(recovery))
			} else {
				recoveries = append(recoveries, ms(recovery))
			}
			disturbed = append(disturbed, ms(recovery+last.Sub(first)))
			t.add(c.name, tenant.name, len(a.throttled), more, ms(recovery), ms(recovery+last.Sub(first)))
		}
	}
	b.found.set("extra_429", max(extra[true], extra[false]))
	b.found.atMost("extra_429", 4)
	b.found.set("extra_429_halving", extra[true])
	b.found.set("extra_429_bursts", extra[false])
	b.found.set("recovery_ms", rounded(percentile(recoveries, 100), 0))
	b.found.atMost("recovery_ms", 2000)
	b.found.set("recovery_date_ms", rounded(percentile(dated, 100), 0))
	b.found.atMost("recovery_date_ms", 3000)
	b.found.set("recovery_p50_ms", rounded(percentile(recoveries, 50), 0))
	b.found.set("disturbed_ms", rounded(percentile(disturbed, 100), 0))
	return nil
}

// never is a recovery that was not seen.
const never = time.Hour

// recovered is how long after an event the first request came from which on four windows run at 90% of the limit.
func recovered(admitted []time.Time, event time.Time, limit int, window time.Duration) time.Duration {
	const windows = 4
	for i, at := range admitted {
		if at.Before(event) || i+windows*limit >= len(admitted) {
			continue
		}
		if float64(admitted[i+windows*limit].Sub(at))*0.9 <= float64(windows*window) {
			return at.Sub(event)
		}
	}
	return never
}

// throttleLedger looks at what the ledger says of all sends.
func (b *bench) throttleLedger(p *postgres, url string, doubled int) error {
	var accepted, good, changed int
	err := p.row(url, `SELECT count(*), count(*) FILTER (WHERE state IN ('sent', 'pending')), count(*) FILTER (WHERE state = 'sent' AND attempt <> 1) FROM send`,
		&accepted, &good, &changed)
	if err != nil {
		return err
	}
	b.found.set("accepted", accepted)
	b.found.set("lost", accepted-good)
	b.found.mustBe("lost", 0)
	b.found.set("attempts_changed", changed)
	b.found.mustBe("attempts_changed", 0)
	b.found.set("doubled", doubled)
	b.found.mustBe("doubled", 0)
	return nil
}
