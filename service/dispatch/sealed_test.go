package dispatch

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// sealedWith is what stands before a body that needs a key.
var sealedWith = []byte("key:")

// keyed opens bodies that need a key where there is one, and counts those that it could not open.
func keyed(has *atomic.Bool, missed *atomic.Int64) func([]byte) ([]byte, error) {
	return func(body []byte) ([]byte, error) {
		inside, sealed := bytes.CutPrefix(body, sealedWith)
		if sealed && !has.Load() {
			missed.Add(1)
			return nil, ErrKeyMissing
		}
		return inside, nil
	}
}

func sealedSends(sends []ledger.NewSend) []ledger.NewSend {
	for i := range sends {
		sends[i].Body = append(bytes.Clone(sealedWith), sends[i].Body...)
	}
	return sends
}

// TestKeyMissing has one of two replicas without the key: whichever of them looks first, the other one sends all, with one attempt each.
func TestKeyMissing(t *testing.T) {
	for without := range 2 {
		t.Run(fmt.Sprint("replica ", without), func(t *testing.T) {
			var missed atomic.Int64
			w := newWorld(t, func(s *setup) {
				s.replicas = 2
				s.open = func(n int) func([]byte) ([]byte, error) {
					var has atomic.Bool
					has.Store(n != without)
					return keyed(&has, &missed)
				}
			})
			ids := w.add(w.replicas[without], sealedSends(w.many(ledger.Normal, 40))...)
			for _, row := range w.wait(w.replicas[0], ledger.Sent, ids...) {
				if row.Attempt != 1 {
					t.Errorf("%d attempts", row.Attempt)
				}
			}
			w.check(40)
			if n := missed.Load(); n > 20 {
				t.Errorf("the replica without the key took a send %d times", n)
			}
		})
	}
}

// TestKeyMissingEverywhere: sends whose key nobody has cost no attempt, are not failed, let what is behind them pass, and go
// when the key is there.
func TestKeyMissingEverywhere(t *testing.T) {
	var has atomic.Bool
	var missed atomic.Int64
	w := newWorld(t, func(s *setup) {
		s.open = func(int) func([]byte) ([]byte, error) { return keyed(&has, &missed) }
	})
	r := w.replicas[0]
	sealed := w.add(r, sealedSends(w.many(ledger.Normal, 5))...)
	behind := w.many(ledger.Normal, 20)
	for i := range behind {
		behind[i].Recipient += "-" // to others
	}
	w.wait(r, ledger.Sent, w.add(r, behind...)...)
	for _, id := range sealed {
		row, err := r.ledger.Get(t.Context(), id)
		w.must(err)
		if row.State.Final() || row.Attempt > 1 || row.State == ledger.Pending && row.Attempt != 0 {
			t.Errorf("%s after %d attempts", row.State, row.Attempt)
		}
	}
	if missed.Load() < 5 {
		t.Errorf("missed %d times", missed.Load())
	}
	has.Store(true)
	w.wait(r, ledger.Sent, sealed...)
	w.check(25)
}
