package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A ledger goes back in time when a backup is put in its place, or when its database fails over to a copy that lacks the
// last commits. What it then calls pending may have been sent. Two things tell: a claim number that is lower than one
// seen before, and a database that is another one than before. Either way the ledger is held: until a person decides what to
// do about the sends in question nothing is claimed, and nothing that waits is said not to have been sent. Cancelled or
// expired, it would be sent a second time by whoever asks again. A batch that the ledger finds cancelled is: then as
// now nothing of it could be claimed.

// Halt says whether and why nothing is claimed.
type Halt struct {
	Held    bool  // until Release
	Rewound bool  // because claims are known to be lost; otherwise because they may be
	Since   int64 // on the database's clock
}

// Halt reads whether the ledger is held.
func (l *Ledger) Halt(ctx context.Context) (Halt, error) {
	var h Halt
	err := l.query(ctx, `SELECT held, rewound, COALESCE(held_at, 0) FROM home`, func(scan scanFunc) error {
		return scan(flag{&h.Held}, flag{&h.Rewound}, &h.Since)
	})
	return h, err
}

// Durability says what a failover of the database costs.
type Durability struct {
	Failover bool   // nothing: what was answered is on another machine too, or there is no failover
	Why      string // for a log, where it is false
}

// Durability asks the database whether it answers a commit only when another machine has it.
func (l *Ledger) Durability(ctx context.Context) (Durability, error) {
	if !l.postgres {
		return Durability{Failover: true}, nil // a file, synced before every answer, and nothing to fail over to
	}
	var standbys, commit string
	err := l.query(ctx, `SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit')`, func(scan scanFunc) error {
		return scan(&standbys, &commit)
	})
	switch {
	case err != nil:
		return Durability{}, err
	case standbys == "":
		return Durability{Why: "synchronous_standby_names is empty"}, nil
	case commit != "on" && commit != "remote_apply":
		return Durability{Why: "synchronous_commit is " + commit}, nil
	}
	return Durability{Failover: true}, nil
}

// noteDurability keeps in the ledger whether a failover loses nothing: after one it is too late to ask.
func (l *Ledger) noteDurability(ctx context.Context) error {
	d, err := l.Durability(ctx)
	if err != nil {
		return err
	}
	changed := false
	err = l.query(ctx, `SELECT 1 FROM home WHERE durable <> $1`, func(scanFunc) error { changed = true; return nil }, oneIf(d.Failover))
	if err != nil || !changed {
		return err
	}
	l.warnOf(d)
	return l.transactAgain(ctx, func(t *tx) error {
		t.write(`UPDATE home SET durable = $1`, oneIf(d.Failover))
		return nil
	})
}

func (l *Ledger) warnOf(d Durability) {
	if !d.Failover {
		l.log.Warn("a failover of the database may lose what was confirmed, and sends may then be lost or sent twice; replicate synchronously", "cause", d.Why)
	}
}

// home is where the ledger lives.
type home struct {
	place    string
	timeline int64
}

// readHome asks where the database is now. PostgreSQL has a system identifier, which a dump does not take along, and a timeline, which
// changes with every promotion and every recovery to a point in time. A file has an inode and a time of birth, which a copy
// does not take along either; its device's number changes from boot to boot.
func (l *Ledger) readHome(ctx context.Context) (h home, err error) {
	if !l.postgres {
		h.place, err = filePlace(l.path)
		return h, err
	}
	err = l.query(ctx, `SELECT system_identifier::text FROM pg_control_system()`, func(scan scanFunc) error { return scan(&h.place) })
	if answered(err) { // not allowed here, or not PostgreSQL's own
		h.place, err = unknownPlace, nil
	}
	if err != nil {
		return h, err
	}
	return h, l.query(ctx, `SELECT {timeline} FROM home`, func(scan scanFunc) error { return scan(&h.timeline) })
}

const unknownPlace = "unknown"

// movedTo reports whether another database stands where this one stood.
func (h home) movedTo(is home) bool {
	return h.place != is.place && h.place != unknownPlace && is.place != unknownPlace
}

func filePlace(path string) (string, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &s); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	return fmt.Sprintf("inode %d born %d.%09d", s.Ino, s.Btime.Sec, s.Btime.Nsec), nil
}

