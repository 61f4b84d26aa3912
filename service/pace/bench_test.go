package pace

import (
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// BenchmarkDecision is all that one request costs: the state read, the turn, the
// slot, the settle and the state written, twice as in two transactions.
func BenchmarkDecision(b *testing.B) {
	var budget Budget
	now, cfg := epoch, Config{}
	row, err := budget.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	claim := int64(0)
	for b.Loop() {
		var s Budget
		if err := s.UnmarshalBinary(row); err != nil {
			b.Fatal(err)
		}
		turn := s.Next(cfg, now, Lanes{Urgent: true, Bulk: true})
		claim++
		if now = turn.At; !s.Take(cfg, now, turn, claim, now+11*second) {
			turn = s.Next(cfg, now, Lanes{Urgent: true, Bulk: true})
			s.Take(cfg, now, turn, claim, now+11*second)
		}
		if row, err = s.AppendBinary(row[:0]); err != nil {
			b.Fatal(err)
		}
		now += 60 * ms
		if err := s.UnmarshalBinary(row); err != nil {
			b.Fatal(err)
		}
		if !s.Settle(cfg, now, claim, Reply{Outcome: Answered, Trip: 59 * time.Millisecond}) {
			b.Fatal("not settled")
		}
		if row, err = s.AppendBinary(row[:0]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(row)), "B/row")
}

// BenchmarkTokenBucket is the same decision by x/time/rate, which shares nothing,
// remembers nothing and lets nine through in a second.
func BenchmarkTokenBucket(b *testing.B) {
	limiter := rate.NewLimiter(5, 5)
	now := time.UnixMicro(int64(epoch))
	for b.Loop() {
		now = now.Add(limiter.ReserveN(now, 1).DelayFrom(now))
	}
}

// BenchmarkLineDay is the rehearsal of a day at full rate: 432,000 sends of 50
// callers, with an estimate for each.
func BenchmarkLineDay(b *testing.B) {
	for b.Loop() {
		line := NewLine(LineConfig{Start: epoch})
		started := 0
		for i := range 432_000 {
			s := Send{ID: int64(i), Lane: 1 + Lane(i%4), Caller: string(rune('A' + i%50)), Queue: "loose"}
			line.Advance(epoch+Time(i)*200*ms, func(Event) { started++ })
			line.Estimate(s, 1)
			line.Add(s)
		}
		line.Advance(Never, func(Event) { started++ })
		if started != 432_000 {
			b.Fatalf("%d started", started)
		}
	}
}

func BenchmarkEstimate(b *testing.B) {
	w := newWorld(10, "internet", 60*second, Bulk)
	w.run(b)
	q := Backlog{Waiting: [lanes]int{Urgent: 3, Normal: 200, Bulk: 10_000}, Ahead: 120}
	for b.Loop() {
		w.budget.Estimate(w.cfg, w.now, Normal, q)
	}
}
