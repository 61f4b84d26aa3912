package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// NewReplay is a batch to be made of the sends of another one.
type NewReplay struct {
	NewBatch
	Source   QueueID
	States   []State       // of the sends: Failed, Unknown or Expired
	Reasons  []string      // empty: with any
	ExpireAt int64         // of the new sends; zero is none
	ExpireIn time.Duration // the same as a span from now on the database's clock; the earlier of the two counts

	Traceparent string // of the call that asks for it, where that is traced; empty otherwise
}

// replayFilter is what a replay that is not complete has to know.
type replayFilter struct {
	States      []State  `json:"states"`
	Reasons     []string `json:"reasons"`
	ExpireAt    int64    `json:"expire_at"`
	Traceparent string   `json:"traceparent,omitempty"`
}

// replayable are the states that a replay may choose. In no other may a send be sent again.
var replayable = []State{Failed, Unknown, Expired}

// Sends that one transaction of a replay looks at.
const replayChunk = 500

// Replay makes a sealed batch of those sends of a batch that are in one of the states, have one of the reasons and were
// never replayed: each send is replayed at most once, whoever asks. Sends are copied as they were accepted, without
// their request ids; those that were stored without a body cannot be and are left out. An unknown send whose claimant
// may still have evidence is waited for. ErrNothingToReplay: nothing is left, and nothing was stored.
//
// The batch is there with the first chunk and is sent while further ones are copied, each in a transaction with the
// note of how far it came. Where a crash, or ErrUncertain, leaves it incomplete, a call with the same request id goes
// on with it, and without one some replica does a few seconds later: it is then under the id in the answer, if at all. After every
// other error nothing was stored.
func (l *Ledger) Replay(ctx context.Context, r NewReplay) (b Batch, joined bool, err error) {
	if len(r.States) == 0 || slices.ContainsFunc(r.States, func(s State) bool { return !slices.Contains(replayable, s) }) {
		return Batch{}, false, errors.New("ledger: a replay is of failed, unknown or expired sends")
	}
	id := QueueID{r.Company, newQueueID()}
	var row batchRow
	var c replayed
	err = l.transactAgain(ctx, func(t *tx) error {
		var err error
		row, c, err = t.beginReplay(id, &r)
		return err
	})
	if err != nil {
		return Batch{ID: id}, false, err
	}
	joined, id = row.ID != id, row.ID
	l.wake(Wake{Company: id.Company, Lanes: r.Lane.only()})
	for !c.complete {
		if pause(ctx, c.wait); ctx.Err() != nil {
			return row.Batch, joined, fmt.Errorf("%w: the replay goes on by itself: %w", ErrUncertain, ctx.Err())
		}
		if c, err = l.continueReplay(ctx, id); err != nil {
			return row.Batch, joined, errors.Join(ErrUncertain, err)
		}
	}
	b, err = l.Batch(ctx, id)
	if errors.Is(err, ErrNotFound) {
		err = ErrNothingToReplay
	}
	return b, joined, err
}

// beginReplay creates the batch together with its first chunk, so that nothing is stored where nothing matches.
func (t *tx) beginReplay(id QueueID, r *NewReplay) (batchRow, replayed, error) {
	var source batchRow
	found := false
	t.readBatch(r.Source, &source, &found)
	if err := t.flush(); err != nil {
		return source, replayed{}, err
	}
	if !found {
		return source, replayed{}, ErrNotFound
	}
	filter := replayFilter{r.States, r.Reasons, r.ExpireAt, r.Traceparent}
	if in := source.now + micros(r.ExpireIn); r.ExpireIn > 0 && (filter.ExpireAt == 0 || in < filter.ExpireAt) {
		filter.ExpireAt = in
	}
	text, err := json.Marshal(filter)
	if err != nil {
		return source, replayed{}, err
	}
	b, err := t.createBatch(id, &r.NewBatch, &filling{r.Source.Queue, string(text)})
	if err != nil || b.itemCount != beingFilled {
		return b, replayed{complete: true}, err
	}
	c, err := t.replayChunk(b.ID, 0)
	if err == nil && c.complete && c.total == 0 {
		err = ErrNothingToReplay
	}
	return b, c, err
}

// replayed is what a chunk did.
type replayed struct {
	lane     Lane
	items    int64 // of this chunk
	total    int64 // of the batch
	complete bool
	wait     time.Duration // before the next chunk: somebody may still have evidence
}

// continueReplay copies the next chunk.
func (l *Ledger) continueReplay(ctx context.Context, id QueueID) (replayed, error) {
	return l.copyReplay(ctx, id, 0)
}

