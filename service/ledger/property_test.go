package ledger

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is one company that anything may happen to, in any order.
type world struct {
	*rapid.T
	l        *Ledger
	company  int64
	batch    int64
	items    int64
	n        int
	accepted int
	flying   []*Send
	lost     []*Send // unknown
	waiting  []ID    // accepted at some time; may be settled by now
}

func (w *world) send(t *rapid.T) NewSend {
	w.n++
	s := newSend(w.company, w.n)
	s.Lane = Lane(rapid.IntRange(1, 3).Draw(t, "lane"))
	s.Caller = rapid.SampledFrom([]string{"shop", "billing"}).Draw(t, "caller")
	s.Recipient = rapid.SampledFrom([]string{"", "a", "a", "b"}).Draw(t, "recipient")
	s.OnUnknown = OnUnknown(rapid.IntRange(0, 2).Draw(t, "on unknown"))
	switch rapid.IntRange(0, 9).Draw(t, "option") {
	case 0:
		s.DueAt = time.Now().Add(time.Hour).UnixMicro()
	case 1:
		s.ExpireIn = time.Microsecond
	case 2:
		s.OwnerBound = true
	case 3:
		s.RequestID = rapid.SampledFrom([]string{"one", "two"}).Draw(t, "request id")
		s.Hash = []byte("the same")
	}
	if rapid.IntRange(0, 3).Draw(t, "batch item") == 0 {
		w.items++
		s.Queue, s.Pos, s.RequestID = w.batch, w.items, ""
	}
	return s
}

func (w *world) add(t *rapid.T) {
	sends := make([]NewSend, rapid.IntRange(1, 4).Draw(t, "sends"))
	for i := range sends {
		sends[i] = w.send(t)
	}
	for _, a := range mustAdd(w, w.l, sends...) {
		w.waiting = append(w.waiting, a.Send.ID)
		if !a.Joined {
			w.accepted++
		}
	}
}

func (w *world) claim(t *rapid.T) {
	s := mustClaim(w, w.l, w.company, func(v View) Choice {
		if len(v.Heads) == 0 {
			return Choice{}
		}
		return choose(rapid.SampledFrom(v.Heads).Draw(t, "head"))
	})
	if s == nil {
		return
	}
	w.checkFirst(s)
	w.flying = append(w.flying, s)
}

// checkFirst checks that no earlier send of the queue to the same recipient was passed over.
func (w *world) checkFirst(s *Send) {
	w.Helper()
	earlier := 0
	err := w.l.query(w.Context(), `SELECT count(*) FROM send WHERE company = $1 AND queue = $2 AND recipient = $3 AND recipient <> '' AND pos < $4
		AND state IN ('pending', 'sending')`, func(scan scanFunc) error { return scan(&earlier) }, s.ID.Company, s.ID.Queue, s.Recipient, s.ID.Pos)
	if err != nil || earlier != 0 {
		w.Fatalf("%d sends before %+v in its queue, %v", earlier, s, err)
	}
}

func (w *world) settle(t *rapid.T) {
	if len(w.flying) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.flying)-1).Draw(t, "in flight")
	s := w.flying[i]
	w.flying = append(w.flying[:i], w.flying[i+1:]...)
	state := rapid.SampledFrom([]State{Sent, Failed, Unknown, Pending}).Draw(t, "outcome")
	settlement := Settlement{ID: s.ID, Claim: s.Claim, State: state, Uncounted: rapid.Bool().Draw(t, "uncounted")}
	if rapid.Bool().Draw(t, "backoff") {
		settlement.Backoff = time.Hour
	}
	if got := mustSettle(w, w.l, settlement); got.State == Unknown {
		w.lost = append(w.lost, s)
	}
}

