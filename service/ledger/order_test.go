package ledger

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serveAll claims and settles until nothing is left, and says what was sent, by the sends' kinds.
func serveAll(t testing.TB, l *Ledger, company int64, limit int) []string {
	t.Helper()
	var order []string
	for len(order) < limit {
		s := mustClaim(t, l, company, chooseFirst)
		if s == nil {
			break
		}
		order = append(order, s.Kind)
		mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
	}
	return order
}

func checkOrder(t testing.TB, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sent in another order (-want +got):\n%s", diff)
	}
}

func TestHeadsOfAllLanesAreShown(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for i, lane := range []Lane{Bulk, Normal, Urgent} {
			s := newSend(company, i)
			s.Lane = lane
			mustAdd(t, l, s)
		}
		mustClaim(t, l, company, func(v View) Choice {
			var lanes []Lane
			for _, h := range v.Heads {
				lanes = append(lanes, h.Send.Lane)
			}
			if diff := cmp.Diff([]Lane{Urgent, Normal, Bulk}, lanes); diff != "" || v.ClaimNo != 1 || v.Pace != nil || v.Now == 0 {
				t.Errorf("view %+v: %s", v, diff)
			}
			return Choice{Pace: []byte("kept")}
		})
		mustClaim(t, l, company, func(v View) Choice {
			if string(v.Pace) != "kept" {
				t.Errorf("pace %q", v.Pace)
			}
			return chooseFirst(v)
		})
	})
}

func TestQueueIsFirstInFirstOut(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		var want []string
		for i := range 40 {
			s := newSend(company, i)
			s.Kind = fmt.Sprint(i)
			want = append(want, s.Kind)
			mustAdd(t, l, s)
		}
		checkOrder(t, serveAll(t, l, company, 100), want...)
	})
}

func TestOneAtATimePerRecipient(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		add := func(kind string, lane Lane, recipient string) {
			s := newSend(company, 0)
			s.Kind, s.Lane, s.Recipient = kind, lane, recipient
			mustAdd(t, l, s)
		}
		claim := func(want string) *Send {
			t.Helper()
			s := mustClaim(t, l, company, chooseFirst)
			switch {
			case s == nil && want != "":
				t.Fatalf("nothing to claim, want %s", want)
			case s != nil && s.Kind != want:
				t.Fatalf("claimed %s, want %q", s.Kind, want)
			}
			return s
		}
		settle := func(s *Send) { mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent}) }

		add("n1", Normal, "ana")
		add("n2", Normal, "ana")
		add("n3", Normal, "luz")
		add("b1", Bulk, "ana")
		n1 := claim("n1")
		n3 := claim("n3") // n2 waits for n1 and is passed over
		claim("")         // b1 waits for n1 too
		add("u1", Urgent, "ana")
		add("u2", Urgent, "ana")
		u1 := claim("u1") // urgent does not wait for normal
		claim("")         // but for urgent
		settle(u1)
		u2 := claim("u2")
		settle(n3)
		claim("")
		settle(n1)
		n2 := claim("n2")
		claim("")
		settle(u2)
		settle(n2)
		settle(claim("b1"))

		// Notifications to several destinations wait for nobody.
		add("m1", Normal, "")
		add("m2", Normal, "")
		m1, m2 := claim("m1"), claim("m2")
		settle(m1)
		settle(m2)
	})
}

// The one that waits next is cancelled beside the settle that frees it: the turn goes to the one after it.
func TestTurnPassesOnWithinOneTransaction(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		var ids [3]ID
		for i := range ids {
			s := newSend(company, 1)
			s.Kind = fmt.Sprint(i)
			ids[i] = mustAdd(t, l, s)[0].Send.ID
		}
		first := mustClaim(t, l, company, chooseFirst)
		if got := mustClaim(t, l, company, chooseFirst); got != nil { // the others are parked now
			t.Fatalf("claimed %s", got.Kind)
		}
		settle := &change{company: company, id: ids[0], apply: func(g *ground, r *record) (bool, error) {
			return g.settle(r, &Settlement{ID: r.ID, Claim: first.Claim, State: Sent})
		}}
		cancel := &change{company: company, id: ids[1], apply: func(g *ground, r *record) (bool, error) {
			g.finish(r, Cancelled, ReasonCancelled, nil)
			return true, nil
		}}
		if err := l.commitChanges(t.Context(), []*change{settle, cancel}); err != nil {
			t.Fatal(err)
		}
		checkOrder(t, serveAll(t, l, company, 9), "2")
	})
}

