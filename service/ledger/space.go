package ledger

import (
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reservedSpace stays free on the disk of a SQLite ledger for the results of what is under way: a send whose result
	// cannot be written is unknown.
	reservedSpace = 32 << 20
	// fullFor is how long nothing is claimed after the database said that its disk is full, unless it stores something
	// sooner.
	fullFor = 5 * time.Second
)

// hasSpace refuses to take in more, or to begin a send, while the disk is so full that its result might not fit.
func (l *Ledger) hasSpace() error {
	if l.postgres {
		return nil // only its own server can see its disk: see settlesFit
	}
	var s unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(l.path), &s); err != nil {
		return nil //nolint:nilerr // a file system that cannot say is written to until it refuses
	}
	if free, kept := int64(s.Bavail)*s.Bsize, l.reserved.Load(); free < kept {
		return fmt.Errorf("%w: its disk is full: %d MiB are free at %s, and %d MiB are kept for results of what is under way; make room",
			ErrUnavailable, free>>20, filepath.Dir(l.path), kept>>20)
	}
	return nil
}

// settlesFit refuses to begin a send when its result might not be stored.
func (l *Ledger) settlesFit() error {
	if time.Now().UnixNano() < l.fullUntil.Load() {
		return fmt.Errorf("%w: its disk was full a moment ago; make room", ErrUnavailable)
	}
	return l.hasSpace()
}

// refusedFor is how long a database that refused to store something is said not to be writable, unless it shows sooner that it
// is. A full one may go on with updates that need no room, so their success says nothing.
const refusedFor = time.Minute

// refusal is why a database did not store something, and when.
type refusal struct {
	why      string
	readOnly bool // so that any commit shows that it is over
	at       time.Time
}

// refusals are what databases say, by SQLite's codes and PostgreSQL's.
var refusals = map[any]refusal{
	13: {why: "its disk is full"}, "53100": {why: "its disk is full"}, // SQLITE_FULL, disk_full
	8: {why: "it is read-only", readOnly: true}, "25006": {why: "it is read-only", readOnly: true}, // SQLITE_READONLY, read_only_sql_transaction
}

// noteRefusal remembers that the database answers but does not write.
func (l *Ledger) noteRefusal(err error) {
	r, ok := refusals[sqliteCode(err)]
	if !ok {
		r, ok = refusals[sqlState(err)]
	}
	if !ok {
		return
	}
	r.at = time.Now()
	l.refused.Store(&r)
	if !r.readOnly {
		l.fullUntil.Store(r.at.Add(fullFor).UnixNano())
	}
}

// noteCommit takes back that the database is read-only.
func (l *Ledger) noteCommit() {
	if r := l.refused.Load(); r != nil && r.readOnly {
		l.refused.CompareAndSwap(r, nil)
	}
}

// noteStored takes back all that was said against the database.
func (l *Ledger) noteStored() {
	l.fullUntil.Store(0)
	l.refused.Store(nil)
}

// Writable is an error that says why sends cannot be stored, as far as it was seen, while the database answers; nil while they can.
func (l *Ledger) Writable() error {
	if r := l.refused.Load(); r != nil && time.Since(r.at) < refusedFor {
		return fmt.Errorf("%w: %s", ErrUnavailable, r.why)
	}
	return l.hasSpace()
}
