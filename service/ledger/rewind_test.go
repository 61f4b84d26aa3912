package ledger

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// open opens a ledger that the test closes itself.
func open(t *testing.T, c Config) *Ledger {
	t.Helper()
	l, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t *testing.T, l *Ledger) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func checkHalt(t *testing.T, l *Ledger, want Halt) {
	t.Helper()
	got, err := l.Halt(t.Context())
	if err != nil || got.Held != want.Held || got.Rewound != want.Rewound || (got.Since != 0) != want.Held {
		t.Errorf("halted %+v, %v; want %+v", got, err, want)
	}
}

func mustRelease(t *testing.T, l *Ledger, unsent State) {
	t.Helper()
	if err := l.Release(t.Context(), unsent); err != nil {
		t.Fatal(err)
	}
	checkHalt(t, l, Halt{})
}

// One replica's claims are lost; another one, which has seen none of them, must not claim either.
func TestRewoundLedgerIsHeldForAll(t *testing.T) {
	one, two, _ := openTwo(t)
	company := mustCompany(t, one, "acme")
	for i := range 5 {
		mustAdd(t, one, newSend(company, i))
	}
	serveAll(t, one, company, 3)
	mustExec(t, one, `UPDATE company SET claim_no = 1`)
	claims, err := one.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
	if err != nil || !claims[0].Rewound || claims[0].Send != nil {
		t.Fatalf("claimed %+v, %v", claims, err)
	}
	claims, err = two.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
	if err != nil || !claims[0].Held || claims[0].Send != nil {
		t.Errorf("the other replica claimed %+v, %v", claims, err)
	}
	checkHalt(t, two, Halt{Held: true, Rewound: true})
	mustRelease(t, two, Pending)
	for _, l := range []*Ledger{one, two} {
		if got := mustClaim(t, l, company, chooseFirst); got == nil || got.Claim <= 3 {
			t.Errorf("claimed %+v after the release", got)
		}
	}
}

// A replica has seen the claims of others, too.
func TestReplicaRemembersOthersClaims(t *testing.T) {
	one, two, _ := openTwo(t)
	company := mustCompany(t, one, "acme")
	for i := range 4 {
		mustAdd(t, one, newSend(company, i))
	}
	serveAll(t, one, company, 3)
	if _, err := two.Claim(t.Context(), []int64{company}, time.Minute, func(View) Choice { return Choice{} }); err != nil {
		t.Fatal(err)
	}
	mustExec(t, one, `UPDATE company SET claim_no = 2`)
	claims, err := two.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
	if err != nil || !claims[0].Rewound {
		t.Errorf("claimed %+v, %v", claims, err)
	}
	mustRelease(t, two, Pending)
}

// A copy of the file, made before the last sends, is put back in each of the ways that people do.
func TestRestoredFileIsHeld(t *testing.T) {
	restores := map[string]func(backup, path string) error{
		"written over": func(backup, path string) error {
			text, err := os.ReadFile(backup)
			if err != nil {
				return err
			}
			return os.WriteFile(path, text, 0o600)
		},
		"moved into its place": os.Rename,
		"with the file beside it": func(backup, path string) error {
			text, err := os.ReadFile(backup + ".claims")
			if err != nil {
				return err
			}
			if err := os.WriteFile(path+".claims", text, 0o600); err != nil {
				return err
			}
			return os.Rename(backup, path)
		},
	}
	for name, restore := range restores {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			c := Config{Path: path, Replica: "one"}
			l := open(t, c)
			company := mustCompany(t, l, "acme")
			for i := range 4 {
				mustAdd(t, l, newSend(company, i))
			}
			serveAll(t, l, company, 1)
			mustClose(t, l)
			for _, file := range []string{path, path + ".claims"} {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(strings.Replace(file, "ledger.db", "backup.db", 1), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l = open(t, c)
			checkHalt(t, l, Halt{})
			serveAll(t, l, company, 2)
			mustClose(t, l)
			if err := restore(filepath.Join(filepath.Dir(path), "backup.db"), path); err != nil {
				t.Fatal(err)
			}

			l = mustOpen(t, c)
			h, err := l.Halt(t.Context())
			if err != nil || !h.Held {
				t.Fatalf("a restored file: %+v, %v", h, err)
			}
			claims, err := l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
			if err != nil || claims[0].Send != nil || !claims[0].Held {
				t.Errorf("claimed %+v, %v", claims, err)
			}
			after := mustAdd(t, l, newSend(company, 9))[0].Send.ID
			mustRelease(t, l, Unknown)
			totals, err := l.Totals(t.Context())
			if want := (Totals{Accepted: 5, Sent: 1, Unknown: 3, Waiting: 1}); err != nil || totals != want {
				t.Errorf("released: %+v, %v; want %+v", totals, err, want)
			}
			if got := mustClaim(t, l, company, chooseFirst); got == nil || got.ID != after {
				t.Errorf("claimed %+v, want what was added after", got)
			}
		})
	}
}

