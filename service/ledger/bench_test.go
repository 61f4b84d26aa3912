package ledger

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger/ledgertest"
)

func eachBackendBenchmark(b *testing.B, bench func(b *testing.B, l *Ledger)) {
	b.Run("sqlite", func(b *testing.B) {
		bench(b, openBenchmark(b, Config{Path: filepath.Join(b.TempDir(), "ledger.db"), Replica: "one"}))
	})
	b.Run("postgres", func(b *testing.B) {
		bench(b, openBenchmark(b, Config{URL: ledgertest.Postgres(b), Replica: "one"}))
	})
}

func openBenchmark(b *testing.B, c Config) *Ledger {
	b.Helper()
	l, err := Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	return l
}

// 64 callers, each with one send at a time: what a group shares.
func BenchmarkAddOne(b *testing.B) {
	eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
		company := mustCompany(b, l, "acme")
		work := make(chan int)
		var callers sync.WaitGroup
		for range 64 {
			callers.Go(func() {
				for n := range work {
					s := newSend(company, n)
					s.RequestID = fmt.Sprint(n)
					mustAdd(b, l, s)
				}
			})
		}
		b.ResetTimer()
		before := l.commits.Load()
		for n := range b.N {
			work <- n
		}
		close(work)
		callers.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sends/s")
		b.ReportMetric(float64(b.N)/float64(l.commits.Load()-before), "sends/commit")
	})
}

// One uploader of a batch, a thousand items at a time.
func BenchmarkAddThousand(b *testing.B) {
	eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
		company := mustCompany(b, l, "acme")
		mustBatch(b, l, company, 7, Bulk)
		b.ResetTimer()
		for n := range b.N {
			mustAdd(b, l, items(company, 7, n*1000, 1000)...)
		}
		b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "sends/s")
	})
}

func items(company, queue int64, from, n int) []NewSend {
	sends := make([]NewSend, n)
	for i := range sends {
		sends[i] = newSend(company, from+i)
		sends[i].Queue, sends[i].Pos = queue, int64(from+i+1)
	}
	return sends
}

// A claim and its settle, with a hundred thousand sends waiting and ten thousand of them blocked at the front.
func BenchmarkClaimSettle(b *testing.B) {
	for _, blocked := range []int{0, 10_000} {
		b.Run(fmt.Sprint("blocked=", blocked), func(b *testing.B) {
			eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
				company := mustCompany(b, l, "acme")
				mustBatch(b, l, company, 7, Bulk)
				block(b, l, company, blocked)
				for n := 0; n < 100_000; n += 10_000 {
					mustAdd(b, l, items(company, 7, blocked+n, 10_000)...)
				}
				// The first claims park what is blocked.
				once := mustClaim(b, l, company, chooseFirst)
				mustSettle(b, l, Settlement{ID: once.ID, Claim: once.Claim, State: Sent})
				var claims, settles time.Duration
				b.ResetTimer()
				for range b.N {
					start := time.Now()
					s := mustClaim(b, l, company, chooseFirst)
					claims += time.Since(start)
					start = time.Now()
					mustSettle(b, l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent, Result: []byte("ok")})
					settles += time.Since(start)
				}
				b.ReportMetric(float64(claims.Microseconds())/float64(b.N), "µs/claim")
				b.ReportMetric(float64(settles.Microseconds())/float64(b.N), "µs/settle")
			})
		})
	}
}

// block puts sends at the front of the batch whose recipient is busy.
func block(b *testing.B, l *Ledger, company int64, n int) {
	if n == 0 {
		return
	}
	busy := newSend(company, -1)
	mustAdd(b, l, busy)
	mustClaim(b, l, company, chooseFirst)
	sends := items(company, 7, 0, n)
	for i := range sends {
		sends[i].Recipient = busy.Recipient
	}
	mustAdd(b, l, sends...)
}

// Many companies, claimed for together.
func BenchmarkCompanies(b *testing.B) {
	eachBackendBenchmark(b, func(b *testing.B, l *Ledger) {
		ids := make([]int64, MaxClaimCompanies)
		for i := range ids {
			ids[i] = mustCompany(b, l, fmt.Sprint(i))
			mustBatch(b, l, ids[i], 7, Bulk)
			mustAdd(b, l, items(ids[i], 7, 0, 4000)...)
		}
		b.ResetTimer()
		for range b.N {
			claims, err := l.Claim(b.Context(), ids, time.Minute, chooseFirst)
			if err != nil {
				b.Fatal(err)
			}
			var settling sync.WaitGroup
			for _, c := range claims {
				if c.Send == nil {
					b.Fatal("nothing to claim")
				}
				settling.Go(func() { mustSettle(b, l, Settlement{ID: c.Send.ID, Claim: c.Send.Claim, State: Sent}) })
			}
			settling.Wait()
		}
		b.ReportMetric(float64(b.N*len(ids))/b.Elapsed().Seconds(), "sends/s")
	})
}
