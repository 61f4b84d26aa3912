package ledger

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// Changes that one transaction makes.
const changeGroupSize = 100

// change is one caller's part of a transaction that changes states under the companies' locks.
type change struct {
	company int64
	id      ID                                         // zero: only the company's pace
	apply   func(g *ground, r *record) (bool, error)   // what becomes of the send; it may run again
	pace    func(now int64, pace []byte) (next []byte) // nil leaves the pace

	send Send
	ok   bool
	err  error
}

// Settle ends a claimed attempt and answers with the send as it then stands. It is conditional on the claim: where
// the send went on without it (its lease lapsed and it was sent again, or a person resolved it) the answer is
// ErrClaimLost, with the send. The claimant may turn its own Unknown into Sent or Failed by settling again. Settling twice in
// the same way does nothing; so after any error Settle may be called again until it answers.
func (l *Ledger) Settle(ctx context.Context, s Settlement) (Send, error) {
	c := &change{company: s.ID.Company, id: s.ID, pace: s.Pace, apply: func(g *ground, r *record) (bool, error) {
		return g.settle(r, &s)
	}}
	err := l.change(ctx, c)
	return c.send, err
}

func (g *ground) settle(r *record, s *Settlement) (bool, error) {
	evidence := s.State == Sent || s.State == Failed
	switch {
	case r.Claim != s.Claim || r.Resolved:
		return false, ErrClaimLost
	case r.raw == Sending:
	case r.raw == Unknown && evidence, r.raw == Pending && r.State == Pending && evidence:
		// Late evidence of its own claimant: the answer came after the attempt was given up.
	case repeats(r.raw, s.State):
		return true, nil // settled before, by the same claim: its answer was lost
	default:
		return false, ErrClaimLost
	}
	due := g.now + micros(s.Backoff)
	if s.AfterLease {
		due = max(due, r.LeaseUntil)
	}
	if s.SentAgo >= 0 && s.State != Pending {
		r.SentAt = g.now - micros(s.SentAgo)
	}
	switch s.State {
	case Sent, Failed, Unknown:
		if s.State == Sent {
			g.keepNotifications(r, s.Notifications)
		}
		g.finish(r, s.State, s.Reason, s.Result)
	case Pending:
		if s.Uncounted {
			r.Attempt--
		}
		if (s.Uncounted || s.SentAgo < 0) && r.Recipient != "" {
			// Its recipient got nothing, so nobody has to wait for that.
			g.t.write(`DELETE FROM gap WHERE company = $1 AND bot = $2 AND recipient = $3`, r.ID.Company, r.Bot, r.Recipient)
		}
		r.Reason, r.Result = s.Reason, s.Result
		g.requeue(r, due)
	default:
		return false, errors.New("ledger: no attempt ends as " + string(s.State))
	}
	return true, nil
}

// repeats reports whether a send may be in state is because it was settled as said before.
func repeats(is, said State) bool {
	switch said {
	case Unknown: // or its lease lapsed before, and its caller's choice was followed
		return is.Final() || is == Pending
	case Pending: // or its time was over
		return is == Pending || is == Expired || is == Cancelled
	}
	return is == said
}

// UpdatePace changes a company's pace bytes under its lock.
func (l *Ledger) UpdatePace(ctx context.Context, company int64, update func(now int64, pace []byte) []byte) error {
	return l.change(ctx, &change{company: company, pace: update})
}

// Expire ends a send whose time or caller is gone, if it has not left. False: it was claimed or settled before, and
// the send says what it is. ErrHeld: it waits, but may have left before the ledger went back in time.
func (l *Ledger) Expire(ctx context.Context, id ID) (Send, bool, error) {
	return l.endWaiting(ctx, id, Expired)
}

// Cancel ends a send that has not left, as Expire does.
func (l *Ledger) Cancel(ctx context.Context, id ID) (Send, bool, error) {
	return l.endWaiting(ctx, id, Cancelled)
}

func (l *Ledger) endWaiting(ctx context.Context, id ID, to State) (Send, bool, error) {
	c := &change{company: id.Company, id: id, apply: func(g *ground, r *record) (bool, error) {
		switch {
		case r.State != Scheduled && r.State != Pending:
			return r.State == to, nil
		case g.companies[r.ID.Company].halted():
			return false, ErrHeld
		}
		g.end(r, to)
		return r.State == to, nil
	}}
	err := l.change(ctx, c)
	return c.send, c.ok, err
}