// moveIn compares where the ledger lives with where it lived. A failover between synchronous copies has lost nothing;
// after every other move it is held. A crash before the commit leaves the old place, and who comes next finds
// the same; until then no claim is made at the new one.
func (l *Ledger) moveIn(ctx context.Context) error {
	d, err := l.Durability(ctx)
	if err != nil {
		return err
	}
	l.warnOf(d)
	is, err := l.readHome(ctx)
	if err != nil {
		return err
	}
	rewound, err := l.lostClaims(ctx) // a ledger that has moved gives no claim until the commit below
	if err != nil {
		return err
	}
	var was home
	held := false
	err = l.transactAgain(ctx, func(t *tx) error {
		var durable bool
		held = false
		t.read(`SELECT place, timeline, durable FROM home {lock}`, func(scan scanFunc) error {
			return scan(&was.place, &was.timeline, flag{&durable})
		})
		if err := t.flush(); err != nil {
			return err
		}
		held = was.place != "" && (was.movedTo(is) || was.timeline != is.timeline && !durable)
		t.write(`UPDATE home SET place = $1, timeline = $2, durable = $3`, is.place, is.timeline, oneIf(d.Failover))
		if held {
			t.hold(rewound)
		}
		return nil
	})
	if err == nil && was.place == "" && l.witness != nil {
		// A new file: what stands beside it is from another one, which somebody has taken away.
		l.claimNos.Clear()
		err = l.witness.file.Truncate(0)
	}
	if err == nil && held {
		l.log.Error("the ledger's database is not the one it was, and what it calls pending may have been sent: nothing is sent until `jelou-facade ledger release`",
			"was", was.place, "was_timeline", was.timeline, "is", is.place, "is_timeline", is.timeline)
		err = l.lift(ctx)
	}
	return err
}

// hold queues that nothing is claimed any more.
func (t *tx) hold(rewound bool) {
	t.write(`UPDATE home SET held_at = CASE WHEN held = 1 THEN held_at ELSE {now} END, held = 1,
		rewound = CASE WHEN $1 = 1 THEN 1 ELSE rewound END`, oneIf(rewound))
}

// watchHome remembers the claim numbers that a transaction found or gave, and acts on a database that has moved and on a
// company that has gone back in time: the other replicas may know nothing of it.
func (l *Ledger) watchHome(ctx context.Context, companies map[int64]*companyRow, claims []Claim) {
	moved, rewound := false, false
	for id, c := range companies {
		moved = moved || c.moved
		rewound = rewound || c.rewound && !c.held
		l.seeClaim(ctx, id, c.claimNo)
	}
	for _, c := range claims {
		if c.Send != nil {
			l.seeClaim(ctx, c.Company, c.Send.Claim)
		}
	}
	if moved {
		l.report(ctx, "compare the database with the one it was", l.moveIn(ctx))
	}
	if rewound {
		l.report(ctx, "hold the ledger", l.holdRewound(ctx))
	}
}

func (l *Ledger) holdRewound(ctx context.Context) error {
	err := l.transactAgain(ctx, func(t *tx) error {
		t.hold(true)
		return nil
	})
	if err != nil {
		return err
	}
	l.log.Error("the ledger has lost claims that were made, and what it calls pending may have been sent: nothing is sent until `jelou-facade ledger release`")
	return l.lift(ctx)
}

// seeClaim remembers the highest claim number of a company.
func (l *Ledger) seeClaim(ctx context.Context, company, number int64) {
	v, _ := l.claimNos.LoadOrStore(company, new(atomic.Int64))
	highest := v.(*atomic.Int64)
	for {
		have := highest.Load()
		if number <= have {
			return
		}
		if highest.CompareAndSwap(have, number) {
			break
		}
	}
	if l.witness != nil {
		l.report(ctx, "note claims beside the ledger file", l.witness.note(company, highest.Load))
	}
}

// rewound reports whether a company's claim number is lower than one seen before: then the ledger lost what
// happened between, and what it calls pending may have been sent.
func (l *Ledger) rewound(company, number int64) bool { return number < l.seenClaim(company) }

// seenClaim is the highest claim number of a company that this replica has seen.
func (l *Ledger) seenClaim(company int64) int64 {
	v, ok := l.claimNos.Load(company)
	if !ok {
		return 0
	}
	return v.(*atomic.Int64).Load()
}

// lookBack does what claims do on their way, for a ledger that nobody claims from at the moment: whoever asks whether this
// process is ready must not have to wait for the next send to know.
func (l *Ledger) lookBack(ctx context.Context) error {
	h, err := l.Halt(ctx)
	if err != nil || h.Held {
		return err
	}
	moved := false
	err = l.query(ctx, `SELECT CASE WHEN timeline = {timeline} THEN 0 ELSE 1 END FROM home`, func(scan scanFunc) error { return scan(flag{&moved}) })
	if err == nil && moved {
		err = l.moveIn(ctx)
	}
	return errors.Join(err, l.checkRewound(ctx))
}

// checkRewound holds the ledger where it has lost claims.
func (l *Ledger) checkRewound(ctx context.Context) error {
	rewound, err := l.lostClaims(ctx)
	if err != nil || !rewound {
		return err
	}
	return l.holdRewound(ctx)
}

// lostClaims reports whether a company's claim number is lower than one seen before, and remembers the others: another replica may
// have given them.
func (l *Ledger) lostClaims(ctx context.Context) (rewound bool, err error) {
	// Those that were seen before it is asked: a claim in between makes both higher.
	seen := map[int64]int64{}
	for id, number := range l.claimNos.Range {
		seen[id.(int64)] = number.(*atomic.Int64).Load()
	}
	err = l.query(ctx, `SELECT id, claim_no FROM company`, func(scan scanFunc) error {
		var id, number int64
		err := scan(&id, &number)
		rewound = rewound || number < seen[id]
		l.seeClaim(ctx, id, number)
		return err
	})
	return rewound, err
}

