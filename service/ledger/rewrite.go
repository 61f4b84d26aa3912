package ledger

import (
	"context"
	"math"
)

// A rewriting gives a final state to what waits in a queue, a bounded number of rows at a time.
type rewriting struct {
	to     State
	reason string
	before int64 // only what was accepted and due before this time
	frees  bool  // others of the queue go on and may be parked behind what is rewritten
}

// cancelling writes what a cancelled queue has been saying since it was cancelled.
var cancelling = rewriting{to: Cancelled, reason: ReasonCancelled, before: math.MaxInt64}

// Rows that one transaction looks at.
const rewriteChunk = 1000

// rewritten are the rows that a chunk is about, in a queue's row of positions from $3 to $4.
const rewritten = ` FROM send WHERE company = $1 AND queue = $2 AND pos > $3 AND pos <= $4 AND state IN ('scheduled', 'pending')
	AND accepted_at < $5 AND (due_at IS NULL OR due_at < $5)`

const (
	chunkQuery = `SELECT COALESCE(max(pos), $3), COALESCE(max(parked), 0) FROM (
	SELECT pos, parked FROM send WHERE company = $1 AND queue = $2 AND pos > $3 ORDER BY pos LIMIT $4) chunk`
	rewrittenQuery   = `SELECT pos, lane, state, parked, bot, recipient, reason` + rewritten + ` ORDER BY pos`
	rewriteStatement = `UPDATE send SET state = CASE WHEN reason = $11 THEN 'unknown' ELSE $6 END, reason = CASE WHEN reason = $11 THEN $11 ELSE $7 END,
		settled_at = $8, result_no = $9 + n, parked = 0, late_until = CASE WHEN parked = 2 THEN due_at ELSE late_until END,
		claim = CASE WHEN $10 = 1 THEN COALESCE(claim, 0) ELSE claim END
	FROM (SELECT company AS of_company, queue AS of_queue, pos AS place, row_number() OVER (ORDER BY pos) - 1 AS n` + rewritten + `) w
	WHERE send.company = w.of_company AND send.queue = w.of_queue AND send.pos = w.place`
)

// rewriteChunk rewrites what waits among the rows that follow a position, and says up to where it came: the same
// position again when there are no further rows. A crash leaves whole chunks behind; who goes on finds the first row
// that is still waiting.
func (l *Ledger) rewriteChunk(ctx context.Context, id QueueID, after int64, w rewriting) (int64, error) {
	last, blocking, err := l.lookAtChunk(ctx, id, after)
	if err != nil || last == after {
		return after, err
	}
	var g *ground
	err = l.transactAgain(ctx, func(t *tx) error {
		g = newGround(t)
		return g.rewrite(id, after, last, w, blocking || w.frees)
	})
	if err != nil {
		return after, err
	}
	if len(g.settled) > 0 {
		l.settled(g.settled[len(g.settled)-1]) // one stands for all who follow the queue
	}
	l.wake(g.woken...)
	return last, nil
}

// lookAtChunk finds the chunk's last position, and whether there are rows in it that keep others from being sent.
func (l *Ledger) lookAtChunk(ctx context.Context, id QueueID, after int64) (last int64, blocking bool, err error) {
	last = after
	err = l.query(ctx, chunkQuery,
		func(scan scanFunc) error {
			var parked Parked
			err := scan(&last, &parked)
			blocking = parked == Backoff
			return err
		}, id.Company, id.Queue, after, rewriteChunk)
	return last, blocking, err
}

// rewrite is one chunk's transaction. Only freeing a recipient needs the company's lock; without need it is left to
// claims.
func (g *ground) rewrite(id QueueID, after, last int64, w rewriting, frees bool) error {
	if frees {
		g.lockCompanies(lockCompanies, []int64{id.Company})
	}
	g.lockQueues([]QueueID{id})
	g.t.read(`SELECT {now}`, func(scan scanFunc) error { return scan(&g.now) })
	n, lost, scheduled := int64(0), int64(0), int64(0)
	g.t.read(rewrittenQuery, func(scan scanFunc) error {
		r := record{Send: Send{ID: ID{Company: id.Company, Queue: id.Queue}}}
		if err := scan(&r.ID.Pos, &r.Lane, &r.raw, &r.Parked, &r.Bot, &r.Recipient, &r.Reason); err != nil {
			return err
		}
		n++
		if r.Reason == ReasonUnknown {
			lost++
		}
		if r.raw == Scheduled {
			scheduled++
		}
		if r.Recipient != "" && (r.Parked == Backoff || w.frees && r.raw == Pending && r.Parked == NotParked) {
			g.freed[r.recipient()] = struct{}{}
		}
		g.settled = append(g.settled, r.ID)
		return nil
	}, id.Company, id.Queue, after, last, w.before)
	if err := g.t.flush(); err != nil {
		return err
	}
	q := g.queues[id]
	if q == nil {
		return ErrNotFound
	}
	if n > 0 {
		g.numberRewritten(id, after, last, w, q.nextResult)
		if err := g.t.flush(); err != nil {
			return err
		}
		q.nextResult, q.done = q.nextResult+n, q.done+n
		q.results[w.to] += n - lost
		q.results[Unknown] += lost
		q.leftScheduled += scheduled
	}
	if err := g.write(); err != nil {
		return err
	}
	if q.state == "cancelled" {
		// Nothing is added to a cancelled queue and nothing comes back to it: what was passed stays passed.
		g.t.write(`UPDATE queue SET head_pos = $3 WHERE company = $1 AND id = $2`, id.Company, id.Queue, last)
	}
	return nil
}

// numberRewritten queues the writing of the rows, numbered in the order of their positions. One that was given back after
// an attempt of which nobody knows becomes unknown, as it does one by one. What becomes unknown without ever having
// been claimed, as far as this ledger knows, has the claim number 0, which is nobody's.
func (g *ground) numberRewritten(id QueueID, after, last int64, w rewriting, nextResult int64) {
	g.t.write(rewriteStatement,
		id.Company, id.Queue, after, last, w.before, string(w.to), w.reason, g.now, nextResult, oneIf(w.to == Unknown), ReasonUnknown)
}

// rewriteCancelled gives their results to what waits in cancelled batches.
func (l *Ledger) rewriteCancelled(ctx context.Context) error {
	type place struct {
		id    QueueID
		after int64
	}
	var places []place
	err := l.query(ctx, `SELECT company, id, head_pos FROM queue WHERE state = 'cancelled' AND ended_at IS NULL ORDER BY cancelled_at LIMIT $1`,
		func(scan scanFunc) error {
			var p place
			err := scan(&p.id.Company, &p.id.Queue, &p.after)
			places = append(places, p)
			return err
		}, tidyQueues)
	if err != nil {
		return err
	}
	for _, p := range places {
		for ctx.Err() == nil {
			last, err := l.rewriteChunk(ctx, p.id, p.after, cancelling)
			if err != nil {
				return err
			}
			if last == p.after {
				break
			}
			p.after = last
		}
	}
	return ctx.Err()
}
