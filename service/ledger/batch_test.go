package ledger

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newBatch is a batch in the lane BULK.
func newBatch(company int64) NewBatch {
	return NewBatch{Company: company, Lane: Bulk, Caller: "shop", Bot: "demo", Spec: []byte("spec"), Hash: []byte("batch"), HashVersion: 1}
}

func mustCreate(t check, l *Ledger, n NewBatch) Batch {
	t.Helper()
	b, joined, err := l.CreateBatch(t.Context(), n)
	if err != nil || joined {
		t.Fatalf("create a batch: joined %v, %v", joined, err)
	}
	return b
}

// mustFill makes a batch of n items, to n users, and seals it.
func mustFill(t check, l *Ledger, company int64, n int) Batch {
	t.Helper()
	b := mustCreate(t, l, newBatch(company))
	for from := 0; from < n; from += 1000 {
		mustAdd(t, l, items(company, b.ID.Queue, from, min(1000, n-from))...)
	}
	b, err := l.Seal(t.Context(), b.ID, int64(n), 0)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustRead(t check, l *Ledger, id QueueID) Batch {
	t.Helper()
	b, err := l.Batch(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// settleNext claims and settles one send of the company.
func settleNext(t check, l *Ledger, company int64, state State) Send {
	t.Helper()
	s := mustClaim(t, l, company, chooseFirst)
	if s == nil {
		t.Fatal("nothing to claim")
	}
	return mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: state, Reason: "REASON"})
}

// A batch made at once is all there and sealed, is found again by its request id, and is not there at all where one item is refused.
func TestSealedBatch(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		n := newBatch(company)
		n.RequestID = "twice"
		for i, again := range []bool{false, true} {
			b, joined, err := l.CreateSealedBatch(t.Context(), n, items(company, 0, 0, 3))
			if err != nil || joined != again || b.State != BatchRunning || b.Counts != (Counts{Accepted: 3, Pending: 3}) {
				t.Errorf("call %d: %+v, %v, %v", i, b, joined, err)
			}
		}
		limited := items(company, 0, 0, 3)
		for i := range limited {
			limited[i].DailyLimit = 2
		}
		var over *QuotaError
		if b, _, err := l.CreateSealedBatch(t.Context(), newBatch(company), limited); !errors.As(err, &over) {
			t.Errorf("more than a day's: %+v, %v", b, err)
		}
		// One of which every item stands for another send has ended when it is sealed.
		known := newSend(company, 20)
		known.RequestID = "known"
		mustAdd(t, l, known)
		known.Pos = 1
		b, _, err := l.CreateSealedBatch(t.Context(), newBatch(company), []NewSend{known})
		if err != nil || b.State != BatchCompleted || b.EndedAt == 0 || b.Counts != (Counts{Accepted: 1, Cancelled: 1}) {
			t.Errorf("of known sends: %+v, %v", b, err)
		}
		if batches, _, err := l.Batches(t.Context(), BatchFilter{Companies: []int64{company}}, Cursor{}, 10); err != nil || len(batches) != 2 {
			t.Errorf("there are %+v, %v", batches, err)
		}
		if err := l.CheckInvariant(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestLifeOfABatch(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustCreate(t, l, newBatch(company))
		if b.State != BatchOpen || b.NextPos != 1 || b.Bot != "demo" || string(b.Spec) != "spec" || b.CreatedAt == 0 {
			t.Errorf("created %+v", b)
		}
		_, uploader, err := l.OpenBatch(t.Context(), b.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		sends := items(company, b.ID.Queue, 0, 3)
		for i := range sends {
			sends[i].Uploader = uploader
		}
		sends[1].Final = &Final{Reason: "INVALID_FIELD"}
		mustAdd(t, l, sends...)
		settleNext(t, l, company, Sent)
		b = mustRead(t, l, b.ID)
		if want := (Counts{Accepted: 3, Pending: 1, Sent: 1, Failed: 1}); b.Counts != want || b.NextPos != 4 || b.State != BatchOpen {
			t.Errorf("uploading %+v", b)
		}
		if b, err = l.Seal(t.Context(), b.ID, 3, uploader); err != nil || b.State != BatchRunning || b.SealedAt == 0 || b.EndedAt != 0 {
			t.Errorf("sealed %+v, %v", b, err)
		}
		if again, err := l.Seal(t.Context(), b.ID, 3, uploader); err != nil || again.SealedAt != b.SealedAt {
			t.Errorf("sealed again %+v, %v", again, err)
		}
		settleNext(t, l, company, Unknown)
		b = mustRead(t, l, b.ID)
		if want := (Counts{Accepted: 3, Sent: 1, Failed: 1, Unknown: 1}); b.Counts != want || b.State != BatchCompleted || b.EndedAt == 0 {
			t.Errorf("ended %+v", b)
		}
		for name, call := range map[string]func() (Batch, error){
			"pause":  func() (Batch, error) { return l.PauseBatch(t.Context(), b.ID) },
			"resume": func() (Batch, error) { return l.ResumeBatch(t.Context(), b.ID) },
			"cancel": func() (Batch, error) { return l.CancelBatch(t.Context(), b.ID) },
		} {
			if _, err := call(); !errors.Is(err, ErrBatchEnded) {
				t.Errorf("%s after the end: %v", name, err)
			}
		}
		// Late evidence changes the counts and not the end.
		unknown, _, err := l.Sends(t.Context(), SendFilter{Queue: b.ID, States: []State{Unknown}}, Cursor{}, 10)
		if err != nil || len(unknown) != 1 {
			t.Fatalf("unknown sends: %v, %v", unknown, err)
		}
		mustSettle(t, l, Settlement{ID: unknown[0].ID, Claim: unknown[0].Claim, State: Sent})
		if got := mustRead(t, l, b.ID); got.Counts.Sent != 2 || got.Counts.Unknown != 0 || got.EndedAt != b.EndedAt {
			t.Errorf("after late evidence %+v", got)
		}
	})
}

func TestBatchEndsOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		tests := map[string]func(id QueueID) error{
			"sealed with nothing in it": func(QueueID) error { return nil },
			"sealed after the last result": func(id QueueID) error {
				mustAdd(t, l, items(company, id.Queue, 0, 1)...)
				settleNext(t, l, company, Sent)
				return nil
			},
			"sealed with only bad items": func(id QueueID) error {
				bad := items(company, id.Queue, 0, 1)
				bad[0].Final = &Final{Reason: "INVALID_FIELD"}
				mustAdd(t, l, bad...)
				return nil
			},
			"all items cancelled one by one": func(id QueueID) error {
				_, _, err := l.Cancel(t.Context(), mustAdd(t, l, items(company, id.Queue, 0, 1)...)[0].Send.ID)
				return err
			},
		}
		for name, fill := range tests {
			b := mustCreate(t, l, newBatch(company))
			if err := fill(b.ID); err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, l, b.ID); got.EndedAt != 0 || got.State != BatchOpen {
				t.Errorf("%s: ended before the seal: %+v", name, got)
			}
			got, err := l.Seal(t.Context(), b.ID, mustRead(t, l, b.ID).NextPos-1, 0)
			if err != nil || got.State != BatchCompleted || got.EndedAt == 0 {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
	})
}

