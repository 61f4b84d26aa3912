package ledger

import (
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

// The answer to each commit is lost on its way; every call finds what became of it and answers as if nothing was.
func TestLostCommitsOfBatches(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, dsn)
	l := mustOpen(t, Config{URL: p.URL, ListenURL: dsn, Replica: "one"})
	company := mustCompany(t, l, "acme")

	p.CutCommits(1)
	b := mustCreate(t, l, newBatch(company))
	p.CutCommits(1)
	_, uploader, err := l.OpenBatch(t.Context(), b.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	sends := items(company, b.ID.Queue, 0, 700)
	for i := range sends {
		sends[i].Uploader = uploader
	}
	p.CutCommits(1)
	for _, a := range mustAdd(t, l, sends...) {
		if a.Joined {
			t.Fatalf("joined itself: %+v", a)
		}
	}
	changes := []struct {
		name string
		call func() (Batch, error)
	}{
		{"seal", func() (Batch, error) { return l.Seal(t.Context(), b.ID, 700, uploader) }},
		{"pause", func() (Batch, error) { return l.PauseBatch(t.Context(), b.ID) }},
		{"resume", func() (Batch, error) { return l.ResumeBatch(t.Context(), b.ID) }},
	}
	for _, test := range changes {
		p.CutCommits(1)
		if got, err := test.call(); err != nil || got.State != BatchRunning || got.Counts.Pending != 700 {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
	spoil(t, l, b.ID)
	p.CutCommits(1)
	replay := mustReplay(t, l, newReplay(b, Failed, Unknown, Expired))
	if replay.Counts.Accepted != 525 || replay.State != BatchRunning {
		t.Errorf("replayed %+v", replay)
	}
	p.CutCommits(1)
	if got, err := l.CancelBatch(t.Context(), replay.ID); err != nil || got.Counts.Cancelled != 525 {
		t.Errorf("cancelled %+v, %v", got, err)
	}
	p.CutCommits(1)
	if err := l.rewriteCancelled(t.Context()); err != nil {
		t.Error(err)
	}
	checkResults(t, l, replay.ID, 525)
	mustExec(t, l, `UPDATE home SET held = 1, held_at = 1`)
	p.CutCommits(1)
	mustRelease(t, l, Unknown)
	age(t, l, 31*24*time.Hour)
	p.CutCommits(1)
	retainAll(t, l, Retention{}, 300)
	if totals, err := l.Totals(t.Context()); err != nil || totals != (Totals{}) {
		t.Errorf("retention left %+v, %v", totals, err)
	}
}

// However many answers in a row are lost, what the claimant knows is not.
func TestLostCommitsOfASettle(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	p := ledgertest.NewProxy(t, dsn)
	l := mustOpen(t, Config{URL: p.URL, ListenURL: dsn, Replica: "one"})
	company := mustCompany(t, l, "acme")
	for n, lost := range []int{1, 2, 5} {
		id := mustAdd(t, l, newSend(company, n))[0].Send.ID
		claimed := mustClaim(t, l, company, chooseFirst)
		p.CutCommits(lost)
		if s := mustSettle(t, l, Settlement{ID: id, Claim: claimed.Claim, State: Sent}); s.State != Sent || s.ResultNo == 0 {
			t.Errorf("after %d lost answers: %+v", lost, s)
		}
		checkState(t, l, id, Sent)
	}
	p.CutCommits(3)
	if b := mustCreate(t, l, newBatch(company)); b.CreatedAt == 0 {
		t.Errorf("created %+v", b)
	}
}
