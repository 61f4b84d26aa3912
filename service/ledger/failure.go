package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
)

// Errors that callers tell apart.
var (
	// ErrUnavailable: the database cannot be reached or cannot write. Nothing was stored by the call.
	ErrUnavailable = errors.New("the ledger's database is unavailable")
	// ErrUncertain: the database went away while the call was being committed and has not come back. It may or may not
	// have been stored; ask again by id.
	ErrUncertain = errors.New("the ledger's database went away during a commit")
	// ErrNotFound: there is no such send, queue or company.
	ErrNotFound = errors.New("not found in the ledger")
	// ErrRequestIDReused: the request id was used by this caller for other content.
	ErrRequestIDReused = errors.New("the request id was used for other content")
	// ErrSequenceMismatch: the item leaves a gap, or its place in the batch is taken by other content. See SequenceError.
	ErrSequenceMismatch = errors.New("not the sequence number that the batch expects")
	// ErrSealed: the batch takes no further items.
	ErrSealed = errors.New("the batch takes no more items")
	// ErrStreamReplaced: a newer stream uploads to the batch.
	ErrStreamReplaced = errors.New("a newer stream uploads to this batch")
	// ErrReplayed: the send was replayed before.
	ErrReplayed = errors.New("the send was replayed before")
	// ErrClaimLost: the settlement names a claim that is not the send's latest, or was overruled by a person.
	ErrClaimLost = errors.New("the claim is no longer the send's")
	// ErrHeld: what waits may have been sent, so it is left as it is until a person releases the ledger.
	ErrHeld = errors.New("the ledger is held until a person releases it")
	// ErrNewerSchema: the database was migrated by a newer version of this program.
	ErrNewerSchema = errors.New("the database is newer than this program")
	// ErrLocked: another process has the SQLite file open.
	ErrLocked = errors.New("the ledger file is in use")
	// ErrClosed: the ledger was closed.
	ErrClosed = errors.New("the ledger is closed")
)

// sqliteCode is the primary result code, zero for other errors.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// sqlState is PostgreSQL's five letters, empty for other errors.
func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// answered reports whether the database itself said the error, so that what it refused is known not to be done.
func answered(err error) bool {
	if errors.Is(err, errChanged) {
		return true
	}
	state := sqlState(err)
	// In class 08 and 57P0x the server ended the session; whether before or after the commit it does not say.
	return sqliteCode(err) != 0 || (state != "" && !strings.HasPrefix(state, "08") && !strings.HasPrefix(state, "57P"))
}

// repeatable reports whether the same transaction may succeed when it is run again at once.
func repeatable(err error) bool {
	switch sqlState(err) {
	case "40001", "40P01", "25P03": // serialization_failure, deadlock_detected, idle_in_transaction_session_timeout
		return true
	}
	return errors.Is(err, errChanged)
}

// faulty reports whether the content of a row was at fault and not the state of the database.
func faulty(err error) bool {
	switch sqliteCode(err) {
	case 18, 19, 20: // SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH
		return true
	}
	state := sqlState(err)
	for _, class := range []string{"22", "23", "54"} { // data exception, integrity violation, limit exceeded
		if strings.HasPrefix(state, class) {
			return true
		}
	}
	// pgx refuses a value that does not fit its column before anything is sent.
	return state == "" && strings.Contains(err.Error(), "failed to encode")
}

// badStatement reports whether the database refused what this package wrote: a bug, and not its state.
func badStatement(err error) bool {
	return sqliteCode(err) == 1 || strings.HasPrefix(sqlState(err), "42")
}

// classify names an error for callers. It is ErrUnavailable unless the database is known to be well.
func (l *Ledger) classify(ctx context.Context, err error) error {
	var lost *commitLostError
	switch {
	case err == nil, errors.As(err, &lost), isOwn(err):
		return err
	case faulty(err), badStatement(err):
		return fmt.Errorf("ledger: %w", err)
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return ctx.Err()
	}
	l.noteRefusal(err)
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

var ownErrors = []error{
	ErrUnavailable, ErrUncertain, ErrNotFound, ErrRequestIDReused, ErrSequenceMismatch, ErrSealed, ErrStreamReplaced,
	ErrReplayed, ErrClaimLost, ErrNewerSchema, ErrLocked, ErrClosed, ErrBatchEnded, ErrCursorExpired, ErrNothingToReplay,
	ErrHeld,
}

func isOwn(err error) bool {
	for _, own := range ownErrors {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}
