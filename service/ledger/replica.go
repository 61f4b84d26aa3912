package ledger

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// aboutNow is the database's clock as far as this process knows: good enough for hints, and for nothing that is decided.
func (l *Ledger) aboutNow() int64 { return time.Now().UnixMicro() + l.skew.Load() }

// renew extends the replica's lease, on which the sends live whose callers wait in this process.
func (l *Ledger) renew(ctx context.Context) error {
	return l.transact(ctx, func(t *tx) error {
		t.write(`INSERT INTO replica (id, alive_until) VALUES ($1, {now} + $2)
			ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until`, l.replica, micros(l.ownerLease))
		return nil
	})
}

// leave ends the lease.
func (l *Ledger) leave(ctx context.Context) error {
	return l.transact(ctx, func(t *tx) error {
		t.write(`UPDATE replica SET alive_until = 0 WHERE id = $1`, l.replica)
		return nil
	})
}

// Sends that one pass of a sweep changes in one transaction.
const sweepChunk = 200

// How often the sweeps look when nothing tells them to.
const sweepEvery = 500 * time.Millisecond

// sweeps are what has to happen to sends although nobody calls. Each query gives sends; each change is made under
// the company's lock to what the send is by then.
var sweeps = []struct {
	name  string
	query string
	apply func(g *ground, r *record) (bool, error)
}{
	{"due", `SELECT company, queue, pos FROM send WHERE (state = 'scheduled' OR parked = 2) AND due_at <= (SELECT {now}) ORDER BY due_at LIMIT $1`,
		func(g *ground, r *record) (bool, error) {
			if (r.raw == Scheduled || r.Parked == Backoff) && r.DueAt <= g.now {
				g.becomeDue(r)
			}
			return true, nil
		}},
	{"expired", `SELECT company, queue, pos FROM send WHERE expire_at IS NOT NULL AND state IN ('scheduled', 'pending') AND expire_at <= (SELECT {now}) ORDER BY expire_at LIMIT $1`,
		func(g *ground, r *record) (bool, error) {
			if r.waits() && r.ExpireAt <= g.now {
				return g.timeOut(r)
			}
			return true, nil
		}},
	{"orphaned", `SELECT s.company, s.queue, s.pos FROM replica r CROSS JOIN send s
			WHERE r.alive_until <= {now} AND s.owner = r.id AND s.owner IS NOT NULL AND s.state IN ('scheduled', 'pending') LIMIT $1`,
		func(g *ground, r *record) (bool, error) {
			if r.waits() {
				return g.timeOut(r)
			}
			return true, nil
		}},
	{"lapsed", `SELECT company, queue, pos FROM send WHERE state = 'sending' AND lease_until <= (SELECT {now}) ORDER BY lease_until LIMIT $1`,
		func(g *ground, r *record) (bool, error) {
			if r.raw == Sending && r.LeaseUntil <= g.now {
				g.lapse(r)
			}
			return true, nil
		}},
}

// dueAt tells Run of something that becomes due, where that is before its next look.
func (l *Ledger) dueAt(at int64) {
	if at-l.aboutNow() > micros(sweepEvery) {
		return
	}
	select {
	case l.nudge <- struct{}{}:
	default:
	}
}

// waits reports whether the send is stored as not sent yet.
func (r *record) waits() bool { return r.raw == Scheduled || r.raw == Pending }

// Run does what has to happen although nobody calls: it renews the replica's lease, makes sends due, lets them expire,
// settles lapsed leases and forgets replicas that are gone. It returns when ctx ends. While the database is away it
// goes on trying.
func (l *Ledger) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { l.tidy(ctx) })
	renewal := time.NewTicker(l.ownerLease / 4)
	defer renewal.Stop()
	sweep := time.NewTimer(0)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-renewal.C:
			l.report(ctx, "renew the replica's lease", l.renew(ctx))
		case <-l.nudge:
			next, err := l.nextDue(ctx)
			l.report(ctx, "sweep", err)
			sweep.Reset(next)
		case <-sweep.C:
			next, err := l.sweep(ctx)
			l.report(ctx, "sweep", err)
			sweep.Reset(next)
		}
	}
}

// report logs what went wrong in the background, once per spell.
func (l *Ledger) report(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	_, failing := l.failing.Load(what)
	switch {
	case err != nil && !failing:
		l.failing.Store(what, true)
		l.log.Error("the ledger cannot "+what+"; it goes on trying", "error", err)
	case err == nil && failing:
		l.failing.Delete(what)
		l.log.Info("the ledger can " + what + " again")
	}
}

// sweep runs every sweep until nothing is left to do, and says when to look again.
func (l *Ledger) sweep(ctx context.Context) (time.Duration, error) {
	for _, s := range sweeps {
		for {
			n, err := l.sweepOnce(ctx, s.query, s.apply)
			if err != nil {
				return sweepEvery, err
			}
			if n < sweepChunk {
				break
			}
		}
	}
	gaps, err := l.forgetGaps(ctx)
	if err := errors.Join(l.forgetReplicas(ctx), err); err != nil {
		return sweepEvery, err
	}
	next, err := l.nextDue(ctx)
	if gaps == gapChunk {
		next = min(next, gapRest)
	}
	return next, err
}