// finishReplay copies, in a held ledger, what is left as if it had been accepted at that time.
func (l *Ledger) finishReplay(ctx context.Context, id QueueID, acceptedAt int64) error {
	for {
		c, err := l.copyReplay(ctx, id, acceptedAt)
		if err != nil || c.complete {
			return err
		}
		if pause(ctx, c.wait); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (l *Ledger) copyReplay(ctx context.Context, id QueueID, acceptedAt int64) (replayed, error) {
	var c replayed
	err := l.transactAgain(ctx, func(t *tx) error {
		var err error
		c, err = t.replayChunk(id, acceptedAt)
		return err
	})
	if err == nil && c.items > 0 {
		l.wake(Wake{Company: id.Company, Lanes: c.lane.only()})
	}
	return c, err
}

// replaying is a batch that is being filled.
type replaying struct {
	id, source QueueID
	lane       Lane
	caller     string
	done       int64 // up to which position of the source
	filter     replayFilter
	now        int64
	held       bool
	next       int64 // position of the next item
}

// chosen are the sends of the source ($1, $2) from $3 to $4 that are to be replayed.
const chosen = ` FROM send s{amiss} WHERE s.company = $1 AND s.queue = $2 AND s.pos > $3 AND s.pos <= $4` + amiss + `
	AND s.state IN (SELECT value FROM {each}($5){value}) AND ($6 = 0 OR s.reason IN (SELECT value FROM {each}($7){value}))
	AND s.body IS NOT NULL AND (SELECT 1 FROM send r WHERE r.company = s.company AND r.replay_queue = s.queue
		AND r.replay_pos = s.pos AND r.replay_queue IS NOT NULL LIMIT 1) IS NULL`

const (
	replayEndQuery  = `SELECT s.pos FROM send s{amiss} WHERE s.company = $1 AND s.queue = $2 AND s.pos > $3` + amiss + ` ORDER BY s.pos LIMIT 1 OFFSET $4`
	replayLateQuery = `SELECT s.pos, s.late_until` + chosen + ` AND s.state = 'unknown' AND s.late_until > $8 ORDER BY s.pos LIMIT 1`
	copyStatement   = `INSERT INTO send (company, queue, pos, lane, caller, bot, recipient, kind, labels, state, on_unknown, accepted_at, expire_at,
		replay_queue, replay_pos, hash, hash_version, body, traceparent)
	SELECT n.company, $8, $9 + n.n, $10, $11, n.bot, n.recipient, n.kind, n.labels, 'pending', n.on_unknown, $12, $13,
		n.queue, n.pos, n.hash, n.hash_version, n.body, $14
	FROM (SELECT s.*, row_number() OVER (ORDER BY s.pos) - 1 AS n` + chosen + `) n
	RETURNING pos`
)

// replayChunk copies the next sends, in a transaction with the note of how far it came. It holds both batches, so that the
// source's sends cannot change between look and copy, and two who replay the same source take turns. A time of acceptance is
// given by who releases a held ledger; everybody else gets ErrHeld there: what it would copy was maybe copied, and sent, before.
func (t *tx) replayChunk(id QueueID, acceptedAt int64) (replayed, error) {
	r := replaying{id: id}
	if err := t.lockReplay(&r); err != nil || r.source.Queue == 0 {
		return replayed{complete: true}, err
	}
	if r.held && acceptedAt == 0 {
		return replayed{}, ErrHeld
	}
	end, wait := int64(math.MaxInt64), time.Duration(0)
	t.read(replayEndQuery,
		func(scan scanFunc) error { return scan(&end) }, r.source.Company, r.source.Queue, r.done, replayChunk-1)
	if err := t.flush(); err != nil {
		return replayed{}, err
	}
	complete := end == math.MaxInt64
	t.read(replayLateQuery, func(scan scanFunc) error {
		var until int64
		err := scan(&end, &until)
		end-- // RETRY and replay wait for the lease: what comes before it is copied now
		wait, complete = time.Duration(until-r.now)*time.Microsecond+time.Millisecond, false
		return err
	}, append(r.args(end), r.now)...)
	if err := t.flush(); err != nil {
		return replayed{}, err
	}
	if acceptedAt != 0 {
		r.now = acceptedAt
	}
	items, err := t.copyChosen(&r, end)
	if err != nil {
		return replayed{}, err
	}
	out := replayed{lane: r.lane, items: items, total: r.next - 1 + items, complete: complete, wait: wait}
	if !complete {
		t.writeOne(`UPDATE queue SET source_pos = $3 WHERE company = $1 AND id = $2 AND item_count = -1`, id.Company, id.Queue, end)
		return out, t.flush()
	}
	return out, t.completeReplay(&r)
}

func (r *replaying) args(end int64) []any {
	return []any{
		r.source.Company, r.source.Queue, r.done, end,
		jsonList(r.filter.States), len(r.filter.Reasons), jsonList(r.filter.Reasons),
	}
}

// lockReplay locks the batch and its source. It leaves r without a source where there is nothing to fill any more.
func (t *tx) lockReplay(r *replaying) error {
	var source int64
	t.read(`SELECT source_queue FROM queue WHERE company = $1 AND id = $2 AND item_count = -1`, func(scan scanFunc) error {
		return scan(&source)
	}, r.id.Company, r.id.Queue)
	if err := t.flush(); err != nil || source == 0 {
		return err
	}
	queues := []QueueID{r.id, {r.id.Company, source}}
	slices.SortFunc(queues, compareQueues)
	for _, q := range queues {
		t.read(`SELECT id FROM queue WHERE company = $1 AND id = $2 {lock}`, nothing, q.Company, q.Queue)
	}
	var filter string
	seen := t.l.seenClaim(r.id.Company) // before it is asked: a claim in between makes both higher
	t.read(`SELECT c.claim_no, (SELECT `+homeHeld+` FROM home) FROM {companies}`, func(scan scanFunc) error {
		var number int64
		err := scan(&number, flag{&r.held})
		r.held = r.held || number < seen
		return err
	}, t.l.dialect.list([]int64{r.id.Company}))
	t.read(`SELECT lane, caller, source_pos, source_filter, {now}, COALESCE((SELECT s.pos FROM send s WHERE s.company = $1 AND s.queue = $2 ORDER BY s.pos DESC LIMIT 1), 0) + 1
		FROM queue WHERE company = $1 AND id = $2 AND item_count = -1`, func(scan scanFunc) error {
		r.source = QueueID{r.id.Company, source}
		return scan(&r.lane, &r.caller, &r.done, &filter, &r.now, &r.next)
	}, r.id.Company, r.id.Queue)
	if err := t.flush(); err != nil || r.source.Queue == 0 {
		return err
	}
	return json.Unmarshal([]byte(filter), &r.filter)
}

// copyChosen copies the chosen sends up to a position as new, pending ones.
func (t *tx) copyChosen(r *replaying, end int64) (int64, error) {
	items := int64(0)
	t.read(copyStatement, func(scanFunc) error { items++; return nil },
		append(r.args(end), r.id.Queue, r.next, r.lane, r.caller, r.now, orNull(r.filter.ExpireAt), orNull(r.filter.Traceparent))...)
	err := t.flush()
	if sqlState(err) == "23505" {
		return 0, errChanged // an expired send was just started again under its request id
	}
	if err != nil || items == 0 {
		return 0, err
	}
	t.write(`INSERT INTO tally (company, queue, stripe, added) VALUES ($1, $2, $3, $4)
		ON CONFLICT (company, queue, stripe) DO UPDATE SET added = tally.added + excluded.added`, r.id.Company, r.id.Queue, t.l.stripe, items)
	share := looseKey{r.id.Company, r.lane, r.caller}
	t.readyQueue(r.id, share, math.MaxInt64)
	t.readyShares([]looseKey{share}, false)
	return items, t.flush()
}

// completeReplay gives the batch its number of items. One that has none was never anything: it goes.
func (t *tx) completeReplay(r *replaying) error {
	var b batchRow
	found := false
	t.readBatch(r.id, &b, &found)
	if err := t.flush(); err != nil {
		return err
	}
	if b.NextPos == 1 {
		t.write(`DELETE FROM queue WHERE company = $1 AND id = $2`, r.id.Company, r.id.Queue)
	} else {
		t.seal(&b, b.NextPos-1)
	}
	return t.flush()
}

// A replay that its maker has not completed in this time is completed by whoever sees it.
const replayPatience = 5 * time.Second

// completeReplays goes on with replays that were left incomplete.
func (l *Ledger) completeReplays(ctx context.Context) error {
	ids, err := l.queueIDs(ctx, `SELECT company, id FROM queue WHERE item_count = -1 AND created_at <= (SELECT {now}) - $1 ORDER BY created_at LIMIT $2`,
		micros(replayPatience), tidyQueues)
	if err != nil {
		return err
	}
	for _, id := range ids {
		var c replayed
		for !c.complete && c.wait == 0 {
			if c, err = l.continueReplay(ctx, id); errors.Is(err, ErrHeld) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}
