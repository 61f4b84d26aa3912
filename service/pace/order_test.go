package pace

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// order counts the lanes of so many turns while the lanes of waiting wait.
func order(b *Budget, floor int64, turns int, waiting func(turn int) Lanes) (served [lanes]int, sequence []Lane) {
	for i := range turns {
		w := waiting(i)
		l := b.lane(floor, w, true)
		b.turned(floor, l, w)
		served[l]++
		sequence = append(sequence, l)
	}
	return served, sequence
}

func TestLanes(t *testing.T) {
	all := Lanes{Urgent: true, Normal: true, Bulk: true, Read: true}
	for _, tt := range []struct {
		name    string
		floor   int64
		waiting Lanes
		want    [lanes]int // of 1000 turns
	}{
		{"nothing", 5, Lanes{}, [lanes]int{0: 1000}},
		{"one", 5, Lanes{Read: true}, [lanes]int{Read: 1000}},
		{"urgent and bulk", 5, Lanes{Urgent: true, Bulk: true}, [lanes]int{Urgent: 800, Bulk: 200}},
		{"normal and bulk", 5, Lanes{Normal: true, Bulk: true}, [lanes]int{Normal: 800, Bulk: 200}},
		{"three", 5, Lanes{Urgent: true, Normal: true, Bulk: true}, [lanes]int{Urgent: 800, Normal: 160, Bulk: 40}},
		{"all", 5, all, [lanes]int{Urgent: 800, Normal: 160, Bulk: 32, Read: 8}},
		{"all, half below", 2, all, [lanes]int{Urgent: 500, Normal: 250, Bulk: 125, Read: 125}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b Budget
			got, _ := order(&b, tt.floor, 1000, func(int) Lanes { return tt.waiting })
			if got != tt.want {
				t.Errorf("served %v, want %v", got, tt.want)
			}
		})
	}
}

// TestLowerLanes: whatever waits when, a lane that waits is never passed over more
// often in a row than its floor says, and a blocked one saves nothing up.
func TestLowerLanes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		floor := rapid.Int64Range(2, 8).Draw(t, "floor")
		script := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Lanes {
			return Lanes{Urgent: rapid.Bool().Draw(t, "urgent"), Bulk: rapid.Bool().Draw(t, "bulk")}
		}), 1, 200).Draw(t, "script")
		var b Budget
		_, sequence := order(&b, floor, len(script), func(i int) Lanes { return script[i] })
		passed, inRow := int64(0), 0
		for i, l := range sequence {
			if l == 0 != (script[i] == Lanes{}) || l != 0 && !script[i][l] {
				t.Fatalf("turn %d went to lane %d of %v", i, l, script[i])
			}
			switch {
			case l == Bulk:
				passed = 0
				if script[i][Urgent] {
					inRow++
				}
			case l == Urgent && script[i][Bulk]:
				passed++
				inRow = 0
			case l == Urgent:
				inRow = 0
			}
			if passed >= floor {
				t.Fatalf("bulk was passed over %d times at a floor of %d: %v", passed, floor, sequence[:i+1])
			}
			if inRow > 1 {
				t.Fatalf("bulk went before urgent twice in a row: %v", sequence[:i+1])
			}
		}
	})
}

// newLine is a Line of constant trips that starts at the epoch.
func newLine(weights map[string]int) *Line {
	return NewLine(LineConfig{Weights: weights, Start: epoch})
}

func (l *Line) fill(n int, s Send) {
	for range n {
		l.Add(s)
	}
}

// served counts what starts until then by a name.
func (l *Line) served(until time.Duration, name func(Send) string) map[string]int {
	n := map[string]int{}
	l.Advance(epoch.Add(until), func(e Event) { n[name(e.Send)]++ })
	return n
}

func byCaller(s Send) string { return s.Caller }
func byQueue(s Send) string  { return s.Queue }

