package ledger

import (
	"context"
	"time"
)

// record is a stored send as a transaction sees it.
type record struct {
	Send
	raw       State // as stored, or about to be; State is how it reads
	was       State // as it was read
	changed   bool
	lateUntil int64 // of what was just settled
	alone     bool  // no other send waits for its recipient; false where nobody looked
	claimant  string
}

func (r *record) queueID() QueueID { return QueueID{r.ID.Company, r.ID.Queue} }

// stateRead and reasonRead are how a send reads: what waits in a cancelled queue reads at once as it is rewritten later.
const (
	stateRead = `CASE WHEN q.state = 'cancelled' AND s.state IN ('scheduled', 'pending')
		THEN CASE WHEN s.reason = '` + ReasonUnknown + `' THEN 'unknown' ELSE 'cancelled' END ELSE s.state END`
	reasonRead = `CASE WHEN q.state = 'cancelled' AND s.state IN ('scheduled', 'pending') AND s.reason <> '` + ReasonUnknown + `'
		THEN '` + ReasonCancelled + `' ELSE s.reason END`
)

// recordColumns need the send as s and its queue as q.
const recordColumns = `s.company, s.queue, s.pos, s.lane, s.caller, q.batch, s.bot, s.recipient, s.kind, s.labels,
	COALESCE(s.request_id, ''), s.hash, s.hash_version, s.state,
	` + stateRead + `,
	s.parked, s.attempt, COALESCE(s.claim, 0), COALESCE(s.claimant, ''), s.on_unknown, COALESCE(s.owner, ''), s.resolved,
	` + reasonRead + `, s.result, COALESCE(s.result_no, 0), COALESCE(s.replay_queue, 0), COALESCE(s.replay_pos, 0),
	s.accepted_at, COALESCE(s.due_at, 0), COALESCE(s.expire_at, 0), COALESCE(s.lease_until, 0), COALESCE(s.sent_at, 0),
	COALESCE(s.settled_at, CASE WHEN s.state IN ('scheduled', 'pending') THEN q.cancelled_at END, 0)`

const fromRecord = ` FROM send s {queue of s} `

// ownQueue joins a send's queue by the send's columns and nothing else: a planner that put a known company in place of
// the send's would take all queues of a company for few.
const ownQueue = `q.company = s.company + 0 AND q.id = s.queue`

const (
	getQuery = `SELECT ` + recordColumns + fromRecord + `WHERE s.company = $1 AND s.queue = $2 AND s.pos = $3`
	// Who reads a send to change it has its company's lock, without which nothing is parked.
	changeQuery = `SELECT ` + recordColumns + `, CASE WHEN (SELECT 1 FROM send p WHERE p.company = s.company AND p.bot = s.bot AND p.recipient = s.recipient
			AND p.parked = 1 LIMIT 1) IS NULL THEN 1 ELSE 0 END` + fromRecord + `WHERE s.company = $1 AND s.queue = $2 AND s.pos = $3`
	findQuery = `SELECT ` + recordColumns + fromRecord + `WHERE s.company = $1 AND s.caller = $2 AND s.request_id = $3`
)

// columns are where to scan recordColumns.
func (r *record) columns() []any {
	return []any{
		&r.ID.Company, &r.ID.Queue, &r.ID.Pos, &r.Lane, &r.Caller, flag{&r.Batch}, &r.Bot, &r.Recipient, &r.Kind, &r.Labels,
		&r.RequestID, &r.Hash, &r.HashVersion, &r.raw, &r.State,
		&r.Parked, &r.Attempt, &r.Claim, &r.claimant, &r.OnUnknown, &r.Owner, flag{&r.Resolved},
		&r.Reason, &r.Result, &r.ResultNo, &r.ReplayOf.Queue, &r.ReplayOf.Pos,
		&r.AcceptedAt, &r.DueAt, &r.ExpireAt, &r.LeaseUntil, &r.SentAt,
		&r.SettledAt,
	}
}

func (r *record) scan(scan scanFunc, more ...any) error {
	if err := scan(append(r.columns(), more...)...); err != nil {
		return err
	}
	r.was = r.raw
	if r.ReplayOf.Queue != 0 {
		r.ReplayOf.Company = r.ID.Company
	}
	return nil
}

// flag scans 0 and 1 into a bool.
type flag struct{ to *bool }

// Scan implements sql.Scanner.
func (f flag) Scan(v any) error {
	n, _ := v.(int64)
	*f.to = n != 0
	return nil
}

// orNull stores a zero as NULL.
func orNull[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

func oneIf(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Get reads a send, or ErrNotFound.
func (l *Ledger) Get(ctx context.Context, id ID) (Send, error) {
	return l.getOne(ctx, getQuery, id.Company, id.Queue, id.Pos)
}

// FindByRequestID reads the send that the caller made under the request id, or ErrNotFound.
func (l *Ledger) FindByRequestID(ctx context.Context, company int64, caller, requestID string) (Send, error) {
	return l.getOne(ctx, findQuery, company, caller, requestID)
}

func (l *Ledger) getOne(ctx context.Context, query string, args ...any) (Send, error) {
	var r record
	found := false
	err := l.query(ctx, query, func(scan scanFunc) error {
		found = true
		return r.scan(scan)
	}, args...)
	if err == nil && !found {
		err = ErrNotFound
	}
	return r.Send, err
}

// micros is a span as stored times count it.
func micros(d time.Duration) int64 { return d.Microseconds() }
