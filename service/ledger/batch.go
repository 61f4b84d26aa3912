package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// Errors of batches that callers tell apart.
var (
	// ErrBatchEnded: the batch is completed or cancelled.
	ErrBatchEnded = errors.New("the batch has ended")
	// ErrCursorExpired: results after this cursor were deleted, their time was over.
	ErrCursorExpired = errors.New("results after this cursor are no longer kept")
	// ErrNothingToReplay: no send of the batch matches, or all that do were replayed before.
	ErrNothingToReplay = errors.New("nothing in the batch is to be replayed")
)

// SequenceError says that a batch expected another number: an item came too early or with other content than the one
// that was stored under its number, or a seal named another count. It is an ErrSequenceMismatch.
type SequenceError struct {
	Expected int64 // the sequence that the next item must have; of a seal, the number of items
}

func (e *SequenceError) Error() string {
	return fmt.Sprintf("%v: expected %d", ErrSequenceMismatch, e.Expected)
}

// Is makes errors.Is find ErrSequenceMismatch.
func (e *SequenceError) Is(target error) bool { return target == ErrSequenceMismatch }

// A BatchState is how a batch reads.
type BatchState string

// The states of a batch. A cancelled one may still have items under way; it has ended when EndedAt is set.
const (
	BatchOpen      BatchState = "open"      // takes items
	BatchRunning   BatchState = "running"   // sealed
	BatchCompleted BatchState = "completed" // sealed, and every item is final
	BatchCancelled BatchState = "cancelled"
)

// NewBatch is a batch to be created.
type NewBatch struct {
	Company int64
	Lane    Lane
	Caller  string
	Weight  int // of the caller's share of the lane, where it has none yet; zero is 1

	Bot    string
	Labels string // JSON object as encoding/json writes it; empty is none
	Spec   []byte // what the caller said about it
	Paused bool

	RequestID   string // unique among the caller's batches of the company; empty: not deduplicated
	Hash        []byte // of the content, compared when RequestID is met again
	HashVersion int16
}

// Batch is a stored batch. Times are microseconds on the database's clock, zero is "not yet".
type Batch struct {
	ID     QueueID
	Lane   Lane
	Caller string
	Bot    string
	Labels string
	Spec   []byte

	RequestID   string
	Hash        []byte
	HashVersion int16

	State    BatchState
	Paused   bool
	Counts   Counts
	NextPos  int64   // the sequence that the next item must have: all before it are durable
	Uploader int64   // the newest stream that uploads
	Source   QueueID // the batch that this one replays; zero is none

	CreatedAt   int64
	SealedAt    int64
	CancelledAt int64
	EndedAt     int64 // when the last item had its result
}

// Counts are a batch's items by how they read; Accepted is the sum of the others.
type Counts struct {
	Accepted, Scheduled, Pending, Sending, Sent, Failed, Unknown, Cancelled, Expired int64
}

// batchRow is a batch as a transaction sees it.
type batchRow struct {
	Batch
	raw       string // open, paused, cancelled or closed, as stored
	itemCount int64  // notSealed, beingFilled or the number of items
	now       int64
	halted    bool // seen under the company's lock
}

// Values of batchRow.itemCount that are not counts.
const (
	notSealed   = -2
	beingFilled = -1 // sealed for callers; a replay adds what is missing
)

// done is the number of items that have their result.
func (b *batchRow) done() int64 {
	return b.Counts.Sent + b.Counts.Failed + b.Counts.Unknown + b.Counts.Expired + b.Counts.Cancelled
}

// batchColumns need the batch's queue as q. They are read after what locks the queue, in a statement of their own: one
// that waited for the lock would still count what was there before it waited.
const batchColumns = `q.company, q.id, q.lane, q.caller, q.bot, q.labels, q.spec, COALESCE(q.request_id, ''), q.hash, q.hash_version,
	q.state, COALESCE(q.item_count, -2), q.uploader, COALESCE(q.source_queue, 0),
	q.sending, q.sent, q.failed, q.unknown, q.cancelled, q.expired, CAST(` + added + ` AS BIGINT), CAST(` + addedScheduled + ` - q.left_scheduled AS BIGINT),
	COALESCE((SELECT s.pos FROM send s WHERE s.company = q.company AND s.queue = q.id ORDER BY s.pos DESC LIMIT 1), 0) + 1,
	q.created_at, COALESCE(q.sealed_at, 0), COALESCE(q.cancelled_at, 0), COALESCE(q.ended_at, 0), {now}`

