package pace

import (
	"container/heap"
	"time"
)

// LineConfig is what a Line runs with.
type LineConfig struct {
	// Pace of the company.
	Pace Config
	// Weights of callers. One that is missing weighs 1.
	Weights map[string]int
	// Trip of the next request, from its start to its answer. Nil means always
	// 60 ms.
	Trip func() time.Duration
	// Start is the clock's first moment. It must be above zero.
	Start Time
}

// Line is a company's waiting sends in memory, in the order and at the pace of
// the server, on a clock that moves only when it is told to. It rehearses
// traffic: it knows neither recipients nor failures.
type Line struct {
	cfg    LineConfig
	now    Time
	budget Budget
	claim  int64
	lanes  [lanes]node
	flying []flight
}

// Send is one request that waits.
type Send struct {
	ID     int64
	Lane   Lane
	Caller string
	// Queue of the caller: a batch, or the caller's loose sends.
	Queue string
	// Expire is when it will not be sent any more. Zero means never.
	Expire Time
}

// Event is what happened to a Send.
type Event struct {
	Send    Send
	Expired bool
	// Start and Finish of the request. When Expired, both are when that was found.
	Start, Finish Time
}

type flight struct {
	claim int64
	trip  time.Duration
	lands Time
}

// lineLease is longer than any answer takes: a Line's all come.
const lineLease = time.Hour

// NewLine returns an empty Line.
func NewLine(cfg LineConfig) *Line {
	if cfg.Trip == nil {
		cfg.Trip = func() time.Duration { return 60 * time.Millisecond }
	}
	l := &Line{cfg: cfg, now: cfg.Start}
	for i := range l.lanes {
		l.lanes[i].virtual = &l.budget.virtual[i]
	}
	return l
}

// Add puts a send at the end of its queue, now.
func (l *Line) Add(s Send) {
	lane := &l.lanes[s.Lane]
	share := lane.child(s.Caller, l.cfg.Weights[s.Caller])
	queue := share.child(s.Queue, 1)
	lane.arrive(share)
	share.arrive(queue)
	queue.sends = append(queue.sends, s)
	lane.waiting++
}

// Waiting is how many sends wait in a lane.
func (l *Line) Waiting(lane Lane) int { return l.lanes[lane].waiting }

// Estimate is when the last of so many new sends, all like s, would start if
// nobody else came.
func (l *Line) Estimate(s Send, items int) Time {
	lane, first := &l.lanes[s.Lane], items-1
	if share := lane.children[s.Caller]; share != nil {
		if queue := share.children[s.Queue]; queue != nil {
			first += queue.waiting
		}
		first = share.ahead(s.Queue, 1, first)
	}
	q := Backlog{Ahead: lane.ahead(s.Caller, l.cfg.Weights[s.Caller], first)}
	for i := range l.lanes {
		q.Waiting[i] = l.lanes[i].waiting
	}
	return l.budget.Estimate(l.cfg.Pace, l.now, s.Lane, q)
}

// Advance moves the clock and reports what starts or expires meanwhile, in order.
// To Never runs until nothing waits.
func (l *Line) Advance(to Time, report func(Event)) {
	for {
		turn := l.budget.Next(l.cfg.Pace, l.now, l.waiting())
		first := l.firstToLand()
		switch {
		case first >= 0 && l.flying[first].lands <= min(turn.At, to):
			l.land(first)
		case turn.At != Never && turn.At <= to:
			l.now = turn.At
			l.start(turn, report)
		default:
			if to != Never {
				l.now = max(l.now, to)
			}
			return
		}
	}
}

func (l *Line) waiting() (w Lanes) {
	for i := range l.lanes {
		w[i] = l.lanes[i].waiting > 0
	}
	return w
}

func (l *Line) firstToLand() int {
	first := -1
	for i := range l.flying {
		if first < 0 || l.flying[i].lands < l.flying[first].lands {
			first = i
		}
	}
	return first
}

func (l *Line) land(i int) {
	f := l.flying[i]
	l.now = max(l.now, f.lands)
	l.budget.Settle(l.cfg.Pace, l.now, f.claim, Reply{Outcome: Answered, Trip: f.trip})
	last := len(l.flying) - 1
	l.flying[i] = l.flying[last]
	l.flying = l.flying[:last]
}

// start sends the head of the lane whose turn it is. One that has expired is
// dropped instead, and costs neither a slot nor its share's turn.
func (l *Line) start(turn Turn, report func(Event)) {
	lane := &l.lanes[turn.Lane]
	if s := lane.head(); s.Expire != 0 && s.Expire <= l.now {
		lane.pop(false)
		report(Event{Send: s, Expired: true, Start: l.now, Finish: l.now})
		return
	}
	l.claim++
	l.budget.Take(l.cfg.Pace, l.now, turn, l.claim, l.now.Add(lineLease))
	trip := l.cfg.Trip()
	f := flight{claim: l.claim, trip: trip, lands: l.now.Add(trip)}
	l.flying = append(l.flying, f)
	report(Event{Send: lane.pop(true), Start: l.now, Finish: f.lands})
}

// node is a lane with its shares, a share with its queues, or a queue with its
// sends: the first two serve their children by tag.
type node struct {
	tag      Tag
	weight   int
	number   int // among its parent's children: breaks ties
	waiting  int // sends, at all depths
	virtual  *Tag
	children map[string]*node
	order    byTag // the children with something waiting
	sends    []Send
}

func (n *node) child(name string, weight int) *node {
	if c := n.children[name]; c != nil {
		return c
	}
	if n.children == nil {
		n.children = map[string]*node{}
	}
	c := &node{weight: weight, number: len(n.children), virtual: new(Tag)}
	n.children[name] = c
	return c
}

// arrive counts a send that comes to the child.
func (n *node) arrive(c *node) {
	if c.waiting == 0 {
		c.tag = n.virtual.Join(c.tag)
		heap.Push(&n.order, c)
	}
	c.waiting++
}

func (n *node) head() Send {
	for len(n.order) > 0 {
		n = n.order[0]
	}
	return n.sends[0]
}

// pop takes the head out, and charges those it belongs to when it was served.
func (n *node) pop(served bool) Send {
	n.waiting--
	if len(n.order) == 0 {
		s := n.sends[0]
		n.sends = n.sends[1:]
		return s
	}
	c := n.order[0]
	s := c.pop(served)
	if served {
		c.tag = n.virtual.Charge(c.tag, c.weight)
	}
	if c.waiting == 0 {
		heap.Pop(&n.order)
	} else {
		heap.Fix(&n.order, 0)
	}
	return s
}

// ahead is how many sends go before one of the named child, of which so many go
// before it in the child itself.
func (n *node) ahead(name string, weight, waiting int) int {
	own, number := n.children[name], len(n.children)
	share := Share{Weight: weight, Waiting: waiting}
	if own != nil {
		share.Tag, number = own.tag, own.number
	}
	others := make([]Share, 0, len(n.order))
	for _, c := range n.order {
		if c != own {
			others = append(others, Share{Tag: c.tag, Weight: c.weight, Waiting: c.waiting, First: c.number < number})
		}
	}
	return Ahead(*n.virtual, share, others)
}

// byTag is a heap.
type byTag []*node

func (h byTag) Len() int      { return len(h) }
func (h byTag) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h byTag) Less(i, j int) bool {
	if h[i].tag != h[j].tag {
		return h[i].tag < h[j].tag
	}
	return h[i].number < h[j].number
}
func (h *byTag) Push(c any) { *h = append(*h, c.(*node)) }
func (h *byTag) Pop() any {
	last := len(*h) - 1
	c := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return c
}
