package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Sends that one transaction adds, roughly: one call's sends are never divided.
const addGroupSize = 512

// addition is one send on its way in.
type addition struct {
	new      *NewSend
	out      *Added
	id       ID
	sealed   bool        // its queue takes nothing new; only what is there already can be answered
	over     *QuotaError // its caller's day is used up; the same
	standsIn bool        // for an item whose request id is another send's: it takes the item's number, with a result
	inserted bool
}

// looseKey names a caller's queue of loose sends.
type looseKey struct {
	company int64
	lane    Lane
	caller  string
}

func (n *NewSend) looseKey() looseKey { return looseKey{n.Company, n.Lane, n.Caller} }

// Add stores sends, all in one transaction that other calls may share, and answers for each. It returns after the commit.
// ErrUncertain is the one error after which sends may be stored; their ids are then in the answers.
//
// A request id that the caller used before joins that send, when the content is the same, whatever it has come to;
// only one that expired, and so was never sent, starts again as a new send.
//
// Items of a batch are stored in the order of their numbers and without gaps: an item that is not the next is a
// SequenceError, so the next call is made after the answer to the one before. An item whose request id belongs to
// another send takes its number and is not sent: it is stored as Cancelled, or with other content as Failed, with
// ReasonReused.
func (l *Ledger) Add(ctx context.Context, sends []NewSend) ([]Added, error) {
	if len(sends) == 0 {
		return nil, nil
	}
	work, out := additions(sends)
	// Single sends do not wait for a group full of batch items.
	g := l.adds
	if len(sends) > 1 {
		g = l.bulkAdds
	}
	if err := g.do(ctx, work); err != nil {
		if errors.Is(err, ErrUncertain) {
			return out, err
		}
		return nil, err
	}
	return out, nil
}

// additions are sends on their way in, and where the answers to them will be.
func additions(sends []NewSend) ([]*addition, []Added) {
	out := make([]Added, len(sends))
	work := make([]*addition, len(sends))
	for i := range sends {
		work[i] = &addition{new: &sends[i], out: &out[i]}
	}
	return work, out
}

// commitAdds is the transaction of a group.
func (l *Ledger) commitAdds(ctx context.Context, work []*addition) error {
	if err := l.hasSpace(); err != nil {
		return err
	}
	var a *adding
	err := l.transact(ctx, func(t *tx) error {
		a = newAdding(t, work)
		return a.run()
	})
	var lost *commitLostError
	if errors.As(err, &lost) {
		err = l.findAdded(ctx, a, lost)
	}
	if err != nil {
		return err
	}
	l.announce(a)
	return nil
}

// announce tells who waits, here and in other replicas, what a committed transaction added.
func (l *Ledger) announce(a *adding) {
	l.noteStored()
	for key, queue := range a.made {
		l.loose.Store(key, queue)
	}
	l.wake(a.woken...)
	for id, q := range a.queues {
		if len(q.results) > 0 {
			l.settled(ID{Company: id.Company, Queue: id.Queue}) // for who follows the queue
		}
	}
	if a.dueAt != 0 {
		l.dueAt(a.dueAt)
	}
}

// adding is the state of one run of the transaction.
type adding struct {
	t      *tx
	work   []*addition
	now    int64
	queues map[QueueID]*addingQueue
	order  []QueueID
	made   map[looseKey]int64
	woken  []Wake
	quotas map[quotaKey]*dailyQuota
	dueAt  int64 // of the first scheduled send; zero is none
}

func newAdding(t *tx, work []*addition) *adding {
	return &adding{t: t, work: work, queues: map[QueueID]*addingQueue{}, made: map[looseKey]int64{}}
}

// addingQueue is a queue that sends are added to.
type addingQueue struct {
	found            bool
	lane             Lane
	caller           string
	batch            bool
	state            string
	ready            bool
	itemCount        int64
	sealed           bool
	uploader         int64
	added, scheduled int64
	pending          bool
	nextResult       int64
	last             int64            // of a batch: the number of the last item, stored or about to be
	here             map[int64][]byte // of the items about to be stored: their hashes
	results          map[State]int64  // of those that are stored with their result
}

