package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAddOptions(t *testing.T) {
	hour := time.Now().Add(time.Hour).UnixMicro()
	tests := []struct {
		name  string
		with  func(s *NewSend)
		state State
		check func(s Send) bool
	}{
		{"nothing", func(*NewSend) {}, Pending, func(s Send) bool { return s.DueAt == 0 && s.ExpireAt == 0 && s.Owner == "" }},
		{"scheduled", func(s *NewSend) { s.DueAt = hour }, Scheduled, func(s Send) bool { return s.DueAt == hour }},
		{"scheduled for a time that is past", func(s *NewSend) { s.DueAt = 1 }, Pending, func(s Send) bool { return s.DueAt == 0 }},
		{"expires", func(s *NewSend) { s.ExpireAt = hour }, Pending, func(s Send) bool { return s.ExpireAt == hour }},
		{"expires in", func(s *NewSend) { s.ExpireIn = time.Minute }, Pending, func(s Send) bool { return s.ExpireAt == s.AcceptedAt+60_000_000 }},
		{"expires at the earlier", func(s *NewSend) { s.ExpireIn, s.ExpireAt = time.Minute, hour }, Pending,
			func(s Send) bool { return s.ExpireAt == s.AcceptedAt+60_000_000 }},
		{"owned", func(s *NewSend) { s.OwnerBound = true }, Pending, func(s Send) bool { return s.Owner == "one" }},
		{"labels and choice", func(s *NewSend) { s.Labels, s.OnUnknown = `{"app":"shop"}`, Retry }, Pending,
			func(s Send) bool { return s.Labels == `{"app":"shop"}` && s.OnUnknown == Retry }},
		{"a bad item", func(s *NewSend) { s.Final = &Final{Reason: "INVALID_FIELD", Result: []byte("why")} }, Failed,
			func(s Send) bool {
				return s.Reason == "INVALID_FIELD" && string(s.Result) == "why" && s.SettledAt == s.AcceptedAt
			}},
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for i, test := range tests {
			s := newSend(company, i)
			test.with(&s)
			added := mustAdd(t, l, s)[0].Send
			stored := checkState(t, l, added.ID, test.state)
			if added.State != test.state || !test.check(added) || !test.check(stored) {
				t.Errorf("%s: answered %+v, stored %+v", test.name, added, stored)
			}
			if test.state == Pending {
				if _, ok, err := l.Cancel(t.Context(), added.ID); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
		}
	})
}

func TestScheduledSendsComeDue(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- l.Run(ctx) }()
		company := mustCompany(t, l, "acme")
		s := newSend(company, 1)
		s.DueAt = time.Now().Add(30 * time.Millisecond).UnixMicro()
		id := mustAdd(t, l, s)[0].Send.ID
		for checkNow := true; checkNow; {
			got := mustClaim(t, l, company, chooseFirst)
			if got != nil && (got.ID != id || time.Now().UnixMicro() < s.DueAt) {
				t.Errorf("claimed %+v before its time", got)
			}
			if checkNow = got == nil; checkNow {
				<-l.Wakes()
			}
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

func TestOwnedSendsDieWithTheirOwner(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		s := newSend(company, 1)
		s.OwnerBound = true
		met, swept := mustAdd(t, l, s)[0].Send.ID, mustAdd(t, l, s)[0].Send.ID
		if err := l.leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustExec(t, l, `UPDATE send SET parked = 1 WHERE pos = $1`, swept.Pos) // so that only the sweep finds it
		if got := mustClaim(t, l, company, chooseFirst); got != nil {
			t.Errorf("claimed %+v for a caller who is gone", got)
		}
		checkState(t, l, met, Expired)
		sweepAll(t, l)
		checkState(t, l, swept, Expired)
		rows := 0
		if err := l.query(t.Context(), `SELECT count(*) FROM replica`, func(scan scanFunc) error { return scan(&rows) }); err != nil || rows != 0 {
			t.Errorf("%d replicas, %v", rows, err)
		}
		if err := l.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustAdd(t, l, s)
		if got := mustClaim(t, l, company, chooseFirst); got == nil {
			t.Error("nothing claimed for an owner who is back")
		}
	})
}

func TestQueuesThatTakeNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustBatch(t, l, company, 7, Bulk)
		first := items(company, 7, 0, 1)[0]
		first.Uploader = 1
		add := func(s NewSend) Added {
			t.Helper()
			out, err := l.Add(t.Context(), []NewSend{s})
			if err != nil {
				t.Fatal(err)
			}
			return out[0]
		}
		if got := add(first); !errors.Is(got.Err, ErrStreamReplaced) {
			t.Errorf("an older stream's item: %+v", got)
		}
		mustExec(t, l, `UPDATE queue SET uploader = 1`)
		id := add(first).Send.ID
		mustExec(t, l, `UPDATE queue SET item_count = 1, sealed_at = 1`)
		if got := add(items(company, 7, 1, 1)[0]); !errors.Is(got.Err, ErrSealed) {
			t.Errorf("an item after the seal: %+v", got)
		}
		if got := add(first); !got.Joined || got.Send.ID != id {
			t.Errorf("a durable item after the seal: %+v", got)
		}
		other := first
		other.Hash = []byte("other")
		if got := add(other); !errors.Is(got.Err, ErrSequenceMismatch) {
			t.Errorf("another item in its place after the seal: %+v", got)
		}
		missing := first
		missing.Queue = 8
		if got := add(missing); !errors.Is(got.Err, ErrNotFound) {
			t.Errorf("an item of no batch: %+v", got)
		}
		serveAll(t, l, company, 9)
		state := ""
		if err := l.query(t.Context(), `SELECT state FROM queue WHERE id = 7`, func(scan scanFunc) error { return scan(&state) }); err != nil || state != "closed" {
			t.Errorf("after its last result the batch is %q, %v", state, err)
		}
	})
}

func TestItemsWithRequestIDsOfOthers(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustBatch(t, l, company, 7, Bulk)
		for i, test := range []struct {
			hash string
			want State
		}{{"hash 1", Cancelled}, {"other", Failed}} {
			single := newSend(company, 1)
			single.RequestID = fmt.Sprint("order-", i)
			id := mustAdd(t, l, single)[0].Send.ID
			item := single
			item.Lane, item.Queue, item.Pos, item.Hash = Bulk, 7, int64(2*i+1), []byte(test.hash)
			next := newSend(company, 2)
			next.Lane, next.Queue, next.Pos = Bulk, 7, item.Pos+1
			got := mustAdd(t, l, item, next)
			if s := got[0].Send; s.State != test.want || s.Reason != ReasonReused || s.RequestID != "" || got[0].Joined {
				t.Errorf("the item became %+v, want %s", got[0], test.want)
			}
			checkState(t, l, got[1].Send.ID, Pending)
			if again := mustAdd(t, l, item)[0]; !again.Joined || again.Send.ID != got[0].Send.ID {
				t.Errorf("the item again: %+v", again)
			}
			checkState(t, l, id, Pending)
		}
	})
}

func TestReplayedOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := reach(t, l, company, Failed, 1)
		s := newSend(company, 2)
		s.ReplayOf = source.ID
		first := mustAdd(t, l, s)[0].Send
		if got := checkState(t, l, first.ID, Pending); got.ReplayOf != source.ID {
			t.Errorf("replay of %v", got.ReplayOf)
		}
		out, err := l.Add(t.Context(), []NewSend{s})
		if err != nil || !errors.Is(out[0].Err, ErrReplayed) || out[0].Send.ID != first.ID {
			t.Errorf("replayed again: %+v, %v", out, err)
		}
	})
}

// One caller's send cannot be stored; the others of its group do not feel it.
func TestFaultOfOne(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		good, bad := newSend(company, 1), newSend(company, 2)
		bad.OnUnknown = 9
		var answers [3]error
		var adding sync.WaitGroup
		for i, s := range []NewSend{good, bad, good} {
			adding.Go(func() { _, answers[i] = l.Add(context.Background(), []NewSend{s}) })
		}
		adding.Wait()
		if answers[0] != nil || answers[2] != nil {
			t.Errorf("the others got %v and %v", answers[0], answers[2])
		}
		if err := answers[1]; err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("who was at fault got %v", err)
		}
		if err := answers[1]; err != nil && strings.Contains(err.Error(), bad.Recipient) {
			t.Errorf("the error tells whom it was for: %v", err)
		}
	})
}

