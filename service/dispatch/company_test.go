package dispatch

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// row is a company's row as a ledger would hold it, on a database's clock that is the bubble's and a distance.
type row struct {
	ahead   time.Duration
	claimNo int64
	pace    []byte
	lanes   []ledger.Lane // in which something waits
}

func (r *row) now() int64 { return time.Now().Add(r.ahead).UnixMicro() }

// claim has a company claim from the row, as Dispatcher.claim does.
func (r *row) claim(c *company) (*decision, time.Time, look) {
	c.begin()
	start := time.Now()
	v := ledger.View{Company: 1, Now: r.now(), ClaimNo: r.claimNo + 1, Pace: r.pace}
	for _, lane := range r.lanes {
		v.Heads = append(v.Heads, ledger.Head{Send: ledger.Send{Lane: lane}})
	}
	d := turn{c, c.settings.Load()}.decide(v, c.clock.read(start, pace.Time(v.Now)))
	cl := ledger.Claim{Company: 1}
	if d.choice.Pace != nil {
		r.pace = d.choice.Pace
	}
	if d.choice.Lane != 0 {
		r.claimNo++
		cl.Send = &ledger.Send{Claim: r.claimNo, Lane: d.choice.Lane}
	}
	at, how := c.learn(time.Now(), cl, d)
	return d, at, how
}

// glance has a company look at the row.
func (r *row) glance(c *company) (time.Time, look) {
	c.begin()
	start := time.Now()
	c.clock.read(start, pace.Time(r.now()))
	return c.glanced(time.Now(), ledger.Glance{Company: 1, Now: r.now(), ClaimNo: r.claimNo, Pace: r.pace, Ready: len(r.lanes) > 0})
}

// settle answers a claim.
func (r *row) settle(t *testing.T, claim int64, c *company) {
	t.Helper()
	var b pace.Budget
	if err := b.UnmarshalBinary(r.pace); err != nil {
		t.Fatal(err)
	}
	b.Settle(c.currentRule(), pace.Time(r.now()), claim, pace.Reply{Outcome: pace.Answered, Trip: time.Millisecond})
	r.pace = marshal(&b)
}

func newTestCompany(rank int) *company {
	c := newCompany(&Company{ID: 1, AttemptTimeout: 10 * time.Second}, newClock(), slog.New(slog.DiscardHandler))
	c.rank = rank
	return c
}

// begun is a row whose first silent window is over.
func begun(t *testing.T, c *company) *row {
	t.Helper()
	r := &row{}
	if d, _, _ := r.claim(c); d.choice.Lane != 0 {
		t.Fatal("a send left in the silent window")
	}
	time.Sleep(2 * time.Second)
	return r
}

// TestPlanOfTheFirst is a replica that claims for a company alone: a claim for every send and one more.
func TestPlanOfTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCompany(0)
		r := begun(t, c)
		r.lanes = []ledger.Lane{ledger.Bulk}
		at, how := c.woken(time.Now(), ledger.Wake{Company: 1, Lanes: 1 << ledger.Bulk, Here: true})
		claims, sends := 0, 0
		for sends < 100 {
			if how != claimLook {
				t.Fatalf("the first replica looks in another way after %d sends", sends)
			}
			time.Sleep(time.Until(at))
			var d *decision
			d, at, how = r.claim(c)
			claims++
			if d.choice.Lane != 0 {
				sends++
				r.settle(t, r.claimNo, c)
				c.landed(time.Now(), time.Now(), true)
			}
		}
		if claims > sends+1 {
			t.Errorf("%d claims for %d sends", claims, sends)
		}
		r.lanes = nil
		time.Sleep(time.Until(at))
		_, at, how = r.claim(c)
		if how != glanceLook || time.Until(at) < time.Second {
			t.Errorf("an idle company is looked at again in %v", time.Until(at))
		}
	})
}

// TestSetKeepsSlots: a company at full demand whose settings are replaced before every look, the allowance aside, begins every send when
// one does that is left alone.
func TestSetKeepsSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begins := func(change func(c *company, n int)) (all []time.Duration) {
			c := newTestCompany(0)
			r := begun(t, c)
			r.lanes = []ledger.Lane{ledger.Bulk}
			began := time.Now()
			c.woken(began, ledger.Wake{Company: 1, Lanes: 1 << ledger.Bulk, Here: true})
			for n := range 300 {
				change(c, n)
				at, _ := c.plan(time.Now()) // as Dispatcher.Update does
				time.Sleep(time.Until(at))
				if d, _, _ := r.claim(c); d.choice.Lane != 0 {
					all = append(all, time.Since(began))
					r.settle(t, r.claimNo, c)
					c.landed(time.Now(), time.Now(), true)
				}
			}
			return all
		}
		alone := begins(func(*company, int) {})
		changed := begins(func(c *company, n int) {
			c.set(&Company{ID: 1, AttemptTimeout: time.Duration(10+n%3) * time.Second, Pace: pace.Config{LowerFloor: 5 + n%2}})
		})
		if len(alone) < 100 || !slices.Equal(alone, changed) {
			t.Errorf("sends began after\n%v, and left alone after\n%v", changed, alone)
		}
	})
}