// A recipient's first send is in a batch that is paused; a later one elsewhere must not wait for the resume.
func TestPausedQueueHoldsNobodyElse(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustBatch(t, l, company, 7, Normal)
		first := newSend(company, 1)
		first.Kind = "first"
		inBatch := items(company, 7, 0, 1)[0]
		inBatch.Recipient, inBatch.Kind = first.Recipient, "batch"
		later := newSend(company, 2)
		later.Recipient, later.Kind = first.Recipient, "later"

		mustAdd(t, l, first)
		busy := mustClaim(t, l, company, chooseFirst)
		mustAdd(t, l, inBatch)
		mustAdd(t, l, later)
		if got := mustClaim(t, l, company, chooseFirst); got != nil { // both are parked now
			t.Fatalf("claimed %s", got.Kind)
		}
		mustExec(t, l, `UPDATE queue SET state = 'paused' WHERE batch = 1`)
		mustSettle(t, l, Settlement{ID: busy.ID, Claim: busy.Claim, State: Sent})
		checkOrder(t, serveAll(t, l, company, 9), "later")
		mustExec(t, l, `UPDATE queue SET state = 'open' WHERE batch = 1`)
		mustExec(t, l, `UPDATE share SET ready = 1`)
		checkOrder(t, serveAll(t, l, company, 9), "batch")
	})
}

func TestSharesAreFair(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for caller, weight := range map[string]int{"a": 1, "b": 3} {
			for i := range 40 {
				s := newSend(company, i)
				s.Caller, s.Kind, s.Recipient, s.Weight = caller, caller, "", weight
				mustAdd(t, l, s)
			}
		}
		count := map[string]int{}
		for _, kind := range serveAll(t, l, company, 40) {
			count[kind]++
		}
		if diff := cmp.Diff(map[string]int{"a": 10, "b": 30}, count); diff != "" {
			t.Errorf("served by weight 1 and 3 (-want +got):\n%s", diff)
		}
		if err := l.SetWeight(t.Context(), company, "a", 3); err != nil {
			t.Fatal(err)
		}
		count = map[string]int{}
		for _, kind := range serveAll(t, l, company, 10) {
			count[kind]++
		}
		if diff := cmp.Diff(map[string]int{"a": 5, "b": 5}, count); diff != "" {
			t.Errorf("served by equal weights (-want +got):\n%s", diff)
		}
		// Who was idle comes at once, but has nothing saved up.
		for i := range 10 {
			s := newSend(company, i)
			s.Caller, s.Kind, s.Recipient = "c", "c", ""
			mustAdd(t, l, s)
		}
		count = map[string]int{}
		for _, kind := range serveAll(t, l, company, 14) {
			count[kind]++
		}
		if count["c"] < 2 || count["c"] > 3 {
			t.Errorf("a newcomer of weight 1 beside two of weight 3: %v", count)
		}
	})
}

func TestBatchesShareInsideTheirCaller(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		for _, queue := range []int64{7, 8} {
			mustBatch(t, l, company, queue, Normal)
			sends := items(company, queue, 0, 10)
			for i := range sends {
				sends[i].Kind, sends[i].Recipient = fmt.Sprint(queue), ""
			}
			mustAdd(t, l, sends...)
		}
		for i := range 10 {
			s := newSend(company, i)
			s.Caller, s.Kind, s.Recipient = "other", "other", ""
			mustAdd(t, l, s)
		}
		count := map[string]int{}
		for _, kind := range serveAll(t, l, company, 12) {
			count[kind]++
		}
		if diff := cmp.Diff(map[string]int{"7": 3, "8": 3, "other": 6}, count); diff != "" {
			t.Errorf("two batches of one caller beside another caller (-want +got):\n%s", diff)
		}
	})
}

// Ten thousand sends that nobody can claim stand before one that can.
func TestBlockedHeadsArePassedOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		mustBatch(t, l, company, 7, Normal)
		busy := newSend(company, -1)
		busy.Lane = Bulk
		mustAdd(t, l, busy)
		mustClaim(t, l, company, chooseFirst)
		blocked := items(company, 7, 0, 500)
		for i := range blocked {
			blocked[i].Recipient = busy.Recipient
		}
		mustAdd(t, l, blocked...)
		free := items(company, 7, 500, 1)[0]
		id := mustAdd(t, l, free)[0].Send.ID

		calls := 0
		for {
			calls++
			claims, err := l.Claim(t.Context(), []int64{company}, time.Minute, chooseFirst)
			if err != nil {
				t.Fatal(err)
			}
			if s := claims[0].Send; s != nil {
				if s.ID != id {
					t.Errorf("claimed %+v", s)
				}
				break
			}
			if !claims[0].More {
				t.Fatal("the send behind the blocked ones was not found")
			}
		}
		if calls > 2+500/claimChunk {
			t.Errorf("%d claims to pass 500 sends", calls)
		}
	})
}