func TestBatchRequestIDs(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		n := newBatch(company)
		n.RequestID = "campaign-1"
		first := mustCreate(t, l, n)
		again, joined, err := l.CreateBatch(t.Context(), n)
		if err != nil || !joined || again.ID != first.ID {
			t.Errorf("the same request made %+v, joined %v, %v", again, joined, err)
		}
		other := n
		other.Hash = []byte("other")
		if _, _, err := l.CreateBatch(t.Context(), other); !errors.Is(err, ErrRequestIDReused) {
			t.Errorf("other content: %v", err)
		}
		other.Caller = "billing"
		mustCreate(t, l, other)

		var ids [16]QueueID
		var creating sync.WaitGroup
		n.RequestID = "campaign-2"
		for i := range ids {
			creating.Go(func() {
				b, _, err := l.CreateBatch(t.Context(), n)
				if err != nil {
					t.Error(err)
				}
				ids[i] = b.ID
			})
		}
		creating.Wait()
		if got := slices.Compact(ids[:]); len(got) != 1 {
			t.Errorf("one request made the batches %v", got)
		}
	})
}

func TestItemsComeInOrder(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustCreate(t, l, newBatch(company))
		refused := func(item NewSend, expected int64) {
			t.Helper()
			out, err := l.Add(t.Context(), []NewSend{item})
			if err != nil {
				t.Fatal(err)
			}
			var gap *SequenceError
			if !errors.As(out[0].Err, &gap) || !errors.Is(out[0].Err, ErrSequenceMismatch) || gap.Expected != expected {
				t.Errorf("item %d: %+v, want %d to be expected", item.Pos, out[0], expected)
			}
		}
		all := items(company, b.ID.Queue, 0, 10)
		refused(all[1], 1)
		mustAdd(t, l, all[:3]...)
		refused(all[4], 4)
		changed := all[2]
		changed.Hash = []byte("other")
		refused(changed, 4)
		zero := all[0]
		zero.Pos = 0
		refused(zero, 4)
		// A cut stream sends again what was not acknowledged, and goes on.
		for i, a := range mustAdd(t, l, all[1:6]...) {
			if a.Joined != (i < 2) {
				t.Errorf("item %d: %+v", i+2, a)
			}
		}
		// A gap inside of one call costs what comes after it.
		out, err := l.Add(t.Context(), []NewSend{all[6], all[8], all[9]})
		if err != nil || out[0].Err != nil || !errors.Is(out[1].Err, ErrSequenceMismatch) || !errors.Is(out[2].Err, ErrSequenceMismatch) {
			t.Errorf("a gap inside of a call: %+v, %v", out, err)
		}
		// So does the same number twice with other content.
		changed = all[7]
		changed.Hash = []byte("other")
		out, err = l.Add(t.Context(), []NewSend{all[7], changed, all[7]})
		if err != nil || out[0].Err != nil || !errors.Is(out[1].Err, ErrSequenceMismatch) || out[2].Err != nil {
			t.Errorf("a number twice in a call: %+v, %v", out, err)
		}
		var count *SequenceError
		if _, err := l.Seal(t.Context(), b.ID, 9, 0); !errors.As(err, &count) || count.Expected != 8 {
			t.Errorf("sealed with another count: %v", err)
		}
		if _, err := l.Seal(t.Context(), b.ID, 8, 0); err != nil {
			t.Error(err)
		}
		if out, err := l.Add(t.Context(), all[8:9]); err != nil || !errors.Is(out[0].Err, ErrSealed) {
			t.Errorf("an item after the seal: %+v, %v", out, err)
		}
		if again := mustAdd(t, l, all[7]); !again[0].Joined {
			t.Errorf("a known item after the seal: %+v", again)
		}
	})
}