// Release lets a held ledger go on. unsent says what becomes of the sends that were waiting when it was held and that it may
// have sent before it went back in time: Unknown, so that nothing is sent twice and a person settles them, or Pending, so
// that they are sent, perhaps again. It may be called again after an error; until it succeeds the ledger stays held.
func (l *Ledger) Release(ctx context.Context, unsent State) error {
	if unsent != Unknown && unsent != Pending {
		return errors.New("ledger: what was not sent is released as unknown or as pending")
	}
	h, err := l.Halt(ctx)
	if err != nil || !h.Held {
		return err
	}
	if err := l.lift(ctx); err != nil {
		return err
	}
	if unsent == Unknown {
		if err := l.giveUp(ctx, h.Since); err != nil {
			return err
		}
	}
	// Claim numbers go on above all that may have been given: for every replica the ledger is in front again, and no
	// settlement of a lost claim fits one of the new ones.
	err = l.transactAgain(ctx, func(t *tx) error {
		t.write(`UPDATE company SET claim_no = ` + lifted("claim_no") + ` WHERE (SELECT held FROM home) = 1`)
		t.write(`UPDATE home SET held = 0, held_at = NULL, rewound = 0`)
		return nil
	})
	if err != nil {
		return err
	}
	l.log.Warn("the ledger was released", "unsent", unsent)
	ready, err := l.Ready(ctx)
	l.wake(ready...)
	return err
}

// lifted is a number above all that can have been given out since a backup.
func lifted(number string) string { return "(" + number + " / 4294967296 + 1) * 4294967296" }

// lift has the numbers that callers keep go on above all that may have been given out: the id of a lost send must not become
// that of another message, and a cursor from before must not be ahead of results that are yet to come. Lifted again, as after a
// crash, they have another hole and nothing else.
func (l *Ledger) lift(ctx context.Context) error {
	err := l.transactAgain(ctx, func(t *tx) error {
		// Two who lift a sequence at once could set it back.
		t.read(`SELECT one FROM home {lock}`, nothing)
		t.read(l.dialect.liftPositions, nothing)
		return t.flush()
	})
	if err != nil {
		return err
	}
	return l.eachQueues(ctx, `ended_at IS NULL`, func(ids []QueueID) error {
		return l.transactAgain(ctx, func(t *tx) error {
			newGround(t).lockQueues(ids)
			for _, id := range ids {
				t.write(`UPDATE queue SET next_result = `+lifted("next_result")+` WHERE company = $1 AND id = $2 AND ended_at IS NULL`, id.Company, id.Queue)
			}
			return t.flush()
		})
	})
}

// eachQueues goes through all queues of which something is so, a page at a time.
func (l *Ledger) eachQueues(ctx context.Context, so string, do func([]QueueID) error) error {
	var at QueueID
	for {
		ids, err := l.queueIDs(ctx, `SELECT company, id FROM queue WHERE (company, id) > ($1, $2) AND `+so+` ORDER BY company, id LIMIT $3`,
			at.Company, at.Queue, tidyQueues)
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := do(ids); err != nil {
			return err
		}
		at = ids[len(ids)-1]
	}
}

// giveUp makes everything unknown that waits and that could have been claimed before a time, and first what replays had not
// copied yet: they had, in the time that is lost.
func (l *Ledger) giveUp(ctx context.Context, before int64) error {
	err := l.eachQueues(ctx, `item_count = -1`, func(ids []QueueID) error {
		for _, id := range ids {
			if err := l.finishReplay(ctx, id, before-1); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.eachQueues(ctx, `state IN ('open', 'paused')`, func(ids []QueueID) error {
		for _, id := range ids {
			if err := l.giveUpQueue(ctx, id, before); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Ledger) giveUpQueue(ctx context.Context, id QueueID, before int64) error {
	for after := int64(0); ; {
		last, err := l.rewriteChunk(ctx, id, after, rewriting{to: Unknown, reason: ReasonUnknown, before: before, frees: true})
		if err != nil || last == after {
			return err
		}
		after = last
	}
}

// witness keeps the highest claim numbers of a SQLite ledger in a file beside it. It is written after the claim's commit
// and not synced: it has to survive this process, and may be behind after a power cut; it is never ahead, except of
// a ledger that was put back.
type witness struct {
	mu   sync.Mutex
	file *os.File
}

// openWitness opens or makes the file and gives every number in it to seen.
func openWitness(path string, seen func(company, number int64)) (*witness, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	for company := int64(1); (company+1)*8 <= int64(len(text)); company++ {
		if number := binary.LittleEndian.Uint64(text[company*8:]); number != 0 {
			seen(company, int64(number))
		}
	}
	return &witness{file: file}, nil
}

// note writes a company's number, which stands at eight times its id. highest is called under the lock, so that a lower number never
// overwrites a higher one.
func (w *witness) note(company int64, highest func() int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.file.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(highest())), company*8)
	return err
}
