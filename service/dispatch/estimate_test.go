package dispatch

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/jelou-facade/jelou-facade/service/jelou"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// drawLine draws what waits in a company.
func drawLine(t *rapid.T) ledger.Line {
	var counted ledger.Line
	tag := rapid.Int64Range(0, 1<<26)
	id := int64(0)
	for lane := ledger.Urgent; lane <= ledger.Bulk; lane++ {
		counted.Virtual[lane] = tag.Draw(t, "virtual")
		for i := range rapid.IntRange(0, 4).Draw(t, "shares") {
			s := ledger.ShareLine{Lane: lane, Caller: fmt.Sprintf("caller-%d", i), Virtual: tag.Draw(t, "queue virtual")}
			s.Tag = ledger.Tag{Start: tag.Draw(t, "start"), Weight: rapid.IntRange(1, 4).Draw(t, "weight")}
			for j := range rapid.IntRange(0, 3).Draw(t, "queues") {
				id++
				s.Queues = append(s.Queues, ledger.QueueLine{Queue: id, Start: tag.Draw(t, "start"), Batch: j > 0, Waiting: rapid.Int64Range(0, 12).Draw(t, "waiting")})
			}
			counted.Shares = append(counted.Shares, s)
		}
	}
	return counted
}

// ahead serves a lane as claims do until it comes to a place, and counts what goes before it.
func ahead(counted ledger.Line, p place) int {
	var shares []*ledger.ShareLine
	for _, s := range counted.Shares {
		if s.Lane == p.lane {
			s.Queues = slices.Clone(s.Queues)
			shares = append(shares, &s)
		}
	}
	virtual := counted.Virtual[p.lane]
	for n := 0; ; n++ {
		waiting := slices.DeleteFunc(slices.Clone(shares), func(s *ledger.ShareLine) bool {
			return !slices.ContainsFunc(s.Queues, func(q ledger.QueueLine) bool { return q.Waiting > 0 })
		})
		s := slices.MinFunc(waiting, func(a, b *ledger.ShareLine) int {
			return cmp.Or(cmp.Compare(a.Tag.Start, b.Tag.Start), cmp.Compare(a.Caller, b.Caller))
		})
		var q *ledger.QueueLine
		for i := range s.Queues {
			if x := &s.Queues[i]; x.Waiting > 0 && (q == nil || x.Start < q.Start) {
				q = x
			}
		}
		if s.Caller == p.caller && q.Queue == p.queue {
			if p.before == 0 {
				return n
			}
			p.before--
		}
		q.Waiting--
		share := charge(ledger.Tag{Start: s.Tag.Start, Virtual: virtual, Weight: s.Tag.Weight})
		queue := charge(ledger.Tag{Start: q.Start, Virtual: s.Virtual, Weight: 1})
		s.Tag.Start, virtual = share.Start, share.Virtual
		q.Start, s.Virtual = queue.Start, queue.Virtual
	}
}

// TestBacklog: what is said to go before a place is what goes before it when it is served. Shares that joined late are
// counted as if they had joined by now, which may be wrong by one each, and by what others get in its time.
func TestBacklog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := line{counted: drawLine(t)}
		var places []place
		for _, s := range l.counted.Shares {
			for _, q := range s.Queues {
				for before := range q.Waiting {
					places = append(places, place{share{s.Lane, s.Caller}, q.Queue, before})
				}
			}
		}
		if len(places) == 0 {
			return
		}
		p := rapid.SampledFrom(places).Draw(t, "place")
		want := ahead(l.counted, p)
		// One for each other queue of its share, and what other shares get meanwhile; one for each of them.
		others, own := 0, ledger.ShareLine{}
		for _, s := range l.counted.Shares {
			if s.Lane == p.lane && s.Caller == p.caller {
				own = s
			}
		}
		wrong := len(own.Queues) - 1
		for _, s := range l.counted.Shares {
			if s.Lane == p.lane && s.Caller != p.caller {
				others += 1 + (wrong*s.Tag.Weight+own.Tag.Weight-1)/own.Tag.Weight
			}
		}
		others += wrong
		if got := l.backlog(p).Ahead; got < want-others || got > want+others {
			t.Fatalf("%d go before %+v, not %d", want, p, got)
		}
	})
}

