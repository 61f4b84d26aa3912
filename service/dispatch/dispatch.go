// Package dispatch moves sends from the ledger to Jelou: claim, send, settle. It is the only caller of jelou.Client.Send.
//
// It guarantees that a request leaves only for a send that the ledger has given to this process, that it leaves at
// most once per claim, and that what became of it is told to the ledger; where the process dies in between, the
// claim's lease lapses and the send is unknown, never silently sent again.
package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// Company is one credential at Jelou with its allowance.
type Company struct {
	ID     int64  // in the ledger
	Name   string // as configured
	Client *jelou.Client
	Pace   pace.Config

	// AttemptTimeout bounds one request to Jelou; zero is 10s. While Jelou hangs an urgent send may wait for so long.
	AttemptTimeout time.Duration
}

// Config is what a Dispatcher works with. All fields but Logger are required.
type Config struct {
	Ledger    *ledger.Ledger
	Companies []*Company

	// Result and Error make what is kept with a send of what Jelou answered.
	Result func(*jelou.Result) []byte
	Error  func(*jelou.Error) []byte

	// Logger gets states of companies, never what is sent; nil logs nothing.
	Logger *slog.Logger
}

const (
	defaultAttemptTimeout = 10 * time.Second
	// leaseGrace is what a lease is longer than an attempt: for the settle, and for a process that was stopped for a moment.
	leaseGrace = 5 * time.Second
	// busyWait is when to look again at a company that another replica has locked.
	busyWait = 5 * time.Millisecond
	// lookAgain is how often every company is looked at though nothing has woken it: a lost wake-up costs no more.
	lookAgain = 5 * time.Second
	// ledgerWait is how long to leave a ledger alone that answered with an error.
	ledgerWait = 200 * time.Millisecond
	// maxInFlight bounds the attempts under way in this process; slots bound them per company.
	maxInFlight = 4096
)

// Dispatcher claims, sends and settles for all companies of this process.
type Dispatcher struct {
	config    Config
	log       *slog.Logger
	companies map[int64]*company
	wake      chan struct{} // a company became due outside of the loop
	inFlight  chan struct{}
	work      sync.WaitGroup
	stopping  atomic.Bool
	lease     time.Duration // longer than any company's attempts by leaseGrace
}

// New returns a Dispatcher that does nothing before Run.
func New(c Config) *Dispatcher {
	d := &Dispatcher{
		config: c, log: c.Logger, companies: map[int64]*company{},
		wake: make(chan struct{}, 1), inFlight: make(chan struct{}, maxInFlight),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	for _, co := range c.Companies {
		if co.AttemptTimeout == 0 {
			co.AttemptTimeout = defaultAttemptTimeout
		}
		d.lease = max(d.lease, co.AttemptTimeout+leaseGrace)
		d.companies[co.ID] = &company{Company: co, due: time.Now()}
	}
	return d
}

// Run claims and sends until ctx ends, then waits for what is under way, which AttemptTimeout bounds.
func (d *Dispatcher) Run(ctx context.Context) error {
	work := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		d.claimDue(ctx, work)
		d.sleep(ctx)
	}
	d.stopping.Store(true)
	d.failReads()
	d.work.Wait()
	return nil
}

// sleep waits until a company is due or something new is there.
func (d *Dispatcher) sleep(ctx context.Context) {
	wait := lookAgain
	for _, c := range d.companies {
		wait = min(wait, time.Until(c.dueAt()))
	}
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-d.wake:
	case woken := <-d.config.Ledger.Wakes():
		for _, w := range woken {
			if c := d.companies[w.Company]; c != nil {
				c.wakeAt(time.Now())
			}
		}
	}
}

// nudge makes the loop look at the clock again.
func (d *Dispatcher) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// claimDue claims for every company that is due, as many sends as may leave now.
func (d *Dispatcher) claimDue(ctx, work context.Context) {
	for ctx.Err() == nil {
		due := d.dueCompanies()
		if len(due) == 0 {
			return
		}
		d.claim(ctx, work, due)
	}
}

func (d *Dispatcher) dueCompanies() []int64 {
	now := time.Now()
	var due []int64
	for id, c := range d.companies {
		if !c.dueAt().After(now) {
			due = append(due, id)
		}
		if len(due) == ledger.MaxClaimCompanies {
			break
		}
	}
	return due
}

// claim asks the ledger once for the given companies and starts what it got.
func (d *Dispatcher) claim(ctx, work context.Context, ids []int64) {
	// The lease is counted from before the claim was sent: the ledger's counts from later.
	start := time.Now()
	decisions := map[int64]decision{}
	claims, err := d.config.Ledger.Claim(ctx, ids, d.lease, func(v ledger.View) ledger.Choice {
		dec := d.companies[v.Company].decide(v, d.lease)
		decisions[v.Company] = dec
		return dec.choice
	})
	if err != nil {
		if ctx.Err() == nil {
			d.log.Warn("claim", slog.Any("error", err))
		}
		for _, id := range ids {
			d.companies[id].sleepUntil(time.Now().Add(ledgerWait))
		}
		return
	}
	for _, cl := range claims {
		c, dec := d.companies[cl.Company], decisions[cl.Company]
		c.learn(cl, dec, start, d.log)
		switch {
		case cl.Send != nil:
			d.start(work, c, *cl.Send, start.Add(d.lease))
		case dec.read == nil:
		case c.dropRead(dec.read):
			dec.read.granted <- grant{claim: dec.readClaim, deadline: start.Add(c.AttemptTimeout)}
		default: // its caller left meanwhile
			d.work.Go(func() { d.giveBack(work, c, dec.readClaim) })
		}
	}
}

// start runs one attempt beside the others.
func (d *Dispatcher) start(work context.Context, c *company, send ledger.Send, leaseEnd time.Time) {
	d.inFlight <- struct{}{}
	d.work.Go(func() {
		defer func() { <-d.inFlight }()
		d.attempt(work, c, send, leaseEnd)
	})
}