// Uploaders replace each other while they upload. What the newest sees as durable stays what comes next, and no item of
// an older one comes after.
func TestUploadersReplaceEachOther(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		ledgers := []*Ledger{mustOpen(t, c)}
		if c.URL != "" {
			two := c
			two.Replica = "two"
			ledgers = append(ledgers, mustOpen(t, two))
		}
		company := mustCompany(t, ledgers[0], "acme")
		b := mustCreate(t, ledgers[0], newBatch(company))
		const n = 300
		var uploading sync.WaitGroup
		for i := range 4 {
			l := ledgers[i%len(ledgers)]
			uploading.Go(func() {
				for next := int64(1); next <= n; {
					opened, uploader, err := l.OpenBatch(t.Context(), b.ID, "")
					if err != nil {
						t.Error(err)
						return
					}
					next = upload(t, l, opened, uploader, n)
				}
			})
		}
		uploading.Wait()
		if got, err := ledgers[0].Seal(t.Context(), b.ID, n, 0); err != nil || got.Counts.Accepted != n {
			t.Errorf("sealed %+v, %v", got, err)
		}
	})
}

// upload adds items until another one has taken the batch, and says what it would have added next.
func upload(t *testing.T, l *Ledger, b Batch, uploader, n int64) int64 {
	for next := b.NextPos; ; next += 5 {
		if next > n {
			return next
		}
		sends := items(b.ID.Company, b.ID.Queue, int(next-1), int(min(5, n-next+1)))
		for i := range sends {
			sends[i].Uploader = uploader
		}
		out, err := l.Add(t.Context(), sends)
		if err != nil {
			t.Error(err)
			return n + 1
		}
		for _, a := range out {
			switch {
			case errors.Is(a.Err, ErrStreamReplaced):
				return next
			case a.Err != nil || a.Joined:
				t.Errorf("an item of the newest uploader: %+v", a)
				return n + 1
			}
		}
	}
}

