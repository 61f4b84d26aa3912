package ledger

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// Rows, queues and shares that one transaction passes over, roughly, while it looks for heads: one chunk of blocked rows.
	claimSteps = 32
	// Rows of a queue that are looked at together once its first one turned out to be blocked.
	claimChunk = 32
	// Lapsed leases that one transaction settles.
	claimLapses = 32
	// Leases that lapsed longer ago are left to the sweep: under an old snapshot a claim would walk past all leases there were.
	lapseAge = time.Minute
	// Versions of a company's row that have the same era are walked past.
	claimsPerEra = 64
	// A position may be committed after a higher one. A queue's hint moves only past sends that are older than any add
	// in flight, and is not believed for longer than this.
	settledAge = 10 * time.Second
	lookAgain  = 5 * time.Second
)

// Claim looks at up to MaxClaimCompanies companies that nobody else is looking at, shows decide what each would send
// next, and claims what it chooses, all in one transaction. decide must be quick and may be called again. The
// claimant counts the lease from before it called. What stands in the way is dealt with: leases that lapsed are
// settled, sends whose time or owner is gone expire, those whose recipient is busy are parked.
func (l *Ledger) Claim(ctx context.Context, companies []int64, lease time.Duration, decide func(View) Choice) ([]Claim, error) {
	if len(companies) > MaxClaimCompanies {
		return nil, fmt.Errorf("ledger: a claim looks at %d companies at most", MaxClaimCompanies)
	}
	if err := l.settlesFit(); err != nil {
		return nil, err
	}
	companies = slices.Compact(slices.Sorted(slices.Values(companies)))
	var c *claiming
	began := time.Now()
	err := l.transactSending(ctx, func(t *tx) error {
		c = &claiming{ground: newGround(t), lease: micros(lease), steps: claimSteps, heads: map[laneKey]*head{}, emptied: map[int64]bool{}}
		return c.run(companies, decide)
	})
	var lost *commitLostError
	if errors.As(err, &lost) {
		err = l.findClaimed(ctx, c, lost)
	}
	l.metrics.noteTransaction(ctx, claimOperation, began, err)
	if err != nil {
		return nil, err
	}
	for i := range c.out {
		c.out[i].Emptied = c.emptied[c.out[i].Company]
	}
	l.publish(c.ground)
	l.watchHome(ctx, c.companies, c.out)
	return c.out, nil
}

// claiming is the state of one run of the transaction.
type claiming struct {
	*ground
	lease int64
	steps int
	// Hints of queues that were looked at from the beginning since then are believed.
	believe int64
	heads   map[laneKey]*head
	more    map[int64]bool
	lapsed  []*record
	stale   []*record
	// What the search found empty, to be switched off at the end.
	emptyQueues []emptyQueue
	emptyShares []emptyShare
	// Shares that what was settled on the way switches on.
	ready   []looseKey
	wrote   bool
	out     []Claim
	emptied map[int64]bool // companies whose claim left nothing in its lane
}

type emptyQueue struct {
	id    QueueID
	start int64
}

type emptyShare struct {
	key   looseKey
	start int64
}

type laneKey struct {
	company int64
	lane    Lane
}

// head is a send that may be claimed, and where it was found.
type head struct {
	record
	share    Tag // without Virtual, which is the company's
	queue    Tag
	headPos  int64
	lookedAt int64
	later    int64 // its recipient got one a moment ago: not before this time
	busy     bool  // another send to its recipient is on its way
	stale    bool  // its time or its owner is gone
	last     bool  // nothing seems to wait behind it in its queue
}

// headColumns come after recordColumns.
const headColumns = `, q.weight, q.start_tag, q.head_pos, q.looked_at,
	CASE WHEN s.recipient <> '' AND (
		(SELECT 1 FROM send b WHERE b.company = s.company AND b.bot = s.bot AND b.recipient = s.recipient
			AND b.state = 'sending' AND (b.lane = 1) = (s.lane = 1) LIMIT 1) IS NOT NULL
		OR (SELECT 1 FROM send b WHERE b.company = s.company AND b.bot = s.bot AND b.recipient = s.recipient
			AND b.parked = 2 AND (b.lane = 1) = (s.lane = 1) LIMIT 1) IS NOT NULL) THEN 1 ELSE 0 END,
	CASE WHEN s.expire_at <= {now} OR (s.owner IS NOT NULL AND NOT EXISTS (SELECT 1 FROM replica r WHERE r.id = s.owner AND r.alive_until > {now})) THEN 1 ELSE 0 END,
	COALESCE((SELECT p.until FROM gap p WHERE p.company = s.company AND p.bot = s.bot AND p.recipient = s.recipient AND s.lane <> 1 AND p.until > {now}), 0)`