// TestPlanOfTheSecond is a replica that stands by: it looks without a lock, a moment after the slot, and claims only where
// the first has not.
func TestPlanOfTheSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newTestCompany(0), newTestCompany(1)
		r := begun(t, first)
		r.lanes = []ledger.Lane{ledger.Bulk}
		first.woken(time.Now(), ledger.Wake{Company: 1, Lanes: 1 << ledger.Bulk, Here: true})
		at, how := second.woken(time.Now(), ledger.Wake{Company: 1, Lanes: 1 << ledger.Bulk})
		for range 20 {
			if how != glanceLook {
				t.Fatal("the second replica takes the lock while the first is there")
			}
			d, next, _ := r.claim(first)
			if d.choice.Lane == 0 {
				t.Fatal("the first found nothing")
			}
			r.settle(t, r.claimNo, first)
			first.landed(time.Now(), time.Now(), true)
			time.Sleep(time.Until(at))
			at, how = r.glance(second)
			time.Sleep(time.Until(next))
		}
		// The first dies. The second finds that nobody claimed, and does.
		for how != claimLook {
			time.Sleep(time.Until(at))
			at, how = r.glance(second)
		}
		if d, _, _ := r.claim(second); d.choice.Lane == 0 {
			t.Error("the second claimed too early")
		}
	})
}

// TestPlanOfTheAdder: who stores the first send of a lane claims it at once, whatever its rank.
func TestPlanOfTheAdder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newTestCompany(0), newTestCompany(1)
		r := begun(t, first)
		r.glance(second)
		wake := ledger.Wake{Company: 1, Lanes: 1 << ledger.Normal, Here: true}
		if at, how := second.woken(time.Now(), wake); how != claimLook || !due(time.Now(), at) {
			t.Errorf("its own send is looked at in %v, %v", time.Until(at), how)
		}
		wake.Here = false
		if at, how := first.woken(time.Now(), wake); how != glanceLook || time.Until(at) < rankDelay {
			t.Errorf("another's send is looked at in %v, %v", time.Until(at), how)
		}
		// What it hears while it looks is not forgotten.
		third := newTestCompany(2)
		third.begin()
		third.woken(time.Now(), ledger.Wake{Company: 1, Lanes: 1 << ledger.Urgent, Here: true})
		r.lanes = nil
		at, how := third.glanced(time.Now(), ledger.Glance{Company: 1, Now: r.now(), Pace: r.pace})
		if how != claimLook || !due(time.Now(), at) {
			t.Errorf("what was stored during a look is looked at in %v, %v", time.Until(at), how)
		}
	})
}

// TestClockJump: after a jump of the database's clock nothing leaves for a window.
func TestClockJump(t *testing.T) {
	for _, jump := range []time.Duration{3 * time.Second, -3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCompany(0)
			r := begun(t, c)
			r.lanes = []ledger.Lane{ledger.Urgent}
			for range 5 {
				if d, _, _ := r.claim(c); d.choice.Lane == 0 {
					t.Fatal("a slot is missing")
				}
				r.settle(t, r.claimNo, c)
			}
			r.ahead = jump
			if d, _, _ := r.claim(c); d.choice.Lane != 0 || d.choice.Pace == nil {
				t.Errorf("a request left after a jump of %v: %+v", jump, d.choice)
			}
			left := time.Now()
			for {
				time.Sleep(50 * time.Millisecond)
				if d, _, _ := r.claim(c); d.choice.Lane != 0 {
					break
				}
			}
			if silent := time.Since(left); silent < time.Second || silent > 1200*time.Millisecond {
				t.Errorf("%v of silence after a jump of %v", silent, jump)
			}
		})
	}
}

// TestAgo: evidence is never older than it was, however long the way from the database's clock to here.
func TestAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		const ahead = time.Hour
		for range 100 {
			seen := time.Now()
			time.Sleep(7 * time.Millisecond) // until the transaction
			sent := time.Now()
			time.Sleep(30 * time.Millisecond) // the way there, the lock
			now := pace.Time(time.Now().Add(ahead).UnixMicro())
			time.Sleep(50 * time.Millisecond) // the way back, others' work
			got := c.ago(sent, now, seen)
			if got > 37*time.Millisecond || got < 6*time.Millisecond {
				t.Fatalf("seen 37ms before the clock was read, 7 ms before the transaction: %v", got)
			}
		}
	})
}

// TestOthersInFlight: slots that other replicas hold may be free sooner than their leases say.
func TestOthersInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, other := newTestCompany(0), newTestCompany(1)
		r := begun(t, other)
		r.lanes = []ledger.Lane{ledger.Urgent}
		for range 5 {
			r.claim(other)
		}
		at, how := r.glance(first)
		if how != glanceLook || time.Until(at) > openGlance {
			t.Errorf("looks again in %v, %v", time.Until(at), how)
		}
	})
}

func TestUnreachableBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCompany(0)
		r := begun(t, c)
		r.lanes = []ledger.Lane{ledger.Bulk}
		c.woken(time.Now(), ledger.Wake{Company: 1, Lanes: 1 << ledger.Bulk, Here: true})
		var waits []time.Duration
		for i := range 12 {
			began := time.Now()
			r.claim(c)
			if at, how := c.plan(time.Now()); i > 0 && (how != glanceLook || time.Until(at) < time.Second) {
				t.Fatalf("a second attempt in %v while one is on its way to a Jelou that cannot be reached", time.Until(at))
			}
			c.landed(time.Now(), began.Add(time.Microsecond), false)
			r.settle(t, r.claimNo, c)
			at, _ := c.open(time.Now())
			waits = append(waits, time.Until(at))
			time.Sleep(time.Until(at) + time.Millisecond)
		}
		if !slices.IsSorted(waits[:4]) && waits[0] > time.Second || waits[11] < unreachableMost/2 || waits[11] > unreachableMost {
			t.Errorf("waits: %v", waits)
		}
		c.landed(time.Now(), time.Now(), true)
		if at, ok := c.open(time.Now()); !ok || time.Until(at) > time.Second {
			t.Errorf("after an answer the next attempt is in %v", time.Until(at))
		}
	})
}
