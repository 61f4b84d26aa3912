package ledger

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"modernc.org/sqlite"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// A full disk refuses what does not fit, loses nothing that was answered, and when there is room again all goes on.
func TestDiskFull(t *testing.T) {
	l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"})
	company := mustCompany(t, l, "acme")
	pages := func(limit string) {
		t.Helper()
		w := <-l.write
		defer func() { l.write <- w }()
		if _, err := w.conn.ExecContext(t.Context(), "PRAGMA max_page_count = "+limit); err != nil {
			t.Fatal(err)
		}
	}
	pages("1") // no smaller than the file is: not one page more
	stored := int64(0)
	var err error
	for n := 0; err == nil; n++ {
		s := newSend(company, n)
		s.Body = make([]byte, 10_000)
		if _, err = l.Add(context.Background(), []NewSend{s}); err == nil {
			stored++
		}
	}
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("a full disk: %v", err)
	}
	checkWritable(t, l, "its disk is full")
	if totals, err := l.Totals(t.Context()); err != nil || totals.Accepted != stored {
		t.Errorf("%d were answered, stored %+v, %v", stored, totals, err)
	}
	pages("4294967294")
	mustAdd(t, l, newSend(company, -1))
	checkWritable(t, l, "")
	if got := len(serveAll(t, l, company, 1000)); int64(got) != stored+1 {
		t.Errorf("%d were sent, want %d", got, stored+1)
	}
}

// Before a disk is so full that a result would not fit, nothing is taken in and nothing begins; what is under way is settled.
func TestSpaceIsKeptForResults(t *testing.T) {
	l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"})
	company := mustCompany(t, l, "acme")
	mustAdd(t, l, newSend(company, 1), newSend(company, 2))
	claimed := mustClaim(t, l, company, chooseFirst)
	l.reserved.Store(1 << 60)
	if _, err := l.Add(t.Context(), []NewSend{newSend(company, 3)}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("add: %v", err)
	}
	if _, err := l.Claim(t.Context(), []int64{company}, time.Second, chooseFirst); !errors.Is(err, ErrUnavailable) {
		t.Errorf("claim: %v", err)
	}
	checkWritable(t, l, "MiB are free")
	mustSettle(t, l, Settlement{ID: claimed.ID, Claim: claimed.Claim, State: Sent})
	checkState(t, l, claimed.ID, Sent)
	l.reserved.Store(reservedSpace)
	checkWritable(t, l, "")
	if got := len(serveAll(t, l, company, 10)); got != 1 {
		t.Errorf("%d were sent once there was room again, want 1", got)
	}
}

func TestReadOnlyDatabase(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustAdd(t, l, newSend(company, 0))
		claimed := mustClaim(t, l, company, chooseFirst)
		settlement := Settlement{ID: claimed.ID, Claim: claimed.Claim, State: Sent}
		id := mustAdd(t, l, newSend(company, 1))[0].Send.ID
		readOnly(t, l, c, true)
		attempts := map[string]func() error{
			"add":    func() error { _, err := l.Add(context.Background(), []NewSend{newSend(company, 2)}); return err },
			"claim":  func() error { _, err := l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst); return err },
			"settle": func() error { _, err := l.Settle(t.Context(), settlement); return err },
			"cancel": func() error { _, _, err := l.Cancel(t.Context(), id); return err },
			"batch":  func() error { _, _, err := l.CreateBatch(t.Context(), newBatch(company)); return err },
		}
		if l.postgres {
			attempts["open"] = func() error { _, err := Open(t.Context(), Config{URL: c.URL, Replica: "two"}); return err }
		}
		for what, try := range attempts {
			if err := try(); !errors.Is(err, ErrUnavailable) || !readOnlyWords.MatchString(err.Error()) {
				t.Errorf("%s: %v", what, err)
			}
		}
		checkState(t, l, id, Pending)
		checkState(t, l, settlement.ID, Sending)
		checkWritable(t, l, "it is read-only")
		readOnly(t, l, c, false)
		if err := l.renew(t.Context()); err != nil { // as Run does it
			t.Fatal(err)
		}
		checkWritable(t, l, "")
		mustSettle(t, l, settlement)
		mustAdd(t, l, newSend(company, 3))
		if got := len(serveAll(t, l, company, 10)); got != 2 {
			t.Errorf("%d were sent once it could be written again, want 2", got)
		}
	})
}

// readOnlyWords are the databases' own.
var readOnlyWords = regexp.MustCompile(`read-?only`)

