package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// age makes everything that is final older.
func age(t check, l *Ledger, d time.Duration) {
	t.Helper()
	mustExec(t, l, `UPDATE send SET settled_at = settled_at - $1`, micros(d))
	mustExec(t, l, `UPDATE queue SET ended_at = ended_at - $1, settled_at = settled_at - $1`, micros(d))
}

// retainAll goes round once.
func retainAll(t check, l *Ledger, keep Retention, limit int) int {
	t.Helper()
	all := 0
	for {
		n, more, err := l.Retain(t.Context(), keep, limit)
		if err != nil {
			t.Fatal(err)
		}
		if all += n; !more {
			return all
		}
	}
}

func TestRetainSends(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		state State
		keep  Retention
		age   time.Duration
		gone  bool
	}{
		{Sent, Retention{}, 6 * day, false},
		{Sent, Retention{}, 8 * day, true},
		{Sent, Retention{Final: time.Minute}, 23 * time.Hour, false}, // request ids live for a day
		{Sent, Retention{Final: time.Minute}, 25 * time.Hour, true},
		{Failed, Retention{Final: 2 * day}, 3 * day, true},
		{Cancelled, Retention{Final: 2 * day}, 3 * day, true},
		{Expired, Retention{Final: 2 * day}, 3 * day, true},
		{Unknown, Retention{Final: 2 * day, Unknown: 3 * day}, 29 * day, false}, // a person may settle it
		{Unknown, Retention{Final: 2 * day, Unknown: 3 * day}, 31 * day, true},
		{Unknown, Retention{Unknown: 60 * day}, 31 * day, false},
		{Sent, Retention{Final: 60 * day}, 31 * day, false},
		{Unknown, Retention{Final: 60 * day}, 31 * day, false},
		{Pending, Retention{}, 365 * day, false},
		{Scheduled, Retention{}, 365 * day, false},
		{Sending, Retention{}, 365 * day, false},
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for i, test := range tests {
			s := reach(t, l, mustCompany(t, l, fmt.Sprint(i)), test.state, i)
			age(t, l, test.age)
			retainAll(t, l, test.keep, 100)
			if _, err := l.Get(t.Context(), s.ID); errors.Is(err, ErrNotFound) != test.gone {
				t.Errorf("%s, %v old, under %+v: %v", test.state, test.age, test.keep, err)
			}
			if err := l.CheckInvariant(t.Context()); err != nil {
				t.Error(err)
			}
			age(t, l, -test.age)
		}
	})
}

// One call does a bounded part, and the round comes past what it keeps.
func TestRetainIsBounded(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for i := range 25 {
			reach(t, l, company, []State{Unknown, Sent}[i%2], i)
		}
		age(t, l, 8*24*time.Hour)
		deleted := 0
		for round := 0; ; round++ {
			n, more, err := l.Retain(t.Context(), Retention{}, 5)
			if err != nil || n > 5 {
				t.Fatalf("deleted %d, %v", n, err)
			}
			if deleted += n; !more {
				break
			}
			if round > 10 {
				t.Fatal("the round does not end")
			}
		}
		if totals, err := l.Totals(t.Context()); err != nil || deleted != 12 || totals != (Totals{Accepted: 13, Unknown: 13}) {
			t.Errorf("deleted %d, left %+v, %v", deleted, totals, err)
		}
		// What a person settles is as old as that.
		var unknown ID
		sends, _, err := l.Sends(t.Context(), SendFilter{Companies: []int64{company}}, Cursor{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		unknown = sends[0].ID
		if _, ok, err := l.Resolve(t.Context(), unknown, Sent, ""); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if n := retainAll(t, l, Retention{}, 5); n != 0 {
			t.Errorf("deleted %d that were just resolved", n)
		}
		age(t, l, 8*24*time.Hour)
		if n := retainAll(t, l, Retention{}, 5); n != 1 {
			t.Errorf("deleted %d, want the one that was resolved", n)
		}
	})
}

func TestRetainBatches(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		finish := func(n int, outcome State) Batch {
			b := mustFill(t, l, company, n)
			for range n {
				settleNext(t, l, company, outcome)
			}
			return mustRead(t, l, b.ID)
		}
		old, unknown := finish(12, Sent), finish(3, Unknown)
		cancelled := mustFill(t, l, company, 3)
		if _, err := l.CancelBatch(t.Context(), cancelled.ID); err != nil {
			t.Fatal(err)
		}
		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		age(t, l, 8*24*time.Hour)
		recent, open := finish(2, Sent), mustCreate(t, l, newBatch(company))

		if n, more, err := l.Retain(t.Context(), Retention{}, 5); err != nil || n != 5 || !more {
			t.Errorf("deleted %d, more %v, %v", n, more, err)
		}
		// On its way out a batch is not found; who reads its results from the beginning hears that they are gone.
		if _, err := l.Batch(t.Context(), old.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("half of a batch: %v", err)
		}
		if _, _, err := l.Results(t.Context(), old.ID, 0, 10); !errors.Is(err, ErrCursorExpired) {
			t.Errorf("results from the beginning: %v", err)
		}
		if got, _, err := l.Results(t.Context(), old.ID, 5, 100); err != nil || len(got) != 7 {
			t.Errorf("%d results after the deleted ones, %v", len(got), err)
		}
		if err := l.CheckInvariant(t.Context()); err != nil {
			t.Error(err)
		}
		if n := retainAll(t, l, Retention{}, 5); n != 7+3 {
			t.Errorf("deleted %d more", n)
		}
		for _, gone := range []Batch{old, cancelled} {
			if _, _, err := l.Results(t.Context(), gone.ID, 0, 10); !errors.Is(err, ErrNotFound) {
				t.Errorf("results of what is gone: %v", err)
			}
		}
		for _, kept := range []Batch{unknown, recent, open} {
			if got := mustRead(t, l, kept.ID); got.Counts != kept.Counts {
				t.Errorf("kept %+v", got)
			}
		}
		age(t, l, 23*24*time.Hour)
		if n := retainAll(t, l, Retention{}, 100); n != 3+2 {
			t.Errorf("deleted %d after a month", n)
		}
	})
}