// next is the number that the batch's next item must have.
func (q *addingQueue) next() int64 { return q.last + 1 }

func (a *adding) run() error {
	if err := a.findQueues(); err != nil {
		return err
	}
	if err := a.lockQueues(); err != nil {
		return err
	}
	a.lockWritten()
	if err := a.lockQuotas(); err != nil {
		return err
	}
	fresh := a.check()
	// The same ids in another order in another group would be a deadlock, in spite of ON CONFLICT DO NOTHING.
	slices.SortFunc(fresh, compareAdditions)
	for round := 0; len(fresh) > 0; round++ {
		if round == 3 {
			return errChanged // somebody else keeps starting and expiring the same request
		}
		if err := a.insert(fresh); err != nil {
			return err
		}
		var err error
		if fresh, err = a.meet(fresh); err != nil {
			return err
		}
	}
	a.count()
	return nil
}

// findQueues names the queue of every send, and makes those that do not exist.
func (a *adding) findQueues() error {
	missing := map[looseKey]*NewSend{}
	for _, w := range a.work {
		w.id, w.inserted, w.sealed = ID{w.new.Company, w.new.Queue, w.new.Pos}, false, false
		w.standsIn, w.over = false, nil
		if w.new.Queue != 0 {
			continue
		}
		if queue, ok := a.t.l.loose.Load(w.new.looseKey()); ok {
			w.id.Queue = queue.(int64)
		} else {
			missing[w.new.looseKey()] = w.new
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := a.makeQueues(missing); err != nil {
		return err
	}
	for _, w := range a.work {
		if w.id.Queue == 0 {
			w.id.Queue = a.made[w.new.looseKey()]
		}
	}
	return nil
}

func (a *adding) makeQueues(missing map[looseKey]*NewSend) error {
	keys := make([]looseKey, 0, len(missing))
	for key := range missing {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, compareShares)
	for _, k := range keys {
		a.t.alone(k.company)
	}
	for _, k := range keys {
		a.t.makeShare(k, missing[k].Weight)
		a.t.write(`INSERT INTO queue (company, id, lane, caller, created_at) SELECT $1, $2, $3, CAST($4 AS TEXT), {now}
			WHERE NOT EXISTS (SELECT 1 FROM queue WHERE company = $1 AND lane = $3 AND caller = CAST($4 AS TEXT) AND batch = 0)`,
			k.company, newQueueID(), k.lane, k.caller)
		a.t.read(`SELECT id FROM queue WHERE company = $1 AND lane = $2 AND caller = $3 AND batch = 0`,
			func(scan scanFunc) error {
				var id int64
				err := scan(&id)
				a.made[k] = id
				return err
			}, k.company, k.lane, k.caller)
	}
	return a.t.flush()
}

// makeShare queues the making of a share that may exist, alone in its company.
func (t *tx) makeShare(k looseKey, weight int) {
	t.write(`INSERT INTO share (company, lane, caller, weight) SELECT $1, $2, CAST($3 AS TEXT), $4
		WHERE NOT EXISTS (SELECT 1 FROM share WHERE company = $1 AND lane = $2 AND caller = CAST($3 AS TEXT))`, k.company, k.lane, k.caller, max(1, weight))
}

// compareShares is the order in which shares are locked.
func compareShares(x, y looseKey) int {
	return cmp.Or(cmp.Compare(x.company, y.company), cmp.Compare(x.lane, y.lane), cmp.Compare(x.caller, y.caller))
}

// What is switched on joins its lane, or its share, at the present virtual time: what is on and far behind it is looked for
// only now and then (see the floors of claims).
const (
	readyShare = `UPDATE share SET ready = 1, start_tag = {greatest}(start_tag, COALESCE((
			SELECT CASE $2 WHEN 1 THEN c.urgent_virtual WHEN 2 THEN c.normal_virtual ELSE c.bulk_virtual END
			FROM company c WHERE c.id{newest} = $1 ORDER BY c.era DESC LIMIT 1), 0))
		WHERE company{newest} = $1 AND lane{newest} = $2 AND caller{newest caller} = $3 AND ready = 0 AND start_tag = (
			SELECT w.start_tag FROM share w WHERE w.company{newest} = $1 AND w.lane{newest} = $2 AND w.caller{newest caller} = $3 ORDER BY w.start_tag DESC LIMIT 1)`

	readyQueue = `UPDATE queue SET ready = 1, head_pos = CASE WHEN head_pos > $5 THEN $5 ELSE head_pos END,
			start_tag = CASE WHEN ready = 1 THEN start_tag ELSE {greatest}(start_tag, COALESCE((
				SELECT x.queue_virtual FROM share x WHERE x.company{newest} = $1 AND x.lane{newest} = $3 AND x.caller{newest caller} = $4 ORDER BY x.start_tag DESC LIMIT 1), 0)) END
		WHERE company{newest} = $1 AND id{newest} = $2 AND start_tag = (
			SELECT w.start_tag FROM queue w WHERE w.company{newest} = $1 AND w.id{newest} = $2 ORDER BY w.start_tag DESC LIMIT 1)`
)

// readyShares queues the switching on of shares in their order. Who has their companies keeps every claim away; who has
// not, locks each share before, and so waits for a claim that is just switching it off.
func (t *tx) readyShares(shares []looseKey, locked bool) {
	slices.SortFunc(shares, compareShares)
	for _, s := range slices.Compact(shares) {
		if !locked {
			t.read(`SELECT ready FROM share WHERE company{newest} = $1 AND lane{newest} = $2 AND caller{newest caller} = $3 ORDER BY start_tag DESC LIMIT 1 {lock}`,
				nothing, s.company, s.lane, s.caller)
		}
		t.write(readyShare, s.company, s.lane, s.caller)
	}
}

// readyQueue queues the switching on of a locked queue, where a send at a position can be claimed.
func (t *tx) readyQueue(id QueueID, share looseKey, pos int64) {
	t.write(readyQueue, id.Company, id.Queue, share.lane, share.caller, pos)
}

// newQueueID is random, so that replicas never meet, and grows with time, so that a new queue's rows stand together.
func newQueueID() int64 {
	return time.Now().UnixMilli()<<21 | rand.Int64N(1<<21)
}

// lastQuery gives the last position of a queue. It is not max(pos): PostgreSQL, planning that while the table is small, would
// read the whole queue for it.
const lastQuery = `SELECT COALESCE((SELECT s.pos FROM send s WHERE s.company = $1 AND s.queue = $2 ORDER BY s.pos DESC LIMIT 1), 0)`

// lockQueues reads the queues and keeps claims from switching them off until the commit. It reads the clock and
// takes positions on the way.
func (a *adding) lockQueues() error {
	var loose []*addition
	for _, w := range a.work {
		id := QueueID{w.id.Company, w.id.Queue}
		if a.queues[id] == nil {
			a.queues[id] = &addingQueue{here: map[int64][]byte{}, results: map[State]int64{}}
			a.order = append(a.order, id)
		}
		if w.new.Queue == 0 {
			loose = append(loose, w)
		}
	}
	slices.SortFunc(a.order, compareQueues)
	for _, id := range a.order {
		q := a.queues[id]
		a.t.read(`SELECT lane, caller, batch, state, ready, COALESCE(item_count, 0), COALESCE(sealed_at, 0), uploader
			FROM queue WHERE company{newest} = $1 AND id{newest} = $2 ORDER BY start_tag DESC LIMIT 1 {share}`, func(scan scanFunc) error {
			q.found = true
			return scan(&q.lane, &q.caller, flag{&q.batch}, &q.state, flag{&q.ready}, &q.itemCount, flag{&q.sealed}, &q.uploader)
		}, id.Company, id.Queue)
	}
	for _, w := range a.work {
		if q := a.queues[QueueID{w.id.Company, w.id.Queue}]; w.new.Queue != 0 && q.last == 0 {
			// Read after the lock, in a statement of its own: it sees what was added while the lock was waited for.
			q.last = -1
			a.t.read(lastQuery, func(scan scanFunc) error { return scan(&q.last) }, w.id.Company, w.id.Queue)
		}
	}
	a.t.read(`SELECT {now}`, func(scan scanFunc) error { return scan(&a.now) })
	var positions []int64
	if len(loose) > 0 {
		a.t.read(a.t.l.dialect.positions, func(scan scanFunc) error {
			var pos int64
			err := scan(&pos)
			positions = append(positions, pos)
			return err
		}, len(loose))
	}
	if err := a.t.flush(); err != nil {
		return err
	}
	for i, w := range loose {
		if i < len(positions) {
			w.id.Pos = positions[i]
		} else {
			w.id.Pos = loose[i-1].id.Pos + 1
		}
	}
	return nil
}

// lockWritten queues the locks of the queues that will be written, in their order: taken one by one as they are written, two groups could
// each have what the other one waits for.
func (a *adding) lockWritten() {
	final := map[QueueID]bool{}
	for _, w := range a.work {
		if w.new.Final != nil {
			final[QueueID{w.id.Company, w.id.Queue}] = true
		}
	}
	for _, id := range a.order {
		if q := a.queues[id]; q.found && (!q.ready || final[id]) {
			a.t.read(`SELECT id FROM queue WHERE company{newest} = $1 AND id{newest} = $2 ORDER BY start_tag DESC LIMIT 1 {lock}`, nothing, id.Company, id.Queue)
		}
	}
}

// check answers what cannot be added and returns the rest.
func (a *adding) check() []*addition {
	fresh := make([]*addition, 0, len(a.work))
	for _, w := range a.work {
		*w.out = Added{}
		q := a.queues[QueueID{w.id.Company, w.id.Queue}]
		switch {
		case !q.found && w.new.Queue == 0:
			// It was known and is gone (an older backup): made again by the next run.
			a.t.l.loose.Delete(w.new.looseKey())
			w.out.Err = fmt.Errorf("%w: the caller's queue; ask again", ErrUnavailable)
		case !q.found:
			w.out.Err = ErrNotFound
		case w.new.Uploader != 0 && w.new.Uploader != q.uploader:
			w.out.Err = ErrStreamReplaced
		default:
			w.sealed = q.sealed || q.state == "cancelled"
			w.out.Send = a.row(w, q)
			if w.over = a.reserve(w, q); w.new.Queue != 0 && !w.sealed && w.over == nil && !q.follows(w) {
				w.out.Err = &SequenceError{Expected: q.next()}
				continue
			}
			fresh = append(fresh, w)
		}
	}
	return fresh
}

// follows reports whether a batch's item leaves no gap, and notes it: items are stored in the order of their numbers, so that
// whoever has one has all before it.
func (q *addingQueue) follows(w *addition) bool {
	if pos := w.id.Pos; pos == q.next() {
		q.last, q.here[pos] = pos, w.new.Hash
		return true
	}
	hash, here := q.here[w.id.Pos]
	return w.id.Pos >= 1 && w.id.Pos <= q.last && (!here || bytes.Equal(hash, w.new.Hash))
}

// row is the send as it will be stored.
func (a *adding) row(w *addition, q *addingQueue) Send {
	n := w.new
	s := Send{
		ID: w.id, Lane: q.lane, Caller: q.caller, Batch: q.batch,
		Bot: n.Bot, Recipient: n.Recipient, Kind: n.Kind, Labels: n.Labels,
		RequestID: n.RequestID, Hash: n.Hash, HashVersion: n.HashVersion,
		State: Pending, OnUnknown: n.OnUnknown, ReplayOf: n.ReplayOf,
		AcceptedAt: a.now, ExpireAt: n.ExpireAt,
	}
	if n.DueAt > a.now {
		s.State, s.DueAt = Scheduled, n.DueAt
	}
	if in := a.now + micros(n.ExpireIn); n.ExpireIn > 0 && (s.ExpireAt == 0 || in < s.ExpireAt) {
		s.ExpireAt = in
	}
	if n.OwnerBound {
		s.Owner = a.t.l.replica
	}
	if n.Final != nil {
		s.State, s.DueAt, s.Reason, s.Result, s.SettledAt = Failed, 0, n.Final.Reason, n.Final.Result, a.now
	}
	return s
}

func compareAdditions(x, y *addition) int {
	return cmp.Or(
		cmp.Compare(x.id.Company, y.id.Company),
		cmp.Compare(x.out.Send.Caller, y.out.Send.Caller),
		cmp.Compare(x.new.RequestID, y.new.RequestID),
		cmp.Compare(x.id.Queue, y.id.Queue),
		cmp.Compare(x.id.Pos, y.id.Pos),
	)
}

func compareQueues(x, y QueueID) int {
	return cmp.Or(cmp.Compare(x.Company, y.Company), cmp.Compare(x.Queue, y.Queue))
}

// insertColumns are those of a send that is not settled yet; the others have their defaults.
var insertColumns = []string{
	"company", "queue", "pos", "lane", "caller", "bot", "recipient", "kind", "labels", "state", "on_unknown", "owner",
	"accepted_at", "due_at", "expire_at", "replay_queue", "replay_pos", "request_id", "hash", "hash_version", "body", "traceparent",
}

// finalColumns come after them for a send that is stored with its result.
var finalColumns = []string{"reason", "result", "settled_at", "result_no"}

// insertSizes are the numbers of rows that there are statements for, so that few statements are prepared.
var insertSizes = []int{64, 16, 4, 1}

var (
	insertStatements     = map[int]string{}
	insertFinalStatement = insertStatement(slices.Concat(insertColumns, finalColumns), 1)
)

func init() {
	for _, n := range insertSizes {
		insertStatements[n] = insertStatement(insertColumns, n)
	}
}

func insertStatement(columns []string, rows int) string {
	var b strings.Builder
	b.WriteString("INSERT INTO send (" + strings.Join(columns, ", ") + ") VALUES ")
	for i := range rows {
		for j := range columns {
			b.WriteString([]string{", ", "("}[oneIf(j == 0)])
			fmt.Fprintf(&b, "$%d", i*len(columns)+j+1)
		}
		b.WriteString([]string{"), ", ")"}[oneIf(i == rows-1)])
	}
	b.WriteString(" ON CONFLICT DO NOTHING RETURNING company, queue, pos")
	return b.String()
}

func (w *addition) values() []any {
	s, n := &w.out.Send, w.new
	body := n.Body
	if w.standsIn {
		body = nil
	}
	return []any{
		s.ID.Company, s.ID.Queue, s.ID.Pos, s.Lane, s.Caller, s.Bot, s.Recipient, s.Kind, s.Labels, string(s.State), s.OnUnknown, orNull(s.Owner),
		s.AcceptedAt, orNull(s.DueAt), orNull(s.ExpireAt), orNull(s.ReplayOf.Queue), orNull(s.ReplayOf.Pos), orNull(s.RequestID), n.Hash, n.HashVersion, body, orNull(n.Traceparent),
	}
}

// insert stores what meets nothing and marks it.
func (a *adding) insert(fresh []*addition) error {
	byID := make(map[ID]*addition, len(fresh))
	var open, final []*addition
	for _, w := range fresh {
		byID[w.id] = w
		switch {
		case w.sealed || w.over != nil:
		case !w.out.Send.State.Final():
			open = append(open, w)
		default:
			final = append(final, w)
		}
	}
	mark := func(scan scanFunc) error {
		var id ID
		if err := scan(&id.Company, &id.Queue, &id.Pos); err != nil {
			return err
		}
		byID[id].inserted = true
		return nil
	}
	for _, size := range insertSizes {
		for len(open) >= size {
			var args []any
			for _, w := range open[:size] {
				args = append(args, w.values()...)
			}
			a.t.read(insertStatements[size], mark, args...)
			open = open[size:]
		}
	}
	if err := a.t.flush(); err != nil {
		return err
	}
	return a.insertFinal(final, mark)
}

// insertFinal stores sends together with their result. Result numbers are given out under the queue's lock; those
// of items that turn out to be stored already stay unused.
func (a *adding) insertFinal(final []*addition, mark func(scanFunc) error) error {
	if len(final) == 0 {
		return nil
	}
	slices.SortFunc(final, func(x, y *addition) int {
		return cmp.Or(cmp.Compare(x.id.Company, y.id.Company), cmp.Compare(x.id.Queue, y.id.Queue), cmp.Compare(x.id.Pos, y.id.Pos))
	})
	count := map[QueueID]int64{}
	for _, w := range final {
		count[QueueID{w.id.Company, w.id.Queue}]++
	}
	for _, id := range a.order {
		if n := count[id]; n > 0 {
			q := a.queues[id]
			a.t.read(`UPDATE queue SET next_result = next_result + $3 WHERE company = $1 AND id = $2 RETURNING next_result - $3`,
				func(scan scanFunc) error { return scan(&q.nextResult) }, id.Company, id.Queue, n)
		}
	}
	if err := a.t.flush(); err != nil {
		return err
	}
	for _, w := range final {
		q, s := a.queues[QueueID{w.id.Company, w.id.Queue}], &w.out.Send
		s.ResultNo = q.nextResult
		q.nextResult++
		a.t.read(insertFinalStatement, mark, append(w.values(), s.Reason, s.Result, s.SettledAt, s.ResultNo)...)
	}
	return a.t.flush()
}

// meet looks at what those met that were not inserted, answers them, and returns those to insert again.
func (a *adding) meet(fresh []*addition) ([]*addition, error) {
	met := map[*addition]*[4]record{}
	for _, w := range fresh {
		if w.inserted {
			continue
		}
		found := &[4]record{}
		met[w] = found
		into := func(i int) func(scanFunc) error {
			return func(scan scanFunc) error { return found[i].scan(scan) }
		}
		id := w.id
		a.t.read(getQuery, into(0), id.Company, id.Queue, id.Pos)
		if s := &w.out.Send; s.RequestID != "" {
			a.t.read(findQuery, into(1), id.Company, s.Caller, s.RequestID)
			a.t.read(findReplayQuery, into(3), id.Company, s.Caller, s.RequestID)
		}
		if r := w.out.Send.ReplayOf; !r.IsZero() {
			a.t.read(`SELECT `+recordColumns+fromRecord+`WHERE s.company = $1 AND s.replay_queue = $2 AND s.replay_pos = $3`, into(2), id.Company, r.Queue, r.Pos)
		}
	}
	if len(met) == 0 {
		return nil, nil
	}
	if err := a.t.flush(); err != nil {
		return nil, err
	}
	var again []*addition
	for _, w := range fresh {
		if found := met[w]; found != nil && a.join(w, found) {
			if w.new.ReplayOf.IsZero() && !found[2].ID.IsZero() {
				return nil, errChanged // it was replayed just now: the next run finds that under the request id
			}
			again = append(again, w)
		}
	}
	return again, nil
}

// findReplayQuery finds the replay of the send that has the request id.
const findReplayQuery = `SELECT ` + recordColumns + ` FROM send o CROSS JOIN send s CROSS JOIN queue q
	WHERE o.company = $1 AND o.caller = $2 AND o.request_id = $3
		AND s.company = o.company + 0 AND s.replay_queue = o.queue AND s.replay_pos = o.pos AND s.replay_queue IS NOT NULL
		AND ` + ownQueue

// join answers a send that met others: at its place in the batch, under its request id, or as a replay of the same
// send. It reports whether the send is to be inserted again.
func (a *adding) join(w *addition, found *[4]record) bool {
	same := func(r *record) bool {
		// Contents that were hashed in different ways cannot be compared; not sending twice is the safe reading.
		return r.HashVersion != w.new.HashVersion || bytes.Equal(r.Hash, w.new.Hash)
	}
	place, request, replay, replayed := &found[0], &found[1], &found[2], &found[3]
	if request.raw == Expired && !replayed.ID.IsZero() {
		replayed.Hash, replayed.HashVersion = request.Hash, request.HashVersion
		request = replayed // the request goes on as its replay
	}
	inBatch := w.new.Queue != 0
	switch {
	case !place.ID.IsZero() && !same(place):
		*w.out = Added{Err: &SequenceError{Expected: a.queues[QueueID{w.id.Company, w.id.Queue}].next()}}
	case !place.ID.IsZero():
		*w.out = Added{Send: place.Send, Joined: true}
	case w.sealed:
		*w.out = Added{Err: ErrSealed}
	case w.over != nil && (request.ID.IsZero() || request.raw == Expired || inBatch):
		*w.out = Added{Err: w.over}
	case !request.ID.IsZero() && !same(request) && inBatch:
		return a.standIn(w, Failed)
	case !request.ID.IsZero() && !same(request):
		*w.out = Added{Err: ErrRequestIDReused}
	case request.raw == Expired && request != replayed:
		// It was never sent, so the request starts again as a new send that replays it. The old row lets go of the request
		// id and stays what it is: its result has been given out.
		a.t.write(`UPDATE send SET request_id = NULL WHERE company = $1 AND queue = $2 AND pos = $3 AND state = 'expired'`,
			request.ID.Company, request.ID.Queue, request.ID.Pos)
		w.out.Send.ReplayOf = request.ID
		return true
	case !request.ID.IsZero() && inBatch:
		return a.standIn(w, Cancelled)
	case !request.ID.IsZero():
		*w.out = Added{Send: request.Send, Joined: true}
	case !replay.ID.IsZero() && !w.new.ReplayOf.IsZero():
		*w.out = Added{Send: replay.Send, Err: ErrReplayed}
	default:
		return true // what it met is gone meanwhile
	}
	return false
}

// standIn stores an item whose request id belongs to another send as one with a result: it takes its number, so that
// the batch goes on, and is not sent. Other content is a mistake of the caller's; the same content is on its way, or
// was, and this item of it is none.
func (a *adding) standIn(w *addition, state State) bool {
	w.standsIn = true
	s := &w.out.Send
	s.State, s.RequestID, s.Owner, s.DueAt = state, "", "", 0
	s.Reason, s.Result, s.SettledAt = ReasonReused, nil, a.now
	return true
}

// count writes what was added to the queues and switches on those that have something to send.
func (a *adding) count() {
	for _, w := range a.work {
		if !w.inserted || w.out.Joined {
			continue
		}
		id := QueueID{w.id.Company, w.id.Queue}
		q := a.queues[id]
		q.added++
		a.spend(w)
		switch state := w.out.Send.State; state {
		case Scheduled:
			q.scheduled++
			if due := w.out.Send.DueAt; a.dueAt == 0 || due < a.dueAt {
				a.dueAt = due
			}
		case Failed, Cancelled:
			q.results[state]++
		default:
			q.pending = true
		}
	}
	a.writeQuotas()
	for _, id := range a.order {
		if q := a.queues[id]; q.added > 0 {
			a.t.write(`INSERT INTO tally (company, queue, stripe, added, scheduled) VALUES ($1, $2, $3, $4, $5)
				ON CONFLICT (company, queue, stripe) DO UPDATE SET added = tally.added + excluded.added, scheduled = tally.scheduled + excluded.scheduled`,
				id.Company, id.Queue, a.t.l.stripe, q.added, q.scheduled)
		}
	}
	for _, id := range a.order {
		q := a.queues[id]
		if len(q.results) > 0 {
			a.t.write(`UPDATE queue SET failed = failed + $3, cancelled = cancelled + $4 WHERE company = $1 AND id = $2`,
				id.Company, id.Queue, q.results[Failed], q.results[Cancelled])
		}
		if q.pending {
			a.woken = append(a.woken, Wake{Company: id.Company, Lanes: q.lane.only()})
			if !q.ready {
				a.t.readyQueue(id, looseKey{id.Company, q.lane, q.caller}, math.MaxInt64)
			}
		}
	}
	var shares []looseKey
	for _, id := range a.order {
		if q := a.queues[id]; q.pending && !q.ready {
			shares = append(shares, looseKey{id.Company, q.lane, q.caller})
		}
	}
	a.t.readyShares(shares, false)
}

// How long a call waits for a database that went away during its commit, to learn what became of it.
const lostCommitPatience = 10 * time.Second

// findAdded learns whether the transaction of a was committed, after the answer to its commit was lost. Only then are
// its callers answered.
func (l *Ledger) findAdded(ctx context.Context, a *adding, lost error) error {
	var stored map[ID]bool
	err := l.patiently(ctx, func() error {
		return l.transact(ctx, confirming(func(t *tx) error {
			stored = map[ID]bool{}
			// The lost transaction keeps its queues from being taken, or made, like this for as long as it may still commit.
			for _, key := range slices.SortedFunc(maps.Keys(a.made), compareShares) {
				t.alone(key.company)
			}
			for _, id := range a.order {
				t.lockFromAdds(QueueID{id.Company, id.Queue})
			}
			for _, w := range a.work {
				t.read(`SELECT company, queue, pos FROM send WHERE company = $1 AND queue = $2 AND pos = $3 AND accepted_at = $4`,
					func(scan scanFunc) error {
						var id ID
						err := scan(&id.Company, &id.Queue, &id.Pos)
						stored[id] = true
						return err
					}, w.id.Company, w.id.Queue, w.id.Pos, a.now)
			}
			return t.flush()
		}))
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, lost)
	}
	for _, w := range a.work {
		if w.inserted && !stored[w.id] {
			return fmt.Errorf("%w: %w", ErrUnavailable, lost)
		}
	}
	return nil
}

// FindAdded reads a send of which Add said ErrUncertain. It waits for the lost transaction for as long as that may still commit, so
// that ErrNotFound is the last word: the send was not stored, and never will be.
func (l *Ledger) FindAdded(ctx context.Context, id ID) (Send, error) {
	var r record
	err := l.transact(ctx, confirming(func(t *tx) error {
		r = record{}
		t.alone(id.Company) // it may have made the queue, too
		t.lockFromAdds(QueueID{id.Company, id.Queue})
		t.read(getQuery, func(scan scanFunc) error { return r.scan(scan) }, id.Company, id.Queue, id.Pos)
		return t.flush()
	}))
	if err == nil && r.ID.IsZero() {
		err = ErrNotFound
	}
	return r.Send, err
}

// patiently repeats fn, which may be run twice, while the database or its answers are away, for a while.
func (l *Ledger) patiently(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, lostCommitPatience)
	defer cancel()
	for {
		err := fn()
		var lost *commitLostError
		if err == nil || !errors.Is(err, ErrUnavailable) && !errors.As(err, &lost) {
			return err
		}
		if pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
			return err
		}
	}
}