// A disk, or a standby, that takes longer over a commit than a transaction may take: who waits hears that the ledger is
// unavailable, what was answered is there, nothing is done twice, and all goes on by itself.
func TestSlowCommits(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"})
		hook := func(f sqlite.CommitHookFn) {
			t.Helper()
			w := <-l.write
			defer func() { l.write <- w }()
			if err := w.conn.Raw(func(c any) error { c.(sqlite.HookRegisterer).RegisterCommitHook(f); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		checkSlowCommits(t, l,
			func() { hook(func() int32 { <-time.After(transactionTimeout + time.Second); return 0 }) },
			func() { hook(nil) })
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		cluster := ledgertest.NewCluster(t)
		conn := mustConnect(t, cluster.URL)
		standbys := func(names string) func() {
			return func() {
				t.Helper()
				mustRun(t, conn, "ALTER SYSTEM SET synchronous_standby_names = '"+names+"'")
				mustRun(t, conn, "SELECT pg_reload_conf()")
			}
		}
		checkSlowCommits(t, mustOpen(t, Config{URL: cluster.URL, Replica: "one"}), standbys("missing"), standbys(""))
	})
}

func checkSlowCommits(t *testing.T, l *Ledger, slow, quick func()) {
	company := mustCompany(t, l, "acme")
	mustAdd(t, l, newSend(company, 1))
	claimed := mustClaim(t, l, company, chooseFirst)
	settlement := Settlement{ID: claimed.ID, Claim: claimed.Claim, State: Sent}
	s := newSend(company, 2)
	s.RequestID = "order"
	slow()
	var added []Added
	var addErr, settleErr error
	var calls sync.WaitGroup
	began := time.Now()
	calls.Go(func() { added, addErr = l.Add(t.Context(), []NewSend{s}) })
	calls.Go(func() { _, settleErr = l.Settle(t.Context(), settlement) })
	calls.Wait()
	took := time.Since(began)
	t.Logf("after %v: add: %v; settle: %v", took, addErr, settleErr)
	for _, err := range []error{addErr, settleErr} {
		if err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUncertain) {
			t.Errorf("while commits are slow: %v", err)
		}
	}
	if took < transactionTimeout || took > 6*transactionTimeout {
		t.Errorf("it took %v", took)
	}
	if l.postgres && (addErr == nil || settleErr == nil) {
		t.Error("answered without the standby")
	}
	quick()
	if again := mustAdd(t, l, s)[0]; addErr == nil && again.Send.ID != added[0].Send.ID {
		t.Errorf("what was answered is lost: %+v, then %+v", added, again)
	}
	mustSettle(t, l, settlement)
	serveAll(t, l, company, 10)
	if totals, err := l.Totals(t.Context()); err != nil || totals != (Totals{Accepted: 2, Sent: 2}) {
		t.Errorf("at the end %+v, %v", totals, err)
	}
}

// A full disk of PostgreSQL's is seen by what it answers to an insert. That an update goes well, which needs no room, does not say
// that it is over.
func TestPostgresDiskFull(t *testing.T) {
	c := Config{URL: ledgertest.Postgres(t), Replica: "one"}
	l := mustOpen(t, c)
	company := mustCompany(t, l, "acme")
	conn := mustConnect(t, c.URL)
	ledgertest.FillDisk(t, conn)
	if _, err := l.Add(t.Context(), []NewSend{newSend(company, 1)}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("add: %v", err)
	}
	if err := l.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkWritable(t, l, "its disk is full")
	if _, err := l.Claim(t.Context(), []int64{company}, time.Second, chooseFirst); !errors.Is(err, ErrUnavailable) {
		t.Errorf("claim: %v", err)
	}
	ledgertest.FreeDisk(t, conn)
	mustAdd(t, l, newSend(company, 2))
	checkWritable(t, l, "")
}

// checkWritable checks what is said to keep sends from being stored; nothing is "".
func checkWritable(t *testing.T, l *Ledger, want string) {
	t.Helper()
	switch err := l.Writable(); {
	case err == nil && want != "", err != nil && (want == "" || !strings.Contains(err.Error(), want)):
		t.Errorf("Writable is %v, want %q", err, want)
	}
}

// readOnly makes the database refuse to write, or write again.
func readOnly(t *testing.T, l *Ledger, c Config, on bool) {
	t.Helper()
	if l.postgres {
		conn := mustConnect(t, c.URL+"&default_transaction_read_only=off")
		mustRun(t, conn, fmt.Sprintf(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET default_transaction_read_only = %v', current_database()); END $$`, on))
		l.db.SetMaxIdleConns(0) // new connections take the new setting
		l.db.SetMaxIdleConns(4)
		return
	}
	w := <-l.write
	defer func() { l.write <- w }()
	if _, err := w.conn.ExecContext(t.Context(), "PRAGMA query_only = "+strconv.FormatBool(on)); err != nil {
		t.Fatal(err)
	}
}

// What bounds the time for which a frozen replica can hold a company.
func TestPostgresSessionsAreBounded(t *testing.T) {
	l := mustOpen(t, Config{URL: ledgertest.Postgres(t), Replica: "one"})
	want := map[string]string{
		"idle_in_transaction_session_timeout": "2s", "statement_timeout": "5s", "lock_timeout": "4s", "synchronous_commit": "on",
		"application_name": "jelou-facade one",
	}
	got := map[string]string{}
	for name := range want {
		var value string
		if err := l.db.QueryRowContext(t.Context(), "SHOW "+name).Scan(&value); err != nil {
			t.Fatal(err)
		}
		got[name] = value
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}
