package ledger

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// A transaction that the server does not finish in this time is given up.
const transactionTimeout = 10 * time.Second

// A transaction that loses to another one (deadlock, serialization) is repeated so many times.
const transactionRepeats = 6

// scanFunc reads the columns of one row.
type scanFunc = func(dst ...any) error

// step is one statement of a transaction.
type step struct {
	query string
	args  []any
	row   func(scan scanFunc) error // for each row; nil where the statement gives none
	one   bool                      // it has to change exactly one row
}

// tx is a transaction. Statements are queued and go to the database together at flush, in one round trip where
// the database is elsewhere.
type tx struct {
	l     *Ledger
	ctx   context.Context
	conn  *sql.Conn
	stmts map[string]*sql.Stmt // prepared on SQLite's one writing connection
	steps []step
	ahead []QueueID // queues that an earlier run found taken: this one locks them with its own
	sent  bool      // something reached the database: there is something to roll back
}

// errChanged says that a conditional write met another state than the one just read. The transaction is repeated.
var errChanged = errors.New("ledger: a row changed under a transaction")

// busyError says that somebody else has queues that could not be waited for: their locks come after others in the order.
type busyError struct{ queues []QueueID }

func (e *busyError) Error() string { return "ledger: other queues are being written" }
func (e *busyError) Unwrap() error { return errChanged }

// errRollback ends a transaction that has nothing to commit; transact returns nil for it.
var errRollback = errors.New("ledger: nothing to commit")

// commitLostError says that nobody knows whether the transaction was committed.
type commitLostError struct{ cause error }

func (e *commitLostError) Error() string {
	return "the answer to a commit was lost: " + e.cause.Error()
}
func (e *commitLostError) Unwrap() error { return e.cause }

// read queues a statement that gives rows.
func (t *tx) read(query string, row func(scan scanFunc) error, args ...any) {
	t.steps = append(t.steps, step{query: query, args: args, row: row})
}

// nothing is for the rows of a statement that only locks or sets something.
func nothing(scanFunc) error { return nil }

// write queues a statement that changes any number of rows.
func (t *tx) write(query string, args ...any) {
	t.steps = append(t.steps, step{query: query, args: args})
}

// writeOne queues a statement that has to change exactly one row.
func (t *tx) writeOne(query string, args ...any) {
	t.steps = append(t.steps, step{query: query, args: args, one: true})
}

// alone keeps others from making companies (0), or a company's shares and queues, until the commit.
func (t *tx) alone(company int64) {
	t.read(`SELECT {alone}`, nothing, company)
}

