package ledger

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keepDay puts a caller's day far ahead, so that no midnight comes in the middle of a test.
func keepDay(t *testing.T, l *Ledger, company int64, caller string) {
	t.Helper()
	mustExec(t, l, fmt.Sprintf(`INSERT INTO quota (company, caller, day, used) VALUES (%d, '%s', 99999, 0)`, company, caller))
}

// limited is a send of a caller with a daily limit.
func limited(company int64, n int, limit int64) NewSend {
	s := newSend(company, n)
	s.DailyLimit = limit
	return s
}

// openReplicas opens as many replicas as the database allows.
func openReplicas(t *testing.T, c Config) []*Ledger {
	t.Helper()
	replicas := []*Ledger{mustOpen(t, c)}
	if c.URL != "" {
		other := c
		other.Replica = "two"
		replicas = append(replicas, mustOpen(t, other))
	}
	return replicas
}

// However the sends of a caller come, alone, in batches, on several replicas at once, its day has exactly its limit of them.
func TestDailyQuotaIsExact(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		const limit = 100
		replicas := openReplicas(t, c)
		company := mustCompany(t, replicas[0], "acme")
		keepDay(t, replicas[0], company, "shop")
		var accepted, next atomic.Int64
		var adding sync.WaitGroup
		for i := range 8 {
			l := replicas[i%len(replicas)]
			adding.Go(func() {
				for refused := 0; refused < 3; {
					sends := make([]NewSend, 1+rand.IntN(5))
					for j := range sends {
						sends[j] = limited(company, int(next.Add(1)), limit)
					}
					out, err := l.Add(t.Context(), sends)
					if err != nil {
						t.Error(err)
						return
					}
					for _, a := range out {
						var over *QuotaError
						switch {
						case a.Err == nil:
							accepted.Add(1)
						case errors.As(a.Err, &over):
							refused++
							if over.Limit != limit || over.Caller != "shop" || over.Resets <= 0 {
								t.Errorf("refused with %+v", over)
							}
						default:
							t.Error(a.Err)
						}
					}
				}
			})
		}
		adding.Wait()
		if n := accepted.Load(); n != limit {
			t.Errorf("accepted %d, want %d", n, limit)
		}
		if err := replicas[0].CheckQuota(t.Context(), company, "shop", limit, 1); !errors.As(err, new(*QuotaError)) {
			t.Errorf("one more fits: %v", err)
		}
		if err := replicas[0].CheckQuota(t.Context(), company, "shop", limit+1, 1); err != nil {
			t.Errorf("one more of a larger limit: %v", err)
		}
	})
}

func TestDailyQuota(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		keepDay(t, l, company, "shop")
		order := func(n int) NewSend {
			s := limited(company, n, 2)
			s.RequestID = fmt.Sprint("order-", n)
			return s
		}
		add := func(s NewSend) Added {
			t.Helper()
			out, err := l.Add(t.Context(), []NewSend{s})
			if err != nil {
				t.Fatal(err)
			}
			return out[0]
		}
		mustAdd(t, l, order(1), order(2))
		if a := add(order(3)); !errors.As(a.Err, new(*QuotaError)) {
			t.Errorf("a third of two: %v", a.Err)
		}
		if a := add(order(1)); a.Err != nil || !a.Joined {
			t.Errorf("a repeated request: joined %t, %v", a.Joined, a.Err)
		}
		other := order(2)
		other.Hash = []byte("other")
		if a := add(other); !errors.Is(a.Err, ErrRequestIDReused) {
			t.Errorf("a reused request id: %v", a.Err)
		}
		expired := add(order(1)).Send.ID
		if _, ok, err := l.Expire(t.Context(), expired); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if a := add(order(1)); !errors.As(a.Err, new(*QuotaError)) {
			t.Errorf("an expired one starts again: %v", a.Err)
		}
		unlimited, another := newSend(company, 4), limited(company, 5, 2)
		another.Caller = "other"
		mustAdd(t, l, unlimited, another)

		mustExec(t, l, `UPDATE quota SET day = 1`)
		mustAdd(t, l, order(1), order(3))
		if a := add(order(4)); !errors.As(a.Err, new(*QuotaError)) {
			t.Errorf("a third of the next day: %v", a.Err)
		}
	})
}

