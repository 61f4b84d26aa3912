package ledger

import (
	"testing"
	"time"
)

const million = 1_000_000

// fillMillion makes a sealed batch of a million waiting items, by the database itself.
func fillMillion(b *testing.B, l *Ledger, company int64) Batch {
	b.Helper()
	batch := mustCreate(b, l, newBatch(company))
	const part = 50_000
	for from := 0; from < million; from += part {
		mustExec(b, l, `INSERT INTO send (company, queue, pos, lane, caller, bot, recipient, kind, state, accepted_at, hash, hash_version, body)
			WITH RECURSIVE n(i) AS (SELECT CAST($3 AS BIGINT) + 1 UNION ALL SELECT i + 1 FROM n WHERE i < $3 + $4)
			SELECT $1, $2, i, 3, 'shop', 'demo', CAST(59300000000 + i AS TEXT), 'text', 'pending', 1, $5, 1, $6 FROM n`,
			company, batch.ID.Queue, from, part, []byte("a hash of thirty-two bytes or so"), make([]byte, 200))
	}
	mustExec(b, l, `INSERT INTO tally (company, queue, stripe, added) VALUES ($1, $2, 0, $3)`, company, batch.ID.Queue, million)
	mustExec(b, l, `UPDATE queue SET ready = 1 WHERE id = $1`, batch.ID.Queue)
	mustExec(b, l, `UPDATE share SET ready = 1 WHERE company = $1`, company)
	batch, err := l.Seal(b.Context(), batch.ID, million, 0)
	if err != nil {
		b.Fatal(err)
	}
	return batch
}

// Pausing, resuming and reading a million items.
func BenchmarkPauseMillion(b *testing.B) {
	eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
		batch := fillMillion(b, l, mustCompany(b, l, "acme"))
		b.ResetTimer()
		for range b.N {
			if _, err := l.PauseBatch(b.Context(), batch.ID); err != nil {
				b.Fatal(err)
			}
			if _, err := l.ResumeBatch(b.Context(), batch.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Cancelling a million items, and giving each its result.
func BenchmarkCancelMillion(b *testing.B) {
	eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
		company := mustCompany(b, l, "acme")
		for range b.N {
			batch := fillMillion(b, l, company)
			began := time.Now()
			if _, err := l.CancelBatch(b.Context(), batch.ID); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "ms/cancel")
			began = time.Now()
			if err := l.rewriteCancelled(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(million/time.Since(began).Seconds(), "results/s")
			if got := mustRead(b, l, batch.ID); got.EndedAt == 0 || got.Counts.Cancelled != million {
				b.Fatalf("%+v", got)
			}
		}
	})
}

// Pages of 100 out of a million sends.
func BenchmarkListMillion(b *testing.B) {
	eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
		company := mustCompany(b, l, "acme")
		batch := fillMillion(b, l, company)
		mustExec(b, l, `UPDATE send SET state = 'failed', reason = 'RARE', settled_at = 1, result_no = pos WHERE queue = $1 AND pos IN (1, 500000, 999999)`, batch.ID.Queue)
		for name, f := range map[string]SendFilter{
			"newest":        {Companies: []int64{company}, Caller: "shop"},
			"batch":         {Queue: batch.ID},
			"failed":        {Companies: []int64{company}, Caller: "shop", States: []State{Failed}},
			"batch failed":  {Queue: batch.ID, States: []State{Failed}},
			"nothing found": {Companies: []int64{company}, Caller: "shop", Bot: "other"},
		} {
			b.Run(name, func(b *testing.B) {
				for range b.N {
					if _, _, err := l.Sends(b.Context(), f, Cursor{}, 100); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}