// fromBatch leaves out batches that retention is deleting. It keeps the index of lists, which are of batches only, from being
// taken for a look-up.
const fromBatch = ` FROM queue q WHERE q.batch + 0 = 1 AND q.dropped_result = 0 `

const (
	batchQuery          = `SELECT ` + batchColumns + fromBatch + `AND q.company = $1 AND q.id = $2`
	batchByRequestQuery = `SELECT ` + batchColumns + fromBatch + `AND q.company = $1 AND q.caller = $2 AND q.request_id = $3`
)

func (b *batchRow) scan(scan scanFunc) error {
	c := &b.Counts
	var waiting int64
	err := scan(&b.ID.Company, &b.ID.Queue, &b.Lane, &b.Caller, &b.Bot, &b.Labels, &b.Spec, &b.RequestID, &b.Hash, &b.HashVersion,
		&b.raw, &b.itemCount, &b.Uploader, &b.Source.Queue,
		&c.Sending, &c.Sent, &c.Failed, &c.Unknown, &c.Cancelled, &c.Expired, &c.Accepted, &c.Scheduled,
		&b.NextPos, &b.CreatedAt, &b.SealedAt, &b.CancelledAt, &b.EndedAt, &b.now)
	if err != nil {
		return err
	}
	if b.Source.Queue != 0 {
		b.Source.Company = b.ID.Company
	}
	waiting = c.Accepted - c.Sending - b.done()
	c.Pending = waiting - c.Scheduled
	b.Paused = b.raw == "paused"
	switch {
	case b.raw == "cancelled":
		// What waits reads as cancelled, although the sweep may need a while to write it.
		b.State = BatchCancelled
		c.Cancelled, c.Scheduled, c.Pending = c.Cancelled+waiting, 0, 0
	case b.raw == "closed":
		b.State = BatchCompleted
	case b.itemCount == notSealed:
		b.State = BatchOpen
	default:
		b.State = BatchRunning
	}
	return nil
}

// readBatch queues the reading of a batch; found stays false when there is none.
func (t *tx) readBatch(id QueueID, b *batchRow, found *bool) {
	t.read(batchQuery, func(scan scanFunc) error {
		*found, *b = true, batchRow{}
		return b.scan(scan)
	}, id.Company, id.Queue)
}

// lockFromAdds queues the lock of a queue that waits for adds in flight and lets none begin.
func (t *tx) lockFromAdds(id QueueID) {
	t.read(`SELECT id FROM queue WHERE company = $1 AND id = $2 {all}`, nothing, id.Company, id.Queue)
}

// transactAgain is transact for transactions that may be run twice: after the answer to a commit was lost it is run
// again, waits where the lost one still has its locks, and finds what that one did.
func (l *Ledger) transactAgain(ctx context.Context, fn func(t *tx) error) error {
	err := l.transact(ctx, fn)
	var lost *commitLostError
	if !errors.As(err, &lost) {
		return err
	}
	if err := l.patiently(ctx, func() error { return l.transact(ctx, confirming(fn)) }); err != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return nil
}

// CreateBatch stores a new batch, open and without items. A request id that the caller used for a batch before joins
// that one when the content is the same, and is ErrRequestIDReused otherwise.
func (l *Ledger) CreateBatch(ctx context.Context, n NewBatch) (b Batch, joined bool, err error) {
	var row batchRow
	id := QueueID{n.Company, newQueueID()}
	err = l.transactAgain(ctx, func(t *tx) error {
		row, err = t.createBatch(id, &n, nil)
		return err
	})
	return row.Batch, row.ID != id, err
}