// A batch's upload stops at the limit, keeps what fitted, and goes on there the next day.
func TestDailyQuotaInABatch(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		keepDay(t, l, company, "shop")
		b, _, err := l.CreateBatch(t.Context(), NewBatch{Company: company, Lane: Bulk, Caller: "shop", Bot: "demo"})
		if err != nil {
			t.Fatal(err)
		}
		items := make([]NewSend, 5)
		for i := range items {
			items[i] = limited(company, i, 3)
			items[i].Queue, items[i].Pos = b.ID.Queue, int64(i+1)
		}
		upload := func() (stored, over int) {
			t.Helper()
			out, err := l.Add(t.Context(), items)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range out {
				switch {
				case a.Err == nil:
					stored++
				case errors.As(a.Err, new(*QuotaError)):
					over++
				default:
					t.Error(a.Err)
				}
			}
			return stored, over
		}
		for range 2 {
			if stored, over := upload(); stored != 3 || over != 2 {
				t.Errorf("stored %d, over %d", stored, over)
			}
		}
		mustExec(t, l, `UPDATE quota SET day = 1`)
		if stored, over := upload(); stored != 5 || over != 0 {
			t.Errorf("the next day: stored %d, over %d", stored, over)
		}
	})
}

func TestWeigh(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		shop, other := newSend(company, 1), newSend(company, 2)
		shop.Weight, other.Caller, other.Lane = 2, "other", Bulk
		mustAdd(t, l, shop, other)
		weights := func() map[string]int {
			found := map[string]int{}
			err := l.query(t.Context(), `SELECT caller, weight FROM share`, func(scan scanFunc) error {
				var caller string
				var weight int
				err := scan(&caller, &weight)
				found[caller] = weight
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		if got := weights(); got["shop"] != 2 || got["other"] != 1 {
			t.Errorf("as added: %v", got)
		}
		if err := l.Weigh(t.Context(), map[string]int{"shop": 7, "nobody": 3}); err != nil {
			t.Fatal(err)
		}
		if got := weights(); got["shop"] != 7 || got["other"] != 1 || len(got) != 2 {
			t.Errorf("weighed: %v", got)
		}
	})
}

func TestOwnNotifications(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustAdd(t, l, newSend(company, 1))
		claimed := mustClaim(t, l, company, chooseFirst)
		for range 2 { // the answer to the first may be lost
			mustSettle(t, l, Settlement{ID: claimed.ID, Claim: claimed.Claim, State: Sent, Notifications: []string{"n-1", "", "n-2"}})
		}
		for _, test := range []struct {
			company     int64
			bot, caller string
			want        int
		}{{company, "demo", "shop", 2}, {company, "demo", "other", 0}, {company, "another", "shop", 0}, {company + 1, "demo", "shop", 0}} {
			own, err := l.OwnNotifications(t.Context(), test.company, test.bot, test.caller, []string{"n-2", "n-1", "n-3", ""})
			if err != nil {
				t.Fatal(err)
			}
			if len(own) != test.want || test.want > 0 && !(own["n-1"] && own["n-2"]) {
				t.Errorf("%+v: %v", test, own)
			}
		}
		if _, err := l.retainNotifications(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		mustExec(t, l, `UPDATE notification SET sent_at = 1 WHERE id = 'n-1'`)
		if _, err := l.retainNotifications(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		own, err := l.OwnNotifications(t.Context(), company, "demo", "shop", []string{"n-1", "n-2"})
		if err != nil || len(own) != 1 || !own["n-2"] {
			t.Errorf("after its retention: %v, %v", own, err)
		}
	})
}