// free reports whether the send may be claimed now.
func (h *head) free() bool { return !h.busy && !h.stale && h.later == 0 }

func (h *head) scanHead(scan scanFunc, more ...any) error {
	columns := []any{&h.queue.Weight, &h.queue.Start, &h.headPos, &h.lookedAt, flag{&h.busy}, flag{&h.stale}, &h.later}
	return h.scan(scan, append(columns, more...)...)
}

// The floors: what is on has a tag near virtual time or above it, since it joins there, is looked at in the order of tags and is
// served or switched off. So the search begins a little below, past the tags of long ago, which an old snapshot
// keeps in the index. What was left behind further down, as far as two transactions can do that, is found by one claim in floorless.
const (
	floorDepth = 64 << 24 // turns of weight 1, as package pace counts: more than an add in flight can see go by
	floorless  = 256
)

var (
	shareFloor = fmt.Sprintf(`CASE WHEN c.claim_no %% %d = 0 THEN -1
		ELSE (CASE n.lane WHEN 1 THEN c.urgent_virtual WHEN 2 THEN c.normal_virtual ELSE c.bulk_virtual END) - %d END`, floorless, floorDepth)
	queueFloor = fmt.Sprintf(`CASE WHEN f.claim_no %% %d = 0 THEN -1 ELSE x.queue_virtual - %d END`, floorless, floorDepth)
)

// floor is the same for who has a company locked.
func (c *companyRow) floor(virtual int64) int64 {
	if c.claimNo%floorless == 0 {
		return -1
	}
	return max(-1, virtual-floorDepth)
}

const lanesOf = ` FROM {companies mine} CROSS JOIN (SELECT 1 AS lane UNION ALL SELECT 2 UNION ALL SELECT 3) n`

// waitingQuery gives the lanes that have a share which is on.
var waitingQuery = `SELECT c.id, n.lane` + lanesOf + ` WHERE COALESCE(
		(SELECT 1 FROM share x WHERE x.company{ready} = c.id AND x.lane = n.lane AND x.ready = 1 AND x.start_tag >= ` + shareFloor + `
			ORDER BY x.start_tag, x.caller LIMIT 1),
		(SELECT 1 FROM share x WHERE x.company{ready} = c.id AND x.lane = n.lane AND x.ready = 1 ORDER BY x.start_tag, x.caller LIMIT 1)) = 1 ORDER BY c.id, n.lane`

// lookQuery finds the first send of the first queue of the first share of each lane. Each first is a scalar
// sub-select, which ends at one row of an index: a join with ORDER BY would sort the whole queue. Each step is
// materialized and the joins are in their order, so that no planner, whose cached plan may be from when the tables were
// empty, begins anywhere else.
var lookQuery = `WITH share_of AS MATERIALIZED (
		SELECT c.id AS company, c.claim_no, n.lane AS lane,
			(SELECT x.caller FROM share x WHERE x.company{ready} = c.id AND x.lane = n.lane AND x.ready = 1 AND x.start_tag >= ` + shareFloor + `
				ORDER BY x.start_tag, x.caller LIMIT 1) AS caller` + lanesOf + `
	), queue_of AS MATERIALIZED (
		SELECT f.company, x.weight AS share_weight, x.start_tag AS share_tag, x.queue_virtual,
			(SELECT u.id FROM queue u WHERE u.company{ready} = f.company AND u.lane = f.lane AND u.caller = f.caller
				AND u.state = 'open' AND u.ready = 1 AND u.start_tag >= ` + queueFloor + ` ORDER BY u.start_tag, u.id LIMIT 1) AS id
		FROM share_of f {share of f} WHERE f.caller IS NOT NULL
	), send_of AS MATERIALIZED (
		SELECT f.company, f.id, f.share_weight, f.share_tag, f.queue_virtual, q.batch, q.state, q.cancelled_at, q.weight, q.start_tag, q.head_pos, q.looked_at,
			(SELECT y.pos FROM send y WHERE y.company = f.company AND y.queue = f.id AND y.state = 'pending' AND y.parked = 0
				AND y.pos >= CASE WHEN q.looked_at < $2 THEN 0 ELSE q.head_pos END ORDER BY y.pos LIMIT 1) AS pos
		FROM queue_of f {queue of f} WHERE f.id IS NOT NULL
	) SELECT ` + recordColumns + headColumns + `, q.share_weight, q.share_tag, q.queue_virtual,
		CASE WHEN (SELECT y.pos FROM send y WHERE y.company = s.company AND y.queue = s.queue AND y.state = 'pending' AND y.parked = 0 AND y.pos > s.pos
			ORDER BY y.pos LIMIT 1) IS NULL THEN 1 ELSE 0 END
	FROM send_of q CROSS JOIN send s WHERE s.company = q.company AND s.queue = q.id AND s.pos = q.pos`

