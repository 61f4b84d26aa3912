package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var pacingBenchmark = benchmark{
	name:  "pacing",
	short: "Whether any second at Jelou ever holds more than the limit, and how much of the allowance is used",
	long: `
Companies with 5 requests a second each, all at full demand, against simulators with a sliding window, over three ways of
network: near (5 ms), internet (60 ms, 1% spikes of 20 to 200 ms), lossy (0.5% of +200 to +400 ms). For each way: one
process on SQLite and three replicas on PostgreSQL; Jelou processing for 80 ms or for 50 to 1,050 ms; its limiter at its edge
or behind the processing. Where processing varies and the limiter is at the edge, evidence AUTO is measured, too: here the
network lies behind the end of the connection, as behind a proxy, so its acknowledgements know nothing of the network. Where
that has spikes AUTO is wrong, and what it may cost is one 429 a company, after which it goes back to REPLY for an hour.
Beside it, in the same run and over the same ways, clients as they are usually written: x/time/rate with burst 5, even
spacing, fixed windows. Then the facade against the other ways of counting: fixed windows, a token bucket, even spacing.

Utilization is what was admitted of a company, as a share of its allowance, from the time on when the facade has learned
the network's fastest trip: 6 s after the company's first arrival; those 6 s stand in a column of their own. Arrivals are
counted at the simulator; a violation is an arrival that made a window of one second hold more than 5.

Fields: violations and http_429 (of the facade with REPLY against the sliding window), auto_429_per_company (the most), utilization (the lowest of near and internet
with steady processing), utilization_near, utilization_internet, utilization_lossy (the lowest of each with steady
processing), utilization_varied_reply and utilization_varied_auto (the lowest with 50 to 1,050 ms), arrivals_near,
arrivals_internet, arrivals_lossy, worst_window; of each other window (window_fixed, window_token_bucket, window_even):
http_429, utilization; of each usual client (client_rate_burst5, client_even, client_fixed): violations, http_429, utilization.
--quick leaves out cells and measures each for some seconds, so utilization is rougher.`,
	run: pacing,
}

// cell is one simulator of the pacing measurement, and the companies that use it.
type cell struct {
	profile  jelousim.NetworkProfile
	steady   bool
	behind   bool
	evidence configv1.Company_Evidence
	kind     jelousim.RateKind
	tenants  []*tenant
	sim      *simulator
}

func (c cell) processing() jelousim.Processing {
	if c.steady {
		return jelousim.Processing{Min: jelousim.Duration(80 * time.Millisecond)}
	}
	return jelousim.Processing{Min: jelousim.Duration(50 * time.Millisecond), Max: jelousim.Duration(1050 * time.Millisecond)}
}

func (c cell) describe() []any {
	processing, position := "50–1,050 ms", "edge"
	if c.steady {
		processing = "80 ms"
	}
	if c.behind {
		position = "behind"
	}
	evidence := c.evidence.String()
	if c.evidence == configv1.Company_EVIDENCE_UNSPECIFIED {
		evidence = "REPLY"
	}
	return []any{string(c.profile), processing, position, evidence}
}

// counted is what a simulator saw of some companies.
type counted struct {
	arrived, admitted, throttled int
	throttledMost                int // of one company
	violations, worst            int
	used, usedFirst              float64  // share of the allowance, once learned and before
	explained                    []string // violations
}

// learning is how long a company needs to know its network: until then no credit is taken for the fastest trip.
const learning = 6 * time.Second

// count looks at what arrived of the companies: each from its first arrival on for the time in which it learns, and
// then for so long.
func (b *bench) count(s *simulator, learning, long time.Duration, all []*tenant) (counted, error) {
	var c counted
	of, err := s.arrivals(b.ctx)
	if err != nil {
		return c, err
	}
	for _, t := range all {
		a := of[t.name]
		if a == nil || len(a.admitted) == 0 {
			return c, fmt.Errorf("nothing of company %s arrived", t.name)
		}
		n, worst := violations(a.all, t.allowed(), t.every())
		c.violations += n
		c.explained = append(c.explained, explain(a.all, t.allowed(), t.every())...)
		c.worst = max(c.worst, worst)
		c.arrived += len(a.all)
		c.admitted += len(a.admitted)
		c.throttled += len(a.throttled)
		c.throttledMost = max(c.throttledMost, len(a.throttled))
		learned := a.all[0].Add(learning)
		c.usedFirst += share(a.admitted, t, a.all[0], learned) / float64(len(all))
		c.used += share(a.admitted, t, learned, learned.Add(long)) / float64(len(all))
	}
	return c, nil
}

// explain says on standard error what the violations were: those of the facade are worth a look, each of them.
func (b *bench) explain(n counted) {
	for _, line := range n.explained {
		b.progress("violation: %s", line)
	}
}