func TestReplacedUploaderHasNoSay(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustCreate(t, l, newBatch(company))
		_, first, err1 := l.OpenBatch(t.Context(), b.ID, "")
		opened, second, err2 := l.OpenBatch(t.Context(), b.ID, "")
		if err := errors.Join(err1, err2); err != nil || first == second || opened.Uploader != second {
			t.Fatalf("uploaders %d and %d, %v", first, second, err)
		}
		late := items(company, b.ID.Queue, 0, 1)
		late[0].Uploader = first
		if out, err := l.Add(t.Context(), late); err != nil || !errors.Is(out[0].Err, ErrStreamReplaced) {
			t.Errorf("an item of the replaced uploader: %+v, %v", out, err)
		}
		if _, err := l.Seal(t.Context(), b.ID, 0, first); !errors.Is(err, ErrStreamReplaced) {
			t.Errorf("a seal of the replaced uploader: %v", err)
		}
		if _, err := l.Seal(t.Context(), b.ID, 0, second); err != nil {
			t.Error(err)
		}
		if _, _, err := l.OpenBatch(t.Context(), QueueID{company, 1}, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("opened nothing: %v", err)
		}
		if _, _, err := l.OpenBatch(t.Context(), b.ID, "somebody else"); !errors.Is(err, ErrNotFound) {
			t.Errorf("opened another caller's batch: %v", err)
		}
		if after, err := l.Batch(t.Context(), b.ID); err != nil || after.Uploader != second {
			t.Errorf("the uploader after it: %d instead of %d, %v", after.Uploader, second, err)
		}
		if _, third, err := l.OpenBatch(t.Context(), b.ID, b.Caller); err != nil || third <= second {
			t.Errorf("its own caller opened it as %d, %v", third, err)
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		n := newBatch(company)
		n.Paused = true
		b := mustCreate(t, l, n)
		mustAdd(t, l, items(company, b.ID.Queue, 0, 2)...)
		if got := mustClaim(t, l, company, chooseFirst); got != nil {
			t.Errorf("claimed %v of a paused batch", got.ID)
		}
		drainWakes(l)
		b, err := l.ResumeBatch(t.Context(), b.ID)
		if err != nil || b.Paused {
			t.Errorf("resumed %+v, %v", b, err)
		}
		checkWoken(t, l, Wake{Company: company, Lanes: Bulk.only(), Here: true})
		settleNext(t, l, company, Sent)
		for range 2 {
			if b, err = l.PauseBatch(t.Context(), b.ID); err != nil || !b.Paused || b.State != BatchOpen {
				t.Errorf("paused %+v, %v", b, err)
			}
		}
		if got := mustClaim(t, l, company, chooseFirst); got != nil {
			t.Errorf("claimed %v of a paused batch", got.ID)
		}
		if _, err := l.ResumeBatch(t.Context(), b.ID); err != nil {
			t.Error(err)
		}
		settleNext(t, l, company, Sent)
	})
}

