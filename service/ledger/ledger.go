// Package ledger keeps every send from the moment it is accepted until long after it is settled, on SQLite
// or PostgreSQL, and is the meeting point of all replicas.
//
// It guarantees that nothing accepted is lost (no call answers before its commit), that an illegal state
// cannot be stored (CHECK constraints), that every transition is conditional on the state it leaves, that a
// result number is given out in commit order, and that whatever decides for several replicas is decided on the
// database's clock, under the company's lock. What a send contains and what Jelou answered are opaque bytes here.
//
// Locks are taken in one order: company, queue, share, send; in groups sorted by key. Adds never take a
// company's lock.
package ledger

import (
	"context"
	"database/sql"
	"errors"
	"hash/crc32"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// A Lane is a class of urgency. A company's urgent sends go before its normal ones, those before its bulk ones.
type Lane int16

// The lanes, in the order in which they are served.
const (
	Urgent Lane = 1
	Normal Lane = 2
	Bulk   Lane = 3
)

// A State is where a send stands.
type State string

// The states of a send. Sent, Failed, Unknown, Cancelled and Expired are final: they carry a result number.
// Only Unknown may still change, to Sent or Failed.
const (
	Scheduled State = "scheduled"
	Pending   State = "pending"
	Sending   State = "sending"
	Sent      State = "sent"
	Failed    State = "failed"
	Unknown   State = "unknown"
	Cancelled State = "cancelled"
	Expired   State = "expired"
)

// Final reports whether a send in this state has its result.
func (s State) Final() bool {
	switch s {
	case Sent, Failed, Unknown, Cancelled, Expired:
		return true
	}
	return false
}

// OnUnknown is the caller's written choice for a send of which nobody can say whether it left.
type OnUnknown int16

// The choices. Hold leaves the send Unknown until evidence or a person settles it; Retry sends it again once the
// lease of the lost attempt has ended; Fail calls it Failed.
const (
	Hold  OnUnknown = 0
	Retry OnUnknown = 1
	Fail  OnUnknown = 2
)

// NewSend is a send to be accepted. Times are microseconds on the database's clock, zero is "none".
type NewSend struct {
	Company int64
	Lane    Lane
	Caller  string
	Weight  int // of the caller's share of the lane, where it has none yet; zero is 1

	DailyLimit int64 // sends of the caller that the company accepts in a day; zero is no bound

	Bot       string
	Recipient string // empty: outside the order per recipient (a notification with several destinations)
	Kind      string
	Labels    string // JSON object; empty is none
	Body      []byte

	RequestID   string // empty: not deduplicated
	Hash        []byte // of the content, compared when RequestID or (Queue, Pos) is met again
	HashVersion int16

	Queue    int64 // the batch's queue; zero is the caller's queue of loose sends in the lane
	Pos      int64 // the item's number in its batch; given by the ledger for loose sends
	Uploader int64 // the batch's uploader epoch that this item came through; zero is not checked

	DueAt      int64         // scheduled until then; zero is at once
	ExpireAt   int64         // not sent after this time; zero is no such time
	ExpireIn   time.Duration // the same as a span from now on the database's clock; the earlier of the two counts
	OwnerBound bool          // expires when this replica dies: somebody is waiting here and nobody could ask again
	OnUnknown  OnUnknown
	ReplayOf   ID // the send that this one repeats; zero is none

	Traceparent string // of the call that makes it, where that is traced; empty otherwise

	// Final stores the send as already failed: a bad item of a batch takes its number and has its result.
	Final *Final
}

// Final is the result of a send that is stored as Failed.
type Final struct {
	Reason string
	Result []byte
}

// Added is the answer to one NewSend.
type Added struct {
	Send   Send  // the stored row: the new one, or the one that was met; without Body
	Joined bool  // Send was there before: same request id, or same place in the batch, same content
	Err    error // ErrRequestIDReused, ErrSequenceMismatch, ErrSealed, ErrStreamReplaced, ErrNotFound; this one was not stored
}

// Send is a stored send. Times are microseconds on the database's clock, zero is "none".
type Send struct {
	ID     ID
	Lane   Lane
	Caller string
	Batch  bool // its queue is a batch

	Bot       string
	Recipient string
	Kind      string
	Labels    string
	Body      []byte // only in a claim

	Traceparent string // of the call that made it, where that is traced; only in a claim

	RequestID   string
	Hash        []byte
	HashVersion int16

	State     State // as it reads: what waits in a cancelled queue is Cancelled
	Parked    Parked
	Attempt   int   // requests started, without those that a 429 gave back
	Claim     int64 // number of the latest claim
	OnUnknown OnUnknown
	Owner     string // the replica whose end expires it
	Resolved  bool   // settled by a person or a delivery event; its claimant has no say any more

	Reason   string
	Result   []byte
	ResultNo int64 // its place among the results of its queue
	ReplayOf ID

	AcceptedAt int64
	DueAt      int64
	ExpireAt   int64
	LeaseUntil int64
	SentAt     int64
	SettledAt  int64
}

// Parked says why a pending send is not looked at by claims.
type Parked int16

// The reasons. BusyRecipient ends with the settle that frees the recipient, Backoff at DueAt.
const (
	NotParked     Parked = 0
	BusyRecipient Parked = 1
	Backoff       Parked = 2
)

// MaxClaimCompanies is the largest number of companies that one Claim looks at.
const MaxClaimCompanies = 25

// View is what a claim finds in one company. It is shown under the company's lock.
type View struct {
	Company int64
	Now     int64  // database time, read after the lock
	ClaimNo int64  // the number that a claim made now gets
	Pace    []byte // as stored; nil for a company that never had any
	Heads   []Head // at most one per lane, in lane order: what each lane would send next
}

// Head is the send that a lane would send next.
type Head struct {
	Send  Send // without Body
	Share Tag  // of the caller among the callers of the lane
	Queue Tag  // of the queue among the caller's queues in the lane
}

// Tag is a place in a fair order. The next one served is the one with the smallest Start; being served from S =
// max(Virtual, Start) sets Virtual to S and Start to S + a unit divided by Weight.
type Tag struct {
	Start   int64
	Virtual int64 // of the whole that the share or queue is a part of
	Weight  int
}

// Choice is the answer to a View.
type Choice struct {
	Lane  Lane   // whose head to claim; zero claims nothing
	Pace  []byte // stored when not nil, claimed or not
	Share Tag    // new Start and Virtual of the claimed head's share
	Queue Tag    // the same of its queue

	// RecipientGap keeps other Normal and Bulk sends to the same recipient from being claimed for so long.
	RecipientGap time.Duration
}

// Claim is what came of one company in a call of Ledger.Claim.
type Claim struct {
	Company int64
	Send    *Send // claimed, with Body; nil when nothing was
	Busy    bool  // somebody else has the company's lock; look again in a moment
	Emptied bool  // nothing is left in the lane that was claimed from; a Wake says when there is
	More    bool  // the bound on work per claim was reached before every lane's head was found; look again at once
	Rewound bool  // its claim number is lower than one seen before: the ledger went back in time, nothing is claimed
	Held    bool  // the ledger is held until a person releases it
}

// Settlement is the end of one claimed attempt.
type Settlement struct {
	ID    ID
	Claim int64

	// State is Sent, Failed, Unknown or, where the request never left or may be repeated, Pending.
	State  State
	Reason string
	Result []byte

	// Notifications are Jelou's ids of what a Sent one made there, for OwnNotifications.
	Notifications []string

	// For Pending: Backoff keeps it from being claimed for so long, AfterLease at least until its lease has
	// ended, Uncounted takes the attempt back.
	Backoff    time.Duration
	AfterLease bool
	Uncounted  bool

	SentAgo time.Duration // how long ago the request was written; negative: it never was

	// Pace gets the company's pace bytes and the database's time under the company's lock and returns what to
	// store; nil leaves them. It runs also when the send was settled otherwise meanwhile. It may run again
	// when a transaction is repeated.
	Pace func(now int64, pace []byte) []byte
}

// Config says where the ledger is. Exactly one of Path and URL is set.
type Config struct {
	Path string // SQLite file, created when missing; one process at a time
	URL  string // PostgreSQL connection string

	// ListenURL is for LISTEN, NOTIFY and migrations, where URL leads through a pooler; empty is URL.
	ListenURL string

	// Replica is unique to this run of this process. Required.
	Replica string

	Connections int           // in the pool for PostgreSQL, reading for SQLite; zero is 8 and 4
	OwnerLease  time.Duration // how long a silent replica's own sends live on; zero is 10 s
	MaxAttempts int           // attempts of a Retry send whose claimant vanished; zero is 5
	Retention   Retention     // what Run deletes; see there for zero

	Logger *slog.Logger // nil logs nothing
	Meter  metric.Meter // nil measures nothing
}

// Totals counts sends by how they read. Accepted is the sum of the others.
type Totals struct {
	Accepted, Waiting, Sent, Failed, Unknown, Cancelled, Expired int64
}

// Ledger is an open ledger. Its methods may be called from any goroutine.
type Ledger struct {
	db       *sql.DB // PostgreSQL; on SQLite the connections that read
	postgres bool
	dialect  *dialect
	replica  string
	stripe   int64
	log      *slog.Logger

	ownerLease  time.Duration
	maxAttempts int

	// PostgreSQL only: claims and settles have half of the connections at most, so that calls do not wait behind them.
	sending chan struct{}

	// SQLite only.
	path    string
	witness *witness
	lock    *os.File
	writeDB *sql.DB
	write   chan *sqliteWriter

	adds, bulkAdds *group[*addition]
	changes        *group[*change]
	loose          sync.Map // looseKey -> queue id, of those known to exist
	claimNos       sync.Map // company -> *atomic.Int64, the highest claim number seen

	hub       *hub
	notify    *notifier     // nil where there is only one process
	nudge     chan struct{} // tells Run that something became due sooner
	untidy    chan struct{} // tells Run that a batch was cancelled
	failing   sync.Map      // what goes wrong in the background at the moment
	commits   atomic.Int64
	deadlocks atomic.Int64
	skew      atomic.Int64 // the database's clock less this process's, as last seen

	metrics   *metrics
	retention Retention
	retaining sync.Mutex
	retained  retained

	reserved  atomic.Int64            // bytes that adds and claims leave free on a SQLite ledger's disk
	fullUntil atomic.Int64            // on this process's clock, in nanoseconds
	refused   atomic.Pointer[refusal] // the last one, until it is seen to be over

	stop   context.CancelFunc
	ending sync.WaitGroup
}

// Open opens the ledger, migrates it and registers the replica. Close it.
func Open(ctx context.Context, c Config) (*Ledger, error) {
	if (c.Path == "") == (c.URL == "") {
		return nil, errors.New("ledger: exactly one of Path and URL is needed")
	}
	if c.Replica == "" {
		return nil, errors.New("ledger: Replica is needed")
	}
	l := &Ledger{
		postgres: c.URL != "", dialect: newSQLiteDialect(), replica: c.Replica,
		log: c.Logger, ownerLease: c.OwnerLease, maxAttempts: c.MaxAttempts, hub: newHub(), nudge: make(chan struct{}, 1),
		untidy: make(chan struct{}, 1), retention: c.Retention, metrics: newMetrics(c.Meter),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.reserved.Store(reservedSpace)
	if l.ownerLease == 0 {
		l.ownerLease = 10 * time.Second
	}
	if l.maxAttempts == 0 {
		l.maxAttempts = 5
	}
	open := l.openSQLite
	if l.postgres {
		l.dialect, open = newPostgresDialect(walTimeline), l.openPostgres
	}
	l.stripe = int64(crc32.ChecksumIEEE([]byte(c.Replica)) % l.dialect.stripes)
	if err := open(ctx, c); err != nil {
		return nil, errors.Join(l.classify(ctx, err), l.closeDatabase())
	}
	for _, step := range []func(context.Context) error{l.moveIn, l.checkRewound, l.renew} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, l.closeDatabase())
		}
	}
	l.start()
	return l, nil
}

