package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// exec runs statements as somebody else would who has the database.
func (l *Ledger) exec(t check, query string, args ...any) error {
	t.Helper()
	return l.transact(t.Context(), func(t *tx) error {
		t.write(query, args...)
		return nil
	})
}

func mustExec(t check, l *Ledger, query string, args ...any) {
	t.Helper()
	if err := l.exec(t, query, args...); err != nil {
		t.Fatal(err)
	}
}

// reach makes a send and brings it into a state.
func reach(t check, l *Ledger, company int64, state State, n int) Send {
	t.Helper()
	s := newSend(company, n)
	if state == Scheduled {
		s.DueAt = time.Now().Add(time.Hour).UnixMicro()
	}
	id := mustAdd(t, l, s)[0].Send.ID
	claim := func() *Send {
		got := mustClaim(t, l, company, chooseFirst)
		if got == nil || got.ID != id {
			t.Fatalf("claimed %+v, want %v", got, id)
		}
		return got
	}
	var ok bool
	var err error
	switch state {
	case Scheduled, Pending:
		ok = true
	case Sending:
		claim()
		ok = true
	case Sent, Failed, Unknown:
		mustSettle(t, l, Settlement{ID: id, Claim: claim().Claim, State: state})
		ok = true
	case Cancelled:
		_, ok, err = l.Cancel(t.Context(), id)
	case Expired:
		_, ok, err = l.Expire(t.Context(), id)
	}
	if err != nil || !ok {
		t.Fatalf("reach %s: %v, %v", state, ok, err)
	}
	return checkState(t, l, id, state)
}

// events are everything that can happen to a send. The answer is what the event said.
var events = []struct {
	name  string
	fire  func(t *testing.T, l *Ledger, s Send) string
	ends  map[State]State  // where the state changes; elsewhere it stays
	says  map[State]string // the answer; elsewhere other
	other string
}{
	{"claim", func(t *testing.T, l *Ledger, s Send) string {
		got := mustClaim(t, l, s.ID.Company, chooseFirst)
		return fmt.Sprint(got != nil)
	}, map[State]State{Pending: Sending}, map[State]string{Pending: "true"}, "false"},
	{"settle sent", settleAs(Sent), map[State]State{Sending: Sent, Unknown: Sent},
		map[State]string{Sending: "ok", Unknown: "ok", Sent: "ok"}, "lost"},
	{"settle failed", settleAs(Failed), map[State]State{Sending: Failed, Unknown: Failed},
		map[State]string{Sending: "ok", Unknown: "ok", Failed: "ok"}, "lost"},
	{"settle unknown", settleAs(Unknown), map[State]State{Sending: Unknown},
		map[State]string{Sending: "ok", Unknown: "ok", Sent: "ok", Failed: "ok"}, "lost"},
	{"settle pending", settleAs(Pending), map[State]State{Sending: Pending}, map[State]string{Sending: "ok"}, "lost"},
	{"expire", func(t *testing.T, l *Ledger, s Send) string {
		_, ok, err := l.Expire(t.Context(), s.ID)
		return fmt.Sprint(ok, err)
	}, map[State]State{Scheduled: Expired, Pending: Expired},
		map[State]string{Scheduled: "true <nil>", Pending: "true <nil>", Expired: "true <nil>"}, "false <nil>"},
	{"cancel", func(t *testing.T, l *Ledger, s Send) string {
		_, ok, err := l.Cancel(t.Context(), s.ID)
		return fmt.Sprint(ok, err)
	}, map[State]State{Scheduled: Cancelled, Pending: Cancelled},
		map[State]string{Scheduled: "true <nil>", Pending: "true <nil>", Cancelled: "true <nil>"}, "false <nil>"},
	{"resolve", func(t *testing.T, l *Ledger, s Send) string {
		_, ok, err := l.Resolve(t.Context(), s.ID, Sent, "")
		return fmt.Sprint(ok, err)
	}, map[State]State{Unknown: Sent}, map[State]string{Unknown: "true <nil>"}, "false <nil>"},
	{"its lease lapses", func(t *testing.T, l *Ledger, s Send) string {
		if s.State == Sending {
			mustExec(t, l, `UPDATE send SET lease_until = {now} - 1 WHERE company = $1`, s.ID.Company)
		}
		return sweepAll(t, l)
	}, map[State]State{Sending: Unknown}, nil, "swept"},
	{"its time passes", func(t *testing.T, l *Ledger, s Send) string {
		mustExec(t, l, `UPDATE send SET expire_at = 1 WHERE company = $1`, s.ID.Company)
		return sweepAll(t, l)
	}, map[State]State{Scheduled: Expired, Pending: Expired}, nil, "swept"},
	{"its time comes", func(t *testing.T, l *Ledger, s Send) string {
		mustExec(t, l, `UPDATE send SET due_at = 1 WHERE due_at IS NOT NULL AND company = $1`, s.ID.Company)
		return sweepAll(t, l)
	}, map[State]State{Scheduled: Pending}, nil, "swept"},
	{"its owner dies", func(t *testing.T, l *Ledger, s Send) string {
		mustExec(t, l, `UPDATE send SET owner = 'dead' WHERE company = $1`, s.ID.Company)
		mustExec(t, l, `INSERT INTO replica (id, alive_until) VALUES ('dead', 1) ON CONFLICT DO NOTHING`)
		return sweepAll(t, l)
	}, map[State]State{Scheduled: Expired, Pending: Expired}, nil, "swept"},
}

