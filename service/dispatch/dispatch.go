// Package dispatch moves sends from the ledger to Jelou: claim, send, settle. It is the only caller of jelou.Client.Send.
//
// It guarantees that a request leaves only for a send that the ledger has given to this process, that it leaves at
// most once per claim, and that what became of it is told to the ledger; where the process dies in between, the
// claim's lease lapses and the send is unknown, never silently sent again.
//
// With several replicas each company has an order of them. The first looks for its slots at once, the others a moment
// later, without a lock, and claim only where nobody did: so claims rarely meet, and a dead replica costs moments.
package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// Company is one credential at Jelou with its allowance. It is not changed once a Dispatcher has it: see Dispatcher.Update.
type Company struct {
	ID     int64  // in the ledger
	Name   string // as configured
	Client *jelou.Client
	Pace   pace.Config

	// AttemptTimeout bounds one request to Jelou; zero is 10s. While Jelou hangs an urgent send may wait for so long.
	AttemptTimeout time.Duration

	// RecipientInterval is at least between two normal or bulk sends to one user of one bot; zero is no such limit.
	RecipientInterval time.Duration

	// Credential is read while Jelou refuses it: when it has changed, sending begins again at once. Nil waits for the
	// next probe.
	Credential func() (id, secret string, err error)
}

// Config is what a Dispatcher works with. The fields that say nothing about nil are required.
type Config struct {
	Ledger    *ledger.Ledger
	Companies []*Company

	// Result and Error make what is kept with a send of what Jelou answered.
	Result func(*jelou.Result) []byte
	Error  func(*jelou.Error) []byte
	// Open reads a stored body that may be encrypted; nil takes it as it is. ErrKeyMissing.
	Open func([]byte) ([]byte, error)

	// Configured tells whether a caller is one of the configuration: metrics name only those. Nil: all are named.
	Configured func(caller string) bool

	// Logger gets states of companies, never what is sent; nil logs nothing.
	Logger *slog.Logger
	Meter  metric.Meter // nil measures nothing
	Tracer trace.Tracer // nil traces nothing
}

// ErrKeyMissing is Config.Open's error for a body whose key this process has not got. Another process may have it, or this one
// later: the send waits, whatever that takes, until its own time is over.
var ErrKeyMissing = errors.New("the key of a stored send is missing")

const (
	// DefaultAttemptTimeout is a Company's AttemptTimeout that is zero.
	DefaultAttemptTimeout = 10 * time.Second
	// leaseGrace is what a send's lease is longer than an attempt: for the settle, and for a process that was stopped for
	// a moment. The slot does not wait for it.
	leaseGrace = 5 * time.Second
	// busyWait is when to look again at a company that somebody else has locked, and twice as late after each further time, up to
	// busyMost times: a database that is slow gets no faster by being asked more often.
	busyWait = 5 * time.Millisecond
	busyMost = 4
	// lookAgain is how often every company is looked at though nothing has woken it: a lost wake-up costs no more.
	lookAgain = 5 * time.Second
	// ledgerWait is how long to leave a ledger alone that answered with an error.
	ledgerWait = 200 * time.Millisecond
	// claimers is how many claims run beside each other. While all are busy, what becomes due is claimed together.
	claimers = 2
	// maxGlances is how many companies are looked at in one statement.
	maxGlances = 500
)

// Dispatcher claims, sends and settles for all companies of this process.
type Dispatcher struct {
	config    Config
	log       *slog.Logger
	companies atomic.Pointer[map[int64]*company] // by id; those that were removed too, retired from the agenda
	agenda    *agenda
	clock     *clock
	check     *SelfCheck
	metrics   *metrics
	backlogs  atomic.Pointer[[]ledger.Backlog] // as last read
	replicas  atomic.Int64                     // alive, this one among them
	counting  chan struct{}                    // a place for each that counts a line
	work      sync.WaitGroup                   // attempts, and what else must not be cut
	stopping  atomic.Bool

	updating sync.Mutex // held while companies or ranks change
	alive    []string   // replicas, as last seen
}

