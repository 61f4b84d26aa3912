package ledger

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// openEach opens as many replicas as the database takes.
func openEach(t *testing.T, c Config) []*Ledger {
	t.Helper()
	ledgers := []*Ledger{mustOpen(t, c)}
	if c.URL != "" {
		c.Replica = "two"
		ledgers = append(ledgers, mustOpen(t, c))
	}
	return ledgers
}

// A batch is uploaded, sent, paused, resumed and at last cancelled, all at once and by every replica, while its
// results are read. Nothing is claimed of it once it is paused or cancelled, and each item has one result.
func TestBatchUnderWay(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		ledgers := openEach(t, c)
		company := mustCompany(t, ledgers[0], "acme")
		b := mustCreate(t, ledgers[0], newBatch(company))
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var working sync.WaitGroup
		var claimed atomic.Int64

		for i, l := range ledgers {
			working.Go(func() { _ = l.Run(ctx) })
			working.Go(func() { sendAll(t, ctx, l, company, &claimed) })
			if i == 0 {
				working.Go(func() { uploadUntilSealed(t, ctx, l, b.ID) })
			}
		}
		for i := range 8 {
			l := ledgers[i%len(ledgers)]
			if _, err := l.PauseBatch(ctx, b.ID); err != nil {
				t.Fatal(err)
			}
			paused := mustRead(t, l, b.ID)
			if now := mustRead(t, l, b.ID); now.Counts.Sending > paused.Counts.Sending {
				t.Errorf("claimed while paused: %+v, then %+v", paused.Counts, now.Counts)
			}
			if _, err := l.ResumeBatch(ctx, b.ID); err != nil {
				t.Fatal(err)
			}
			for before := claimed.Load(); claimed.Load() < before+5; {
				if mustRead(t, l, b.ID).Counts.Pending == 0 {
					break
				}
			}
		}
		cancelled, err := ledgers[0].CancelBatch(ctx, b.ID)
		if err != nil {
			t.Fatal(err)
		}
		signal, end := ledgers[0].Subscribe(b.ID)
		defer end()
		for mustRead(t, ledgers[0], b.ID).EndedAt == 0 {
			<-signal
		}
		stop()
		working.Wait()
		ended := mustRead(t, ledgers[0], b.ID)
		if ended.Counts.Accepted != cancelled.Counts.Accepted || ended.Counts.Cancelled < cancelled.Counts.Cancelled {
			t.Errorf("cancelled %+v, ended %+v", cancelled.Counts, ended.Counts)
		}
		checkResults(t, ledgers[0], b.ID, int(ended.Counts.Accepted))
	})
}

// sendAll claims and settles until ctx ends.
func sendAll(t *testing.T, ctx context.Context, l *Ledger, company int64, claimed *atomic.Int64) {
	outcomes := []State{Sent, Failed, Unknown, Pending}
	for n := 0; ctx.Err() == nil; n++ {
		claims, err := l.Claim(ctx, []int64{company}, time.Minute, chooseFirst)
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		s := claims[0].Send
		if s == nil {
			continue
		}
		claimed.Add(1)
		if _, err := l.Settle(context.WithoutCancel(ctx), Settlement{ID: s.ID, Claim: s.Claim, State: outcomes[n%len(outcomes)]}); err != nil {
			t.Error(err)
		}
	}
}

// uploadUntilSealed adds items until the batch takes no more.
func uploadUntilSealed(t *testing.T, ctx context.Context, l *Ledger, id QueueID) {
	for n := 0; ctx.Err() == nil; n += 10 {
		out, err := l.Add(ctx, items(id.Company, id.Queue, n, 10))
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		for _, a := range out {
			if errors.Is(a.Err, ErrSealed) {
				return
			}
			if a.Err != nil {
				t.Error(a.Err)
				return
			}
		}
	}
}
