package ledger

import (
	"cmp"
	"slices"
	"time"
)

// Reasons that the ledger itself gives. They are those of the API.
const (
	ReasonUnknown   = "OUTCOME_UNKNOWN"
	ReasonExpired   = "EXPIRED"
	ReasonCancelled = "CANCELLED"
	ReasonReused    = "REQUEST_ID_REUSED"
)

// transitions lists every change of state that is not a claim. A state may be left only in these ways, and every
// update is conditional on the state that it leaves.
var transitions = map[State][]State{
	Scheduled: {Pending, Cancelled, Expired},
	Pending:   {Cancelled, Expired, Sent, Failed, Unknown}, // the last three: after an attempt that was given back as lost
	Sending:   {Pending, Sent, Failed, Unknown, Cancelled, Expired},
	Unknown:   {Sent, Failed},
}

// A ground is what a transaction that changes the states of sends stands on: companies, whose locks keep claims
// and everything else but adds away, and queues, whose locks give result numbers in commit order.
type ground struct {
	t         *tx
	now       int64
	companies map[int64]*companyRow
	queues    map[QueueID]*queueRow
	changed   []*record
	freed     map[recipient]struct{}
	woken     []Wake
	settled   []ID
	dueAt     []int64
}

// companyRow is a locked company.
type companyRow struct {
	era     int64 // with which the row is found
	claimNo int64
	virtual [Bulk + 1]int64 // by lane
	pace    []byte
	repaced bool
	held    bool // the ledger, until a person releases it
	moved   bool // held, because the database is on another timeline than it was
	rewound bool // its claim number is lower than one seen before
}

// halted reports whether what waits may have been sent: until a person has decided nobody may claim it, and nobody may say
// that it was not sent.
func (c *companyRow) halted() bool { return c.held || c.rewound }

// homeHeld tells from the table home whether the ledger is held: 2 where that is only because its timeline is another one.
const homeHeld = `CASE WHEN timeline = {timeline} THEN held ELSE 2 END`

// queueRow is a locked queue and what is to be added to it.
type queueRow struct {
	start      int64 // its tag, with which the row is found
	batch      bool
	state      string
	nextResult int64
	done       int64 // sends with a result
	itemCount  int64 // -1 while it is not sealed
	endedAt    int64

	sending, leftScheduled int64
	results                map[State]int64
	ready                  bool
	headPos                int64 // -1 leaves it
	lane                   Lane
	caller                 string
}

// recipient is somebody who gets one send at a time: of the urgent ones, and of all others.
type recipient struct {
	company  int64
	bot, to  string
	urgently bool
}

func (r *record) recipient() recipient {
	return recipient{r.ID.Company, r.Bot, r.Recipient, r.Lane == Urgent}
}

func newGround(t *tx) *ground {
	return &ground{
		t: t, companies: map[int64]*companyRow{}, queues: map[QueueID]*queueRow{}, freed: map[recipient]struct{}{},
	}
}

// The clock is read outside of what takes the lock: in the same list of columns it could be read before.
const (
	lockCompanies = `WITH locked AS MATERIALIZED (
		SELECT c.id, c.era, c.claim_no, c.urgent_virtual, c.normal_virtual, c.bulk_virtual, c.pace FROM {companies lock}` + lockedCompanies
	// lockCompaniesSkip leaves out those that somebody else has.
	lockCompaniesSkip = `WITH locked AS MATERIALIZED (
		SELECT c.id, c.era, c.claim_no, c.urgent_virtual, c.normal_virtual, c.bulk_virtual, c.pace FROM {companies skip}` + lockedCompanies
	lockedCompanies = `
	) SELECT id, era, claim_no, urgent_virtual, normal_virtual, bulk_virtual, pace, (SELECT ` + homeHeld + ` FROM home), {now}, {note locked} FROM locked`
)

// lockCompanies queues the locks; the companies are there after the next flush.
func (g *ground) lockCompanies(query string, ids []int64) {
	g.t.read(query, func(scan scanFunc) error {
		var id int64
		var held int
		c := &companyRow{}
		if err := scan(&id, &c.era, &c.claimNo, &c.virtual[Urgent], &c.virtual[Normal], &c.virtual[Bulk], &c.pace, &held, &g.now, new(string)); err != nil {
			return err
		}
		c.held, c.moved, c.rewound = held != 0, held == 2, g.t.l.rewound(id, c.claimNo)
		g.companies[id] = c
		g.t.l.skew.Store(g.now - time.Now().UnixMicro())
		return nil
	}, g.t.l.dialect.list(ids))
}

