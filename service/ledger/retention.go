package ledger

import (
	"context"
	"time"
)

// Retention says how long final sends are kept. A request id is kept as long as its send.
type Retention struct {
	Final   time.Duration // sent, failed, cancelled and expired ones; zero is 7 days, and at least 24 hours
	Unknown time.Duration // those of which nobody can say whether they were sent; at least 30 days, and at least Final
}

const (
	defaultRetention = 7 * 24 * time.Hour
	// Callers may rely on a request id for so long.
	minRetention = 24 * time.Hour
	// A person may still settle it.
	minUnknownRetention = 30 * 24 * time.Hour
)

// spans are the retentions with their defaults and bounds.
func (r Retention) spans() (final, unknown time.Duration) {
	if r.Final == 0 {
		r.Final = defaultRetention
	}
	final = max(r.Final, minRetention)
	return final, max(r.Unknown, minUnknownRetention, final)
}

// retained is how far a round of Retain has come among the single sends.
type retained struct {
	settledAt int64
	id        ID
}

// Retain deletes final single sends, and ended batches as a whole, that are older than their retention: a batch is as old as what
// was last settled in it, and one with an unknown item is kept as long as that. One call looks at and deletes about limit rows. Calls go round: more reports
// that the round is not over, the next call goes on with it. Any replica may call it.
func (l *Ledger) Retain(ctx context.Context, keep Retention, limit int) (deleted int, more bool, err error) {
	final, unknown := keep.spans()
	l.retaining.Lock()
	defer l.retaining.Unlock()
	deleted, looked, err := l.retainSends(ctx, final, unknown, limit)
	if err != nil {
		return deleted, false, err
	}
	moreNotifications, err := l.retainNotifications(ctx, final)
	if err != nil {
		return deleted, false, err
	}
	fromBatches, moreBatches, err := l.retainBatches(ctx, final, unknown, limit)
	if more = looked == limit || moreNotifications || moreBatches; err == nil && !more {
		err = l.emptyLog(ctx)
	}
	return deleted + fromBatches, more, err
}

const settledQuery = `SELECT s.company, s.queue, s.pos, s.settled_at, q.batch, CASE WHEN s.state = 'unknown' AND s.settled_at > {now} - $5 THEN 1 ELSE 0 END
	FROM send s CROSS JOIN queue q WHERE ` + ownQueue + `
		AND s.settled_at IS NOT NULL AND (s.settled_at, s.company, s.queue, s.pos) > ($1, $2, $3, $4) AND s.settled_at <= (SELECT {now}) - $6
	ORDER BY s.settled_at, s.company, s.queue, s.pos LIMIT $7`

// retainSends looks at the next sends in the order in which they were settled.
func (l *Ledger) retainSends(ctx context.Context, final, unknown time.Duration, limit int) (deleted, looked int, err error) {
	at := &l.retained
	old := map[QueueID][]int64{}
	err = l.query(ctx, settledQuery, func(scan scanFunc) error {
		looked++
		var batch, kept bool
		if err := scan(&at.id.Company, &at.id.Queue, &at.id.Pos, &at.settledAt, flag{&batch}, flag{&kept}); err != nil {
			return err
		}
		if !batch && !kept {
			id := QueueID{at.id.Company, at.id.Queue}
			old[id] = append(old[id], at.id.Pos)
		}
		return nil
	}, at.settledAt, at.id.Company, at.id.Queue, at.id.Pos, micros(unknown), micros(final), limit)
	if err != nil {
		return 0, looked, err
	}
	if looked < limit {
		*at = retained{} // the next round begins with what was kept in this one
	}
	for id, positions := range old {
		n, err := l.deleteSends(ctx, id, positions, micros(final))
		deleted += n
		if err != nil {
			return deleted, looked, err
		}
	}
	return deleted, looked, nil
}

// deleteSends deletes final sends of a queue, if they are still as old, and takes them out of its counts. A crash leaves all
// of it or nothing.
func (l *Ledger) deleteSends(ctx context.Context, id QueueID, positions []int64, final int64) (int, error) {
	var gone counted
	err := l.transactAgain(ctx, func(t *tx) error {
		gone = counted{}
		newGround(t).lockQueues([]QueueID{id})
		t.read(`DELETE FROM send WHERE pos {in 1} AND company = $2 AND queue = $3 AND settled_at <= {now} - $4 RETURNING state`,
			gone.row, l.dialect.list(positions), id.Company, id.Queue, final)
		if err := t.flush(); err != nil {
			return err
		}
		return t.uncount(id, &gone)
	})
	return int(gone.n), err
}