// A request id is free again when its batch is gone.
func TestRetainFreesRequestIDs(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		n := newBatch(company)
		n.RequestID = "campaign"
		b := mustCreate(t, l, n)
		if _, err := l.Seal(t.Context(), b.ID, 0, 0); err != nil {
			t.Fatal(err)
		}
		age(t, l, 8*24*time.Hour)
		retainAll(t, l, Retention{}, 10)
		if again := mustCreate(t, l, n); again.ID == b.ID {
			t.Error("the batch is still there")
		}
	})
}

// Who settles an item of an old batch can read what he did: it is kept as long as if it had ended then.
func TestRetainCountsFromTheLastResult(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		settlers := map[string]func(s Send) error{
			"a person": func(s Send) error { _, _, err := l.Resolve(t.Context(), s.ID, Sent, ""); return err },
			"its claimant": func(s Send) error {
				_, err := l.Settle(t.Context(), Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
				return err
			},
		}
		for name, settle := range settlers {
			b := mustFill(t, l, company, 2)
			settleNext(t, l, company, Sent)
			unknown := settleNext(t, l, company, Unknown)
			ended := mustRead(t, l, b.ID).EndedAt
			age(t, l, 8*24*time.Hour)
			if err := settle(unknown); err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, l, b.ID).EndedAt; got != ended-micros(8*24*time.Hour) {
				t.Errorf("%s: it ended at %d, now at %d", name, ended, got)
			}
			age(t, l, 23*time.Hour)
			if n := retainAll(t, l, Retention{Final: time.Hour}, 100); n != 0 {
				t.Errorf("%s: deleted %d within a day", name, n)
			}
			mustRead(t, l, b.ID)
			age(t, l, 2*time.Hour)
			if n := retainAll(t, l, Retention{Final: time.Hour}, 100); n != 2 {
				t.Errorf("%s: deleted %d, want the batch", name, n)
			}
		}
	})
}

// Whatever has piled up, one pass of what runs beside the sends takes a chunk of it and says that there is more.
func TestForgettingIsBounded(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for n := range 2*notificationChunk + 1 {
			mustExec(t, l, `INSERT INTO notification (company, bot, id, caller, sent_at) VALUES (1, 'demo', $1, 'shop', 1)`, fmt.Sprint(n))
		}
		for n := range 2*gapChunk + 1 {
			mustExec(t, l, `INSERT INTO gap (company, bot, recipient, until) VALUES (1, 'demo', $1, 1)`, fmt.Sprint(n))
		}
		count := func(table string) (n int) {
			t.Helper()
			if err := l.query(t.Context(), `SELECT count(*) FROM `+table, func(scan scanFunc) error { return scan(&n) }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for left := notificationChunk + 1; left >= 0; left -= notificationChunk {
			if _, more, err := l.Retain(t.Context(), Retention{}, 5); err != nil || !more || count("notification") != left {
				t.Errorf("%d notifications are left, want %d; more %v, %v", count("notification"), left, more, err)
			}
			if next, err := l.sweep(t.Context()); err != nil || next != gapRest || count("gap") != left {
				t.Errorf("%d gaps are left, want %d; next in %v, %v", count("gap"), left, next, err)
			}
		}
		if _, more, err := l.Retain(t.Context(), Retention{}, 5); err != nil || more {
			t.Errorf("the last: more %v, %v", more, err)
		}
		if next, err := l.sweep(t.Context()); err != nil || next != sweepEvery || count("gap") != 0 {
			t.Errorf("the last: %d gaps, next in %v, %v", count("gap"), next, err)
		}
	})
}

// What retention deletes is not in SQLite's files any more, neither in pages that became free nor in the log.
func TestRetainLeavesNoTraces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, Config{Path: path, Replica: "one"})
	company := mustCompany(t, l, "acme")
	var sends []NewSend
	for n := range 300 {
		s := newSend(company, n)
		s.Recipient, s.Labels = fmt.Sprintf("canary-recipient-%d", n), `{"who":"canary-label"}`
		s.Body = bytes.Repeat([]byte("canary-body "), 1+n%3*500) // in a row, and on pages beside it
		sends = append(sends, s)
	}
	mustAdd(t, l, sends...)
	batch := newBatch(company)
	batch.Spec = bytes.Repeat([]byte("canary-spec "), 500)
	if _, err := l.Seal(t.Context(), mustCreate(t, l, batch).ID, 0, 0); err != nil {
		t.Fatal(err)
	}
	for range sends {
		settleNext(t, l, company, Sent)
	}
	if n := strings.Count(filesOf(t, path), "canary"); n == 0 {
		t.Fatal("nothing is in the files")
	}
	age(t, l, 8*24*time.Hour)
	if n := retainAll(t, l, Retention{}, 50); n != len(sends) {
		t.Errorf("deleted %d", n)
	}
	for _, planted := range []string{"canary-recipient", "canary-label", "canary-body", "canary-spec"} {
		if n := strings.Count(filesOf(t, path), planted); n != 0 {
			t.Errorf("%s is %d times in the files", planted, n)
		}
	}
}

// filesOf is all that stands in the files of a SQLite ledger.
func filesOf(t *testing.T, path string) string {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}