func settleAs(state State) func(t *testing.T, l *Ledger, s Send) string {
	return func(t *testing.T, l *Ledger, s Send) string {
		// A claim number of its own would never fit; what is never claimed has none.
		_, err := l.Settle(t.Context(), Settlement{ID: s.ID, Claim: max(1, s.Claim), State: state})
		switch {
		case err == nil:
			return "ok"
		case errors.Is(err, ErrClaimLost):
			return "lost"
		}
		return err.Error()
	}
}

func sweepAll(t check, l *Ledger) string {
	t.Helper()
	if _, err := l.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	return "swept"
}

var allStates = []State{Scheduled, Pending, Sending, Sent, Failed, Unknown, Cancelled, Expired}

func TestEveryStateAndEvent(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for i, e := range events {
			for j, state := range allStates {
				company := mustCompany(t, l, fmt.Sprint(e.name, " ", state))
				s := reach(t, l, company, state, i*10+j)
				answer := e.fire(t, l, s)
				want, says := state, e.other
				if end, ok := e.ends[state]; ok {
					want = end
				}
				if said, ok := e.says[state]; ok {
					says = said
				}
				got, err := l.Get(t.Context(), s.ID)
				if err != nil || got.State != want || answer != says {
					t.Errorf("%s, then %s: %s, answer %q, %v; want %s, answer %q", state, e.name, got.State, answer, err, want, says)
				}
				if got.State.Final() != (got.ResultNo == 1) {
					t.Errorf("%s, then %s: result number %d", state, e.name, got.ResultNo)
				}
				mustExec(t, l, `UPDATE send SET expire_at = NULL, owner = NULL`)
			}
		}
	})
}

func TestIllegalStatesCannotBeStored(t *testing.T) {
	illegal := []string{
		`UPDATE send SET state = 'lost'`,
		`UPDATE send SET state = 'sending'`,
		`UPDATE send SET state = 'sending', lease_until = 1`,
		`UPDATE send SET lease_until = 1`,
		`UPDATE send SET state = 'unknown', result_no = 1, settled_at = 1`,
		`UPDATE send SET state = 'sent', result_no = 1, settled_at = 1`,
		`UPDATE send SET state = 'failed'`,
		`UPDATE send SET state = 'failed', result_no = 1`,
		`UPDATE send SET result_no = 1, settled_at = 1`,
		`UPDATE send SET state = 'cancelled'`,
		`UPDATE send SET state = 'expired', settled_at = 1`,
		`UPDATE send SET state = 'scheduled'`,
		`UPDATE send SET state = 'scheduled', due_at = 1, parked = 1`,
		`UPDATE send SET parked = 2`,
		`UPDATE send SET parked = 3`,
		`UPDATE send SET parked = 1, recipient = ''`,
		`UPDATE send SET resolved = 1`,
		`UPDATE send SET lane = 4`,
		`UPDATE send SET attempt = -1`,
		`UPDATE send SET replay_queue = 1`,
		`UPDATE queue SET state = 'paused'`, // loose sends are not paused
		`UPDATE queue SET state = 'closed'`,
		`UPDATE queue SET sent = -1`,
		`UPDATE share SET weight = 0`,
		`UPDATE home SET held = 2`,
		`INSERT INTO home (one, place, timeline) VALUES (2, '', 0)`,
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		s := reach(t, l, mustCompany(t, l, "acme"), Pending, 1)
		for _, statement := range illegal {
			if err := l.exec(t, statement); !faulty(err) {
				t.Errorf("%s: %v", statement, err)
			}
		}
		checkState(t, l, s.ID, Pending)
	})
}