func TestCancelBatch(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		const n = 2500
		b := mustFill(t, l, company, n)
		later := newSend(company, n)
		later.Queue = mustCreate(t, l, newBatch(company)).ID.Queue
		later.Pos, later.DueAt = 1, time.Now().Add(time.Hour).UnixMicro()
		scheduled := mustAdd(t, l, later)[0].Send.ID

		settleNext(t, l, company, Sent)
		backoff := mustClaim(t, l, company, chooseFirst)
		mustSettle(t, l, Settlement{ID: backoff.ID, Claim: backoff.Claim, State: Pending, Backoff: time.Hour})
		flying := mustClaim(t, l, company, chooseFirst)

		b, err := l.CancelBatch(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := Counts{Accepted: n, Sent: 1, Sending: 1, Cancelled: n - 2}
		if b.State != BatchCancelled || b.Counts != want || b.EndedAt != 0 || b.CancelledAt == 0 {
			t.Errorf("cancelled %+v", b)
		}
		if _, err := l.CancelBatch(t.Context(), QueueID{company, later.Queue}); err != nil {
			t.Error(err)
		}
		checkState(t, l, ID{company, b.ID.Queue, n}, Cancelled)
		checkState(t, l, backoff.ID, Cancelled)
		checkState(t, l, scheduled, Cancelled)
		if got := mustClaim(t, l, company, chooseFirst); got != nil {
			t.Errorf("claimed %v of a cancelled batch", got.ID)
		}
		if totals, err := l.Totals(t.Context()); err != nil || totals.Cancelled != n-1 || totals.Waiting != 1 {
			t.Errorf("totals %+v, %v", totals, err)
		}

		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, l, b.ID); got.Counts != want || got.EndedAt != 0 {
			t.Errorf("with one item under way %+v", got)
		}
		// An attempt that never left does not come back to a cancelled batch.
		if got := mustSettle(t, l, Settlement{ID: flying.ID, Claim: flying.Claim, State: Pending, SentAgo: -1}); got.State != Cancelled {
			t.Errorf("given back to a cancelled batch: %+v", got)
		}
		ended := mustRead(t, l, b.ID)
		if want := (Counts{Accepted: n, Sent: 1, Cancelled: n - 1}); ended.Counts != want || ended.EndedAt == 0 || ended.State != BatchCancelled {
			t.Errorf("ended %+v", ended)
		}
		checkResults(t, l, b.ID, n)
		if again, err := l.CancelBatch(t.Context(), b.ID); err != nil || again.EndedAt != ended.EndedAt {
			t.Errorf("cancelled again %+v, %v", again, err)
		}
		if got := mustRead(t, l, QueueID{company, later.Queue}); got.EndedAt == 0 || got.Counts.Cancelled != 1 {
			t.Errorf("the scheduled one's batch %+v", got)
		}
	})
}

// checkResults reads all results in small pages and checks that each item has one.
func checkResults(t check, l *Ledger, id QueueID, n int) []Send {
	t.Helper()
	var all []Send
	seen := map[int64]bool{}
	for after := int64(0); ; {
		page, _, err := l.Results(t.Context(), id, after, 700)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			if s.ResultNo <= after || !s.State.Final() || seen[s.ID.Pos] {
				t.Fatalf("after %d comes %+v", after, s)
			}
			after, seen[s.ID.Pos] = s.ResultNo, true
		}
		all = append(all, page...)
	}
	if len(all) != n {
		t.Errorf("%d results, want %d", len(all), n)
	}
	return all
}

func TestCancelledBatchFreesItsRecipients(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustCreate(t, l, newBatch(company))
		item := items(company, b.ID.Queue, 0, 1)[0]
		mustAdd(t, l, item)
		first := mustClaim(t, l, company, chooseFirst)
		mustSettle(t, l, Settlement{ID: first.ID, Claim: first.Claim, State: Pending, Backoff: time.Hour})
		other := newSend(company, 0) // to the same user
		id := mustAdd(t, l, other)[0].Send.ID
		if got := mustClaim(t, l, company, chooseFirst); got != nil {
			t.Fatalf("claimed %v beside a backoff", got.ID)
		}
		if _, err := l.CancelBatch(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := mustClaim(t, l, company, chooseFirst); got == nil || got.ID != id {
			t.Errorf("claimed %+v, want %v", got, id)
		}
	})
}

func TestAbandonedBatchIsSealed(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		seal := func() {
			t.Helper()
			if err := l.sealAbandoned(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b := mustCreate(t, l, newBatch(company))
		seal()
		if got := mustRead(t, l, b.ID); got.State != BatchOpen {
			t.Errorf("a new batch is %s", got.State)
		}
		mustAdd(t, l, items(company, b.ID.Queue, 0, 2)...)
		mustExec(t, l, `UPDATE queue SET uploaded_at = 1`)
		seal()
		if got := mustRead(t, l, b.ID); got.State != BatchOpen {
			t.Errorf("a batch with a new item is %s", got.State)
		}
		mustExec(t, l, `UPDATE queue SET uploaded_at = 1`)
		mustExec(t, l, `UPDATE send SET accepted_at = 1`)
		seal()
		if got := mustRead(t, l, b.ID); got.State != BatchRunning || got.NextPos != 3 {
			t.Errorf("an abandoned batch is %+v", got)
		}
	})
}