// CreateSealedBatch stores a new batch with its items, sealed, all in one transaction: where it is an error, or a crash comes
// before the commit, there is nothing of it, and nothing of it is claimed before all of it is there. An item that Add would refuse
// refuses the batch. It joins like CreateBatch. After ErrUncertain it is there or not, under the id in the answer.
func (l *Ledger) CreateSealedBatch(ctx context.Context, n NewBatch, items []NewSend) (b Batch, joined bool, err error) {
	if err := l.hasSpace(); err != nil {
		return Batch{}, false, err
	}
	id := QueueID{n.Company, newQueueID()}
	var row batchRow
	var a *adding
	var refused error
	err = l.transactAgain(ctx, func(t *tx) error {
		a, refused = nil, nil
		if row, err = t.createBatch(id, &n, nil); err != nil || row.itemCount != notSealed {
			return err
		}
		for i := range items {
			items[i].Queue = row.ID.Queue
		}
		// One that was left open by a version that stored it piece by piece: nobody else may be at it.
		t.lockFromAdds(row.ID)
		work, added := additions(items)
		a = newAdding(t, work)
		if err := a.run(); err != nil {
			return err
		}
		for _, item := range added {
			if item.Err != nil {
				refused = item.Err
				return errRollback
			}
		}
		found := false
		t.readBatch(row.ID, &row, &found)
		if err := t.flush(); err != nil {
			return err
		}
		t.seal(&row, int64(len(items)))
		t.readBatch(row.ID, &row, &found)
		return t.flush()
	})
	switch {
	case refused != nil:
		return Batch{}, false, refused
	case err != nil:
		return Batch{ID: id}, false, err
	case a != nil:
		l.announce(a)
	}
	return row.Batch, row.ID != id, nil
}

// filling says what a batch is to be filled with by the ledger.
type filling struct {
	source int64
	filter string
}

// createBatch stores the batch, or finds the one with its request id. The id is chosen before, so that a second run
// after a lost answer finds what the first one stored. Until the commit there is no batch; a crash after it leaves an
// empty one, which is sealed in time.
func (t *tx) createBatch(id QueueID, n *NewBatch, f *filling) (batchRow, error) {
	var b batchRow
	found := false
	state := "open"
	if n.Paused {
		state = "paused"
	}
	t.alone(n.Company)
	t.readBatch(id, &b, &found)
	if err := t.flush(); err != nil || found {
		return b, err
	}
	if n.RequestID != "" {
		t.read(batchByRequestQuery, func(scan scanFunc) error {
			found = true
			return b.scan(scan)
		}, n.Company, n.Caller, n.RequestID)
		err := t.flush()
		switch {
		case err != nil:
			return b, err
		case found && b.HashVersion == n.HashVersion && !bytes.Equal(b.Hash, n.Hash):
			return batchRow{}, ErrRequestIDReused
		case found:
			return b, nil
		}
	}
	t.makeShare(looseKey{n.Company, n.Lane, n.Caller}, n.Weight)
	args := []any{n.Company, id.Queue, n.Lane, n.Caller, state, n.Bot, n.Labels, n.Spec, orNull(n.RequestID), n.Hash, n.HashVersion}
	if f == nil {
		t.write(`INSERT INTO queue (company, id, lane, caller, batch, state, bot, labels, spec, request_id, hash, hash_version, created_at, uploaded_at)
			VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9, $10, $11, {now}, {now})`, args...)
	} else {
		t.write(`INSERT INTO queue (company, id, lane, caller, batch, state, bot, labels, spec, request_id, hash, hash_version, created_at,
				sealed_at, item_count, source_queue, source_filter)
			VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9, $10, $11, {now}, {now}, -1, $12, $13)`, append(args, f.source, f.filter)...)
	}
	t.readBatch(id, &b, &found)
	return b, t.flush()
}

// changeBatch changes a batch under a lock that waits for adds in flight and lets none begin; with claims also under
// the company's, so that nothing of it is claimed on the state before. change queues what it writes; it may run again,
// after it has been committed too, and has to be content with that.
func (l *Ledger) changeBatch(ctx context.Context, id QueueID, claims bool, change func(t *tx, b *batchRow) error) (batchRow, error) {
	var b batchRow
	err := l.transactAgain(ctx, func(t *tx) error {
		found, g := false, newGround(t)
		if claims {
			g.lockCompanies(lockCompanies, []int64{id.Company})
		}
		t.lockFromAdds(id)
		t.readBatch(id, &b, &found)
		if err := t.flush(); err != nil {
			return err
		}
		if !found {
			return ErrNotFound
		}
		b.halted = claims && g.companies[id.Company].halted()
		if err := change(t, &b); err != nil {
			return err
		}
		if len(t.steps) == 0 {
			return errRollback
		}
		t.readBatch(id, &b, &found)
		return t.flush()
	})
	if err == nil {
		// Whoever streams the batch looks at it again.
		l.settled(ID{Company: id.Company, Queue: id.Queue})
	}
	return b, err
}