// lapsedQuery asks for leases and not for the state, which have the same rows: so it goes by lease.
// Nearly always there are none, so it gives only their ids.
const lapsedQuery = `SELECT s.company, s.queue, s.pos FROM send s WHERE s.company {in 1} AND s.lease_until <= (SELECT {now}) AND s.lease_until > $2
	ORDER BY s.lease_until LIMIT $3`

// nextQuery gives the next sends of a queue. The sub-select reads one index and nothing else.
const nextQuery = `SELECT ` + recordColumns + headColumns + `
	FROM (SELECT y.company, y.queue, y.pos FROM send y WHERE y.company = $1 AND y.queue = $2 AND y.state = 'pending' AND y.parked = 0 AND y.pos >= $3 AND y.pos < $4
		ORDER BY y.pos LIMIT $5) n
	JOIN send s ON s.company = n.company AND s.queue = n.queue AND s.pos = n.pos {queue of s}
	ORDER BY s.pos`

func (c *claiming) run(companies []int64, decide func(View) Choice) error {
	c.more = map[int64]bool{}
	c.believe = c.t.l.aboutNow() - micros(lookAgain)
	waiting, err := c.look(companies)
	if err != nil {
		return err
	}
	for _, id := range companies {
		if c.claimable(id) {
			for _, lane := range waiting[id] {
				if h := c.heads[laneKey{id, lane}]; h == nil || !h.free() {
					if err := c.search(id, lane); err != nil {
						return err
					}
				}
			}
		}
	}
	if err := c.clear(); err != nil {
		return err
	}
	var picks []*pick
	for _, id := range companies {
		p, err := c.answer(id, decide)
		if err != nil {
			return err
		}
		if p != nil {
			picks = append(picks, p)
		}
	}
	c.claim(picks)
	c.switchOff()
	if !c.wrote {
		return errRollback
	}
	return nil
}

// claimable reports whether the company is locked here and may be claimed from.
func (c *claiming) claimable(company int64) bool {
	row := c.companies[company]
	return row != nil && !row.halted()
}

// look locks the companies, finds each lane's first send and says which lanes have anything.
func (c *claiming) look(companies []int64) (map[int64][]Lane, error) {
	waiting := map[int64][]Lane{}
	list := c.t.l.dialect.list(companies)
	c.lockCompanies(lockCompaniesSkip, companies)
	c.t.read(waitingQuery, func(scan scanFunc) error {
		var id int64
		var lane Lane
		err := scan(&id, &lane)
		waiting[id] = append(waiting[id], lane)
		return err
	}, list)
	c.t.read(lookQuery, func(scan scanFunc) error {
		h := &head{}
		err := h.scanHead(scan, &h.share.Weight, &h.share.Start, &h.queue.Virtual, flag{&h.last})
		c.heads[laneKey{h.ID.Company, h.Lane}] = h
		return err
	}, list, c.believe)
	var lapsed []ID
	c.t.read(lapsedQuery, func(scan scanFunc) error {
		var id ID
		err := scan(&id.Company, &id.Queue, &id.Pos)
		lapsed = append(lapsed, id)
		return err
	}, list, c.t.l.aboutNow()-micros(lapseAge), claimLapses)
	if err := c.t.flush(); err != nil || len(lapsed) == 0 {
		return waiting, err
	}
	for _, id := range lapsed {
		c.t.read(getQuery, func(scan scanFunc) error {
			r := &record{}
			c.lapsed = append(c.lapsed, r)
			return r.scan(scan)
		}, id.Company, id.Queue, id.Pos)
	}
	return waiting, c.t.flush()
}

