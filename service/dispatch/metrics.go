package dispatch

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// The attributes of the metrics are closed sets: companies and callers of the configuration, and the names below. Never
// bots: their ids may be phone numbers.

// otherCallers is the label of callers that are not configured, all together.
const otherCallers = "other"

var laneNames = map[ledger.Lane]string{ledger.Urgent: "urgent", ledger.Normal: "normal", ledger.Bulk: "bulk"}

var pauseNames = map[pace.Pause]string{
	pace.PausedThrottled: "throttled", pace.PausedRejected: "credential_rejected", pace.PausedMisconfigured: "misconfigured", pace.PausedHeld: "held",
}

// outcomeSent is the label of an attempt that Jelou took.
const outcomeSent = "sent"

// metrics are the dispatcher's instruments. Those that are observed are read from what it knows when somebody asks for
// them, and cost the ledger nothing.
type metrics struct {
	took     metric.Float64Histogram
	attempts metric.Int64Counter
	observed []metric.Observable

	requests, worst, allowed, excess, paused, credential  metric.Int64Observable
	queued, unknown, ghosts, duplicates, claims, replicas metric.Int64Observable
	used, window, oldest, fairness, estimateError         metric.Float64Observable
}

func newMetrics(d *Dispatcher, meter metric.Meter) *metrics {
	if meter == nil {
		meter = noop.Meter{}
	}
	m := &metrics{
		took: must(meter.Float64Histogram("jelou.attempt.duration", metric.WithUnit("s"),
			metric.WithDescription("How long requests to Jelou took that sent something, by company and outcome."),
			metric.WithExplicitBucketBoundaries(.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60))),
		attempts: must(meter.Int64Counter("jelou.attempts",
			metric.WithDescription("The same requests, counted, by company and outcome: 0 where there was none yet, so that rules see the first."))),
	}
	gauge := func(name, unit, description string) metric.Int64Observable {
		g := must(meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description)))
		m.observed = append(m.observed, g)
		return g
	}
	floatGauge := func(name, unit, description string) metric.Float64Observable {
		g := must(meter.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description)))
		m.observed = append(m.observed, g)
		return g
	}
	counter := func(name, description string) metric.Int64Observable {
		c := must(meter.Int64ObservableCounter(name, metric.WithDescription(description)))
		m.observed = append(m.observed, c)
		return c
	}
	m.requests = gauge("jelou.allowance.requests", "", "Requests that the configuration allows a company in one window.")
	m.window = floatGauge("jelou.allowance.window", "s", "The window of a company's allowance.")
	m.used = floatGauge("jelou.allowance.used", "1", "The part of a company's allowance that all replicas used over the last minute, 0 to 1.")
	m.paused = gauge("jelou.company.paused", "", "1 while nothing is sent for a company, by reason.")
	m.credential = gauge("jelou.credential.accepted", "", "0 while Jelou refuses a company's credential, or says that it has no company.")
	m.queued = gauge("jelou.queue.sends", "", "Sends that wait in the whole ledger, by company, lane, caller and state: waiting, paused or scheduled.")
	m.oldest = floatGauge("jelou.queue.oldest", "s", "For how long the oldest send waits that could leave, by company, lane and caller; 0 when none does.")
	m.unknown = gauge("jelou.unknown.sends", "", "Sends in the whole ledger of which nobody can say whether they left, by the least age.")
	m.worst = gauge("jelou.window.worst_requests", "", "Self-check: the most requests that this process began within one window of a company since its start.")
	m.allowed = gauge("jelou.window.allowed_requests", "", "Self-check: how many it may begin in one window.")
	m.excess = counter("jelou.window.exceeded", "Self-check: requests of this process that were one too many within a window.")
	m.ghosts = counter("jelou.ghost_sends", "Self-check: sends that left after their own time was over.")
	m.duplicates = counter("jelou.duplicates_prevented", "Self-check: calls that were answered with a send that there was already.")
	m.fairness = floatGauge("jelou.fairness.index", "", "Self-check: Jain's index over the callers that wait in one lane, of the least fair lane; 1 is fair.")
	m.estimateError = floatGauge("jelou.estimate.error", "s", "Self-check: by how much sends left earlier or later than their callers were told, by quantile.")
	m.claims = counter("jelou.claims", "Looks at companies that took their lock, by result: send, early, busy or empty.")
	m.replicas = gauge("jelou.replicas", "", "Replicas that are alive, as this one sees it.")
	must(meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		d.observe(o)
		return nil
	}, m.observed...))
	return m
}

// must is for what fails only by a wrong constant.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// enlist begins a company's counts at 0: a rule sees an increase only of what it has seen before.
func (m *metrics) enlist(company string) {
	m.attempts.Add(context.Background(), 0, with("company", company, "outcome", outcomeSent))
	for o := jelou.Refused; o <= jelou.Misconfigured; o++ {
		m.attempts.Add(context.Background(), 0, with("company", company, "outcome", o.String()))
	}
}

// noteAttempt measures a request that sent something, or tried to.
func (m *metrics) noteAttempt(ctx context.Context, company string, took time.Duration, e *jelou.Error) {
	outcome := with("company", company, "outcome", outcomeOf(e))
	m.took.Record(ctx, took.Seconds(), outcome)
	m.attempts.Add(ctx, 1, outcome)
}