// counted are deleted sends by state.
type counted struct {
	n      int64
	states map[State]int64
}

func (c *counted) row(scan scanFunc) error {
	var state State
	if c.states == nil {
		c.states = map[State]int64{}
	}
	err := scan(&state)
	c.n++
	c.states[state]++
	return err
}

// uncount takes sends that were deleted out of the counts of their locked queue.
func (t *tx) uncount(id QueueID, gone *counted) error {
	if gone.n == 0 {
		return nil
	}
	t.write(`INSERT INTO tally (company, queue, stripe, added) VALUES ($1, $2, $3, $4)
		ON CONFLICT (company, queue, stripe) DO UPDATE SET added = tally.added + excluded.added`, id.Company, id.Queue, t.l.stripe, -gone.n)
	t.writeOne(`UPDATE queue SET sent = sent - $3, failed = failed - $4, unknown = unknown - $5, cancelled = cancelled - $6, expired = expired - $7
		WHERE company = $1 AND id = $2`, id.Company, id.Queue,
		gone.states[Sent], gone.states[Failed], gone.states[Unknown], gone.states[Cancelled], gone.states[Expired])
	return t.flush()
}

// retainBatches deletes the results of the batches that ended first, in their order.
func (l *Ledger) retainBatches(ctx context.Context, final, unknown time.Duration, limit int) (deleted int, more bool, err error) {
	ids, err := l.queueIDs(ctx, `SELECT company, id FROM queue WHERE ended_at IS NOT NULL AND ended_at <= (SELECT {now}) - $1
			AND COALESCE(settled_at, 0) <= (SELECT {now}) - $1 AND (unknown = 0 OR ended_at <= (SELECT {now}) - $2)
		ORDER BY ended_at LIMIT $3`, micros(final), micros(unknown), tidyQueues)
	if err != nil {
		return 0, false, err
	}
	for _, id := range ids {
		n, err := l.deleteResults(ctx, id, limit-deleted)
		deleted += n
		if err != nil || deleted >= limit {
			return deleted, true, err
		}
	}
	return deleted, len(ids) == tidyQueues, nil
}

// deleteResults deletes the first results of an ended batch, and the batch with the last of them. From the first chunk on
// the batch is not found any more; a crash between two chunks leaves it so, and the next call goes on.
func (l *Ledger) deleteResults(ctx context.Context, id QueueID, limit int) (int, error) {
	var gone counted
	err := l.transactAgain(ctx, func(t *tx) error {
		gone = counted{}
		last := int64(-1)
		g := newGround(t)
		g.lockQueues([]QueueID{id})
		t.read(`SELECT result_no FROM send WHERE company = $1 AND queue = $2 AND result_no IS NOT NULL ORDER BY result_no LIMIT 1 OFFSET $3`,
			func(scan scanFunc) error { return scan(&last) }, id.Company, id.Queue, limit)
		if err := t.flush(); err != nil {
			return err
		}
		if g.queues[id] == nil {
			return errRollback
		}
		if last < 0 {
			t.read(`DELETE FROM send WHERE company = $1 AND queue = $2 RETURNING state`, gone.row, id.Company, id.Queue)
			t.write(`DELETE FROM tally WHERE company = $1 AND queue = $2`, id.Company, id.Queue)
			t.write(`DELETE FROM queue WHERE company = $1 AND id = $2`, id.Company, id.Queue)
			return t.flush()
		}
		t.read(`DELETE FROM send WHERE company = $1 AND queue = $2 AND result_no < $3 AND result_no IS NOT NULL RETURNING state`, gone.row, id.Company, id.Queue, last)
		t.writeOne(`UPDATE queue SET dropped_result = $3 WHERE company = $1 AND id = $2`, id.Company, id.Queue, last-1)
		if err := t.flush(); err != nil {
			return err
		}
		return t.uncount(id, &gone)
	})
	return int(gone.n), err
}
