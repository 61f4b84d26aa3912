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

// noteFull remembers that the database could not write for want of space.
func (l *Ledger) noteFull(err error) {
	if sqliteCode(err) == 13 || sqlState(err) == "53100" { // SQLITE_FULL, disk_full
		l.fullUntil.Store(time.Now().Add(fullFor).UnixNano())
	}
}