func outcomeOf(e *jelou.Error) string {
	if e == nil {
		return outcomeSent
	}
	return e.Outcome.String()
}

// with are the attributes of an observation, as pairs of name and value.
func with(pairs ...string) metric.MeasurementOption {
	set := make([]attribute.KeyValue, 0, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		set = append(set, attribute.String(pairs[i], pairs[i+1]))
	}
	return metric.WithAttributeSet(attribute.NewSet(set...))
}

func oneIf(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// observe tells all that is known.
func (d *Dispatcher) observe(o metric.Observer) {
	m, current := d.metrics, map[string]bool{}
	for _, c := range d.all() {
		if !d.agenda.retired(c) {
			current[c.Name] = true
			c.observe(o, m)
		}
	}
	d.observeBacklogs(o)
	s, exceeded := d.check.Snapshot(), map[string]int64{}
	for _, c := range s.Companies {
		if !current[c.Company] {
			continue // it was removed
		}
		o.ObserveInt64(m.worst, int64(c.WorstWindow), with("company", c.Company))
		o.ObserveInt64(m.allowed, int64(c.Allowed), with("company", c.Company))
		exceeded[c.Company] = c.Exceeded
	}
	for name := range current { // from 0 on, as in enlist
		o.ObserveInt64(m.excess, exceeded[name], with("company", name))
	}
	for _, u := range s.Unknown {
		o.ObserveInt64(m.unknown, u.Count, with("age", ageNames[u.Age]))
	}
	o.ObserveInt64(m.ghosts, s.GhostSends)
	o.ObserveInt64(m.duplicates, s.DuplicatesPrevented)
	o.ObserveFloat64(m.fairness, s.Fairness)
	o.ObserveFloat64(m.estimateError, s.EstimateErrorP50.Seconds(), with("quantile", "0.5"))
	o.ObserveFloat64(m.estimateError, s.EstimateErrorP95.Seconds(), with("quantile", "0.95"))
	for result, n := range map[string]int64{"send": s.Claims.Sends, "early": s.Claims.Early, "busy": s.Claims.Busy, "empty": s.Claims.Empty} {
		o.ObserveInt64(m.claims, n, with("result", result))
	}
	o.ObserveInt64(m.replicas, d.replicas.Load())
}

// observe tells what is known of a company.
func (c *company) observe(o metric.Observer, m *metrics) {
	c.mu.Lock()
	defer c.mu.Unlock()
	status, company := c.status(), with("company", c.Name)
	o.ObserveInt64(m.requests, int64(c.rule.InWindow()), company)
	o.ObserveFloat64(m.window, c.rule.EachWindow().Seconds(), company)
	if n := len(c.use); n > 0 {
		used, _ := c.usedSince(c.use[n-1], "")
		o.ObserveFloat64(m.used, used, company)
	}
	for pause, name := range pauseNames {
		o.ObserveInt64(m.paused, oneIf(status.Pause == pause), with("company", c.Name, "reason", name))
	}
	o.ObserveInt64(m.credential, oneIf(!credentialRefused(status.Pause)), company)
}

func credentialRefused(p pace.Pause) bool {
	return p == pace.PausedRejected || p == pace.PausedMisconfigured
}

// observeBacklogs tells what waits, as it was last read. Callers that are not configured are told together.
func (d *Dispatcher) observeBacklogs(o metric.Observer) {
	type key struct{ company, lane, caller string }
	sums := map[key]ledger.Backlog{}
	for _, b := range *d.backlogs.Load() {
		c := d.all()[b.Company]
		if c == nil || d.agenda.retired(c) {
			continue // another server's, or removed
		}
		k := key{c.Name, laneNames[b.Lane], b.Caller}
		if d.config.Configured != nil && !d.config.Configured(b.Caller) {
			k.caller = otherCallers
		}
		sum := sums[k]
		sum.Waiting, sum.Paused, sum.Scheduled = sum.Waiting+b.Waiting, sum.Paused+b.Paused, sum.Scheduled+b.Scheduled
		sum.Oldest = max(sum.Oldest, b.Oldest)
		sums[k] = sum
	}
	for k, sum := range sums {
		for state, n := range map[string]int64{"waiting": sum.Waiting, "paused": sum.Paused, "scheduled": sum.Scheduled} {
			o.ObserveInt64(d.metrics.queued, n, with("company", k.company, "lane", k.lane, "caller", k.caller, "state", state))
		}
		o.ObserveFloat64(d.metrics.oldest, sum.Oldest.Seconds(), with("company", k.company, "lane", k.lane, "caller", k.caller))
	}
}

// sampleBacklogs reads what waits. While the ledger does not answer the last reading stands.
func (d *Dispatcher) sampleBacklogs(ctx context.Context) {
	if backlogs, err := d.config.Ledger.Backlogs(ctx); err == nil {
		d.backlogs.Store(&backlogs)
	}
}

// CredentialRefused tells whether Jelou refuses the company's credential, as far as this process has seen it.
func (d *Dispatcher) CredentialRefused(companyID int64) bool {
	return credentialRefused(d.Status(companyID).Pause)
}
