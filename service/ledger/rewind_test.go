package ledger

import (
	"bytes"
	"context"
	"errors"
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

// hold puts the ledger into a hold that began later than all that was accepted.
func hold(t *testing.T, l *Ledger) {
	t.Helper()
	mustExec(t, l, `UPDATE home SET held = 1, held_at = $1`, time.Now().Add(time.Second).UnixMicro())
}

// What waits in a ledger that went back in time may have been sent. Neither its time nor its caller's end nor a cancel makes
// it anything else, so that whoever asks again under its id is not served twice.
func TestHeldLedgerEndsNothing(t *testing.T) {
	ways := map[string]func(t *testing.T, l *Ledger){
		"held":    hold,
		"rewound": func(t *testing.T, l *Ledger) { mustExec(t, l, `UPDATE company SET claim_no = claim_no - 1`) },
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		n := 0
		for name, goBack := range ways {
			company := mustCompany(t, l, name)
			add := func(change func(*NewSend)) NewSend {
				n++
				s := newSend(company, n)
				s.RequestID = fmt.Sprint("order-", n)
				change(&s)
				return s
			}
			source := mustFill(t, l, company, 1)
			settleNext(t, l, company, Failed)
			flying := mustAdd(t, l, add(func(*NewSend) {}))[0].Send.ID
			claimed := mustClaim(t, l, company, chooseFirst)
			batch := mustCreate(t, l, newBatch(company))
			sends := []NewSend{
				add(func(*NewSend) {}),
				add(func(s *NewSend) { s.OwnerBound = true }),
				add(func(s *NewSend) { s.Queue, s.Pos = batch.ID.Queue, 1 }),
			}
			for range sweepChunk + 1 { // more than one pass of a sweep finds
				sends = append(sends, add(func(s *NewSend) { s.ExpireIn = time.Hour }))
			}
			added := mustAdd(t, l, sends...)
			single, bound, item, brief := added[0].Send.ID, added[1].Send.ID, added[2].Send.ID, added[3].Send.ID
			mustExec(t, l, `UPDATE send SET expire_at = 1 WHERE company = $1 AND (expire_at IS NOT NULL OR state = 'sending')`, company)
			mustExec(t, l, `UPDATE send SET owner = 'gone' WHERE owner IS NOT NULL`)
			mustExec(t, l, `INSERT INTO replica (id, alive_until) VALUES ('gone', 1) ON CONFLICT DO NOTHING`)
			goBack(t, l)

			if _, err := l.sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if h, err := l.Halt(t.Context()); err != nil || !h.Held {
				t.Fatalf("the sweep did not notice: %+v, %v", h, err)
			}
			attempts := map[string]func() error{
				"expire": func() error { _, _, err := l.Expire(t.Context(), brief); return err },
				"cancel": func() error { _, _, err := l.Cancel(t.Context(), single); return err },
				"batch":  func() error { _, err := l.CancelBatch(t.Context(), QueueID{company, item.Queue}); return err },
				"replay": func() error { _, _, err := l.Replay(t.Context(), newReplay(source, Failed)); return err },
			}
			for what, try := range attempts {
				if err := try(); !errors.Is(err, ErrHeld) {
					t.Errorf("%s, %s: %v", name, what, err)
				}
			}
			mustSettle(t, l, Settlement{ID: flying, Claim: claimed.Claim, State: Pending})
			for _, id := range []ID{single, bound, item, brief, flying} {
				checkState(t, l, id, Pending)
			}
			mustExec(t, l, `UPDATE home SET held_at = $1`, time.Now().Add(time.Second).UnixMicro())
			mustRelease(t, l, Unknown)
			for i, a := range mustAdd(t, l, sends...) {
				if a.Send.ID != added[i].Send.ID || !a.Joined || a.Send.State != Unknown {
					t.Fatalf("%s: asked again: %+v", name, a)
				}
			}
			if got := mustClaim(t, l, company, chooseFirst); got != nil {
				t.Errorf("%s: sent again: %+v", name, got)
			}
			if b, err := l.CancelBatch(t.Context(), QueueID{company, item.Queue}); err != nil || b.Counts.Unknown != 1 {
				t.Errorf("%s: cancelled after the release: %+v, %v", name, b, err)
			}
		}
	})
}

// A batch that the backup has cancelled was never claimed from again: its items are cancelled while the ledger is held, too.
func TestHeldLedgerGoesOnCancelling(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		b := mustFill(t, l, mustCompany(t, l, "acme"), 3)
		if _, err := l.CancelBatch(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
		hold(t, l)
		if again, err := l.CancelBatch(t.Context(), b.ID); err != nil || again.State != BatchCancelled {
			t.Errorf("cancelled again: %+v, %v", again, err)
		}
		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustRelease(t, l, Unknown)
		if got := mustRead(t, l, b.ID); got.Counts.Cancelled != 3 || got.EndedAt == 0 {
			t.Errorf("cancelled %+v", got)
		}
	})
}