// lockQueues queues the locks of queues that are not locked yet.
func (g *ground) lockQueues(ids []QueueID) {
	ids = append(ids, g.t.ahead...)
	slices.SortFunc(ids, compareQueues)
	for _, id := range slices.Compact(ids) {
		if g.queues[id] != nil {
			continue
		}
		g.t.read(`SELECT lane, caller, batch, state, start_tag, next_result, sent + failed + unknown + cancelled + expired, COALESCE(item_count, -1), COALESCE(ended_at, 0)
			FROM queue WHERE company{newest} = $1 AND id{newest} = $2 ORDER BY start_tag DESC LIMIT 1 {lock}`, func(scan scanFunc) error {
			q := &queueRow{results: map[State]int64{}, headPos: -1}
			g.queues[id] = q
			return scan(&q.lane, &q.caller, flag{&q.batch}, &q.state, &q.start, &q.nextResult, &q.done, &q.itemCount, &q.endedAt)
		}, id.Company, id.Queue)
	}
}

// leave takes a send out of its state.
func (g *ground) leave(r *record) *queueRow {
	q := g.queues[r.queueID()]
	switch r.raw {
	case Sending:
		q.sending--
	case Scheduled:
		q.leftScheduled++
	case Unknown:
		q.results[Unknown]--
	}
	// Who was passed over for this send, or would have been, gets his turn.
	if r.Recipient != "" && !r.alone && (r.raw == Sending || r.raw == Pending) {
		g.freed[r.recipient()] = struct{}{}
	}
	return q
}

// enter puts it into another, and has it written.
func (g *ground) enter(r *record, to State) {
	if !slices.Contains(transitions[r.raw], to) {
		panic("ledger: no way from " + string(r.raw) + " to " + string(to))
	}
	r.raw, r.State, r.LeaseUntil, r.Parked = to, to, 0, NotParked
	g.change(r)
}

// change has a send written.
func (g *ground) change(r *record) {
	if !r.changed {
		r.changed = true
		g.changed = append(g.changed, r)
	}
}

// finish gives a send its result.
func (g *ground) finish(r *record, to State, reason string, result []byte) {
	q := g.leave(r)
	if r.raw != Unknown { // which has its number, and keeps it: no item has two results
		r.ResultNo = q.nextResult
		q.nextResult++
		q.done++
	}
	if to == Unknown {
		r.lateUntil = r.LeaseUntil // its claimant may still have evidence, until then and no longer
		if r.raw == Pending && r.Parked == Backoff {
			r.lateUntil = r.DueAt // given back until the lease's end at least
		}
	}
	g.enter(r, to)
	q.results[to]++
	r.Reason, r.Result, r.SettledAt = reason, result, g.now
	g.settled = append(g.settled, r.ID)
}

// end ends a send that waits, Expired or Cancelled. An expired one keeps why it was given back, where it was. One that
// was given back after an attempt of which nobody knows has not become less unknown by waiting.
func (g *ground) end(r *record, to State) {
	reason := ReasonCancelled
	if to == Expired {
		reason = cmp.Or(r.Reason, ReasonExpired)
	}
	if r.Reason == ReasonUnknown {
		to, reason = Unknown, ReasonUnknown
	}
	g.finish(r, to, reason, nil)
}

// timeOut ends a send whose time or caller is gone, where nothing is held.
func (g *ground) timeOut(r *record) (bool, error) {
	if g.companies[r.ID.Company].halted() {
		return false, ErrHeld
	}
	g.expire(r)
	return true, nil
}

// expire is timeOut where it is known that nothing is held. In a cancelled queue it has been read as cancelled, and stays that.
func (g *ground) expire(r *record) {
	if r.State == Cancelled {
		g.end(r, Cancelled)
		return
	}
	g.end(r, Expired)
}

// requeue gives a send back, to be claimed at due or later.
func (g *ground) requeue(r *record, due int64) {
	q := g.queues[r.queueID()]
	switch {
	case q.state == "cancelled":
		g.end(r, Cancelled)
		return
	case r.ExpireAt != 0 && r.ExpireAt <= max(due, g.now) && !g.companies[r.ID.Company].halted():
		g.end(r, Expired)
		return
	}
	g.leave(r)
	g.enter(r, Pending)
	if due > g.now {
		r.Parked, r.DueAt = Backoff, due
		g.dueAt = append(g.dueAt, due)
		delete(g.freed, r.recipient()) // it goes on blocking its recipient
		return
	}
	g.wake(r, q)
}