// OpenBatch makes whoever calls the one who uploads: items of whoever was it before are refused with ErrStreamReplaced.
// The number is for NewSend.Uploader and Seal. All items before Batch.NextPos are durable, and no add in flight can
// add to them any more. With a caller, another one's batch is ErrNotFound and stays as it is.
//
// All of it is one round trip: when a replica goes away its streams are opened on the others at the same time.
func (l *Ledger) OpenBatch(ctx context.Context, id QueueID, caller string) (b Batch, uploader int64, err error) {
	var row batchRow
	found := false
	err = l.transactAgain(ctx, func(t *tx) error {
		found = false
		t.lockFromAdds(id)
		t.write(`UPDATE queue SET uploader = uploader + 1, uploaded_at = {now}
			WHERE company = $1 AND id = $2 AND batch + 0 = 1 AND dropped_result = 0 AND CAST($3 AS TEXT) IN ('', caller)`, id.Company, id.Queue, caller)
		t.readBatch(id, &row, &found)
		return nil
	})
	if err == nil && (!found || caller != "" && row.Caller != caller) {
		err = ErrNotFound
	}
	if err != nil {
		return Batch{}, 0, err
	}
	l.settled(ID{Company: id.Company, Queue: id.Queue}) // whoever streams the batch looks at it again
	return row.Batch, row.Uploader, nil
}

// Seal says that the batch has all its items. Another count than that of the items stored is a SequenceError. Sealing
// again with the same count does nothing. Zero as uploader is not checked.
func (l *Ledger) Seal(ctx context.Context, id QueueID, itemCount, uploader int64) (Batch, error) {
	row, err := l.changeBatch(ctx, id, false, func(t *tx, b *batchRow) error {
		switch {
		case uploader != 0 && uploader != b.Uploader:
			return ErrStreamReplaced
		case b.itemCount == beingFilled:
			return ErrSealed
		case itemCount != b.NextPos-1:
			return &SequenceError{Expected: b.NextPos - 1}
		case b.itemCount == notSealed:
			t.seal(b, itemCount)
		}
		return nil
	})
	return row.Batch, err
}

// seal queues the sealing of a locked batch. Where every item is final already it ends here, and nowhere else: the last
// result that is written later finds the count and ends it.
func (t *tx) seal(b *batchRow, itemCount int64) {
	ended, state := int64(0), b.raw
	if b.done() == itemCount {
		ended, state = b.now, "closed"
	}
	t.writeOne(`UPDATE queue SET item_count = $3, sealed_at = COALESCE(sealed_at, $4), ended_at = $5, state = $6
		WHERE company = $1 AND id = $2 AND (item_count IS NULL OR item_count = -1) AND ended_at IS NULL`,
		b.ID.Company, b.ID.Queue, itemCount, b.now, orNull(ended), state)
}

// PauseBatch stops sending: after it nothing of the batch is claimed. Items under way finish, uploads go on. One row is
// written, whatever the number of items; a crash before the commit leaves the batch as it was.
func (l *Ledger) PauseBatch(ctx context.Context, id QueueID) (Batch, error) {
	row, err := l.changeBatch(ctx, id, true, func(t *tx, b *batchRow) error {
		switch b.raw {
		case "cancelled", "closed":
			return ErrBatchEnded
		case "open":
			t.writeOne(`UPDATE queue SET state = 'paused' WHERE company = $1 AND id = $2 AND state = 'open'`, id.Company, id.Queue)
		}
		return nil
	})
	return row.Batch, err
}

// ResumeBatch sends again after a pause.
func (l *Ledger) ResumeBatch(ctx context.Context, id QueueID) (Batch, error) {
	row, err := l.changeBatch(ctx, id, true, func(t *tx, b *batchRow) error {
		switch b.raw {
		case "cancelled", "closed":
			return ErrBatchEnded
		case "paused":
			share := looseKey{id.Company, b.Lane, b.Caller}
			t.writeOne(`UPDATE queue SET state = 'open', ready = 0 WHERE company = $1 AND id = $2 AND state = 'paused'`, id.Company, id.Queue)
			t.readyQueue(id, share, math.MaxInt64)
			t.readyShares([]looseKey{share}, false)
		}
		return nil
	})
	if err == nil {
		l.wake(Wake{Company: id.Company, Lanes: row.Lane.only()})
	}
	return row.Batch, err
}

