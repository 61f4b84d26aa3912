package dispatch

import (
	"context"
	"slices"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const (
	// lineKept is for how long a count of what waits is as good as new; after it, whoever asks counts again.
	lineKept = 50 * time.Millisecond
	// lineStale is for how long a count will do while others are counted, and for who is far from every bound.
	lineStale = 2 * time.Second
	// lineIdle is the same as lineKept for a company in which nothing waits.
	lineIdle = time.Second
	// addTakes is how long an add may take to be seen by a count.
	addTakes = 20 * time.Millisecond
	// counters may count at once, each for one in countPart of its time: estimates must not slow down what they estimate.
	counters  = 4
	countPart = 5
)

// share names a caller's share of a lane.
type share struct {
	lane   ledger.Lane
	caller string
}

// line is what waits for a company: as counted a while ago, and what this process has added and claimed since. What
// other replicas do is seen by the next count.
type line struct {
	counted ledger.Line
	at      time.Time   // when that was; zero for never
	budget  pace.Budget // as it was then
	since   map[share]int64
	recent  []addition
}

type addition struct {
	at    time.Time
	share share
	n     int64
}

// add notes sends that are being stored.
func (l *line) add(now time.Time, s share, n int64) {
	l.recent = append(l.recent, addition{now, s, n})
	l.move(s, n)
}

// take notes a send that was claimed.
func (l *line) take(s ledger.Send) { l.move(share{s.Lane, s.Caller}, -1) }

func (l *line) move(s share, n int64) {
	if l.since == nil {
		l.since = map[share]int64{}
	}
	l.since[s] += n
}

// set takes in a count that began at a moment. What was added just before may not be in it.
func (l *line) set(began time.Time, counted ledger.Line) {
	if began.Before(l.at) {
		return
	}
	l.counted, l.at, l.since = counted, began, nil
	if l.budget.UnmarshalBinary(counted.Pace) != nil {
		l.budget = pace.Budget{}
	}
	l.recent = slices.DeleteFunc(l.recent, func(a addition) bool { return a.at.Before(began.Add(-addTakes)) })
	for _, a := range l.recent {
		l.move(a.share, a.n)
	}
}

// empty reports whether nothing waits.
func (l *line) empty() bool {
	return !slices.ContainsFunc(l.shares(), func(x ledger.ShareLine) bool { return l.waiting(share{x.Lane, x.Caller}) > 0 })
}

// waiting is how many sends of a share wait, in all its open queues.
func (l *line) waiting(s share) int64 {
	n := l.since[s]
	for i := range l.counted.Shares {
		if x := &l.counted.Shares[i]; x.Lane == s.lane && x.Caller == s.caller {
			for _, q := range x.Queues {
				n += q.Waiting
			}
		}
	}
	return max(0, n)
}

// shares are the shares in which something waits, or was just added.
func (l *line) shares() []ledger.ShareLine {
	all := slices.Clone(l.counted.Shares)
	for s := range l.since {
		if !slices.ContainsFunc(all, func(x ledger.ShareLine) bool { return x.Lane == s.lane && x.Caller == s.caller }) {
			all = append(all, ledger.ShareLine{Lane: s.lane, Caller: s.caller})
		}
	}
	return all
}

// place is a place in line: behind so many sends of a queue. Queue 0 is the caller's loose sends, before -1 their end.
type place struct {
	share
	queue  int64
	before int64
}

// backlog is what stands before a place, as package pace reckons with it.
func (l *line) backlog(p place) pace.Backlog {
	var q pace.Backlog
	own := pace.Share{Weight: 1}
	found := false
	var others []pace.Share
	for _, x := range l.shares() {
		key := share{x.Lane, x.Caller}
		waiting := int(l.waiting(key))
		q.Waiting[x.Lane] += waiting
		switch {
		case x.Lane != p.lane:
		case x.Caller == p.caller:
			found = true
			own.Tag, own.Weight = pace.Tag(x.Tag.Start), x.Tag.Weight
			own.Waiting = l.inShare(&x, p)
		default:
			others = append(others, pace.Share{Tag: pace.Tag(x.Tag.Start), Weight: x.Tag.Weight, Waiting: waiting, First: x.Caller < p.caller})
		}
	}
	if !found {
		own.Waiting = int(max(0, p.before))
	}
	q.Ahead = pace.Ahead(pace.Tag(l.counted.Virtual[p.lane]), own, others)
	return q
}

// inShare is how many of the caller's own sends of the lane go before a place.
func (l *line) inShare(x *ledger.ShareLine, p place) int {
	var own pace.Share
	var others []pace.Share
	loose := p.queue == 0
	for _, q := range x.Queues {
		waiting := int(q.Waiting)
		if !q.Batch {
			waiting = max(0, waiting+int(l.since[p.share]))
		}
		if q.Queue == p.queue || loose && !q.Batch {
			own.Tag, own.Waiting, p.queue = pace.Tag(q.Start), waiting, q.Queue
			continue
		}
		others = append(others, pace.Share{Tag: pace.Tag(q.Start), Waiting: waiting, First: q.Queue < p.queue || loose})
	}
	if loose && own.Waiting == 0 && p.queue == 0 {
		own.Waiting = int(max(0, l.since[p.share])) // not counted yet
	}
	if p.before >= 0 {
		own.Waiting = int(p.before)
	}
	return pace.Ahead(pace.Tag(x.Virtual), own, others)
}

// Estimate is how long a new send of the caller would wait in the lane before it leaves, if nobody else came.
func (d *Dispatcher) Estimate(ctx context.Context, companyID int64, lane ledger.Lane, caller string) (time.Duration, error) {
	return d.estimate(ctx, companyID, place{share{lane, caller}, 0, -1})
}

// admitSlack is the part of an estimated wait by which it may turn out longer, within which nothing is promised.
const admitSlack = 16

// Admit is Estimate for a send that is about to be stored where its wait is surely over within a time. It counts from now on,
// so that of those who ask together each finds the others before it.
func (d *Dispatcher) Admit(ctx context.Context, companyID int64, lane ledger.Lane, caller string, within time.Duration) (wait time.Duration, ok bool, err error) {
	c, found := d.all()[companyID]
	if !found {
		return 0, true, nil
	}
	if err := d.freshen(ctx, c); err != nil {
		return 0, false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	to := share{lane, caller}
	wait = c.startsIn(place{to, 0, -1})
	if wait+wait/admitSlack > within {
		return wait, false, nil
	}
	c.line.add(time.Now(), to, 1)
	return wait, true, nil
}

// EstimateAt is the same for a send that has so many of its queue before it.
func (d *Dispatcher) EstimateAt(ctx context.Context, queue ledger.QueueID, lane ledger.Lane, caller string, before int64) (time.Duration, error) {
	return d.estimate(ctx, queue.Company, place{share{lane, caller}, queue.Queue, before})
}

func (d *Dispatcher) estimate(ctx context.Context, companyID int64, p place) (time.Duration, error) {
	c, ok := d.all()[companyID]
	if !ok {
		return 0, nil
	}
	if err := d.freshen(ctx, c); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startsIn(p), nil
}

// startsIn is when a request at a place would start. c.mu is held.
func (c *company) startsIn(p place) time.Duration {
	now := c.clock.now()
	b := c.budget.Clone()
	if c.line.counted.ClaimNo > c.claimNo { // somebody else has claimed meanwhile
		b = c.line.budget.Clone()
	}
	at := b.Estimate(c.rule, now, pace.Lane(p.lane), c.line.backlog(p))
	if at == pace.Never {
		return forever
	}
	return max(at.Sub(now), 0)
}

// forever is a wait that somebody has to end.
const forever = 100 * 365 * 24 * time.Hour

// freshen has the line counted when it is no longer as good as new. While too many are counted, an older count will do, up
// to a bound.
func (d *Dispatcher) freshen(ctx context.Context, c *company) error {
	fresh, usable := c.lineAge()
	if fresh {
		return nil
	}
	select {
	case d.counting <- struct{}{}:
		began := time.Now()
		defer func() { time.AfterFunc((countPart-1)*time.Since(began), func() { <-d.counting }) }()
	default:
		if usable {
			return nil
		}
	}
	c.counting.Lock() // so that those who come together count once
	defer c.counting.Unlock()
	if fresh, _ = c.lineAge(); fresh {
		return nil
	}
	return d.recount(ctx, c)
}

// lineAge reports whether the count of what waits is as good as new, and whether it will do.
func (c *company) lineAge() (fresh, usable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line.at.IsZero() {
		return false, false
	}
	age, keep := time.Since(c.line.at), lineKept
	if (c.waits == pace.Lanes{}) && c.line.empty() {
		keep = lineIdle // what is added meanwhile is known
	}
	return age <= keep, age <= lineStale
}

func (d *Dispatcher) recount(ctx context.Context, c *company) error {
	began := time.Now()
	counted, err := d.config.Ledger.Count(ctx, c.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return err
	}
	c.line.set(began, counted)
	return nil
}

// Added notes that this process is about to store sends, so that the next estimate knows of them before they are counted; or,
// less than none, that it has not stored some that it was about to.
func (d *Dispatcher) Added(companyID int64, lane ledger.Lane, caller string, n int) {
	if c := d.all()[companyID]; c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.line.add(time.Now(), share{lane, caller}, int64(n))
	}
}

// Waiting is how many sends wait: of the caller in the lane, in the lane, and in all. Where roughly will do, other replicas' adds and
// claims of the last two seconds may be missing.
func (d *Dispatcher) Waiting(ctx context.Context, companyID int64, lane ledger.Lane, caller string, roughly bool) (mine, inLane, all int64, err error) {
	c := d.all()[companyID]
	if c == nil {
		return 0, 0, 0, nil
	}
	if _, usable := c.lineAge(); !roughly || !usable {
		if err := d.freshen(ctx, c); err != nil {
			return 0, 0, 0, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.line.shares() {
		n := c.line.waiting(share{x.Lane, x.Caller})
		for _, q := range x.Queues {
			n += q.Paused + q.Scheduled
		}
		all += n
		if x.Lane == lane {
			inLane += n
			if x.Caller == caller {
				mine += n
			}
		}
	}
	return mine, inLane, all, nil
}

// Replicas is how many replicas are alive, as far as this one knows.
func (d *Dispatcher) Replicas() int64 { return d.replicas.Load() }

// maxPromised bounds the promises that are kept of a company.
const maxPromised = 1024

// Promised notes what the caller of a send was told, for the error of estimates.
func (d *Dispatcher) Promised(id ledger.ID, wait time.Duration) {
	c := d.all()[id.Company]
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.promised) >= maxPromised {
		clear(c.promised) // of sends that other replicas sent, or that never left
	}
	c.promised[id] = time.Now().Add(wait)
}

// Drains is how long the company takes for so many sends at its full rate.
func (d *Dispatcher) Drains(companyID, sends int64) time.Duration {
	rule := d.all()[companyID].currentRule()
	windows := (sends + int64(rule.InWindow()) - 1) / int64(rule.InWindow())
	return time.Duration(min(windows, int64(forever/rule.EachWindow()))) * rule.EachWindow()
}

const (
	// keptTrips is how many trips are remembered, to say what nearly all of them take.
	keptTrips = 128
	// tripSlack is for the way to the connection and back to the caller.
	tripSlack = 15 * time.Millisecond
)

// Trip is how long a request takes from its claim to its answer, nearly always: the second longest of the last ones or,
// where this process has made few, half as long again as the mean of all.
func (d *Dispatcher) Trip(companyID int64) time.Duration {
	c := d.all()[companyID]
	c.mu.Lock()
	defer c.mu.Unlock()
	trip := c.status().Trip
	trip += trip / 2
	longest := time.Duration(0)
	for _, t := range c.trips {
		if t > longest {
			longest, trip = t, max(trip, longest)
		} else {
			trip = max(trip, t)
		}
	}
	return trip + tripSlack
}

// noteTrip remembers how long a request took. c.mu is held.
func (c *company) noteTrip(t time.Duration) {
	if len(c.trips) < keptTrips {
		c.trips = append(c.trips, t)
		return
	}
	c.trips[c.nextTrip] = t
	c.nextTrip = (c.nextTrip + 1) % keptTrips
}