// Resolve settles an unknown send by what a person or a delivery event says: Sent or Failed. False: it is not unknown,
// and the send says what it is. After it the claimant has no say any more.
func (l *Ledger) Resolve(ctx context.Context, id ID, to State, reason string) (Send, bool, error) {
	if to != Sent && to != Failed {
		return Send{}, false, errors.New("ledger: a send is resolved to sent or failed")
	}
	c := &change{company: id.Company, id: id, apply: func(g *ground, r *record) (bool, error) {
		if r.raw != Unknown {
			return r.Resolved && r.raw == to, nil
		}
		g.finish(r, to, reason, r.Result)
		r.Resolved = true
		return true, nil
	}}
	err := l.change(ctx, c)
	return c.send, c.ok, err
}

// change has one change committed.
func (l *Ledger) change(ctx context.Context, c *change) error {
	if err := l.changes.do(ctx, []*change{c}); err != nil {
		return err
	}
	return c.err
}

// How a transaction of changes takes the locks of its companies.
type locking int8

const (
	lockFree  locking = iota // those that nobody else has
	lockFirst                // the first company's, for which it waits, and then those that nobody else has
	lockAll                  // all, for which it waits
)

// commitChanges commits the changes of a group, in as many transactions as it takes: each takes the companies that nobody else has, so
// that none keeps others from being claimed from while it waits for one. The next waits for the first that is left.
func (l *Ledger) commitChanges(ctx context.Context, work []*change) error {
	slices.SortStableFunc(work, func(x, y *change) int { return cmp.Compare(x.company, y.company) })
	how := lockFree
	if !l.postgres || work[0].company == work[len(work)-1].company {
		how = lockAll
	}
	left, err := l.commitRound(ctx, work, how)
	if err != nil {
		return err
	}
	for len(left) > 0 {
		work = left
		if left, err = l.commitRound(ctx, work, lockFirst); err != nil {
			break
		}
	}
	if err == nil {
		return nil
	}
	// What came before is committed, so each of the others has its own answer.
	for _, c := range work {
		own := err
		if faulty(err) && len(work) > 1 {
			_, own = l.commitRound(ctx, []*change{c}, lockAll)
		}
		if own != nil {
			c.err = own
		}
	}
	return nil
}

// commitRound is one transaction of changes, which are in the order of their companies; it returns those whose companies it did not
// get. A lost answer to its commit is made good by running it again: every change is conditional and finds that it was made. The
// locks make it wait for the lost transaction.
func (l *Ledger) commitRound(ctx context.Context, work []*change, how locking) (left []*change, err error) {
	var g *ground
	mine := work
	run := func(t *tx) error {
		g = newGround(t)
		var err error
		if mine, err = g.lockChanged(work, how); err != nil {
			return err
		}
		return g.changeAll(mine)
	}
	err = l.transactSending(ctx, run)
	var lost *commitLostError
	if errors.As(err, &lost) {
		again := mine
		time.Sleep(time.Millisecond)
		err = l.patiently(ctx, func() error {
			return l.transactSending(ctx, confirming(func(t *tx) error {
				g = newGround(t)
				if _, err := g.lockChanged(again, lockAll); err != nil {
					return err
				}
				return g.changeAll(again)
			}))
		})
		if err != nil {
			err = errors.Join(ErrUncertain, err)
		}
	}
	if err != nil {
		return nil, err
	}
	l.publish(g)
	l.watchHome(ctx, g.companies, nil)
	return slices.DeleteFunc(slices.Clone(work), func(c *change) bool { return slices.Contains(mine, c) }), nil
}