// sweepOnce changes what the query finds, and says how much of it; what is held stays.
func (l *Ledger) sweepOnce(ctx context.Context, query string, apply func(*ground, *record) (bool, error)) (int, error) {
	var work []*change
	err := l.query(ctx, query, func(scan scanFunc) error {
		c := &change{apply: apply}
		err := scan(&c.id.Company, &c.id.Queue, &c.id.Pos)
		c.company = c.id.Company
		work = append(work, c)
		return err
	}, sweepChunk)
	if err != nil || len(work) == 0 {
		return 0, err
	}
	err = l.changes.do(ctx, work)
	return len(slices.DeleteFunc(work, func(c *change) bool { return errors.Is(c.err, ErrHeld) })), err
}

// forgetReplicas deletes the rows of replicas that are gone and own nothing that waits.
func (l *Ledger) forgetReplicas(ctx context.Context) error {
	var gone []string
	err := l.query(ctx, `SELECT id FROM replica r WHERE alive_until <= {now}
		AND NOT EXISTS (SELECT 1 FROM send s WHERE s.owner = r.id AND s.owner IS NOT NULL AND s.state IN ('scheduled', 'pending'))`,
		func(scan scanFunc) error {
			var id string
			err := scan(&id)
			gone = append(gone, id)
			return err
		})
	if err != nil || len(gone) == 0 {
		return err
	}
	slices.Sort(gone)
	return l.transact(ctx, func(t *tx) error {
		for _, id := range gone {
			t.write(`DELETE FROM replica WHERE id = $1 AND alive_until <= (SELECT {now})`, id)
		}
		return nil
	})
}

const (
	// Gaps that one pass forgets, and the rest before the next one where there are more.
	gapChunk = 500
	gapRest  = 50 * time.Millisecond
)

// forgetGaps deletes some of the gaps that are over, and says how many.
func (l *Ledger) forgetGaps(ctx context.Context) (forgotten int, err error) {
	over := false
	err = l.query(ctx, `SELECT until FROM gap WHERE until <= (SELECT {now}) ORDER BY until LIMIT 1`, func(scanFunc) error { over = true; return nil })
	if err != nil || !over {
		return 0, err
	}
	err = l.transact(ctx, func(t *tx) error {
		forgotten = 0
		t.read(`DELETE FROM gap WHERE until <= (SELECT {now}) AND (company, bot, recipient) IN (
			SELECT company, bot, recipient FROM gap WHERE until <= (SELECT {now}) ORDER BY until LIMIT $1) RETURNING 1`,
			func(scanFunc) error { forgotten++; return nil }, gapChunk)
		return t.flush()
	})
	return forgotten, err
}

// nextDue is how long until the next scheduled send or backoff is due, or the next sweep.
func (l *Ledger) nextDue(ctx context.Context) (time.Duration, error) {
	next := sweepEvery
	err := l.query(ctx, `SELECT due_at - {now} FROM send WHERE state = 'scheduled' OR parked = 2 ORDER BY due_at LIMIT 1`,
		func(scan scanFunc) error {
			var in int64
			err := scan(&in)
			next = max(time.Millisecond, min(next, time.Duration(in)*time.Microsecond))
			return err
		})
	return next, err
}

func isUnavailable(err error) bool { return errors.Is(err, ErrUnavailable) }

// Replicas lists the processes that are alive, this one among them.
func (l *Ledger) Replicas(ctx context.Context) ([]string, error) {
	var ids []string
	err := l.query(ctx, `SELECT id FROM replica WHERE alive_until > {now} ORDER BY id`, func(scan scanFunc) error {
		var id string
		err := scan(&id)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// Replica is this process's own name among them.
func (l *Ledger) Replica() string { return l.replica }

// Glance is what can be seen of a company without its lock: it may have changed since.
type Glance struct {
	Company int64
	Now     int64  // database time
	ClaimNo int64  // of the latest claim
	Pace    []byte // as stored
	Ready   bool   // something may wait
}

// Glance looks at companies without disturbing who claims from them. One that does not exist is left out.
func (l *Ledger) Glance(ctx context.Context, companies []int64) ([]Glance, error) {
	var out []Glance
	err := l.query(ctx, `SELECT c.id, {now}, c.claim_no, c.pace,
			CASE WHEN EXISTS (SELECT 1 FROM share x WHERE x.company{ready} = c.id AND x.ready = 1) THEN 1 ELSE 0 END
		FROM {companies}`, func(scan scanFunc) error {
		var g Glance
		err := scan(&g.Company, &g.Now, &g.ClaimNo, &g.Pace, flag{&g.Ready})
		out = append(out, g)
		return err
	}, l.dialect.list(companies))
	return out, err
}