// search goes through a lane's shares and their queues in their order, first those above the floor, until it finds a send
// that may be claimed. What it passes over it parks, lets expire or switches off, so that no claim passes over it again.
func (c *claiming) search(company int64, lane Lane) error {
	delete(c.heads, laneKey{company, lane})
	floor := c.companies[company].floor(c.companies[company].virtual[lane])
	share, caller, below := floor, "", floor < 0
	for c.spend(company) {
		var tag Tag
		found := false
		c.t.read(`SELECT caller, start_tag, weight, queue_virtual FROM share
			WHERE company{ready} = $1 AND lane = $2 AND ready = 1 AND (start_tag, caller) > ($3, $4) ORDER BY start_tag, caller LIMIT 1`,
			func(scan scanFunc) error {
				found = true
				return scan(&caller, &tag.Start, &tag.Weight, &tag.Virtual)
			}, company, lane, share, caller)
		if err := c.t.flush(); err != nil {
			return err
		}
		if !found || below && floor >= 0 && tag.Start >= floor {
			if below {
				return nil
			}
			below, share, caller = true, -1, ""
			continue
		}
		share = tag.Start
		if done, err := c.searchShare(company, lane, caller, tag); err != nil || done {
			return err
		}
	}
	return nil
}

// spend takes one step of the bound on a transaction's work.
func (c *claiming) spend(company int64) bool {
	if c.steps <= 0 {
		c.more[company] = true
		return false
	}
	c.steps--
	return true
}

// searchShare goes through the queues of a share. It reports whether the search is over.
func (c *claiming) searchShare(company int64, lane Lane, caller string, share Tag) (bool, error) {
	floor := c.companies[company].floor(share.Virtual)
	start, id, below := floor, int64(0), floor < 0
	any := false
	for c.spend(company) {
		var q head
		found := false
		c.t.read(`SELECT id, start_tag, head_pos, looked_at FROM queue
			WHERE company{ready} = $1 AND lane = $2 AND caller = $3 AND state = 'open' AND ready = 1 AND (start_tag, id) > ($4, $5)
			ORDER BY start_tag, id LIMIT 1`, func(scan scanFunc) error {
			found = true
			return scan(&id, &start, &q.headPos, &q.lookedAt)
		}, company, lane, caller, start, id)
		if err := c.t.flush(); err != nil {
			return false, err
		}
		if !found || below && floor >= 0 && start >= floor {
			if !below {
				below, start, id = true, -1, 0
				continue
			}
			if any {
				return false, nil
			}
			c.emptyShares = append(c.emptyShares, emptyShare{looseKey{company, lane, caller}, share.Start})
			return false, nil
		}
		q.queue.Start = start
		empty, done, err := c.searchQueue(QueueID{company, id}, &q, share)
		if err != nil || done {
			return done, err
		}
		any = any || !empty
	}
	return true, nil
}

// searchQueue goes through the sends of a queue. It reports whether the queue is empty, and whether the search is over.
func (c *claiming) searchQueue(id QueueID, q *head, share Tag) (empty, over bool, err error) {
	hint, end := q.headPos, int64(math.MaxInt64)
	if q.lookedAt < c.believe {
		hint = 0
	}
	from := hint
	for c.spend(id.Company) {
		var rows []*head
		c.t.read(nextQuery, func(scan scanFunc) error {
			h := &head{}
			rows = append(rows, h)
			return h.scanHead(scan)
		}, id.Company, id.Queue, from, end, claimChunk)
		if err := c.t.flush(); err != nil {
			return false, false, err
		}
		if len(rows) == 0 {
			if hint > 0 { // which may have left one behind
				hint, from, end = 0, 0, hint
				continue
			}
			c.emptyQueues = append(c.emptyQueues, emptyQueue{id, q.queue.Start})
			return true, false, nil
		}
		if free := c.passOver(rows); free != nil {
			free.share, free.queue.Virtual = share, share.Virtual
			free.last = free == rows[len(rows)-1] && len(rows) < claimChunk
			c.heads[laneKey{free.ID.Company, free.Lane}] = free
			return false, true, nil
		}
		c.steps -= len(rows)
		from = rows[len(rows)-1].ID.Pos + 1
	}
	return false, true, nil
}