// lockChanged takes the locks of the companies of changes, or queues them where it takes all, and returns the changes whose
// companies it has.
func (g *ground) lockChanged(work []*change, how locking) ([]*change, error) {
	var companies []int64
	for _, c := range work {
		companies = append(companies, c.company)
	}
	companies = slices.Compact(companies)
	switch how {
	case lockAll:
		g.lockCompanies(lockCompanies, companies)
		return work, nil
	case lockFirst:
		g.lockCompanies(lockCompanies, companies[:1])
		if companies = companies[1:]; len(companies) > 0 {
			g.lockCompanies(lockCompaniesSkip, companies)
		}
	default:
		g.lockCompanies(lockCompaniesSkip, companies)
	}
	if err := g.t.flush(); err != nil {
		return nil, err
	}
	var mine []*change
	for _, c := range work {
		if g.companies[c.company] != nil || how == lockFirst && c.company == work[0].company {
			mine = append(mine, c)
		}
	}
	return mine, nil
}

// changeAll makes changes whose companies are locked, or will be with the next flush.
func (g *ground) changeAll(work []*change) error {
	records := map[ID]*record{}
	var queues []QueueID
	for _, c := range work {
		if !c.id.IsZero() {
			queues = append(queues, QueueID{c.id.Company, c.id.Queue})
			records[c.id] = nil
		}
	}
	g.lockQueues(queues)
	for id := range records {
		g.read(id, records)
	}
	if err := g.t.flush(); err != nil {
		return err
	}
	for _, c := range work {
		g.changeOne(c, records[c.id])
	}
	if len(g.changed) == 0 && !g.repaced() {
		return errRollback
	}
	if err := g.write(); err != nil {
		return err
	}
	for _, c := range work {
		if r := records[c.id]; r != nil {
			c.send = r.Send
		}
	}
	return nil
}

// read queues the reading of a send.
func (g *ground) read(id ID, into map[ID]*record) {
	g.t.read(changeQuery, func(scan scanFunc) error {
		r := &record{}
		into[id] = r
		return r.scan(scan, flag{&r.alone})
	}, id.Company, id.Queue, id.Pos)
}

func (g *ground) changeOne(c *change, r *record) {
	c.send, c.ok, c.err = Send{}, false, nil
	company := g.companies[c.company]
	if company == nil {
		c.err = ErrNotFound
		return
	}
	if c.pace != nil {
		company.pace, company.repaced = c.pace(g.now, company.pace), true
	}
	switch {
	case c.id.IsZero():
	case r == nil:
		c.err = ErrNotFound
	default:
		c.ok, c.err = c.apply(g, r)
		c.send = r.Send
	}
}

func (g *ground) repaced() bool {
	for _, c := range g.companies {
		if c.repaced {
			return true
		}
	}
	return false
}

// publish tells who waits, here and in other replicas, what a committed transaction changed.
func (l *Ledger) publish(g *ground) {
	l.wake(g.woken...)
	for _, id := range g.settled {
		l.settled(id)
	}
	if len(g.dueAt) > 0 {
		l.dueAt(slices.Min(g.dueAt))
	}
}

// Company is the id of the company with this name, which is made when there is none.
func (l *Ledger) Company(ctx context.Context, name string) (int64, error) {
	var id int64
	err := l.transact(ctx, func(t *tx) error {
		t.alone(0)
		t.write(`INSERT INTO company (id, name) SELECT COALESCE(max(id), 0) + 1, CAST($1 AS TEXT) FROM company
			HAVING NOT EXISTS (SELECT 1 FROM company WHERE name = CAST($1 AS TEXT))`, name)
		t.read(`SELECT id FROM company WHERE name = $1`, func(scan scanFunc) error { return scan(&id) }, name)
		return t.flush()
	})
	return id, err
}

// SetWeight sets the weight of a caller's shares of all lanes, where it has any; new ones begin with that of NewSend.
func (l *Ledger) SetWeight(ctx context.Context, company int64, caller string, weight int) error {
	return l.transact(ctx, func(t *tx) error {
		t.write(`UPDATE share SET weight = $3 WHERE company = $1 AND caller = $2 AND weight <> $3`, company, caller, max(1, weight))
		return nil
	})
}

// ReadPace reads a company's pace bytes and the database's time, without a lock.
func (l *Ledger) ReadPace(ctx context.Context, company int64) (now int64, pace []byte, err error) {
	found := false
	err = l.query(ctx, `SELECT {now}, pace FROM company WHERE id{newest} = $1 ORDER BY era DESC LIMIT 1`, func(scan scanFunc) error {
		found = true
		return scan(&now, &pace)
	}, company)
	if err == nil && !found {
		err = ErrNotFound
	}
	return now, pace, err
}
