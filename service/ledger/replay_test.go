package ledger

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func newReplay(source Batch, states ...State) NewReplay {
	n := newBatch(source.ID.Company)
	n.Hash = []byte("replay")
	return NewReplay{NewBatch: n, Source: source.ID, States: states}
}

func mustReplay(t check, l *Ledger, r NewReplay) Batch {
	t.Helper()
	b, joined, err := l.Replay(t.Context(), r)
	if err != nil || joined {
		t.Fatalf("replay: joined %v, %v", joined, err)
	}
	return b
}

// beginReplay makes the first chunk of a replay, as a maker does that is gone after it.
func beginReplay(t check, l *Ledger, r NewReplay) (QueueID, replayed, error) {
	t.Helper()
	id := QueueID{r.Company, newQueueID()}
	var c replayed
	err := l.transact(t.Context(), func(t *tx) error {
		var err error
		_, c, err = t.beginReplay(id, &r)
		return err
	})
	return id, c, err
}

// mustSpoil makes a batch of n items whose outcomes go round: failed, unknown, expired, sent.
func mustSpoil(t check, l *Ledger, company int64, n int) Batch {
	t.Helper()
	b := mustFill(t, l, company, n)
	spoil(t, l, b.ID)
	return mustRead(t, l, b.ID)
}

// spoil gives waiting items of a batch their outcomes all at once, as settles would one by one.
func spoil(t check, l *Ledger, id QueueID) {
	t.Helper()
	mustExec(t, l, `UPDATE send SET state = CASE pos % 4 WHEN 1 THEN 'failed' WHEN 2 THEN 'unknown' WHEN 3 THEN 'expired' ELSE 'sent' END,
		reason = CASE pos % 8 WHEN 1 THEN 'ONE' ELSE 'OTHER' END, claim = 0, settled_at = 1, result_no = pos WHERE queue = $1`, id.Queue)
	for column, remainder := range map[string]int{"failed": 1, "unknown": 2, "expired": 3, "sent": 0} {
		mustExec(t, l, `UPDATE queue SET `+column+` = (SELECT count(*) FROM send WHERE queue = $1 AND pos % 4 = $2) WHERE id = $1`, id.Queue, remainder)
	}
	mustExec(t, l, `UPDATE queue SET state = 'closed', ended_at = 1, next_result = item_count + 1 WHERE id = $1`, id.Queue)
}

func TestReplay(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)

		one := newReplay(source, Failed, Expired)
		one.Reasons = []string{"ONE"}
		b := mustReplay(t, l, one)
		if want := (Counts{Accepted: 188, Pending: 188}); b.Counts != want || b.State != BatchRunning || b.Source != source.ID || b.NextPos != 189 {
			t.Errorf("replayed one reason: %+v", b)
		}
		if _, _, err := l.Replay(t.Context(), one); !errors.Is(err, ErrNothingToReplay) {
			t.Errorf("replayed again: %v", err)
		}
		rest := newReplay(source, Failed, Unknown, Expired)
		rest.ExpireIn = time.Hour
		if b = mustReplay(t, l, rest); b.Counts.Accepted != 1125-188 {
			t.Errorf("replayed the rest: %+v", b.Counts)
		}
		s := mustClaim(t, l, company, chooseFirst)
		if s == nil || s.ReplayOf != (ID{company, source.ID.Queue, 1}) || string(s.Body) != "body 0" || s.Recipient != newSend(company, 0).Recipient || s.Attempt != 1 {
			t.Fatalf("claimed %+v", s)
		}
		if first, err := l.Get(t.Context(), ID{company, b.ID.Queue, 1}); err != nil || first.ExpireAt < time.Now().Add(59*time.Minute).UnixMicro() {
			t.Errorf("replayed with a time to expire: %+v, %v", first, err)
		}
		// What the replay came to may be replayed in its turn.
		mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Failed})
		again := newReplay(Batch{ID: QueueID{company, s.ID.Queue}}, Failed)
		if b = mustReplay(t, l, again); b.Counts.Accepted != 1 {
			t.Errorf("replayed a replay: %+v", b.Counts)
		}
	})
}

func TestReplayOfNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustCreate(t, l, newBatch(company))
		bad := items(company, source.ID.Queue, 0, 1)
		bad[0].Body, bad[0].Final = nil, &Final{Reason: "INVALID_FIELD"}
		mustAdd(t, l, bad...)
		if _, _, err := l.Replay(t.Context(), newReplay(source, Failed)); !errors.Is(err, ErrNothingToReplay) {
			t.Errorf("replayed what has no body: %v", err)
		}
		if _, _, err := l.Replay(t.Context(), newReplay(Batch{ID: QueueID{company, 1}}, Failed)); !errors.Is(err, ErrNotFound) {
			t.Errorf("replayed no batch: %v", err)
		}
		for _, states := range [][]State{nil, {Sent}, {Failed, Cancelled}} {
			if _, _, err := l.Replay(t.Context(), newReplay(source, states...)); err == nil {
				t.Errorf("replayed %v", states)
			}
		}
		if got, _, err := l.Batches(t.Context(), BatchFilter{Companies: []int64{company}}, Cursor{}, 10); err != nil || len(got) != 1 {
			t.Errorf("left behind: %+v, %v", got, err)
		}
	})
}

// Nothing is stored where only the second chunk shows that nothing matches.
func TestReplayOfNothingInMuch(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)
		r := newReplay(source, Failed)
		r.Reasons = []string{"NONE"}
		if _, _, err := l.Replay(t.Context(), r); !errors.Is(err, ErrNothingToReplay) {
			t.Errorf("replayed %v", err)
		}
		if got, _, err := l.Batches(t.Context(), BatchFilter{Companies: []int64{company}}, Cursor{}, 10); err != nil || len(got) != 1 {
			t.Errorf("left behind: %+v, %v", got, err)
		}
	})
}

// An unknown send whose claimant may still have its answer is replayed only once that time is over.
func TestReplayWaitsForTheLease(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustFill(t, l, company, 3)
		var flying []*Send
		for range 3 {
			flying = append(flying, mustClaim(t, l, company, chooseFirst))
		}
		for _, s := range flying {
			mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Unknown})
		}
		mustExec(t, l, `UPDATE send SET late_until = 1 WHERE pos = 1`)
		r := newReplay(source, Unknown)
		id, c1, err := beginReplay(t, l, r)
		if err != nil || c1.items != 1 || c1.complete || c1.wait < 50*time.Second {
			t.Fatalf("before the leases' end: %+v, %v", c1, err)
		}
		// The second one's answer comes after all; the third one's lease ends.
		mustSettle(t, l, Settlement{ID: flying[1].ID, Claim: flying[1].Claim, State: Sent})
		mustExec(t, l, `UPDATE send SET late_until = 1 WHERE pos = 3`)
		if c, err := l.continueReplay(t.Context(), id); err != nil || c.items != 1 || !c.complete {
			t.Errorf("after their end: %+v, %v", c, err)
		}
		s, err := l.Get(t.Context(), ID{company, id.Queue, 2})
		if err != nil || s.ReplayOf != flying[2].ID {
			t.Errorf("replayed %+v, %v", s, err)
		}
	})
}

// A caller who leaves before that hears that the replay goes on.
func TestReplayGoesOnWithoutItsCaller(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustFill(t, l, company, 1)
		settleNext(t, l, company, Unknown)
		drainWakes(l)
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			<-l.Wakes() // the first chunk is committed
			leave()
		}()
		b, _, err := l.Replay(ctx, newReplay(source, Unknown))
		if !errors.Is(err, ErrUncertain) || !errors.Is(err, context.Canceled) || b.State != BatchRunning {
			t.Errorf("left before the lease's end: %+v, %v", b, err)
		}
	})
}

// Two who replay the same batch share its sends.
func TestReplaysOfOneSource(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		ledgers := []*Ledger{mustOpen(t, c)}
		if c.URL != "" {
			two := c
			two.Replica = "two"
			ledgers = append(ledgers, mustOpen(t, two))
		}
		company := mustCompany(t, ledgers[0], "acme")
		source := mustSpoil(t, ledgers[0], company, 1200)
		var replaying sync.WaitGroup
		var made [4]int64
		for i := range made {
			l := ledgers[i%len(ledgers)]
			replaying.Go(func() {
				b, _, err := l.Replay(t.Context(), newReplay(source, Failed, Unknown, Expired))
				if err != nil && !errors.Is(err, ErrNothingToReplay) {
					t.Error(err)
				}
				made[i] = b.Counts.Accepted
			})
		}
		replaying.Wait()
		if sum := made[0] + made[1] + made[2] + made[3]; sum != 900 {
			t.Errorf("%v were replayed, %d in all", made, sum)
		}
	})
}

