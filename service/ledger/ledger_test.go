package ledger

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// eachBackend runs a test on every database.
func eachBackend(t *testing.T, test func(t *testing.T, c Config)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Replica: "one"})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, Config{URL: ledgertest.Postgres(t), Replica: "one"})
	})
}

// check is what testing.TB and rapid.T have in common.
type check interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func mustOpen(t testing.TB, c Config) *Ledger {
	t.Helper()
	l, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.CheckInvariant(context.Background()); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func mustCompany(t check, l *Ledger, name string) int64 {
	t.Helper()
	id, err := l.Company(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustAdd(t check, l *Ledger, sends ...NewSend) []Added {
	t.Helper()
	out, err := l.Add(t.Context(), sends)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range out {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	return out
}

// newSend is a normal send to its own recipient.
func newSend(company int64, n int) NewSend {
	return NewSend{
		Company: company, Lane: Normal, Caller: "shop", Bot: "demo", Recipient: fmt.Sprintf("59399%07d", n), Kind: "text",
		Body: fmt.Appendf(nil, "body %d", n), Hash: fmt.Appendf(nil, "hash %d", n), HashVersion: 1,
	}
}

// chooseFirst claims the most urgent head, with the tags as documented.
func chooseFirst(v View) Choice {
	if len(v.Heads) == 0 {
		return Choice{}
	}
	return choose(v.Heads[0])
}

func choose(h Head) Choice {
	return Choice{Lane: h.Send.Lane, Share: serve(h.Share), Queue: serve(h.Queue)}
}

func serve(t Tag) Tag {
	from := max(t.Virtual, t.Start)
	return Tag{Start: from + 1_000_000/int64(t.Weight), Virtual: from}
}

// mustClaim claims one send of the company, or nothing.
func mustClaim(t check, l *Ledger, company int64, decide func(View) Choice) *Send {
	t.Helper()
	for {
		claims, err := l.Claim(t.Context(), []int64{company}, time.Minute, decide)
		if err != nil {
			t.Fatal(err)
		}
		if len(claims) != 1 {
			t.Fatalf("%d claims for one company", len(claims))
		}
		if claims[0].Send != nil || !(claims[0].More || claims[0].Busy) {
			return claims[0].Send
		}
	}
}

func mustSettle(t check, l *Ledger, s Settlement) Send {
	t.Helper()
	send, err := l.Settle(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return send
}

func checkState(t check, l *Ledger, id ID, want State) Send {
	t.Helper()
	s, err := l.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if s.State != want {
		t.Errorf("%v is %s, want %s", id, s.State, want)
	}
	return s
}

func TestLifeOfASend(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		if again := mustCompany(t, l, "acme"); again != company {
			t.Errorf("the same name has ids %d and %d", company, again)
		}
		added := mustAdd(t, l, newSend(company, 1))[0]
		checkState(t, l, added.Send.ID, Pending)
		claimed := mustClaim(t, l, company, chooseFirst)
		if claimed == nil || claimed.ID != added.Send.ID {
			t.Fatalf("claimed %+v, want %v", claimed, added.Send.ID)
		}
		if string(claimed.Body) != "body 1" || claimed.Attempt != 1 || claimed.Claim != 1 {
			t.Errorf("claimed %+v", claimed)
		}
		if other := mustClaim(t, l, company, chooseFirst); other != nil {
			t.Errorf("claimed twice: %+v", other)
		}
		var paced bool
		settled := mustSettle(t, l, Settlement{ID: claimed.ID, Claim: claimed.Claim, State: Sent, Result: []byte("ok"),
			Pace: func(now int64, pace []byte) []byte { paced = true; return []byte("pace") }})
		if settled.State != Sent || settled.ResultNo != 1 || string(settled.Result) != "ok" || !paced {
			t.Errorf("settled as %+v", settled)
		}
		stored := checkState(t, l, claimed.ID, Sent)
		if stored.SettledAt == 0 || stored.SentAt == 0 || stored.LeaseUntil != 0 {
			t.Errorf("stored %+v", stored)
		}
		if _, pace, err := l.ReadPace(t.Context(), company); err != nil || string(pace) != "pace" {
			t.Errorf("pace %q, %v", pace, err)
		}
		totals, err := l.Totals(t.Context())
		if want := (Totals{Accepted: 1, Sent: 1}); err != nil || totals != want {
			t.Errorf("totals %+v, %v; want %+v", totals, err, want)
		}
	})
}

func TestRequestIDs(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		first := newSend(company, 1)
		first.RequestID = "order-1"
		id := mustAdd(t, l, first)[0].Send.ID

		again := mustAdd(t, l, first)[0]
		if !again.Joined || again.Send.ID != id {
			t.Errorf("the same request made %+v", again)
		}
		other := newSend(company, 2)
		other.RequestID = "order-1"
		out, err := l.Add(t.Context(), []NewSend{other})
		if err != nil || !errors.Is(out[0].Err, ErrRequestIDReused) {
			t.Errorf("other content: %+v, %v", out, err)
		}
		both := mustAdd(t, l, first, first, newSend(company, 3))
		if !both[0].Joined || !both[1].Joined || both[2].Joined {
			t.Errorf("in one call: %+v", both)
		}
		elsewhere := first
		elsewhere.Caller = "billing"
		if got := mustAdd(t, l, elsewhere)[0]; got.Joined {
			t.Error("another caller's request id was joined")
		}
		if _, ok, err := l.Expire(t.Context(), id); !ok || err != nil {
			t.Fatalf("expire: %v, %v", ok, err)
		}
		restarted := mustAdd(t, l, first)[0]
		if restarted.Joined || restarted.Send.ID == id {
			t.Errorf("an expired request did not start again: %+v", restarted)
		}
		checkState(t, l, id, Expired)
		found, err := l.FindByRequestID(t.Context(), company, "shop", "order-1")
		if err != nil || found.ID != restarted.Send.ID {
			t.Errorf("found %+v, %v", found, err)
		}
	})
}
