package dispatch

import (
	"context"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// backlogKept is for how long a count of what waits is good for estimates; what this process adds meanwhile is added to it.
const backlogKept = 50 * time.Millisecond

// Estimate is how long a new send of the caller would wait in the lane before it leaves, if nobody else came.
func (d *Dispatcher) Estimate(ctx context.Context, companyID int64, lane ledger.Lane, caller string) (time.Duration, error) {
	c, ok := d.companies[companyID]
	if !ok {
		return 0, nil
	}
	backlog, added, err := c.waiting(ctx, d.config.Ledger)
	if err != nil {
		return 0, err
	}
	var q pace.Backlog
	own := pace.Share{Waiting: int(added[lane])}
	var others []pace.Share
	for _, b := range backlog.Shares {
		waiting := 0
		for _, w := range b.Queues {
			waiting += int(w.Waiting)
		}
		q.Waiting[b.Lane] += waiting
		switch {
		case b.Lane != lane:
		case b.Caller == caller:
			own.Waiting += waiting
		default:
			others = append(others, pace.Share{Waiting: waiting})
		}
	}
	for l, n := range added {
		q.Waiting[l] += int(n)
	}
	q.Ahead = pace.Ahead(0, own, others)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.nowDB()
	b := c.budget
	at := b.Estimate(c.Pace, now, pace.Lane(lane), q)
	if at == pace.Never {
		return pace.Never.Sub(now), nil
	}
	return max(at.Sub(now), 0), nil
}

// Added notes that this process has stored a send, so that the next estimate knows of it before the ledger is asked again.
func (d *Dispatcher) Added(companyID int64, lane ledger.Lane) {
	if c := d.companies[companyID]; c != nil {
		c.mu.Lock()
		c.added[lane]++
		c.mu.Unlock()
	}
}

// waiting is what waits for the company: as counted a moment ago, and what this process has added since.
func (c *company) waiting(ctx context.Context, l *ledger.Ledger) (ledger.Line, [4]int64, error) {
	c.mu.Lock()
	backlog, added, age := c.backlog, c.added, time.Since(c.backlogAt)
	c.mu.Unlock()
	if age < backlogKept {
		return backlog, added, nil
	}
	fresh, err := l.Count(ctx, c.ID)
	if err != nil {
		return fresh, added, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backlog, c.backlogAt, c.added = fresh, time.Now(), [4]int64{}
	return fresh, c.added, nil
}

// Status is the company's pacing now, as far as this process has seen it.
func (d *Dispatcher) Status(companyID int64) pace.Status {
	return d.companies[companyID].status()
}