// TestLineKnowsItsOwn: what this process adds and claims is in the line before it is counted again.
func TestLineKnowsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shop := share{ledger.Normal, "shop"}
		l := line{}
		l.set(time.Now(), ledger.Line{Shares: []ledger.ShareLine{{Lane: ledger.Normal, Caller: "shop", Queues: []ledger.QueueLine{{Queue: 7, Waiting: 3}}}}})
		l.add(time.Now(), shop, 2)
		l.take(ledger.Send{Lane: ledger.Normal, Caller: "shop"})
		l.add(time.Now(), share{ledger.Normal, "newcomer"}, 1)
		for _, c := range []struct {
			name string
			p    place
			want int
		}{
			{"at the end", place{shop, 0, -1}, 4 + 1},
			{"a newcomer's second", place{share{ledger.Normal, "newcomer"}, 0, -1}, 1 + 1},
			{"a place inside", place{shop, 7, 1}, 1 + 1},
		} {
			if got := l.backlog(c.p).Ahead; got != c.want && got != c.want-1 {
				t.Errorf("%s: %d go before it, want %d or one less", c.name, got, c.want)
			}
		}
		if got := l.backlog(place{shop, 0, -1}).Waiting[pace.Normal]; got != 5 {
			t.Errorf("%d wait in the lane, want 5", got)
		}
		// A count that begins now may not have seen the adds of the last moment; later ones have.
		counted := l.counted
		l.set(time.Now(), counted)
		if got := l.waiting(shop); got != 5 {
			t.Errorf("%d wait after a count, want 5", got)
		}
		time.Sleep(time.Second)
		l.set(time.Now(), counted)
		if got := l.waiting(shop); got != 3 {
			t.Errorf("%d wait after a later count, want 3", got)
		}
	})
}

// TestTrip: what nearly all requests take is told from the last ones.
func TestTrip(t *testing.T) {
	d := newTestDispatcher(&Company{ID: 1})
	c := d.all()[1]
	if got := d.Trip(1); got != tripSlack {
		t.Errorf("with none seen it is %v", got)
	}
	for range 200 {
		c.noteTrip(60 * time.Millisecond)
	}
	c.noteTrip(time.Second)
	if got := d.Trip(1); got != 60*time.Millisecond+tripSlack {
		t.Errorf("with one outlier it is %v", got)
	}
	c.noteTrip(200 * time.Millisecond)
	if got := d.Trip(1); got != 200*time.Millisecond+tripSlack {
		t.Errorf("with two outliers it is %v", got)
	}
}

func timing(started time.Time) jelou.Timing { return jelou.Timing{Started: started} }

func TestSelfCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSelfCheck(slog.New(slog.DiscardHandler))
		c := newTestCompany(0)
		c.Name = "acme"
		began := time.Now()
		c.clock.read(began, pace.Time(began.UnixMicro()))
		id := func(n int) ledger.ID { return ledger.ID{Company: 1, Queue: 2, Pos: int64(n)} }
		c.promised[id(3)] = began.Add(400 * time.Millisecond)
		for _, n := range []int{1, 0, 2, 4, 3} { // they end out of order
			started := began.Add(time.Duration(n) * 200 * time.Millisecond)
			s.attempted(c, ledger.Send{ID: id(n)}, timing(started))
		}
		if got := s.Snapshot(); got.Companies[0] != (CompanyConduct{"acme", 5, 5, 0}) || got.EstimateErrorP95 != 200*time.Millisecond || got.GhostSends != 0 {
			t.Errorf("%+v", got)
		}
		s.attempted(c, ledger.Send{ID: id(5), ExpireAt: began.UnixMicro()}, timing(began.Add(999*time.Millisecond)))
		s.attempted(c, ledger.Send{ID: id(6)}, timing(time.Time{})) // never left
		s.Joined()
		if got := s.Snapshot(); got.Companies[0].WorstWindow != 6 || got.Companies[0].Exceeded != 1 || got.GhostSends != 1 || got.DuplicatesPrevented != 1 {
			t.Errorf("%+v", got)
		}
		waits := &decision{waits: pace.Lanes{pace.Bulk: true}}
		s.claimed(ledger.Claim{Send: &ledger.Send{}}, waits)
		s.claimed(ledger.Claim{}, &decision{read: &read{}})
		s.claimed(ledger.Claim{}, waits)
		s.claimed(ledger.Claim{Busy: true}, nil)
		s.claimed(ledger.Claim{}, &decision{})
		if got := s.Snapshot().Claims; got != (Claims{Sends: 2, Early: 1, Busy: 1, Empty: 1}) || got.Wasted() != 0.4 {
			t.Errorf("%+v, wasted %v", got, got.Wasted())
		}
	})
}

// TestWorstWindow compares with counting every window.
func TestWorstWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &ownSends{window: time.Second, allowed: 5}
		began := time.Unix(1_790_000_000, 0)
		starts := rapid.SliceOfN(rapid.IntRange(0, 10_000), 1, 60).Draw(t, "starts")
		worst := 0
		for _, ms := range starts {
			worst = max(worst, o.began(began.Add(time.Duration(ms)*time.Millisecond)))
		}
		want := 0
		for _, from := range starts {
			n := 0
			for _, ms := range starts {
				if ms >= from && ms < from+1000 {
					n++
				}
			}
			want = max(want, n)
		}
		if worst != want {
			t.Fatalf("worst window %d, want %d", worst, want)
		}
	})
}

func TestJain(t *testing.T) {
	for _, c := range []struct {
		got  []float64
		want float64
	}{{nil, 1}, {[]float64{0, 0}, 1}, {[]float64{3, 3, 3}, 1}, {[]float64{1, 0, 0, 0}, 0.25}} {
		if got := jain(c.got); got != c.want {
			t.Errorf("jain(%v) = %v, want %v", c.got, got, c.want)
		}
	}
}