func TestLateEvidence(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")

		unknown := reach(t, l, company, Unknown, 1)
		got := mustSettle(t, l, Settlement{ID: unknown.ID, Claim: unknown.Claim, State: Sent, Result: []byte("late")})
		if got.State != Sent || got.ResultNo != unknown.ResultNo || string(got.Result) != "late" {
			t.Errorf("late evidence: %+v", got)
		}

		other := reach(t, l, company, Unknown, 2)
		if _, err := l.Settle(t.Context(), Settlement{ID: other.ID, Claim: other.Claim + 1, State: Sent}); !errors.Is(err, ErrClaimLost) {
			t.Errorf("another claim's evidence: %v", err)
		}
		if _, ok, err := l.Resolve(t.Context(), other.ID, Failed, "SAID_BY_A_PERSON"); !ok || err != nil {
			t.Errorf("resolve: %v, %v", ok, err)
		}
		got, err := l.Settle(t.Context(), Settlement{ID: other.ID, Claim: other.Claim, State: Sent})
		if !errors.Is(err, ErrClaimLost) || got.State != Failed || !got.Resolved {
			t.Errorf("evidence after a person's word: %+v, %v", got, err)
		}
	})
}

func TestLapsedLeaseFollowsTheCallersChoice(t *testing.T) {
	tests := []struct {
		choice   OnUnknown
		attempts int
		want     State
	}{
		{Hold, 1, Unknown},
		{Fail, 1, Failed},
		{Retry, 1, Pending},
		{Retry, 5, Unknown},
	}
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		for i, test := range tests {
			company := mustCompany(t, l, fmt.Sprint(i))
			s := newSend(company, i)
			s.OnUnknown = test.choice
			id := mustAdd(t, l, s)[0].Send.ID
			mustClaim(t, l, company, chooseFirst)
			mustExec(t, l, `UPDATE send SET lease_until = {now} - 1, attempt = $1 WHERE state = 'sending'`, test.attempts)
			// The claim meets the lapsed lease, and does not send anything for it yet.
			if got := mustClaim(t, l, company, func(View) Choice { return Choice{} }); got != nil {
				t.Errorf("claimed %+v", got)
			}
			checkState(t, l, id, test.want)
		}
	})
}

func TestGivenBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		s := newSend(company, 1)
		same := newSend(company, 2)
		same.Recipient = s.Recipient
		id, sameID := mustAdd(t, l, s)[0].Send.ID, mustAdd(t, l, same)[0].Send.ID

		claimed := mustClaim(t, l, company, chooseFirst)
		got := mustSettle(t, l, Settlement{ID: id, Claim: claimed.Claim, State: Pending, Uncounted: true, SentAgo: -1})
		if got.State != Pending || got.Attempt != 0 || got.Parked != NotParked || got.SentAt != 0 {
			t.Errorf("given back: %+v", got)
		}
		// It comes first again, before the other to the same recipient.
		claimed = mustClaim(t, l, company, chooseFirst)
		if claimed == nil || claimed.ID != id {
			t.Fatalf("claimed %+v, want %v", claimed, id)
		}
		got = mustSettle(t, l, Settlement{ID: id, Claim: claimed.Claim, State: Pending, Backoff: time.Hour})
		if got.Parked != Backoff || got.Attempt != 1 || got.DueAt < time.Now().Add(50*time.Minute).UnixMicro() {
			t.Errorf("in backoff: %+v", got)
		}
		// In backoff it goes on blocking its recipient.
		if got := mustClaim(t, l, company, chooseFirst); got != nil {
			t.Errorf("claimed %v during the backoff", got.ID)
		}
		checkParked(t, l, sameID, BusyRecipient)
		mustExec(t, l, `UPDATE send SET due_at = 1 WHERE parked = 2`)
		sweepAll(t, l)
		if got := mustClaim(t, l, company, chooseFirst); got == nil || got.ID != id || got.Attempt != 2 {
			t.Errorf("claimed %+v after the backoff, want %v", got, id)
		}
	})
}