// A replay whose maker is gone is completed by whoever sees it, and can be found under its request id meanwhile.
func TestReplayIsCompletedAfterACrash(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)
		r := newReplay(source, Failed, Unknown, Expired)
		r.RequestID = "again"
		id, _, err := beginReplay(t, l, r)
		if err != nil {
			t.Fatal(err)
		}
		half := mustRead(t, l, id)
		if half.State != BatchRunning || half.Counts.Accepted == 0 || half.Counts.Accepted >= 1125 {
			t.Errorf("half of it: %+v", half)
		}
		if out, err := l.Add(t.Context(), items(company, id.Queue, int(half.NextPos-1), 1)); err != nil || !errors.Is(out[0].Err, ErrSealed) {
			t.Errorf("added to a replay: %+v, %v", out, err)
		}
		if _, err := l.Seal(t.Context(), id, half.NextPos-1, 0); !errors.Is(err, ErrSealed) {
			t.Errorf("sealed a replay: %v", err)
		}
		if err := l.completeReplays(t.Context()); err != nil || mustRead(t, l, id).Counts != half.Counts {
			t.Errorf("taken from its maker at once: %v", err)
		}
		mustExec(t, l, `UPDATE queue SET created_at = 1 WHERE id = $1`, id.Queue)
		if err := l.completeReplays(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, l, id); got.Counts.Accepted != 1125 || got.NextPos != 1126 {
			t.Errorf("completed: %+v", got)
		}
		if b, joined, err := l.Replay(t.Context(), r); err != nil || !joined || b.ID != id {
			t.Errorf("asked again: %+v, %v, %v", b, joined, err)
		}
	})
}

// The maker asks again under the same request id and goes on itself.
func TestReplayGoesOnUnderItsRequestID(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)
		r := newReplay(source, Failed)
		r.RequestID = "again"
		id, _, err := beginReplay(t, l, r)
		if err != nil {
			t.Fatal(err)
		}
		if b, joined, err := l.Replay(t.Context(), r); err != nil || !joined || b.ID != id || b.Counts.Accepted != 375 {
			t.Errorf("asked again: %+v, %v, %v", b, joined, err)
		}
	})
}

// Its last chunk may have nothing to copy.
func TestReplayWhoseRestIsGone(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)
		r := newReplay(source, Failed)
		r.RequestID = "again"
		id, c1, err := beginReplay(t, l, r)
		if err != nil || c1.complete {
			t.Fatalf("%+v, %v", c1, err)
		}
		mustExec(t, l, `UPDATE send SET body = NULL WHERE queue = $1 AND state = 'failed'`, source.ID.Queue)
		if b, joined, err := l.Replay(t.Context(), r); err != nil || !joined || b.ID != id || b.Counts.Accepted != c1.items {
			t.Errorf("asked again: %+v, %v, %v", b, joined, err)
		}
	})
}

func TestCancelledReplayGrowsNoMore(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustSpoil(t, l, company, 1500)
		r := newReplay(source, Failed)
		id, _, err := beginReplay(t, l, r)
		if err != nil {
			t.Fatal(err)
		}
		before, err := l.CancelBatch(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := l.continueReplay(t.Context(), id); err != nil || !c.complete || c.items != 0 {
			t.Errorf("went on: %+v, %v", c, err)
		}
		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, l, id); got.Counts != before.Counts || got.EndedAt == 0 {
			t.Errorf("cancelled %+v", got)
		}
	})
}

// An expired send is started again under its request id, or replayed, and never both.
func TestExpiredStartsAgainOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		source := mustCreate(t, l, newBatch(company))
		sends := items(company, source.ID.Queue, 0, 2)
		sends[0].RequestID, sends[1].RequestID = "order-1", "order-2"
		for _, a := range mustAdd(t, l, sends...) {
			if _, ok, err := l.Expire(t.Context(), a.Send.ID); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		single := func(i int) NewSend {
			s := sends[i]
			s.Queue, s.Pos = 0, 0
			return s
		}
		started := mustAdd(t, l, single(0))[0]
		if started.Joined || started.Send.ReplayOf != (ID{company, source.ID.Queue, 1}) {
			t.Errorf("started again: %+v", started)
		}
		b := mustReplay(t, l, newReplay(source, Expired))
		if b.Counts.Accepted != 1 {
			t.Errorf("replayed %d", b.Counts.Accepted)
		}
		joined := mustAdd(t, l, single(1))[0]
		if !joined.Joined || joined.Send.ID != (ID{company, b.ID.Queue, 1}) {
			t.Errorf("the request that was replayed: %+v", joined)
		}
		other := single(1)
		other.Hash = []byte("other")
		if out, err := l.Add(t.Context(), []NewSend{other}); err != nil || !errors.Is(out[0].Err, ErrRequestIDReused) {
			t.Errorf("other content: %+v, %v", out, err)
		}
	})
}