// wake makes a queue look at a send.
func (g *ground) wake(r *record, q *queueRow) {
	if q.headPos < 0 || r.ID.Pos < q.headPos {
		q.headPos = r.ID.Pos
	}
	q.ready = true
	g.woken = append(g.woken, Wake{Company: r.ID.Company, Lanes: r.Lane.only()})
}

// becomeDue makes a scheduled send, or one whose backoff is over, claimable.
func (g *ground) becomeDue(r *record) {
	q := g.leave(r)
	if r.raw == Scheduled {
		g.enter(r, Pending)
	} else {
		r.Parked = NotParked
		g.change(r)
	}
	g.wake(r, q)
}

// lapse settles an attempt whose lease ended without a word of its claimant, as the caller chose. Whoever claimed it
// may have been at it until then, and not a moment longer.
func (g *ground) lapse(r *record) {
	switch {
	case r.OnUnknown == Fail:
		g.finish(r, Failed, ReasonUnknown, nil)
	case r.OnUnknown == Retry && r.Attempt < g.t.l.maxAttempts:
		r.Reason = ReasonUnknown
		g.requeue(r, 0)
	default:
		g.finish(r, Unknown, ReasonUnknown, nil)
	}
}

const parkedQuery = `SELECT lane, queue, pos FROM send
	WHERE company = $1 AND bot = $2 AND recipient = $3 AND parked = 1 AND (lane, queue) > ($4, $5) AND lane <= $6
	ORDER BY lane, queue, pos LIMIT 1`

// unpark finds, for every recipient that was freed, the first waiting send of each queue. Others behind it in the
// queue are parked until it has had its turn; another queue's may go first when this one is paused.
func (g *ground) unpark() ([]record, error) {
	type cursor struct {
		to          recipient
		lane        Lane
		queue       int64
		last        Lane
		found       bool
		foundRecord record
	}
	var open []*cursor
	for to := range g.freed {
		c := &cursor{to: to, lane: Normal, last: Bulk}
		if to.urgently {
			c.lane, c.last = Urgent, Urgent
		}
		open = append(open, c)
	}
	slices.SortFunc(open, func(x, y *cursor) int {
		return cmp.Or(cmp.Compare(x.to.company, y.to.company), cmp.Compare(x.to.bot, y.to.bot), cmp.Compare(x.to.to, y.to.to), cmp.Compare(x.lane, y.lane))
	})
	var heads []record
	for len(open) > 0 && len(heads) < maxUnparked {
		for _, c := range open {
			c.found = false
			g.t.read(parkedQuery, func(scan scanFunc) error {
				c.found = true
				r := &c.foundRecord
				r.ID.Company = c.to.company
				return scan(&r.Lane, &r.ID.Queue, &r.ID.Pos)
			}, c.to.company, c.to.bot, c.to.to, c.lane, c.queue, c.last)
		}
		if err := g.t.flush(); err != nil {
			return nil, err
		}
		open = slices.DeleteFunc(open, func(c *cursor) bool { return !c.found })
		for _, c := range open {
			heads = append(heads, c.foundRecord)
			c.lane, c.queue = c.foundRecord.Lane, c.foundRecord.ID.Queue
		}
	}
	return heads, nil
}

// Sends that one transaction unparks, roughly. Where a recipient has sends waiting in more queues the rest is found by
// the sweep.
const maxUnparked = 256

// write queues all changes, in the order of locks, and looks for whom they free.
func (g *ground) write() error {
	shares, err := g.writeRows()
	if err == nil {
		g.t.readyShares(shares, true)
	}
	return err
}

// writeRows is write up to the shares that are to be switched on.
func (g *ground) writeRows() ([]looseKey, error) {
	ids := make([]QueueID, 0, len(g.queues))
	var shares []looseKey
	for id, q := range g.queues {
		ids = append(ids, id)
		if q.ready {
			shares = append(shares, looseKey{id.Company, q.lane, q.caller})
		}
	}
	slices.SortFunc(ids, compareQueues)
	for _, id := range ids {
		g.writeQueue(id, g.queues[id])
	}
	for _, r := range g.changed {
		g.writeSend(r)
	}
	for id, c := range g.companies {
		if c.repaced {
			g.t.write(setPace, id, c.era, c.pace)
		}
	}
	if len(g.freed) > 0 {
		// Only now: a send that waited for another one may have ended beside it.
		freed, err := g.writeUnparked()
		if err != nil {
			return nil, err
		}
		shares = append(shares, freed...)
	}
	return shares, nil
}