// start starts what works in the background for as long as the ledger is open.
func (l *Ledger) start() {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.adds = newGroup(addGroupSize, measured(l.metrics, addOperation, l.commitAdds))
	l.bulkAdds = newGroup(addGroupSize, measured(l.metrics, bulkAddOperation, l.commitAdds))
	l.changes = newGroup(changeGroupSize, measured(l.metrics, changeOperation, l.commitChanges))
	runs := []func(context.Context){l.adds.run, l.bulkAdds.run, l.changes.run}
	if l.notify != nil {
		runs = append(runs, l.notify.send, l.notify.listen, l.notify.poll)
	}
	for _, run := range runs {
		l.ending.Go(func() { run(ctx) })
	}
}

// Close ends the replica's lease, so that its own sends expire, and closes the database. Calls that are still running
// get ErrClosed.
func (l *Ledger) Close() error {
	l.stop()
	l.ending.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := l.leave(ctx)
	return errors.Join(err, l.closeDatabase())
}

func (l *Ledger) closeDatabase() error {
	var errs []error
	if l.db != nil {
		errs = append(errs, l.db.Close())
	}
	if l.write != nil {
		errs = append(errs, (<-l.write).close())
	}
	if l.writeDB != nil {
		errs = append(errs, l.writeDB.Close())
	}
	if l.witness != nil {
		errs = append(errs, l.witness.file.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close()) // and with it the lock
	}
	return errors.Join(errs...)
}
