package pace

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"pgregory.net/rapid"
	"slices"
	"time"
)

const ms = Time(1000)

// epoch is where the tests' clocks start.
const epoch Time = 1_790_000_000_000_000

// fate is what happens to a request on its way.
type fate int8

const (
	served     fate = iota
	neverLeft       // refused before a byte was written
	replyLost       // it arrives, nothing comes back; the claimant says so at its timeout
	orphaned        // it arrives, and its claimant is dead
	connClosed      // it arrives, and the connection is reset
)

// passage is one request's way to Jelou and back.
type passage struct {
	late, out, work, back, ackBack, settle, ago Time
	fate                                        fate
}

// world is a company's demand, its pacing, the network and a Jelou that counts.
type world struct {
	rng    *rand.Rand
	cfg    Config
	budget Budget
	now    Time
	end    Time

	demand   func(now Time) Lanes // lanes in which something always waits
	urgent   []Time               // moments at which one urgent send comes, ascending
	passage  func(n int) passage
	behind   bool // Jelou counts after its work
	acks     bool // the transport's evidence is reported
	limit    func(at Time) int
	apart    Time // Jelou takes none sooner after another
	changes  []change
	mutate   func(b *Budget, slot int, sent Time) // a wrong rule, applied after each settle
	unspread bool

	claim    int64
	events   events
	sent     []*request
	waits    []Time // of urgent sends
	starts   [lanes]int
	refused  []Time
	accepted []Time
}

type change struct {
	at  Time
	cfg Config
}

// request is what the check needs to know of a request.
type request struct {
	claim   int64
	decided Time
	lane    Lane
	counted Time // at Jelou; zero when it never left
	passage
	requests               int
	window, margin, credit Time
	throttled              bool
}

type event struct {
	at  Time
	req *request
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

const attempt = 10 * second

func (w *world) run(t rapid.TB) {
	w.now = max(w.now, epoch)
	for w.now < w.end {
		if len(w.changes) > 0 && w.changes[0].at <= w.now {
			w.cfg, w.changes = w.changes[0].cfg, w.changes[1:]
		}
		turn := w.budget.Next(w.cfg, w.now, w.waiting())
		if turn.At <= w.now && turn.Lane != 0 {
			w.start(t, turn)
			continue
		}
		next := min(turn.At, w.end)
		if len(w.urgent) > 0 && w.urgent[0] > w.now {
			next = min(next, w.urgent[0])
		}
		if len(w.changes) > 0 {
			next = min(next, w.changes[0].at)
		}
		next = min(next, w.now+100*ms) // demand may change
		if len(w.events) > 0 && w.events[0].at <= next {
			e := heap.Pop(&w.events).(event)
			w.now = max(w.now, e.at)
			w.happen(e.req)
			continue
		}
		w.now = max(w.now+1, next)
	}
}

func (w *world) waiting() Lanes {
	var l Lanes
	if w.demand != nil {
		l = w.demand(w.now)
	}
	if len(w.urgent) > 0 && w.urgent[0] <= w.now {
		l[Urgent] = true
	}
	return l
}

func (w *world) start(t rapid.TB, turn Turn) {
	w.claim++
	r := w.budget.enter(w.cfg, w.now)
	req := &request{
		claim: w.claim, decided: w.now, lane: turn.Lane, passage: w.passage(int(w.claim)),
		requests: r.requests, window: r.window, margin: r.margin, credit: max(r.replyCred, r.ackCred),
	}
	if !w.acks {
		req.credit = r.replyCred
	}
	if !w.budget.Take(w.cfg, w.now, turn, w.claim, w.now+attempt+second) {
		t.Fatalf("turn %+v at %d was not taken", turn, w.now)
	}
	if w.unspread {
		w.budget.spread = 0
	}
	w.reload(t)
	w.starts[turn.Lane]++
	if turn.Lane == Urgent && len(w.urgent) > 0 && w.urgent[0] <= w.now {
		w.waits = append(w.waits, w.now-w.urgent[0])
		w.urgent = w.urgent[1:]
	}
	w.sent = append(w.sent, req)
	w.travel(req)
}

// travel counts the request at Jelou and plans its settle.
func (w *world) travel(req *request) {
	arrives := req.decided + req.late + req.out
	if req.fate == neverLeft {
		heap.Push(&w.events, event{req.decided + req.late + req.settle, req})
		return
	}
	req.counted = arrives
	if w.behind {
		req.counted += req.work
	}
	if w.limit != nil {
		req.throttled = w.refuses(req.counted)
	}
	switch req.fate {
	case replyLost:
		heap.Push(&w.events, event{req.decided + attempt, req})
	case orphaned:
	default:
		heap.Push(&w.events, event{arrives + req.work + req.back + req.settle, req})
	}
}

// refuses is a sliding window over what was taken. Requests reach it in nearly
// the order of their arrival, which is good enough for a limiter under test.
func (w *world) refuses(at Time) bool {
	n, close := 0, false
	for _, a := range w.accepted {
		if a > at-second && a <= at {
			n++
		}
		close = close || a > at-w.apart && a <= at
	}
	if n >= w.limit(at) || close {
		w.refused = append(w.refused, at)
		return true
	}
	w.accepted = append(w.accepted, at)
	return false
}

func (w *world) happen(req *request) {
	i := slices.IndexFunc(w.budget.slots, func(s slot) bool { return s.claim == req.claim })
	rep := Reply{Outcome: Answered, Ago: span(req.ago), Trip: span(req.out + req.work + req.back)}
	if w.acks && req.fate != neverLeft {
		rep.AckTrip = span(req.out + req.ackBack)
		rep.AckAgo = span(req.ago + req.work + req.back - req.ackBack)
	}
	switch {
	case req.fate == neverLeft:
		rep = Reply{Outcome: NeverLeft}
	case req.fate == replyLost:
		rep = Reply{Outcome: Lost}
	case req.fate == connClosed:
		rep.Outcome = Closed
	case req.throttled:
		rep.Outcome = Throttled
	}
	settled := w.budget.Settle(w.cfg, w.now, req.claim, rep)
	if settled && w.mutate != nil && req.fate != neverLeft {
		w.mutate(&w.budget, i, req.decided+req.late)
	}
}

// reload passes the state through its encoding, as every decision in a database
// does.
func (w *world) reload(t rapid.TB) {
	data, err := w.budget.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.budget.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
}

// deficit is by how much a new and an old request can be closer than a window,
// because the two trips were faster than anything seen before.
func (w *world) deficit(old, fresh *request) Time {
	out, back := fresh.out, old.back+old.work
	if w.acks {
		back = min(back, old.ackBack)
	}
	if w.behind {
		out, back = out+fresh.work, old.back
	}
	return max(0, fresh.credit-fresh.margin-out-back)
}

// violation is a window at Jelou that held too many.
type violation struct {
	requests, allowed int
	span              Time
	deficit           Time
}

// violations looks at every run of requests at Jelou. The one that was decided
// last says how many were allowed; the largest deficit of any pair says how much
// shorter the window may be. Without excuse it may not.
func (w *world) violations(excuse bool) []violation {
	var seen []*request
	for _, r := range w.sent {
		if r.counted != 0 {
			seen = append(seen, r)
		}
	}
	slices.SortFunc(seen, func(a, b *request) int { return int(a.counted - b.counted) })
	var found []violation
	for i := range seen {
		last, worst := seen[i], Time(0)
		for j := i + 1; j < len(seen); j++ {
			if seen[j].counted-seen[i].counted >= 2*second {
				break
			}
			if seen[j].claim > last.claim {
				last = seen[j]
			}
			if excuse {
				for _, k := range seen[i:j] {
					old, fresh := k, seen[j]
					if old.claim > fresh.claim {
						old, fresh = fresh, old
					}
					worst = max(worst, w.deficit(old, fresh))
				}
			}
			apart := seen[j].counted - seen[i].counted
			if n := j - i + 1; n > last.requests && apart < last.window-worst {
				found = append(found, violation{n, last.requests, apart, worst})
			}
		}
	}
	return found
}

// utilization is the share of the allowance that arrived after the first seconds.
func (w *world) utilization() float64 {
	from, n := epoch+5*second, 0
	for _, r := range w.sent {
		if r.counted >= from && r.counted < w.end-second {
			n++
		}
	}
	allowed := float64(or(w.cfg.Requests, defaultRequests)) * float64(w.end-second-from) / float64(micros(or(w.cfg.Window, defaultWindow)))
	return float64(n) / allowed
}

func percentile(waits []Time, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(waits))
	return span(sorted[int(math.Ceil(p*float64(len(sorted))))-1])
}