func (w *world) evidence(t *rapid.T) {
	if len(w.lost) == 0 {
		return
	}
	s := w.lost[0]
	w.lost = w.lost[1:]
	if rapid.Bool().Draw(t, "by a person") {
		if _, _, err := w.l.Resolve(w.Context(), s.ID, Failed, ""); err != nil {
			w.Fatal(err)
		}
		return
	}
	mustSettle(w, w.l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
}

func (w *world) end(t *rapid.T) {
	if len(w.waiting) == 0 {
		return
	}
	end := w.l.Cancel
	if rapid.Bool().Draw(t, "expires") {
		end = w.l.Expire
	}
	if _, _, err := end(w.Context(), rapid.SampledFrom(w.waiting).Draw(t, "send")); err != nil {
		w.Fatal(err)
	}
}

func (w *world) pause(t *rapid.T) {
	if rapid.Bool().Draw(t, "paused") {
		mustExec(w, w.l, `UPDATE queue SET state = 'paused' WHERE company = $1 AND batch = 1`, w.company)
		return
	}
	w.resume()
}

func (w *world) resume() {
	mustExec(w, w.l, `UPDATE queue SET state = 'open' WHERE company = $1 AND batch = 1`, w.company)
	mustExec(w, w.l, `UPDATE share SET ready = 1 WHERE company = $1`, w.company)
}

// pass lets time go by: backoffs end, schedules come, leases lapse, an owner dies.
func (w *world) pass(t *rapid.T) {
	switch rapid.IntRange(0, 3).Draw(t, "what passes") {
	case 0:
		mustExec(w, w.l, `UPDATE send SET due_at = 1 WHERE company = $1 AND parked = 2`, w.company)
	case 1:
		mustExec(w, w.l, `UPDATE send SET due_at = 1 WHERE company = $1 AND state = 'scheduled'`, w.company)
	case 2:
		mustExec(w, w.l, `UPDATE send SET lease_until = {now} - 1 WHERE company = $1 AND state = 'sending'`, w.company)
		w.flying = nil
	case 3:
		mustExec(w, w.l, `UPDATE send SET owner = 'dead' WHERE company = $1 AND owner IS NOT NULL`, w.company)
	}
	if rapid.Bool().Draw(t, "swept") {
		sweepAll(w, w.l)
	}
}

func (w *world) consistent(*rapid.T) {
	if err := w.l.CheckInvariant(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// drain lets everything come to its end, and checks that nothing was left behind.
func (w *world) drain() {
	w.resume()
	for range 3 * (w.accepted + 1) {
		mustExec(w, w.l, `UPDATE send SET due_at = 1 WHERE company = $1 AND due_at > 1 AND state IN ('scheduled', 'pending')`, w.company)
		mustExec(w, w.l, `UPDATE send SET lease_until = {now} - 1 WHERE company = $1 AND state = 'sending'`, w.company)
		sweepAll(w, w.l)
		s := mustClaim(w, w.l, w.company, chooseFirst)
		if s == nil {
			break
		}
		mustSettle(w, w.l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
	}
	w.consistent(nil)
	var rows, final, results int
	err := w.l.query(w.Context(), `SELECT count(*), count(result_no), COALESCE(sum(CASE WHEN state = 'expired' THEN 1 ELSE 0 END), 0) FROM send WHERE company = $1`,
		func(scan scanFunc) error { return scan(&rows, &final, &results) }, w.company)
	if err != nil || rows != w.accepted || final != rows {
		w.Fatalf("%d accepted, %d stored, %d with a result, %v", w.accepted, rows, final, err)
	}
}

// Whatever happens in whatever order, nothing is lost, the counts are right, and in the end everything has its result.
func TestAnythingMayHappen(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		mustExec(t, l, `INSERT INTO replica (id, alive_until) VALUES ('dead', 1)`)
		run := 0
		rapid.Check(t, func(rt *rapid.T) {
			run++
			w := &world{T: rt, l: l, company: mustCompany(rt, l, fmt.Sprint(run)), batch: newQueueID()}
			mustBatch(rt, l, w.company, w.batch, Bulk)
			rt.Repeat(map[string]func(*rapid.T){
				"add": w.add, "claim": w.claim, "claim again": w.claim, "settle": w.settle, "evidence": w.evidence,
				"end": w.end, "pause": w.pause, "pass": w.pass, "check": w.consistent,
			})
			w.drain()
			mustExec(t, l, `DELETE FROM send`)
			mustExec(t, l, `DELETE FROM tally`)
			mustExec(t, l, `DELETE FROM queue`)
			mustExec(t, l, `DELETE FROM share`)
			l.loose.Clear()
		})
	})
}