// passOver gives the first of a queue's rows that may be claimed, if one may, and keeps those before it from being passed over
// again. Whoever frees a recipient waits for this company's lock, so it sees what is parked here.
func (c *claiming) passOver(rows []*head) (free *head) {
	var busy []int64
	for _, h := range rows {
		if h.free() {
			free = h
			break
		}
		switch {
		case h.stale:
			c.stale = append(c.stale, &h.record)
			c.more[h.ID.Company] = true
		case h.busy:
			busy = append(busy, h.ID.Pos)
		default:
			c.delay(h)
		}
	}
	if len(busy) > 0 {
		c.wrote = true
		// The bounds say nothing new, but to a planner that would go through the whole queue and look for the list in it.
		c.t.write(`UPDATE send SET parked = 1 WHERE pos {in 1} AND company = $2 AND queue = $3 AND pos >= $4 AND pos <= $5 AND state = 'pending' AND parked = 0`,
			c.t.l.dialect.list(busy), rows[0].ID.Company, rows[0].ID.Queue, busy[0], busy[len(busy)-1])
	}
	return free
}

// delay lets a send wait until its recipient may get another.
func (c *claiming) delay(h *head) {
	c.wrote = true
	c.dueAt = append(c.dueAt, h.later)
	c.t.writeOne(`UPDATE send SET parked = 2, due_at = $4 WHERE company = $1 AND queue = $2 AND pos = $3 AND state = 'pending' AND parked = 0`,
		h.ID.Company, h.ID.Queue, h.ID.Pos, h.later)
}

// What is empty is switched off, so that no claim looks at it again. An add that is not committed yet holds its queue and its
// share, and then they stay on; one that comes later waits, sees them off and switches them on. So they are taken from adds
// first, where nobody has them, and whether they are empty is asked in a statement behind that, which sees what was added before.
// Taking them waits for nobody. It has its place in the order of locks; and an add that waits for a queue that was taken so has
// only {share} locks so far, for which no claim waits.
const (
	lockQueueMine = `WITH mine AS MATERIALIZED (SELECT id FROM queue` + thatQueue + ` {all skip}) SELECT {note mine} FROM mine`
	lockShareMine = `WITH mine AS MATERIALIZED (SELECT caller FROM share` + thatShare + ` {all skip}) SELECT {note mine} FROM mine`

	waitingIn  = `(SELECT s.pos FROM send s WHERE s.company = $1 AND s.queue = $2 AND s.state = 'pending' AND s.parked = 0`
	isNone     = ` ORDER BY s.pos LIMIT 1) IS NULL`
	queueEmpty = `{mine} AND ` + waitingIn + isNone
	shareEmpty = `{mine} AND (SELECT q.id FROM queue q WHERE q.company{ready} = $1 AND q.lane = $2 AND q.caller = $3 AND q.state = 'open' AND q.ready = 1 LIMIT 1) IS NULL`

	// The same with the claim of a queue's last send, which is pending still and at $7.
	queueOff = `, ready = CASE WHEN {mine} AND ` + waitingIn + ` AND s.pos <> $7` + isNone + ` THEN 0 ELSE ready END`
	shareOff = `, ready = CASE WHEN ` + shareEmpty + ` THEN 0 ELSE ready END`
)

// What a claim changes in its queue and its share.
const (
	claimQueue = `UPDATE queue SET start_tag = $4, head_pos = $5, looked_at = $6, sending = sending + 1`
	claimShare = `UPDATE share SET start_tag = $5, queue_virtual = $6, served = served + 1`

	thatQueue = ` WHERE company{newest} = $1 AND id{newest} = $2 AND start_tag = $3`
	thatShare = ` WHERE company{newest} = $1 AND lane{newest} = $2 AND caller{newest caller} = $3 AND start_tag = $4`
)

// switchOff switches off what the search found empty.
func (c *claiming) switchOff() {
	for _, q := range c.emptyQueues {
		c.wrote = true
		c.t.read(lockQueueMine, nothing, q.id.Company, q.id.Queue, q.start)
		c.t.write(`UPDATE queue SET ready = 0`+thatQueue+` AND `+queueEmpty, q.id.Company, q.id.Queue, q.start)
	}
	for _, s := range c.emptyShares {
		c.wrote = true
		c.t.read(lockShareMine, nothing, s.key.company, s.key.lane, s.key.caller, s.start)
		c.t.write(`UPDATE share SET ready = 0`+thatShare+` AND `+shareEmpty, s.key.company, s.key.lane, s.key.caller, s.start)
	}
}