// Three writers settle at once; whoever reads behind them by result number misses nothing.
func TestResultsAreReadInTheOrderOfTheirCommits(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		ledgers := []*Ledger{mustOpen(t, c)}
		if c.URL != "" {
			for _, name := range []string{"two", "three"} {
				other := c
				other.Replica = name
				ledgers = append(ledgers, mustOpen(t, other))
			}
		}
		company := mustCompany(t, ledgers[0], "acme")
		const n = 150
		b := mustFill(t, ledgers[0], company, n)
		var claimed []*Send
		for range n {
			claimed = append(claimed, mustClaim(t, ledgers[0], company, chooseFirst))
		}
		var settling sync.WaitGroup
		for i, s := range claimed {
			l := ledgers[i%len(ledgers)]
			settling.Go(func() { mustSettle(t, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent}) })
		}
		signal, end := ledgers[0].Subscribe(b.ID)
		defer end()
		var got []int64
		for after := int64(0); ; {
			page, ended, err := ledgers[0].Results(t.Context(), b.ID, after, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range page {
				got, after = append(got, s.ID.Pos), s.ResultNo
			}
			if ended && len(page) < 10 {
				break
			}
			if len(page) == 0 {
				<-signal
			}
		}
		settling.Wait()
		slices.Sort(got)
		if len(slices.Compact(got)) != n {
			t.Errorf("%d results were read, of %d", len(got), n)
		}
		if all := checkResults(t, ledgers[0], b.ID, n); all[0].ResultNo != 1 || all[n-1].ResultNo != n {
			t.Errorf("numbers from %d to %d", all[0].ResultNo, all[n-1].ResultNo)
		}
	})
}

func TestResultsOfNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		if _, _, err := l.Results(t.Context(), QueueID{company, 1}, 0, 10); !errors.Is(err, ErrNotFound) {
			t.Errorf("results of no batch: %v", err)
		}
		if _, err := l.Batch(t.Context(), QueueID{company, 1}); !errors.Is(err, ErrNotFound) {
			t.Errorf("no batch: %v", err)
		}
		if got, _, err := l.Results(t.Context(), mustFill(t, l, company, 1).ID, 0, 10); err != nil || len(got) != 0 {
			t.Errorf("results before any: %v, %v", got, err)
		}
	})
}

// What a batch's reading says before and after the sweep of a cancelled one is the same.
func TestCancelledReadsTheSameBeforeAndAfterTheSweep(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustFill(t, l, company, 3)
		before, err := l.CancelBatch(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		states := func() []string {
			var out []string
			sends, _, err := l.Sends(t.Context(), SendFilter{Queue: b.ID, States: []State{Cancelled}}, Cursor{}, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range sends {
				out = append(out, fmt.Sprint(s.ID.Pos, s.State, s.Reason))
			}
			return out
		}
		unswept := states()
		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		after := mustRead(t, l, b.ID)
		after.EndedAt = before.EndedAt
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("the batch reads otherwise: %s", diff)
		}
		if diff := cmp.Diff(unswept, states()); diff != "" || len(unswept) != 3 {
			t.Errorf("the items read otherwise: %s", diff)
		}
	})
}

// A send that may have been sent in an attempt before is not called cancelled.
func TestCancelledBatchKeepsWhatIsUnknown(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		company := mustCompany(t, l, "acme")
		b := mustFill(t, l, company, 2)
		lost := mustClaim(t, l, company, chooseFirst)
		mustSettle(t, l, Settlement{ID: lost.ID, Claim: lost.Claim, State: Pending, Reason: ReasonUnknown, AfterLease: true})
		if _, err := l.CancelBatch(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
		checkState(t, l, lost.ID, Unknown)
		if err := l.rewriteCancelled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := checkState(t, l, lost.ID, Unknown); got.Reason != ReasonUnknown || got.ResultNo == 0 {
			t.Errorf("rewritten as %+v", got)
		}
		if got := mustRead(t, l, b.ID); got.Counts.Unknown != 1 || got.Counts.Cancelled != 1 || got.EndedAt == 0 {
			t.Errorf("ended %+v", got)
		}
		// And it is not replayed before its claimant's time is over.
		if _, c, err := beginReplay(t, l, newReplay(b, Unknown)); err != nil || c.items != 0 || c.wait < 50*time.Second {
			t.Errorf("replayed %+v, %v", c, err)
		}
	})
}