// CancelBatch ends a batch: after it nothing of it is claimed and nothing added. What waits reads and counts as
// cancelled at once; one row is written, whatever the number of items. A crash after the commit leaves rows that say
// that they wait in a queue that says that it is cancelled: that is how they are read, and a sweep gives them their
// results chunk by chunk. Cancelling again does nothing; a completed batch is ErrBatchEnded. ErrHeld: what waits in it may have
// left before the ledger went back in time.
func (l *Ledger) CancelBatch(ctx context.Context, id QueueID) (Batch, error) {
	row, err := l.changeBatch(ctx, id, true, func(t *tx, b *batchRow) error {
		switch b.raw {
		case "closed":
			return ErrBatchEnded
		case "cancelled":
			return nil
		}
		if b.halted {
			return ErrHeld
		}
		itemCount := b.NextPos - 1
		ended := int64(0)
		if b.done() == itemCount {
			ended = b.now
		}
		// From here on head_pos is how far the sweep has come.
		t.writeOne(`UPDATE queue SET state = 'cancelled', cancelled_at = $3, ready = 0, head_pos = 0, item_count = $4,
				sealed_at = COALESCE(sealed_at, $3), ended_at = $5
			WHERE company = $1 AND id = $2 AND state IN ('open', 'paused') AND ended_at IS NULL`,
			id.Company, id.Queue, b.now, itemCount, orNull(ended))
		return nil
	})
	if err == nil {
		l.tidySoon()
	}
	return row.Batch, err
}

// Batch reads a batch, or ErrNotFound.
func (l *Ledger) Batch(ctx context.Context, id QueueID) (Batch, error) {
	var b batchRow
	found := false
	err := l.query(ctx, batchQuery, func(scan scanFunc) error {
		found = true
		return b.scan(scan)
	}, id.Company, id.Queue)
	if err == nil && !found {
		err = ErrNotFound
	}
	return b.Batch, err
}

// A batch without uploads for so long is sealed as it is.
const abandonedAfter = 24 * time.Hour

// sealAbandoned seals batches whose uploader has been gone for long.
func (l *Ledger) sealAbandoned(ctx context.Context) error {
	ids, err := l.queueIDs(ctx, `SELECT company, id FROM queue WHERE batch = 1 AND item_count IS NULL AND uploaded_at <= (SELECT {now}) - $1
		ORDER BY uploaded_at LIMIT $2`, micros(abandonedAfter), tidyQueues)
	if err != nil {
		return err
	}
	for _, id := range ids {
		_, err := l.changeBatch(ctx, id, false, func(t *tx, b *batchRow) error {
			if b.itemCount != notSealed {
				return nil
			}
			opened, added := int64(0), int64(0)
			t.read(`SELECT uploaded_at, COALESCE((SELECT accepted_at FROM send WHERE company = $1 AND queue = $2 AND pos = $3), 0)
				FROM queue WHERE company = $1 AND id = $2`, func(scan scanFunc) error { return scan(&opened, &added) }, id.Company, id.Queue, b.NextPos-1)
			if err := t.flush(); err != nil {
				return err
			}
			if last := max(opened, added); last > b.now-micros(abandonedAfter) {
				// Adds leave the batch's row alone, so what they did is noted here.
				t.writeOne(`UPDATE queue SET uploaded_at = $3 WHERE company = $1 AND id = $2`, id.Company, id.Queue, last)
				return nil
			}
			t.seal(b, b.NextPos-1)
			return nil
		})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// queueIDs reads ids of queues.
func (l *Ledger) queueIDs(ctx context.Context, query string, args ...any) ([]QueueID, error) {
	var ids []QueueID
	err := l.query(ctx, query, func(scan scanFunc) error {
		var id QueueID
		err := scan(&id.Company, &id.Queue)
		ids = append(ids, id)
		return err
	}, args...)
	return ids, err
}