// clear settles lapsed leases and lets stale sends expire.
func (c *claiming) clear() error {
	var records []*record
	var queues []QueueID
	for _, r := range slices.Concat(c.lapsed, c.stale) {
		if c.claimable(r.ID.Company) {
			records = append(records, r)
			queues = append(queues, r.queueID())
		}
	}
	if len(records) == 0 {
		return nil
	}
	for _, h := range c.heads {
		// What is claimed afterwards is locked here, in the order of locks.
		queues = append(queues, h.queueID())
	}
	c.wrote = true
	c.lockQueues(queues)
	if err := c.t.flush(); err != nil {
		return err
	}
	for _, r := range records {
		if r.raw == Sending {
			// The claimant has been gone for longer than any request of his may live. Only he could say more.
			c.lapse(r)
		} else {
			c.expire(r)
		}
		c.woken = append(c.woken, Wake{Company: r.ID.Company, Lanes: r.Lane.only()})
	}
	var err error
	c.ready, err = c.writeRows()
	return err
}

// answer shows a company to decide and notes what it chooses.
func (c *claiming) answer(company int64, decide func(View) Choice) (*pick, error) {
	row := c.companies[company]
	out := Claim{Company: company, Busy: row == nil, More: c.more[company]}
	defer func() { c.out = append(c.out, out) }()
	if row == nil {
		return nil, nil
	}
	if out.Held, out.Rewound = row.held, row.rewound; row.halted() {
		return nil, nil
	}
	view := View{Company: company, Now: c.now, ClaimNo: row.claimNo + 1, Pace: row.pace}
	for lane := Urgent; lane <= Bulk; lane++ {
		if h := c.heads[laneKey{company, lane}]; h != nil && h.free() {
			h.share.Virtual = row.virtual[lane]
			view.Heads = append(view.Heads, Head{Send: h.Send, Share: h.share, Queue: h.queue})
		}
	}
	choice := decide(view)
	if choice.Lane == 0 {
		if choice.Pace != nil {
			c.wrote = true
			c.t.writeOne(setPace, company, row.era, choice.Pace)
		}
		return nil, nil
	}
	if !slices.ContainsFunc(view.Heads, func(h Head) bool { return h.Send.Lane == choice.Lane }) {
		return nil, errors.New("ledger: a lane was chosen that has no head")
	}
	if choice.Pace == nil {
		choice.Pace = row.pace
	}
	c.wrote = true
	p := &pick{head: c.heads[laneKey{company, choice.Lane}], choice: choice}
	s := p.head.Send
	s.State, s.Claim, s.LeaseUntil = Sending, row.claimNo+1, c.now+c.lease
	s.Attempt++
	out.Send, p.send = &s, &s
	return p, nil
}

// setPace changes the budget of a locked company.
const setPace = `UPDATE company SET pace = $3 WHERE id{newest} = $1 AND era = $2`

// pick is a head that was chosen.
type pick struct {
	head   *head
	choice Choice
	send   *Send
}

// looseKey names the share that it is of.
func (p *pick) looseKey() looseKey { return looseKey{p.send.ID.Company, p.send.Lane, p.send.Caller} }

// virtualColumns keep the lanes' fair time.
var virtualColumns = [Bulk + 1]string{Urgent: "urgent_virtual", Normal: "normal_virtual", Bulk: "bulk_virtual"}