// pacingCells are the simulators for one way of network.
func (b *bench) pacingCells(profile jelousim.NetworkProfile) []*cell {
	cells := []*cell{
		{profile: profile, steady: true},
		{profile: profile, steady: true, behind: true},
		{profile: profile},
		{profile: profile, behind: true},
		{profile: profile, evidence: configv1.Company_AUTO},
	}
	return pick(b, cells, cells[:3])
}

func pacing(b *bench) error {
	each, long := pick(b, 5, 2), pick(b, 100*time.Second, 6*time.Second)
	profiles := []jelousim.NetworkProfile{jelousim.NetworkNear, jelousim.NetworkInternet, jelousim.NetworkLossy}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	sum := newPacingSum()
	t := b.found.table(fmt.Sprintf("The facade at full demand, sliding window of 5 a second at Jelou, %d companies a line for %v", each, long),
		"network", "processing", "limiter", "evidence", "replicas", "arrived", "worst window", "violations", "429", "first 6 s", "utilization")
	other := b.found.table(fmt.Sprintf("The facade against other ways of counting, internet, 80 ms, one process, %v", long),
		"Jelou counts by", "arrived", "429", "utilization")
	groups := [][]jelousim.NetworkProfile{{profiles[0]}, {profiles[1]}, {profiles[2]}}
	if b.quick {
		groups = [][]jelousim.NetworkProfile{profiles}
	}
	for _, replicas := range []int{1, 3} {
		for _, group := range groups {
			var cells []*cell
			for _, profile := range group {
				cells = append(cells, b.pacingCells(profile)...)
			}
			if replicas == 1 && slices.Contains(group, jelousim.NetworkInternet) {
				for _, kind := range []jelousim.RateKind{jelousim.RateFixed, jelousim.RateTokenBucket, jelousim.RateEven} {
					cells = append(cells, &cell{profile: jelousim.NetworkInternet, steady: true, kind: kind})
				}
			}
			b.progress("%v with %d replicas", group, replicas)
			err := b.measureCells(p, replicas, each, long, cells, func(c *cell, n counted) {
				if c.kind != "" {
					other.add(string(c.kind), n.arrived, n.throttled, n.used)
					b.found.set("window_"+string(c.kind)+"_http_429", n.throttled)
					b.found.set("window_"+string(c.kind)+"_utilization", rounded(n.used, 4))
					return
				}
				t.add(append(c.describe(), replicas, n.arrived, n.worst, n.violations, n.throttled, n.usedFirst, n.used)...)
				sum.add(c, n)
			})
			if err != nil {
				return err
			}
		}
	}
	sum.set(&b.found)
	return b.baselines(profiles, each, long)
}

// pacingSum is the worst of all lines.
type pacingSum struct {
	violations, throttled, worst int
	autoThrottled                int // of one company, the most
	arrived                      map[jelousim.NetworkProfile]int
	steady                       map[jelousim.NetworkProfile]float64
	variedReply, variedAuto      float64
}

func newPacingSum() *pacingSum {
	return &pacingSum{
		arrived: map[jelousim.NetworkProfile]int{}, steady: map[jelousim.NetworkProfile]float64{},
		variedReply: math.Inf(1), variedAuto: math.Inf(1),
	}
}

func (s *pacingSum) add(c *cell, n counted) {
	if c.evidence == configv1.Company_AUTO {
		s.autoThrottled = max(s.autoThrottled, n.throttledMost)
	} else {
		s.violations += n.violations
		s.throttled += n.throttled
		s.worst = max(s.worst, n.worst)
	}
	s.arrived[c.profile] += n.arrived
	switch {
	case c.steady:
		if old, ok := s.steady[c.profile]; !ok || n.used < old {
			s.steady[c.profile] = n.used
		}
	case c.evidence == configv1.Company_AUTO:
		s.variedAuto = min(s.variedAuto, n.used)
	default:
		s.variedReply = min(s.variedReply, n.used)
	}
}

func (s *pacingSum) set(f *findings) {
	f.set("violations", s.violations)
	f.mustBe("violations", 0)
	f.set("http_429", s.throttled)
	f.mustBe("http_429", 0)
	f.set("worst_window", s.worst)
	f.set("auto_429_per_company", s.autoThrottled)
	f.atMost("auto_429_per_company", 1)
	f.set("utilization", rounded(min(s.steady[jelousim.NetworkNear], s.steady[jelousim.NetworkInternet]), 4))
	f.atLeast("utilization", 0.97)
	for _, w := range []struct {
		profile jelousim.NetworkProfile
		goal    float64
	}{{jelousim.NetworkNear, 0.97}, {jelousim.NetworkInternet, 0.97}, {jelousim.NetworkLossy, 0.94}} {
		field := "utilization_" + string(w.profile)
		f.set(field, rounded(s.steady[w.profile], 4))
		f.atLeast(field, w.goal)
		f.set("arrivals_"+string(w.profile), s.arrived[w.profile])
	}
	f.set("utilization_varied_reply", rounded(s.variedReply, 4))
	f.set("utilization_varied_auto", rounded(s.variedAuto, 4))
}

