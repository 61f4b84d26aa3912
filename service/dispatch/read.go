package dispatch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// ErrTooManyReads is returned when so many reads wait for a company that more would only time out.
var ErrTooManyReads = errors.New("too many reads wait")

// ErrStopping is returned for a read while the process stops.
var ErrStopping = errors.New("the process stops")

// ErrRemoved is returned for a read of a company that was removed from the configuration meanwhile.
var ErrRemoved = errors.New("the company was removed")

// maxReads is how many reads of a company may wait.
const maxReads = 256

// read is a request to Jelou that is no send: it waits for its turn in the lane pace.Read and is not stored.
type read struct {
	granted chan grant
}

type grant struct {
	claim    int64
	start    time.Time // the attempt's timeout counts from here
	settings *Company
	err      error
}

// Read runs f when a read of the company may leave: reads cost the same allowance as sends, and go last. f makes one
// request with the company's client and returns what it saw; its error is Read's.
func (d *Dispatcher) Read(ctx context.Context, companyID int64, f func(context.Context, *jelou.Client) (jelou.Timing, error)) error {
	c, ok := d.all()[companyID]
	if !ok {
		return fmt.Errorf("company %d is not dispatched here", companyID)
	}
	r := &read{granted: make(chan grant, 1)}
	if d.stopping.Load() {
		return ErrStopping
	}
	if !c.addRead(r) {
		return ErrTooManyReads
	}
	if d.agenda.retired(c) {
		c.failReads(ErrRemoved) // it was removed before it was known to wait
	}
	d.replan(c)
	select {
	case <-ctx.Done():
		if !c.dropRead(r) {
			// Its turn came in the same moment, or the process stops: the grant is on its way.
			if g := <-r.granted; g.err == nil {
				d.giveBack(ctx, c, g)
			}
		}
		return ctx.Err()
	case g := <-r.granted:
		if g.err != nil {
			return g.err
		}
		return d.runRead(ctx, c, g, f)
	}
}

func (d *Dispatcher) runRead(ctx context.Context, c *company, g grant, f func(context.Context, *jelou.Client) (jelou.Timing, error)) error {
	ctx, cancel := context.WithDeadline(ctx, g.start.Add(g.settings.attemptTimeout()))
	defer cancel()
	traced, span := d.traceRequest(ctx, g.settings.Client, http.MethodGet)
	timing, err := f(traced, g.settings.Client)
	endRequest(span, err)
	e, _ := errors.AsType[*jelou.Error](err)
	if e == nil && err != nil {
		e = &jelou.Error{Outcome: jelou.Unknown}
	}
	over := time.Now()
	d.settleRead(ctx, c, g, func(now pace.Time) pace.Reply {
		return replyOf(&jelou.Result{Timing: timing}, e, func(seen time.Time) time.Duration { return d.clock.ago(over, now, seen) })
	})
	c.landed(over, g.start, e == nil || e.Outcome != jelou.Unreachable)
	d.replan(c)
	return err
}

// grantRead gives a read its turn. When its caller left meanwhile the slot is given back.
func (d *Dispatcher) grantRead(work context.Context, t turn, dec *decision, start time.Time) {
	c, g := t.company, grant{claim: dec.readClaim, start: start, settings: t.settings}
	if c.dropRead(dec.read) {
		dec.read.granted <- g
		return
	}
	d.work.Go(func() { d.giveBack(work, c, g) })
}

// giveBack frees a slot that nothing left with.
func (d *Dispatcher) giveBack(ctx context.Context, c *company, g grant) {
	d.settleRead(ctx, c, g, func(pace.Time) pace.Reply { return pace.Reply{Outcome: pace.NeverLeft} })
	c.gaveBack()
	d.replan(c)
}

// settleRead settles a read's slot. Where that fails the slot is kept until its lease has ended: late, never early.
func (d *Dispatcher) settleRead(ctx context.Context, c *company, g grant, reply func(now pace.Time) pace.Reply) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseGrace)
	defer cancel()
	rule := c.currentRule()
	d.updatePace(ctx, c, func(b *pace.Budget, now pace.Time) bool { return b.Settle(rule, now, g.claim, reply(now)) })
}

func (c *company) addRead(r *read) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reads) >= maxReads {
		return false
	}
	c.reads = append(c.reads, r)
	return true
}

// firstRead is the read whose turn is next. c.mu is held.
func (c *company) firstRead() *read {
	if len(c.reads) == 0 {
		return nil
	}
	return c.reads[0]
}

// dropRead takes a read off the list, and reports whether it was on it: whoever takes it off answers it.
func (c *company) dropRead(r *read) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.reads, r)
	if i < 0 {
		return false
	}
	c.reads = slices.Delete(c.reads, i, i+1)
	return true
}

// failReads ends all waiting reads.
func (c *company) failReads(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reads {
		r.granted <- grant{err: err}
	}
	c.reads = nil
}