// A replay that the backup has half of was copied and sent to its end, maybe.
func TestReplayOfAHeldLedgerIsGivenUp(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)
		id, c1, err := beginReplay(t, l, newReplay(source, Failed))
		if err != nil || c1.complete {
			t.Fatalf("%+v, %v", c1, err)
		}
		hold(t, l)
		mustExec(t, l, `UPDATE queue SET created_at = 1 WHERE id = $1`, id.Queue)
		if _, err := l.continueReplay(t.Context(), id); !errors.Is(err, ErrHeld) {
			t.Errorf("went on: %v", err)
		}
		if err := l.completeReplays(t.Context()); err != nil {
			t.Error(err)
		}
		if got := mustRead(t, l, id).Counts; got.Accepted != c1.items {
			t.Errorf("it grew to %+v", got)
		}
		mustRelease(t, l, Unknown)
		if got := mustRead(t, l, id); got.Counts != (Counts{Accepted: 375, Unknown: 375}) || got.EndedAt == 0 {
			t.Errorf("released %+v", got)
		}
		if _, _, err := l.Replay(t.Context(), newReplay(source, Failed)); !errors.Is(err, ErrNothingToReplay) {
			t.Errorf("replayed again: %v", err)
		}
	})
}

// Ids and cursors that were given out in the time that is lost name nothing that comes later.
func TestNumbersGoOnAboveTheLostOnes(t *testing.T) {
	for _, unsent := range []State{Unknown, Pending} {
		t.Run(string(unsent), func(t *testing.T) {
			eachBackend(t, func(t *testing.T, c Config) {
				l := mustOpen(t, c)
				company := mustCompany(t, l, "acme")
				b := mustFill(t, l, company, 4)
				settleNext(t, l, company, Sent)
				settleNext(t, l, company, Sent)
				const cursor = 4 // the other two had their results, and a stream had them
				lost := mustAdd(t, l, newSend(company, 9))[0].Send.ID
				mustExec(t, l, `DELETE FROM send WHERE queue = $1`, lost.Queue)
				mustExec(t, l, `UPDATE tally SET added = 0 WHERE queue = $1`, lost.Queue)
				if l.postgres {
					mustExec(t, l, fmt.Sprintf(`ALTER SEQUENCE send_pos RESTART WITH %d`, lost.Pos))
				} else {
					mustExec(t, l, `UPDATE counter SET next = $1`, lost.Pos)
				}
				mustExec(t, l, `UPDATE company SET claim_no = 1`)
				if err := l.lookBack(t.Context()); err != nil {
					t.Fatal(err)
				}
				held := mustAdd(t, l, newSend(company, 10))[0].Send.ID
				mustRelease(t, l, unsent)
				if unsent == Pending {
					serveAll(t, l, company, 3)
				}
				after := mustAdd(t, l, newSend(company, 11))[0].Send.ID
				if held.Pos <= lost.Pos || after.Pos <= held.Pos {
					t.Errorf("ids %v, %v after %v", held, after, lost)
				}
				if got, _, err := l.Results(t.Context(), b.ID, cursor, 10); err != nil || len(got) != 2 {
					t.Errorf("%d results after the cursor, %v", len(got), err)
				}
				// Again, from a backup that was made while it was held.
				mustExec(t, l, `UPDATE home SET held = 1, held_at = 1`)
				mustRelease(t, l, unsent)
				if again := mustAdd(t, l, newSend(company, 12))[0].Send.ID; again.Pos < after.Pos+1<<31 || parseAgain(t, again) != again {
					t.Errorf("id %v after %v", again, after)
				}
			})
		})
	}
}

// parseAgain reads an id as callers have it.
func parseAgain(t *testing.T, id ID) ID {
	t.Helper()
	again, err := ParseID(id.String())
	if err != nil {
		t.Error(err)
	}
	return again
}

// What one replica claims another one that does not remembers from its looks.
func TestReplicaRemembersWhatItLooksAt(t *testing.T) {
	one, two, _ := openTwo(t)
	company := mustCompany(t, one, "acme")
	added := mustAdd(t, one, newSend(company, 1), newSend(company, 2))
	settleNext(t, one, company, Sent)
	if err := two.lookBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustExec(t, one, `UPDATE company SET claim_no = 0`)
	if _, _, err := two.Cancel(t.Context(), added[1].Send.ID); !errors.Is(err, ErrHeld) {
		t.Errorf("cancelled: %v", err)
	}
	checkHalt(t, two, Halt{Held: true, Rewound: true})
	mustRelease(t, two, Pending)
}
