package main

import (
	"fmt"
	"math"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var fairnessBenchmark = benchmark{
	name:  "fairness",
	short: "Whether callers of the same company get their shares",
	long: `
Six equal callers of one company, each adding through one of three replicas, the first with ten times as much waiting as
the others; and a company with two callers of weight 1 and 3. Each caller uses a bot of its own, so the simulator sees
whose sends arrive. Allowance 20 a second, the near profile, PostgreSQL.

This one runs the replicas' ledger and dispatcher inside of jelou-bench, without the API: callers are told to the ledger
by name. Authentication is what gives them names behind the API.

Fields: jain (Jain's index over what the equal callers got), weight3_ratio, sends, violations.`,
	run: fairness,
}

func fairness(b *bench) error {
	long := pick(b, 90*time.Second, 25*time.Second)
	equal, weighted := tenants("equal", 1)[0], tenants("weighted", 1)[0]
	both := []*tenant{equal, weighted}
	for _, t := range both {
		t.requests = 20
	}
	equal.bots, weighted.bots = nil, nil
	for i := range 6 {
		equal.bots = append(equal.bots, fmt.Sprintf("equal-caller-%d", i))
	}
	weights := []int{1, 3}
	for _, w := range weights {
		weighted.bots = append(weighted.bots, fmt.Sprintf("weight-%d", w))
	}
	sim, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkNear}}, both...)
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
	var engines []*engine
	for i := range 3 {
		e, err := b.startEngine(fmt.Sprintf("replica-%d", i), url, both...)
		if err != nil {
			return err
		}
		engines = append(engines, e)
	}
	each := int(long.Seconds()*20) + 100
	for i, bot := range equal.bots {
		sends := each / 3
		if i == 0 {
			sends *= 10
		}
		if err := engines[i%len(engines)].add(b.ctx, equal, bot, bot, 1, sends); err != nil {
			return err
		}
	}
	for i, bot := range weighted.bots {
		if err := engines[i].add(b.ctx, weighted, bot, bot, weights[i], each); err != nil {
			return err
		}
	}
	b.progress("six equal callers, and two of weight 1 and 3, for %v", long)
	begin := time.Now().Add(time.Second) // all have something waiting from here on
	if err := b.sleep(long + time.Second); err != nil {
		return err
	}
	sends, err := sim.sends(b.ctx)
	if err != nil {
		return err
	}
	got := map[string]float64{}
	for _, s := range sends {
		if age := s.At.Sub(begin); age >= 0 && age < long {
			got[s.Bot]++
		}
	}
	t := b.found.table(fmt.Sprintf("Sends that arrived in %v, three replicas", long), "company", "caller", "weight", "arrived")
	var shares []float64
	for _, bot := range equal.bots {
		shares = append(shares, got[bot])
		t.add(equal.name, bot, 1, int(got[bot]))
	}
	for i, bot := range weighted.bots {
		t.add(weighted.name, bot, weights[i], int(got[bot]))
	}
	b.found.set("jain", rounded(jain(shares), 4))
	b.found.atLeast("jain", 0.98)
	ratio := got[weighted.bots[1]] / math.Max(got[weighted.bots[0]], 1)
	b.found.set("weight3_ratio", rounded(ratio, 3))
	b.found.atLeast("weight3_ratio", 2.9)
	b.found.atMost("weight3_ratio", 3.1)
	b.found.set("sends", len(sends))
	counts, err := b.count(sim, 0, long, both)
	if err != nil {
		return err
	}
	b.explain(counts)
	b.found.set("violations", counts.violations)
	b.found.mustBe("violations", 0)
	return nil
}
