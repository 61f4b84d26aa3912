package main

import (
	"slices"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var clockBenchmark = benchmark{
	name:  "clock",
	short: "What a jump of PostgreSQL's clock does under full demand",
	long: `
Three replicas on PostgreSQL, companies at full demand over the near profile. The database's clock jumps by +3 s and later by −3 s: in
this database clock_timestamp() is a function that adds what stands in a table, so that no other clock is touched. After
a jump the facade has to keep one window silent; no window at Jelou may hold more than the limit.

Fields: violations, http_429, forward_gap_ms and backward_gap_ms (the longest time without an arrival after the jump, of the
worst company).`,
	run: clockJumps,
}

func clockJumps(b *bench) error {
	companies, calm, after := pick(b, 10, 5), pick(b, 15*time.Second, 8*time.Second), pick(b, 15*time.Second, 9*time.Second)
	all := tenants("shop", companies)
	sim, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkNear}}, all...)
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
	err = p.exec(url,
		`CREATE SCHEMA skewed`,
		`CREATE TABLE skewed.clock (ahead interval NOT NULL)`,
		`INSERT INTO skewed.clock VALUES ('0')`,
		`CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
			AS 'SELECT pg_catalog.clock_timestamp() + (SELECT ahead FROM skewed.clock)'`,
		`ALTER DATABASE bench_1 SET search_path = public, skewed, pg_catalog`)
	if err != nil {
		return err
	}
	c, err := b.startFacades(3, url, all...)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.keepFull(b.ctx, calm+2*after, all...); err != nil {
		return err
	}
	if err := b.sleep(calm); err != nil {
		return err
	}
	t := b.found.table("PostgreSQL's clock jumps under full demand, three replicas", "jump", "violations in the 5 s around", "longest silence ms")
	jumps := []struct {
		field, ahead string
		at           time.Time
	}{{field: "forward", ahead: "3 s"}, {field: "backward", ahead: "0"}}
	for i := range jumps {
		b.progress("the clock jumps %s", jumps[i].field)
		jumps[i].at = time.Now()
		if err := p.exec(url, `UPDATE skewed.clock SET ahead = '`+jumps[i].ahead+`'`); err != nil {
			return err
		}
		if err := b.sleep(after); err != nil {
			return err
		}
	}
	of, err := sim.arrivals(b.ctx)
	if err != nil {
		return err
	}
	total, throttled := 0, 0
	for _, a := range of {
		n, _ := violations(a.all, 5, time.Second)
		total += n
		throttled += len(a.throttled)
	}
	b.found.set("violations", total)
	b.found.mustBe("violations", 0)
	b.found.set("http_429", throttled)
	for _, j := range jumps {
		near, gap := 0, time.Duration(0)
		for _, a := range of {
			around := slices.DeleteFunc(slices.Clone(a.all), func(at time.Time) bool { return at.Sub(j.at) < -time.Second || at.Sub(j.at) > 4*time.Second })
			n, _ := violations(around, 5, time.Second)
			near += n
			gap = max(gap, longestGap(a.all, j.at, after))
		}
		t.add(j.field+" 3 s", near, ms(gap))
		b.found.set(j.field+"_gap_ms", rounded(ms(gap), 0))
	}
	return nil
}

// longestGap is the longest time without an arrival that begins within a time after an event.
func longestGap(times []time.Time, event time.Time, long time.Duration) time.Duration {
	longest, last := time.Duration(0), event
	for _, at := range times {
		if at.Before(event) {
			continue
		}
		if at.Sub(event) > long {
			break
		}
		longest = max(longest, at.Sub(last))
		last = at
	}
	return max(longest, event.Add(long).Sub(last))
}