// profile is a network and a Jelou.
type profile struct {
	out, back, work    Time // at least
	jitter             Time // of each way
	workJitter         Time
	spikes             float64 // share of ways
	spikeMin, spikeMax Time
}

var profiles = map[string]profile{
	"near":     {out: 2 * ms, back: 2 * ms, work: ms, jitter: ms},
	"internet": {out: 28 * ms, back: 28 * ms, work: 4 * ms, jitter: 4 * ms, spikes: 0.005, spikeMin: 20 * ms, spikeMax: 200 * ms},
	"lossy":    {out: 28 * ms, back: 28 * ms, work: 4 * ms, jitter: 4 * ms, spikes: 0.0025, spikeMin: 200 * ms, spikeMax: 400 * ms},
	"steady":   {out: 30 * ms, back: 30 * ms},
	"slow":     {out: 28 * ms, back: 28 * ms, jitter: 4 * ms, work: 50 * ms, workJitter: 1000 * ms},
}

func upTo(rng *rand.Rand, most Time) Time {
	if most <= 0 {
		return 0
	}
	return Time(rng.Int64N(int64(most) + 1))
}

func (p profile) way(rng *rand.Rand, least Time) Time {
	d := least + upTo(rng, p.jitter)
	if rng.Float64() < p.spikes {
		d += p.spikeMin + upTo(rng, p.spikeMax-p.spikeMin)
	}
	return d
}

// passages draws from a profile; deciding, settling and reporting take a
// millisecond or two.
func (p profile) passages(rng *rand.Rand) func(int) passage {
	return func(int) passage {
		settle := 200 + upTo(rng, 2*ms)
		return passage{
			late: 300 + upTo(rng, ms), out: p.way(rng, p.out), back: p.way(rng, p.back),
			work: p.work + upTo(rng, p.workJitter), ackBack: p.way(rng, p.back),
			settle: settle, ago: upTo(rng, settle/2),
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

// newWorld is a world of a profile in which lanes always wait.
func newWorld(seed uint64, name string, length Time, waiting ...Lane) *world {
	rng := newRand(seed)
	var always Lanes
	for _, l := range waiting {
		always[l] = true
	}
	return &world{
		rng: rng, end: epoch + length, passage: profiles[name].passages(rng),
		demand: func(Time) Lanes { return always },
	}
}