// writeUnparked queues what lets the next sends to freed recipients be claimed, and returns the shares that they are in. Their
// queues come after locks that are later in the order, so none of them is waited for: where an add has one just now, the
// transaction is repeated, and takes it in its place.
func (g *ground) writeUnparked() ([]looseKey, error) {
	heads, err := g.unpark()
	if err != nil || len(heads) == 0 {
		return nil, err
	}
	callers := map[QueueID]string{}
	for i := range heads {
		id := heads[i].queueID()
		if q := g.queues[id]; q != nil {
			callers[id] = q.caller
			continue
		}
		g.t.read(`SELECT caller FROM queue WHERE company{newest} = $1 AND id{newest} = $2 ORDER BY start_tag DESC LIMIT 1 {lock skip}`, func(scan scanFunc) error {
			var caller string
			err := scan(&caller)
			callers[id] = caller
			return err
		}, id.Company, id.Queue)
	}
	if err := g.t.flush(); err != nil {
		return nil, err
	}
	var shares []looseKey
	var busy []QueueID
	for i := range heads {
		h := &heads[i]
		caller, mine := callers[h.queueID()]
		if !mine {
			busy = append(busy, h.queueID())
			continue
		}
		share := looseKey{h.ID.Company, h.Lane, caller}
		shares = append(shares, share)
		g.t.readyQueue(h.queueID(), share, h.ID.Pos)
	}
	if len(busy) > 0 {
		return nil, &busyError{busy}
	}
	for i := range heads {
		h := &heads[i]
		g.t.write(`UPDATE send SET parked = 0 WHERE company = $1 AND queue = $2 AND pos = $3 AND state = 'pending' AND parked = 1`,
			h.ID.Company, h.ID.Queue, h.ID.Pos)
		g.woken = append(g.woken, Wake{Company: h.ID.Company, Lanes: h.Lane.only()})
	}
	return shares, nil
}

func (g *ground) writeQueue(id QueueID, q *queueRow) {
	if len(q.results) == 0 && q.sending == 0 && q.leftScheduled == 0 && !q.ready {
		return
	}
	state, settled := q.state, int64(0)
	if q.batch && q.done == q.itemCount && q.endedAt == 0 {
		// The last result of a sealed batch ends it.
		q.endedAt = g.now
		if state != "cancelled" {
			state = "closed"
		}
	}
	if q.endedAt != 0 {
		settled = g.now
	}
	g.t.write(`UPDATE queue SET next_result = $3, sending = sending + $4, left_scheduled = left_scheduled + $5,
			sent = sent + $6, failed = failed + $7, unknown = unknown + $8, cancelled = cancelled + $9, expired = expired + $10,
			state = $11, ended_at = $12, settled_at = $13
		WHERE company{newest} = $1 AND id{newest} = $2 AND start_tag = $14`,
		id.Company, id.Queue, q.nextResult, q.sending, q.leftScheduled,
		q.results[Sent], q.results[Failed], q.results[Unknown], q.results[Cancelled], q.results[Expired],
		state, orNull(q.endedAt), orNull(settled), q.start)
	if q.ready {
		g.t.readyQueue(id, looseKey{id.Company, q.lane, q.caller}, q.headPos)
	}
}

func (g *ground) writeSend(r *record) {
	g.t.writeOne(`UPDATE send SET state = $6, parked = $7, attempt = $8, resolved = $9, lease_until = $10, due_at = $11, sent_at = $12,
			settled_at = $13, result_no = $14, reason = $15, result = $16, late_until = COALESCE($17, late_until)
		WHERE company = $1 AND queue = $2 AND pos = $3 AND state = $4 AND COALESCE(claim, 0) = $5`,
		r.ID.Company, r.ID.Queue, r.ID.Pos, string(r.was), r.Claim,
		string(r.raw), r.Parked, r.Attempt, oneIf(r.Resolved), orNull(r.LeaseUntil), orNull(r.DueAt), orNull(r.SentAt),
		orNull(r.SettledAt), orNull(r.ResultNo), r.Reason, r.Result, orNull(r.lateUntil))
}