// measureCells runs one set of facades against all cells at once and gives what each simulator counted.
func (b *bench) measureCells(p *postgres, replicas, each int, long time.Duration, cells []*cell, found func(*cell, counted)) (err error) {
	var all []*tenant
	for i, c := range cells {
		c.tenants = tenants(fmt.Sprintf("c%d", i), each)
		for _, t := range c.tenants {
			t.evidence = c.evidence
		}
		c.sim, err = b.startSimulatorFor(jelousim.Config{
			Rate: jelousim.Rate{Behind: c.behind, Kind: c.kind}, Processing: c.processing(), Network: jelousim.Network{Profile: c.profile},
		}, c.tenants...)
		if err != nil {
			return err
		}
		defer c.sim.kill()
		all = append(all, c.tenants...)
	}
	url := ""
	if replicas > 1 {
		if url, err = p.database(); err != nil {
			return err
		}
	}
	facades, err := b.startFacades(replicas, url, all...)
	if err != nil {
		return err
	}
	defer facades.stop()
	if err := facades.keepFull(b.ctx, learning+long, all...); err != nil {
		return err
	}
	// Every company's first arrival was before the last send was added, or is within a second.
	if err := b.sleep(learning + long + time.Second); err != nil {
		return err
	}
	for _, c := range cells {
		n, err := b.count(c.sim, learning, long, c.tenants)
		if err != nil {
			return err
		}
		if c.kind == "" {
			b.explain(n)
		}
		found(c, n)
	}
	for _, line := range facades.troubles() {
		b.progress("a facade logged: %s", line)
	}
	return nil
}

// baseline is a limit as it is usually written.
type baseline struct {
	name string
	make func() limiter
}

var baselines = []baseline{
	{"rate_burst5", func() limiter { return rate.NewLimiter(5, 5) }},
	{"even", func() limiter { return rate.NewLimiter(5, 1) }},
	{"fixed", func() limiter { return &fixedWindow{requests: 5, window: time.Second} }},
}

// baselines measures them over all ways at once, with steady processing and the limiter at the edge.
func (b *bench) baselines(profiles []jelousim.NetworkProfile, each int, long time.Duration) error {
	b.progress("usual clients without a facade")
	type line struct {
		baseline
		profile jelousim.NetworkProfile
		tenants []*tenant
		sim     *simulator
	}
	var lines []line
	ctx, stop := context.WithTimeout(b.ctx, long+time.Second)
	defer stop()
	var clients errgroup.Group
	for _, profile := range profiles {
		var all []*tenant
		var here []line
		for _, l := range baselines {
			of := tenants(l.name, each)
			here = append(here, line{l, profile, of, nil})
			all = append(all, of...)
		}
		for _, t := range all {
			t.bots[0] = t.name
		}
		sim, err := b.startSimulatorFor(jelousim.Config{Processing: cell{steady: true}.processing(), Network: jelousim.Network{Profile: profile}}, all...)
		if err != nil {
			return err
		}
		defer sim.kill()
		for _, l := range here {
			l.sim = sim
			lines = append(lines, l)
			for _, t := range l.tenants {
				clients.Go(func() error { newDirect(t).flood(ctx, l.make()); return nil })
			}
		}
	}
	if err := clients.Wait(); err != nil {
		return err
	}
	if err := b.sleep(time.Second); err != nil { // for what is under way
		return err
	}
	t := b.found.table(fmt.Sprintf("Usual clients in the place of the facade, the same windows, 80 ms at the edge, %v", long),
		"client", "network", "arrived", "worst window", "violations", "429", "utilization")
	sums := map[string]counted{}
	for _, l := range lines {
		n, err := b.count(l.sim, 0, long, l.tenants)
		if err != nil {
			return err
		}
		t.add(l.name, string(l.profile), n.arrived, n.worst, n.violations, n.throttled, n.used)
		sum := sums[l.name]
		sum.violations += n.violations
		sum.throttled += n.throttled
		sum.used += n.used / float64(len(profiles))
		sums[l.name] = sum
	}
	for _, l := range baselines {
		b.found.set("client_"+l.name+"_violations", sums[l.name].violations)
		b.found.set("client_"+l.name+"_http_429", sums[l.name].throttled)
		b.found.set("client_"+l.name+"_utilization", rounded(sums[l.name].used, 4))
	}
	return nil
}