func TestConcurrentCallersOfOneRequest(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		s := newSend(company, 1)
		s.RequestID = "order-1"
		var mu sync.Mutex
		ids, made := map[ID]bool{}, 0
		var adding sync.WaitGroup
		for range 64 {
			adding.Go(func() {
				got := mustAdd(t, l, s)[0]
				mu.Lock()
				defer mu.Unlock()
				ids[got.Send.ID] = true
				made += int(oneIf(!got.Joined))
			})
		}
		adding.Wait()
		if len(ids) != 1 || made != 1 {
			t.Errorf("%d sends, made %d times", len(ids), made)
		}
	})
}

func TestGoesBackInTime(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for i := range 3 {
			mustAdd(t, l, newSend(company, i))
		}
		serveAll(t, l, company, 2)
		claim := func() Claim {
			t.Helper()
			claims, err := l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
			if err != nil {
				t.Fatal(err)
			}
			return claims[0]
		}
		mustExec(t, l, `UPDATE company SET claim_no = 1`)
		if got := claim(); !got.Rewound || got.Send != nil {
			t.Errorf("claimed from a ledger that went back in time: %+v", got)
		}
		mustExec(t, l, `UPDATE company SET claim_no = 2`)
		mustExec(t, l, `UPDATE home SET held = 1`)
		if got := claim(); !got.Held || got.Send != nil {
			t.Errorf("claimed from a ledger that is held: %+v", got)
		}
		mustExec(t, l, `UPDATE home SET held = 0`)
		if got := claim(); got.Send == nil {
			t.Errorf("nothing claimed afterwards: %+v", got)
		}
	})
}

func TestWait(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		id := mustAdd(t, l, newSend(company, 1))[0].Send.ID
		impatient, stop := context.WithCancel(t.Context())
		stop()
		if _, err := l.Wait(impatient, id); !errors.Is(err, context.Canceled) {
			t.Errorf("waited without patience: %v", err)
		}
		if _, err := l.Wait(t.Context(), ID{company, 1, 1}); !errors.Is(err, ErrNotFound) {
			t.Errorf("waited for nothing: %v", err)
		}
		var waiting sync.WaitGroup
		for range 10 {
			waiting.Go(func() {
				if s, err := l.Wait(t.Context(), id); err != nil || s.State != Sent {
					t.Errorf("waited for %+v, %v", s, err)
				}
			})
		}
		serveAll(t, l, company, 1)
		waiting.Wait()
		if l.hub.waiting() {
			t.Error("somebody is still registered")
		}
	})
}

func TestClosedLedgerAnswers(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		company := mustCompany(t, l, "acme")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Add(t.Context(), []NewSend{newSend(company, 1)}); !errors.Is(err, ErrClosed) {
			t.Errorf("add: %v", err)
		}
		if _, err := l.Settle(t.Context(), Settlement{ID: ID{company, 1, 1}, State: Sent}); !errors.Is(err, ErrClosed) {
			t.Errorf("settle: %v", err)
		}
		l, err = Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTotalsOfManyCompanies(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for i := range 3 {
			company := mustCompany(t, l, fmt.Sprint(i))
			for j, state := range allStates {
				reach(t, l, company, state, j)
				mustExec(t, l, `UPDATE queue SET ready = 0 WHERE ready = 1 AND NOT EXISTS (SELECT 1 FROM send s WHERE s.queue = queue.id AND s.state = 'pending')`)
				if state == Pending {
					serveAll(t, l, company, 1)
				}
			}
		}
		totals, err := l.Totals(t.Context())
		want := Totals{Accepted: 24, Waiting: 6, Sent: 6, Failed: 3, Unknown: 3, Cancelled: 3, Expired: 3}
		if err != nil || totals != want {
			t.Errorf("%+v, %v; want %+v", totals, err, want)
		}
	})
}