// claim writes the claims, of all companies together in the order of locks. Until the commit nothing has happened; a
// crash after it and before the request leaves a send claimed, and when the lease ends it is unknown, although it
// never left.
func (c *claiming) claim(picks []*pick) {
	for _, p := range picks {
		h, s := p.head, p.send
		headPos, lookedAt := min(h.headPos, s.ID.Pos), h.lookedAt
		if s.AcceptedAt < c.now-micros(settledAge) {
			headPos = s.ID.Pos + 1
		}
		if h.lookedAt < c.believe {
			lookedAt = c.now
		}
		off, args := "", []any{s.ID.Company, s.ID.Queue, h.queue.Start, p.choice.Queue.Start, headPos, lookedAt}
		if h.last {
			c.t.read(lockQueueMine, nothing, s.ID.Company, s.ID.Queue, h.queue.Start)
			off, args = queueOff, append(args, s.ID.Pos)
		}
		c.t.writeOne(claimQueue+off+thatQueue, args...)
	}
	c.writeShares(picks)
	for _, p := range picks {
		s := p.send
		c.t.writeOne(`UPDATE send SET state = 'sending', claim = $4, claimant = $5, lease_until = $6, attempt = attempt + 1
			WHERE company = $1 AND queue = $2 AND pos = $3 AND state = 'pending' AND parked = 0`,
			s.ID.Company, s.ID.Queue, s.ID.Pos, s.Claim, c.t.l.replica, s.LeaseUntil)
		c.t.read(`SELECT body, COALESCE(traceparent, '') FROM send WHERE company = $1 AND queue = $2 AND pos = $3`,
			func(scan scanFunc) error { return scan(&s.Body, &s.Traceparent) }, s.ID.Company, s.ID.Queue, s.ID.Pos)
		c.t.writeOne(`UPDATE company SET claim_no = claim_no + 1, era = $3, pace = $4, `+virtualColumns[s.Lane]+` = $5 WHERE id{newest} = $1 AND era = $2`,
			s.ID.Company, c.companies[s.ID.Company].era, s.Claim/claimsPerEra, p.choice.Pace, p.choice.Share.Virtual)
		if p.head.last {
			c.readEmptied(s)
		}
	}
	for _, p := range picks {
		if s := p.send; p.choice.RecipientGap > 0 && s.Recipient != "" && s.Lane != Urgent {
			c.t.write(`INSERT INTO gap (company, bot, recipient, until) VALUES ($1, $2, $3, $4)
				ON CONFLICT (company, bot, recipient) DO UPDATE SET until = excluded.until`,
				s.ID.Company, s.Bot, s.Recipient, c.now+micros(p.choice.RecipientGap))
		}
	}
}

// readEmptied queues the reading whether a claim leaves anything in its lane.
func (c *claiming) readEmptied(s *Send) {
	c.t.read(`SELECT CASE WHEN EXISTS (SELECT 1 FROM share x WHERE x.company{ready} = $1 AND x.lane = $2 AND x.ready = 1) THEN 0 ELSE 1 END`, func(scan scanFunc) error {
		var emptied bool
		err := scan(flag{&emptied})
		c.emptied[s.ID.Company] = emptied
		return err
	}, s.ID.Company, s.Lane)
}

// writeShares counts the claims to their shares, and switches on those that have something to send again, all in the order
// of locks. A share that is claimed from is on.
func (c *claiming) writeShares(picks []*pick) {
	picked, shares := map[looseKey]*pick{}, c.ready
	for _, p := range picks {
		key := p.looseKey()
		picked[key], shares = p, append(shares, key)
	}
	slices.SortFunc(shares, compareShares)
	for _, s := range slices.Compact(shares) {
		if p := picked[s]; p != nil {
			off := ""
			if p.head.last {
				c.t.read(lockShareMine, nothing, s.company, s.lane, s.caller, p.head.share.Start)
				off = shareOff
			}
			c.t.writeOne(claimShare+off+thatShare,
				s.company, s.lane, s.caller, p.head.share.Start, p.choice.Share.Start, p.choice.Queue.Virtual)
		} else {
			c.t.write(readyShare, s.company, s.lane, s.caller)
		}
	}
}

// findClaimed learns whether claims were committed, after the answer to their commit was lost.
func (l *Ledger) findClaimed(ctx context.Context, c *claiming, lost error) error {
	var mine map[ID]bool
	err := l.patiently(ctx, func() error {
		return l.transact(ctx, confirming(func(t *tx) error {
			mine = map[ID]bool{}
			g := newGround(t)
			var companies []int64
			for _, claim := range c.out {
				companies = append(companies, claim.Company)
			}
			g.lockCompanies(lockCompanies, companies) // waits for the lost transaction to end
			for _, claim := range c.out {
				if s := claim.Send; s != nil {
					// The body was on its way with the answer that was lost.
					t.read(`SELECT body, COALESCE(traceparent, '') FROM send WHERE company = $1 AND queue = $2 AND pos = $3 AND state = 'sending' AND claim = $4 AND claimant = $5`,
						func(scan scanFunc) error { mine[s.ID] = true; return scan(&s.Body, &s.Traceparent) }, s.ID.Company, s.ID.Queue, s.ID.Pos, s.Claim, l.replica)
				}
			}
			return t.flush()
		}))
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, lost)
	}
	for i := range c.out {
		if s := c.out[i].Send; s != nil && !mine[s.ID] {
			c.out[i].Send = nil
		}
	}
	return nil
}