func TestFairShares(t *testing.T) {
	t.Run("equal callers", func(t *testing.T) {
		l := newLine(nil)
		for c := range 7 {
			l.fill(1000*(c+1), Send{Lane: Normal, Caller: fmt.Sprint(c)})
		}
		var sum, squares float64
		for _, n := range l.served(20*time.Minute, byCaller) {
			sum += float64(n)
			squares += float64(n) * float64(n)
		}
		if jain := sum * sum / (7 * squares); jain < 0.999 {
			t.Errorf("Jain index %.4f", jain)
		}
	})
	t.Run("a weight of 3", func(t *testing.T) {
		l := newLine(map[string]int{"heavy": 3})
		l.fill(5000, Send{Lane: Bulk, Caller: "heavy"})
		l.fill(5000, Send{Lane: Bulk, Caller: "light"})
		n := l.served(10*time.Minute, byCaller)
		if ratio := float64(n["heavy"]) / float64(n["light"]); math.Abs(ratio-3) > 0.02 {
			t.Errorf("ratio %.3f", ratio)
		}
	})
	t.Run("100 batches against 1", func(t *testing.T) {
		l := newLine(nil)
		for q := range 100 {
			l.fill(50, Send{Lane: Bulk, Caller: "many", Queue: fmt.Sprint(q)})
		}
		l.fill(5000, Send{Lane: Bulk, Caller: "one", Queue: "one"})
		n := l.served(10*time.Minute, byCaller)
		if d := n["many"] - n["one"]; d < -1 || d > 1 {
			t.Errorf("served %v", n)
		}
	})
	t.Run("batches of one caller", func(t *testing.T) {
		l := newLine(nil)
		l.fill(2000, Send{Lane: Bulk, Caller: "a", Queue: "long"})
		l.served(time.Minute, byQueue)
		l.fill(100, Send{Lane: Bulk, Caller: "a", Queue: "late"})
		n := l.served(90*time.Second, byQueue)
		if d := n["late"] - n["long"]; d < -1 || d > 1 {
			t.Errorf("served %v after the second batch came: the first holds a debt or the second a credit", n)
		}
	})
}

// TestIdleHoldsNothing: who was idle for an hour gets no more than an equal share,
// and who was alone for an hour no less.
func TestIdleHoldsNothing(t *testing.T) {
	l := newLine(nil)
	l.fill(1, Send{Lane: Normal, Caller: "idle"})
	l.fill(30000, Send{Lane: Normal, Caller: "busy"})
	l.served(time.Hour, byCaller)
	l.fill(1000, Send{Lane: Normal, Caller: "idle"})
	n := l.served(time.Hour+time.Minute, byCaller)
	if d := n["idle"] - n["busy"]; d < -1 || d > 1 {
		t.Errorf("served %v", n)
	}
}

func TestExpired(t *testing.T) {
	l := newLine(nil)
	l.fill(20, Send{Lane: Normal, Caller: "a", Expire: epoch.Add(3 * time.Second)})
	l.fill(5, Send{Lane: Normal, Caller: "b"})
	var sent, expired int
	l.Advance(Never, func(e Event) {
		if e.Expired {
			expired++
		} else if sent++; e.Send.Expire != 0 && e.Start >= e.Send.Expire {
			t.Errorf("sent at %d, expired at %d", e.Start, e.Send.Expire)
		}
	})
	if sent+expired != 25 || expired < 8 || l.Waiting(Normal) != 0 {
		t.Errorf("%d sent, %d expired, %d wait", sent, expired, l.Waiting(Normal))
	}
}

// TestVirtualTimeLasts: tags do not overflow in a century at Jelou's rate.
func TestVirtualTimeLasts(t *testing.T) {
	const century = 100 * 366 * 24 * 3600 * defaultRequests
	v := Tag(century) * tagScale
	if next := v.Charge(0, 1); next <= v || v/tagScale != century {
		t.Errorf("virtual time %d, next %d", v, next)
	}
	for _, tt := range []struct{ weight, like int }{{0, 1}, {-3, 1}, {MaxWeight + 1, MaxWeight}} {
		if cost(tt.weight) != cost(tt.like) {
			t.Errorf("weight %d does not count as %d", tt.weight, tt.like)
		}
	}
}