// New returns a Dispatcher that does nothing before Run.
func New(c Config) *Dispatcher {
	if c.Open == nil {
		c.Open = func(body []byte) ([]byte, error) { return body, nil }
	}
	if c.Tracer == nil {
		c.Tracer = noop.Tracer{}
	}
	d := &Dispatcher{
		config: c, log: c.Logger, agenda: newAgenda(), clock: newClock(), counting: make(chan struct{}, counters),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.check = newSelfCheck(d.log)
	d.replicas.Store(1)
	companies := map[int64]*company{}
	for _, co := range c.Companies {
		companies[co.ID] = newCompany(co, d.clock, d.log)
	}
	d.companies.Store(&companies)
	d.backlogs.Store(&[]ledger.Backlog{})
	d.metrics = newMetrics(d, c.Meter)
	for _, co := range c.Companies {
		d.metrics.enlist(co.Name)
	}
	return d
}

// all are the companies by id, also those that were removed. Nobody changes the map.
func (d *Dispatcher) all() map[int64]*company { return *d.companies.Load() }

// Run claims and sends until ctx ends, then waits for what is under way, which AttemptTimeout bounds.
func (d *Dispatcher) Run(ctx context.Context) error {
	work := context.WithoutCancel(ctx)
	d.begin(ctx)
	var running sync.WaitGroup
	for _, run := range []func(context.Context){d.glanceDue, d.watchWakes, d.watchReplicas, d.watchCredentials, d.sampleUse} {
		running.Go(func() { run(ctx) })
	}
	for range claimers {
		running.Go(func() { d.claimDue(ctx, work) })
	}
	running.Wait()
	d.stopping.Store(true)
	for _, c := range d.all() {
		c.failReads(ErrStopping)
	}
	d.work.Wait()
	return nil
}

// begin looks who else is alive. Where nobody is, nobody has watched the database's clock: what it says of the last
// requests is not trusted, and each company begins with a silent window.
func (d *Dispatcher) begin(ctx context.Context) {
	replicas, err := d.config.Ledger.Replicas(ctx)
	if err != nil || len(replicas) < 2 {
		d.clock.distrust()
	}
	d.setReplicas(replicas)
	for _, c := range d.all() {
		d.agenda.set(c, time.Now(), glanceLook)
	}
}

// Update replaces the companies and their settings while they send; it may be called once Run has been. A new company begins as at a
// start. One that is left out is not claimed from any more: what waits stays in the ledger. What is under way ends with the
// settings that it began with, within its AttemptTimeout.
func (d *Dispatcher) Update(companies []*Company) {
	d.updating.Lock()
	defer d.updating.Unlock()
	next, kept := maps.Clone(d.all()), map[int64]bool{}
	var added []*company
	for _, co := range companies {
		kept[co.ID] = true
		c := next[co.ID]
		if c == nil {
			c = newCompany(co, d.clock, d.log)
			c.setRank(rank(c.ID, d.config.Ledger.Replica(), d.alive), len(d.alive))
			next[co.ID] = c
			d.metrics.enlist(co.Name)
			added = append(added, c)
			continue
		}
		c.set(co)
	}
	d.companies.Store(&next) // before anything new is looked at
	for id, c := range next {
		switch {
		case !kept[id]:
			d.agenda.retire(c)
			c.failReads(ErrRemoved)
		case d.agenda.enlist(c):
			added = append(added, c)
		default:
			d.replan(c)
		}
	}
	for _, c := range added {
		d.agenda.set(c, time.Now(), glanceLook)
	}
}

// replan puts a company on the agenda where it belongs by what is known of it now.
func (d *Dispatcher) replan(c *company) {
	at, how := c.plan(time.Now())
	d.agenda.set(c, at, how)
}

// watchWakes hears of new work, here and at other replicas.
func (d *Dispatcher) watchWakes(ctx context.Context) {
	for {
		select {
		case woken := <-d.config.Ledger.Wakes():
			for _, w := range woken {
				if c := d.all()[w.Company]; c != nil {
					at, how := c.woken(time.Now(), w)
					d.agenda.sooner(c, at, how)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// claimDue claims for companies as they become due.
func (d *Dispatcher) claimDue(ctx, work context.Context) {
	for {
		due := d.agenda.take(ctx, claimLook, ledger.MaxClaimCompanies)
		if len(due) == 0 {
			return
		}
		d.claim(work, due)
	}
}

// claim asks the ledger once for the given companies and starts what it got. A crash before its commit leaves nothing;
// after it, sends that are claimed and never left: their leases lapse and they are unknown.
func (d *Dispatcher) claim(work context.Context, due []*company) {
	// The lease is counted from before the claim was sent: the ledger's counts from later.
	start := time.Now()
	ids := make([]int64, len(due))
	turns := make(map[int64]turn, len(due))
	lease := time.Duration(0)
	for i, c := range due {
		ids[i] = c.ID
		t := turn{c, c.settings.Load()}
		turns[c.ID], lease = t, max(lease, t.settings.attemptTimeout()+leaseGrace)
		c.begin()
	}
	decisions := map[int64]*decision{}
	claims, err := d.config.Ledger.Claim(work, ids, lease, func(v ledger.View) ledger.Choice {
		decided := turns[v.Company].decide(v, d.clock.read(start, pace.Time(v.Now)))
		decisions[v.Company] = decided
		return decided.choice
	})
	if err != nil {
		d.log.Warn("claim", slog.Any("error", err))
		for _, c := range due {
			d.agenda.release(c, time.Now().Add(ledgerWait), glanceLook)
		}
		return
	}
	claimed := time.Now()
	for _, cl := range claims {
		t, decided := turns[cl.Company], decisions[cl.Company]
		c := t.company
		at, how := c.learn(time.Now(), cl, decided)
		d.agenda.release(c, at, how)
		d.check.claimed(cl, decided)
		if cl.Send != nil {
			d.work.Go(func() { d.attempt(work, t, *cl.Send, start, claimed) })
		} else if decided != nil && decided.read != nil {
			d.grantRead(work, t, decided, start)
		}
	}
}

// glanceDue looks at companies that somebody else should be claiming from, or that seem to be idle.
func (d *Dispatcher) glanceDue(ctx context.Context) {
	for {
		due := d.agenda.take(ctx, glanceLook, maxGlances)
		if len(due) == 0 {
			return
		}
		d.glance(ctx, due)
	}
}

func (d *Dispatcher) glance(ctx context.Context, due []*company) {
	start := time.Now()
	ids := make([]int64, len(due))
	for i, c := range due {
		ids[i] = c.ID
		c.begin()
	}
	glances, err := d.config.Ledger.Glance(ctx, ids)
	if err != nil {
		if ctx.Err() == nil {
			d.log.Warn("look at companies", slog.Any("error", err))
		}
		for _, c := range due {
			d.agenda.release(c, time.Now().Add(ledgerWait), glanceLook)
		}
		return
	}
	seen := map[int64]bool{}
	for _, g := range glances {
		c := d.all()[g.Company]
		seen[g.Company] = true
		d.clock.read(start, pace.Time(g.Now))
		at, how := c.glanced(time.Now(), g)
		d.agenda.release(c, at, how)
	}
	for _, c := range due {
		if !seen[c.ID] { // it is gone from the ledger, with its database: it may come back
			d.agenda.release(c, time.Now().Add(lookAgain), glanceLook)
		}
	}
}