// flush runs what is queued.
func (t *tx) flush() error {
	steps := t.steps
	t.steps = nil
	if len(steps) == 0 {
		return nil
	}
	t.sent = true
	if t.l.postgres {
		return t.flushPostgres(steps)
	}
	for i := range steps {
		if err := t.runSQLite(&steps[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) runSQLite(s *step) error {
	stmt := t.stmts[s.query]
	if stmt == nil {
		var err error
		if stmt, err = t.conn.PrepareContext(t.ctx, t.l.dialect.text(s.query)); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
		t.stmts[s.query] = stmt
	}
	if s.row == nil {
		res, err := stmt.ExecContext(t.ctx, s.args...)
		if err != nil || !s.one {
			return err
		}
		n, err := res.RowsAffected()
		if err == nil && n != 1 {
			err = errChanged
		}
		return err
	}
	rows, err := stmt.QueryContext(t.ctx, s.args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := s.row(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t *tx) flushPostgres(steps []step) error {
	var batch pgx.Batch
	for i := range steps {
		s := &steps[i]
		text := t.l.dialect.text(s.query)
		if s.one {
			text = exactlyOne(text)
		}
		queued := batch.Queue(text, s.args...)
		if s.row != nil {
			queued.Query(func(rows pgx.Rows) error {
				for rows.Next() {
					if err := s.row(rows.Scan); err != nil {
						return err
					}
				}
				return rows.Err()
			})
		}
	}
	err := t.conn.Raw(func(c any) error {
		return c.(*stdlib.Conn).Conn().SendBatch(t.ctx, &batch).Close()
	})
	if sqlState(err) == divisionByZero {
		return errChanged
	}
	return err
}

const divisionByZero = "22012"

// exactlyOne makes the server itself fail where the statement changes no row, so that what was sent together with it is
// not done, not even the commit.
func exactlyOne(text string) string {
	return "WITH changed AS (" + text + " RETURNING 1) SELECT 1 / count(*) FROM changed"
}

// commit runs what is queued and commits, in one round trip.
func (t *tx) commit() error {
	t.write("COMMIT")
	// A crash before this line leaves nothing of the transaction, one after it leaves all of it. In between
	// nobody knows, and the caller has to look before it answers anybody.
	err := t.flush()
	if err != nil && !answered(err) {
		return &commitLostError{err}
	}
	return err
}

// transact runs fn in a transaction and commits it, from the beginning again where it lost to another one. What fn
// leaves behind outside has to be set anew by each run.
func (l *Ledger) transact(ctx context.Context, fn func(t *tx) error) error {
	var ahead []QueueID
	for i := 1; ; i++ {
		err := l.transactOnce(ctx, ahead, fn)
		if errors.Is(err, errRollback) {
			return nil
		}
		if err == nil || i == transactionRepeats || !repeatable(err) {
			return l.classify(ctx, err)
		}
		if sqlState(err) == "40P01" {
			// It costs whoever waits deadlock_timeout, a second as PostgreSQL comes. Locks are taken in one order, so it is a bug.
			l.deadlocks.Add(1)
			l.log.Warn("a deadlock in the ledger's database; the transaction is repeated", slog.Any("error", err))
		}
		var busy *busyError
		if errors.As(err, &busy) {
			ahead = append(ahead, busy.queues...)
			continue
		}
		// A pause, so that those who met do not meet again.
		time.Sleep(time.Duration(i) * time.Duration(rand.Int64N(int64(4*time.Millisecond))))
	}
}

// confirming is fn for another run after the answer to a commit was lost. On PostgreSQL it commits something whatever fn finds:
// a synchronous standby that has this commit has the lost one, too, if that was made. Where the standby is away PostgreSQL
// shows what it committed without it as soon as nobody waits for it any more.
func confirming(fn func(t *tx) error) func(t *tx) error {
	return func(t *tx) error {
		if err := fn(t); !t.l.postgres || err != nil && !errors.Is(err, errRollback) {
			return err
		}
		t.write(`UPDATE home SET durable = durable`)
		return t.flush()
	}
}

// Confirm returns when everything that can be read is as safe as what was answered.
func (l *Ledger) Confirm(ctx context.Context) error {
	return l.transact(ctx, confirming(func(*tx) error { return nil }))
}

// transactSending is transact for claims and settles.
func (l *Ledger) transactSending(ctx context.Context, fn func(t *tx) error) error {
	if l.sending != nil {
		select {
		case l.sending <- struct{}{}:
			defer func() { <-l.sending }()
		case <-ctx.Done():
			return l.classify(ctx, ctx.Err())
		}
	}
	return l.transact(ctx, fn)
}

func (l *Ledger) transactOnce(ctx context.Context, ahead []QueueID, fn func(t *tx) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	conn, stmts, release, err := l.writer(ctx)
	if err != nil {
		return err
	}
	t := &tx{l: l, ctx: ctx, conn: conn, stmts: stmts, ahead: ahead}
	committed := false
	defer func() {
		// Also on the way out of a panic: a connection goes back only without a transaction on it.
		if !committed && t.sent {
			t.rollback()
		}
		release()
	}()
	t.write(l.dialect.begin)
	if err := fn(t); err != nil {
		return err
	}
	if err := t.commit(); err != nil {
		return err
	}
	committed = true
	l.commits.Add(1)
	l.noteCommit()
	return nil
}

// rollback ends the transaction whatever became of it. A connection on which that fails is thrown away.
func (t *tx) rollback() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), 2*time.Second)
	defer cancel()
	if _, err := t.conn.ExecContext(ctx, "ROLLBACK"); err != nil && t.l.postgres {
		_ = t.conn.Raw(func(any) error { return driver.ErrBadConn })
	}
}

// writer gives the connection for a transaction: on SQLite the one that writes, when its turn comes.
func (l *Ledger) writer(ctx context.Context) (*sql.Conn, map[string]*sql.Stmt, func(), error) {
	if l.postgres {
		conn, err := l.db.Conn(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		return conn, nil, func() { _ = conn.Close() }, nil
	}
	select {
	case w := <-l.write:
		return w.conn, w.stmts, func() { l.write <- w }, nil
	case <-ctx.Done():
		return nil, nil, nil, ctx.Err()
	}
}

// sqliteWriter is the one connection that writes to a SQLite file.
type sqliteWriter struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

// close closes the connection. With a statement left open SQLite would not, and the log would stay beside the file:
// who copies or restores the file alone would have half of it.
func (w *sqliteWriter) close() error {
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, w.conn.Close())...)
}

// query reads outside of any transaction.
func (l *Ledger) query(ctx context.Context, query string, row func(scan scanFunc) error, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	rows, err := l.db.QueryContext(ctx, l.dialect.text(query), args...)
	if err != nil {
		return l.classify(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return l.classify(ctx, rows.Err())
}