func TestRetryWaitsForTheLease(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		s := newSend(company, 1)
		s.OnUnknown = Retry
		id := mustAdd(t, l, s)[0].Send.ID
		claimed := mustClaim(t, l, company, chooseFirst)
		got := mustSettle(t, l, Settlement{ID: id, Claim: claimed.Claim, State: Pending, AfterLease: true})
		if got.DueAt < claimed.LeaseUntil || got.Parked != Backoff {
			t.Errorf("back before its lease ended: %+v", got)
		}
		// The answer comes after all: it was sent, and is not sent again.
		if got := mustSettle(t, l, Settlement{ID: id, Claim: claimed.Claim, State: Sent}); got.State != Sent {
			t.Errorf("late evidence: %+v", got)
		}
	})
}

func checkParked(t check, l *Ledger, id ID, want Parked) {
	t.Helper()
	s, err := l.Get(t.Context(), id)
	if err != nil || s.Parked != want {
		t.Errorf("%v is parked %d, %v; want %d", id, s.Parked, err, want)
	}
}

func TestSettlingTwiceIsSettlingOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for i, state := range []State{Sent, Failed, Unknown, Pending} {
			id := mustAdd(t, l, newSend(company, i))[0].Send.ID
			claimed := mustClaim(t, l, company, chooseFirst)
			s := Settlement{ID: id, Claim: claimed.Claim, State: state, Backoff: time.Hour, SentAgo: -1}
			first := mustSettle(t, l, s)
			if again := mustSettle(t, l, s); !cmp.Equal(first, again, ignoreEmpty) {
				t.Errorf("settled again: %s", cmp.Diff(first, again, ignoreEmpty))
			}
		}
	})
}

// ignoreEmpty takes empty and missing bytes for the same.
var ignoreEmpty = cmp.Transformer("bytes", func(b []byte) string { return string(b) })

func TestResultNumbersAreGivenOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustBatch(t, l, company, 7, Bulk)
		var sends []NewSend
		for i := range 5 {
			s := newSend(company, i)
			s.Queue, s.Pos = 7, int64(i+1)
			if i%2 == 1 {
				s.Final = &Final{Reason: "INVALID_FIELD"}
			}
			sends = append(sends, s)
		}
		added := mustAdd(t, l, sends...)
		again := mustAdd(t, l, sends...) // the stream was cut and the items come again
		var numbers []int64
		for i := range sends {
			if !again[i].Joined || again[i].Send.ID != added[i].Send.ID {
				t.Errorf("item %d again: %+v", i, again[i])
			}
		}
		for s := mustClaim(t, l, company, chooseFirst); s != nil; s = mustClaim(t, l, company, chooseFirst) {
			mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
		}
		for i := range sends {
			s, err := l.Get(context.Background(), added[i].Send.ID)
			if err != nil || !s.State.Final() || !s.Batch {
				t.Errorf("%+v, %v", s, err)
			}
			numbers = append(numbers, s.ResultNo)
		}
		slices.Sort(numbers)
		if len(slices.Compact(numbers)) != len(sends) {
			t.Errorf("result numbers %v", numbers)
		}
		other := sends[0]
		other.Hash = []byte("another")
		if out, err := l.Add(t.Context(), []NewSend{other}); err != nil || !errors.Is(out[0].Err, ErrSequenceMismatch) {
			t.Errorf("other content at the same place: %+v, %v", out, err)
		}
	})
}

// mustBatch makes a batch's queue.
func mustBatch(t check, l *Ledger, company, id int64, lane Lane) {
	t.Helper()
	mustExec(t, l, `INSERT INTO share (company, lane, caller) SELECT $1, $2, 'shop' WHERE NOT EXISTS (SELECT 1 FROM share WHERE company = $1 AND lane = $2 AND caller = 'shop')`, company, lane)
	mustExec(t, l, `INSERT INTO queue (company, id, lane, caller, batch, created_at) VALUES ($1, $2, $3, 'shop', 1, 1)`, company, id, lane)
}