// Opening the same file again, however often, holds nothing.
func TestReopenedFileIsNotHeld(t *testing.T) {
	c := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"}
	for i := range 3 {
		l := open(t, c)
		company := mustCompany(t, l, "acme")
		mustAdd(t, l, newSend(company, i))
		settleNext(t, l, company, Sent)
		checkHalt(t, l, Halt{})
		mustClose(t, l)
	}
}

// Who takes the file away and begins anew has nothing that could be sent twice.
func TestNewFileIsNotHeld(t *testing.T) {
	c := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"}
	for range 2 {
		l := open(t, c)
		company := mustCompany(t, l, "acme")
		mustAdd(t, l, newSend(company, 1), newSend(company, 2))
		settleNext(t, l, company, Sent)
		settleNext(t, l, company, Sent)
		checkHalt(t, l, Halt{})
		mustClose(t, l)
		if err := os.Remove(c.Path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReleaseDecidesAboutEveryUnsentSend(t *testing.T) {
	tests := []struct {
		unsent State
		want   map[string]State
	}{
		{Unknown, map[string]State{"loose": Unknown, "item": Unknown, "paused": Unknown, "parked": Unknown, "backoff": Unknown, "due": Unknown,
			"later": Scheduled, "new": Pending, "cancelled": Cancelled, "sent": Sent, "sending": Sending}},
		{Pending, map[string]State{"loose": Pending, "item": Pending, "paused": Pending, "parked": Pending, "backoff": Pending, "due": Scheduled,
			"later": Scheduled, "new": Pending, "cancelled": Cancelled, "sent": Sent, "sending": Sending}},
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for i, test := range tests {
			company := mustCompany(t, l, fmt.Sprint(i))
			ids := everyUnsent(t, l, company, 100*i)
			mustExec(t, l, `UPDATE home SET held = 1, held_at = $1`, ids["held"].Pos)
			if err := l.Release(t.Context(), Sent); err == nil {
				t.Error("released as sent")
			}
			mustRelease(t, l, test.unsent)
			for name, want := range test.want {
				if got := checkState(t, l, ids[name], want); got.State == Unknown && got.ResultNo == 0 {
					t.Errorf("%s: %+v", name, got)
				}
			}
			if err := l.CheckInvariant(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// everyUnsent makes a send of each kind, and tells when a hold comes that all but the last are older than.
func everyUnsent(t *testing.T, l *Ledger, company int64, n int) map[string]ID {
	t.Helper()
	ids := map[string]ID{}
	add := func(name string, change func(s *NewSend)) *NewSend {
		n++
		s := newSend(company, n)
		change(&s)
		ids[name] = mustAdd(t, l, s)[0].Send.ID
		return &s
	}
	batch := func(change func(b *NewBatch)) func(s *NewSend) {
		b := newBatch(company)
		change(&b)
		id := mustCreate(t, l, b).ID
		return func(s *NewSend) { s.Queue, s.Pos = id.Queue, 1 }
	}
	add("sent", func(*NewSend) {})
	settleNext(t, l, company, Sent)
	sending := add("sending", func(*NewSend) {})
	mustClaim(t, l, company, chooseFirst)
	add("parked", func(s *NewSend) { s.Recipient = sending.Recipient })
	add("backoff", func(*NewSend) {})
	given := mustClaim(t, l, company, chooseFirst) // parks the one before
	mustSettle(t, l, Settlement{ID: given.ID, Claim: given.Claim, State: Pending, Backoff: time.Minute})
	add("loose", func(*NewSend) {})
	add("item", batch(func(*NewBatch) {}))
	add("paused", batch(func(b *NewBatch) { b.Paused = true }))
	add("cancelled", batch(func(*NewBatch) {}))
	if _, err := l.CancelBatch(t.Context(), QueueID{company, ids["cancelled"].Queue}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	add("due", func(s *NewSend) { s.DueAt = now.Add(time.Minute).UnixMicro() })
	add("later", func(s *NewSend) { s.DueAt = now.Add(time.Hour).UnixMicro() })
	add("new", func(*NewSend) {})
	mustExec(t, l, `UPDATE send SET accepted_at = $1 WHERE company = $2 AND queue = $3 AND pos = $4`,
		now.Add(time.Hour).UnixMicro(), company, ids["new"].Queue, ids["new"].Pos)
	ids["held"] = ID{Pos: now.Add(10 * time.Minute).UnixMicro()}
	return ids
}

// The settlement of a claim that was lost must not fit a new claim.
func TestLostClaimHasNoSay(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustAdd(t, l, newSend(company, 1), newSend(company, 2))
		lost := mustClaim(t, l, company, chooseFirst)
		mustExec(t, l, `UPDATE send SET state = 'pending', claim = NULL, lease_until = NULL WHERE pos = $1`, lost.ID.Pos)
		mustExec(t, l, `UPDATE queue SET sending = 0, head_pos = 0`)
		mustExec(t, l, `UPDATE company SET claim_no = 0`)
		if err := l.checkRewound(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkHalt(t, l, Halt{Held: true, Rewound: true})
		mustRelease(t, l, Pending)
		again := mustClaim(t, l, company, chooseFirst)
		if again == nil || again.ID != lost.ID || again.Claim == lost.Claim {
			t.Fatalf("claimed %+v, first %+v", again, lost)
		}
		if _, err := l.Settle(t.Context(), Settlement{ID: lost.ID, Claim: lost.Claim, State: Sent}); err == nil {
			t.Error("a lost claim settled the new one")
		}
	})
}

func TestAnotherTimeline(t *testing.T) {
	for _, test := range []struct {
		name    string
		durable int
		held    bool
	}{{"asynchronous", 0, true}, {"synchronous", 1, false}} {
		t.Run(test.name, func(t *testing.T) {
			cluster := ledgertest.NewCluster(t)
			c := Config{URL: cluster.URL, Replica: "one"}
			l := mustOpen(t, c)
			company := mustCompany(t, l, "acme")
			mustAdd(t, l, newSend(company, 1), newSend(company, 2))
			settleNext(t, l, company, Sent)
			// As if the primary had said so, when it was last asked.
			mustExec(t, l, `UPDATE home SET durable = $1`, test.durable)
			if err := cluster.Promote(); err != nil {
				t.Fatal(err)
			}
			var claims []Claim
			for range 100 { // until the pool's connections are new
				var err error
				if claims, err = l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst); err == nil {
					break
				}
			}
			if len(claims) != 1 || claims[0].Send != nil {
				t.Fatalf("claimed at once on another timeline: %+v", claims)
			}
			checkHalt(t, l, Halt{Held: test.held})
			if got := mustClaim(t, l, company, chooseFirst); (got == nil) != test.held {
				t.Errorf("claimed %+v", got)
			}
			if test.held {
				mustRelease(t, l, Pending)
				settleNext(t, l, company, Sent)
			}
		})
	}
}

func TestDurability(t *testing.T) {
	lite := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"})
	if d, err := lite.Durability(t.Context()); err != nil || !d.Failover {
		t.Errorf("a file: %+v, %v", d, err)
	}
	var log bytes.Buffer
	l := mustOpen(t, Config{URL: ledgertest.Postgres(t), Replica: "one", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	d, err := l.Durability(t.Context())
	if err != nil || d.Failover || !strings.Contains(d.Why, "synchronous_standby_names") {
		t.Errorf("PostgreSQL without a standby: %+v, %v", d, err)
	}
	if !strings.Contains(log.String(), "a failover of the database may lose") {
		t.Errorf("not said at the start: %s", &log)
	}
	mustExec(t, l, `UPDATE home SET durable = 1`)
	if err := l.noteDurability(t.Context()); err != nil {
		t.Error(err)
	}
	durable := 1
	if err := l.query(t.Context(), `SELECT durable FROM home`, func(scan scanFunc) error { return scan(&durable) }); err != nil || durable != 0 {
		t.Errorf("noted %d, %v", durable, err)
	}
}

// A ledger that nobody claims from is found to have gone back in time, too; one that is claimed from meanwhile is not.
func TestIdleLedgerLooksBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		stop := make(chan struct{})
		var looking sync.WaitGroup
		looking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := l.lookBack(context.Background()); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
		for n := range 50 {
			mustAdd(t, l, newSend(company, n))
			settleNext(t, l, company, Sent)
		}
		close(stop)
		looking.Wait()
		checkHalt(t, l, Halt{})
		mustExec(t, l, `UPDATE company SET claim_no = claim_no - 1`)
		if err := l.lookBack(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkHalt(t, l, Halt{Held: true, Rewound: true})
	})
}
