package pace

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// company is what a database would hold: the row with its lock, and what waits.
type company struct {
	mu     sync.Mutex
	cfg    Config
	row    []byte
	claims int64
	bulk   int
	moved  chan struct{} // closed and replaced when a slot may have become free

	arrivals []Time // at Jelou
}

func databaseTime() Time { return Time(time.Now().UnixMicro()) }

// decide runs f on the row's state under its lock and stores it.
func (c *company) decide(t *testing.T, f func(b *Budget, now Time)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b Budget
	if err := b.UnmarshalBinary(c.row); err != nil {
		t.Error(err)
	}
	f(&b, databaseTime())
	row, err := b.MarshalBinary()
	if err != nil {
		t.Error(err)
	}
	c.row = row
}

// claim takes a slot, or says when to ask again and what else to wait for.
func (c *company) claim(t *testing.T) (claim int64, at Time, moved <-chan struct{}) {
	c.decide(t, func(b *Budget, now Time) {
		turn := b.Next(c.cfg, now, Lanes{Bulk: c.bulk > 0})
		at, moved = turn.At, c.moved
		if b.Take(c.cfg, now, turn, c.claims+1, now.Add(11*time.Second)) {
			c.claims++
			c.bulk--
			claim = c.claims
		}
	})
	return claim, at, moved
}

// replica claims and sends until nothing waits.
func (c *company) replica(t *testing.T, seed uint64) {
	rng := newRand(seed)
	var sending sync.WaitGroup
	defer sending.Wait()
	for {
		claim, at, moved := c.claim(t)
		if claim != 0 {
			way := time.Duration(25+rng.IntN(10)) * time.Millisecond
			sending.Go(func() { c.send(t, claim, way) })
			continue
		}
		if at == Never {
			return
		}
		timer := time.NewTimer(at.Sub(databaseTime()))
		select {
		case <-timer.C:
		case <-moved:
			timer.Stop()
		}
	}
}

// send is one request to Jelou and its settle.
func (c *company) send(t *testing.T, claim int64, way time.Duration) {
	sent := time.Now()
	time.Sleep(way)
	c.mu.Lock()
	c.arrivals = append(c.arrivals, databaseTime())
	c.mu.Unlock()
	time.Sleep(way)
	seen := time.Now()
	time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
	c.decide(t, func(b *Budget, now Time) {
		b.Settle(c.cfg, now, claim, Reply{Outcome: Answered, Ago: time.Since(seen), Trip: seen.Sub(sent)})
		close(c.moved)
		c.moved = make(chan struct{})
	})
}

// TestLoop is how replicas use a Budget: each decision under the row's lock with
// the row's clock, a timer until the next, and a settle that wakes the others.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sends = 500
		c := &company{bulk: sends, moved: make(chan struct{})}
		began := time.Now()
		var replicas sync.WaitGroup
		for seed := range uint64(3) {
			replicas.Go(func() { c.replica(t, seed) })
		}
		replicas.Wait()
		if len(c.arrivals) != sends {
			t.Errorf("%d of %d arrived", len(c.arrivals), sends)
		}
		for i := defaultRequests; i < len(c.arrivals); i++ {
			if apart := c.arrivals[i].Sub(c.arrivals[i-defaultRequests]); apart < time.Second {
				t.Fatalf("%d requests within %v", defaultRequests+1, apart)
			}
		}
		if took := time.Since(began); took > 104*time.Second {
			t.Errorf("%d sends took %v", sends, took)
		}
	})
}
