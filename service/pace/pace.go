// Package pace decides when a company's next request may leave for Jelou, and
// whose turn it is. It is pure: the whole state is one [Budget], stored in the
// company's row and read and written under that row's lock; every decision is
// a method on it with the database's time as an argument. So the same code runs
// in the server, in tests and on a virtual clock ([Line]).
//
// # The rule
//
// Jelou takes N requests in any window W and refuses the next. The company has N
// slots. A request takes one, and the slot is free again at
//
//	E + W + margin − credit
//
// E is when evidence that the request had arrived was seen (its answer, or the
// acknowledgement of its connection), credit the fastest trip seen in the last
// ten minutes, from sending to evidence, or less while few were seen. Without evidence the slot is kept until
// the claim's lease has ended, and W and the margin longer.
//
// # Why no window holds more than N
//
// Take two requests, the old one with evidence at E, the new one sent at S from
// a moment when the old one's slot is free, so S ≥ E + W + margin − credit. The
// old one arrived at the latest one way back before E, the new one arrives at
// the earliest one way out after S. Their arrivals are apart by at least
//
//	W + (out of the new + back of the old) − (credit − margin)
//
// which is W or more as long as one way out and one way back together are never
// faster than the fastest whole trip less the margin. With REPLY as evidence
// Jelou's processing is part of both sides, so it does not matter whether Jelou
// counts before or after it; TRANSPORT assumes that Jelou counts on arrival.
// A request leaves only while fewer than N slots are not free, so of any N+1
// requests the one decided last is W or more away from one of the others, and
// no window of W holds them all. When a route becomes faster by δ, the pairs of
// one old and one new request can be closer by δ, which is N windows at most: from
// the first fast answer on the credit is smaller, for waiting slots too.
//
// # Several replicas
//
// Every decision happens under the row's lock with the database's clock, and
// replicas report how long ago they saw something, never when. All delays then
// fall on the safe side: the time from the decision to the write only delays the
// arrival, and the settle's way to the database and its wait for the lock make
// now − Ago later than the evidence was. A clock that jumps is the one thing that
// a row cannot see by itself; [Clock] does, and [Budget.Silence] answers it.
package pace

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Time is microseconds since the epoch on the database's clock. Inside this
// package spans between two Times have the same type.
type Time int64

// Never is later than every moment.
const Never Time = math.MaxInt64

// Add returns the time d later.
func (t Time) Add(d time.Duration) Time { return t + micros(d) }

// Sub returns the time from u to t.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t-u) * time.Microsecond }

func micros(d time.Duration) Time { return Time(d / time.Microsecond) }

// Evidence is what proves that a request has arrived at Jelou.
type Evidence int8

const (
	// EvidenceReply is Jelou's answer.
	EvidenceReply Evidence = iota
	// EvidenceTransport is the connection's acknowledgement of the request; it
	// assumes that Jelou counts at its edge.
	EvidenceTransport
	// EvidenceAuto is REPLY until processing costs more than 5% of the
	// allowance, then TRANSPORT; a 429 brings REPLY back for an hour.
	EvidenceAuto
)

// Bounds of a Config.
const (
	MaxRequests   = 1000
	MaxWindow     = time.Hour
	MinWindow     = 10 * time.Millisecond
	MaxLowerFloor = 1000
)

// Config is what a company is allowed. It may differ from one decision to the
// next; the Budget follows.
type Config struct {
	// Requests that Jelou takes in one Window. Zero means 5.
	Requests int
	// Window in which Jelou counts. Zero means one second.
	Window time.Duration
	// Evidence of arrival. Zero means Jelou's answer.
	Evidence Evidence
	// LowerFloor is how often a lower lane's turn comes while it waits: once in
	// this many requests. Zero means 5.
	LowerFloor int
	// Margin is by how much a pair of trips may be faster than the fastest trip
	// seen, before a window can be short. Zero means 5 ms.
	Margin time.Duration
	// FloorCap bounds the credit for the fastest trip, and with it what a route
	// that suddenly becomes faster can cost. Zero means half the Window.
	FloorCap time.Duration
}

// Validate says which field is out of bounds.
func (c Config) Validate() error {
	window := c.EachWindow()
	switch {
	case c.Requests < 0 || c.Requests > MaxRequests:
		return fmt.Errorf("requests is %d: it must be from 1 to %d", c.Requests, MaxRequests)
	case window < MinWindow || window > MaxWindow:
		return fmt.Errorf("window is %v: it must be from %v to %v", c.Window, MinWindow, MaxWindow)
	case c.Evidence < EvidenceReply || c.Evidence > EvidenceAuto:
		return fmt.Errorf("evidence is %d: it must be REPLY, TRANSPORT or AUTO", c.Evidence)
	case c.LowerFloor < 0 || c.LowerFloor == 1 || c.LowerFloor > MaxLowerFloor:
		return fmt.Errorf("lower_floor is %d: it must be from 2 to %d", c.LowerFloor, MaxLowerFloor)
	case c.Margin < 0 || c.Margin > window:
		return fmt.Errorf("margin is %v: it must be from 0 to the window, %v", c.Margin, window)
	case c.FloorCap < 0 || c.FloorCap > window:
		return fmt.Errorf("floor_cap is %v: it must be from 0 to the window, %v", c.FloorCap, window)
	}
	return nil
}

const (
	defaultRequests   = 5
	defaultWindow     = time.Second
	defaultLowerFloor = 5
	defaultMargin     = 5 * time.Millisecond
)

// InWindow is how many requests Jelou takes in one window.
func (c Config) InWindow() int { return or(c.Requests, defaultRequests) }

// EachWindow is the window in which Jelou counts.
func (c Config) EachWindow() time.Duration { return or(c.Window, defaultWindow) }

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Budget is a company's pacing state. Its zero value, like any state that
// cannot be trusted, begins with one silent window.
type Budget struct {
	// seen is the latest time a change was made at: zero before the first.
	seen Time
	// quiet is when a silent window ends.
	quiet Time
	slots []slot

	reply, ack trips
	late       Time // mean of what passes beside the trip, from a claim to its evidence

	// Evidence AUTO.
	onAck      bool // TRANSPORT is in use
	cost       Time // mean of what waiting for replies costs a slot
	costs      int64
	replyUntil Time // no TRANSPORT before

	pause pause

	// spread is the next start below the urgent lane.
	spread Time
	// passed counts, per lane, its turns since a lower lane had one, while a
	// lower lane was waiting.
	passed  [lanes]int64
	virtual [lanes]Tag
}

// slot is one request's place in the window.
type slot struct {
	// anchor is when evidence of its last request was seen.
	anchor Time
	// onAck says that the evidence was the transport's: its own credit belongs
	// to it, even after evidence has changed.
	onAck bool
	// refused says that the last answer was a 429.
	refused bool
	// claim holds the slot until it is settled, or until lease + window. An anchor
	// after taken is its own evidence, that came before its answer.
	claim        int64
	taken, lease Time
}

// rule is a Config and what the Budget has learned, as they are now.
type rule struct {
	now                Time
	requests           int // that may be in one window now
	inUse              int // in a whole window: no more than allowed
	allowed            int
	lowerFloor         int64
	window, whole      Time // whole is the configured one; window is shorter while requests are spaced
	margin             Time
	replyCred, ackCred Time
	maxCredit          Time
	gap                Time // between starts that are spread
	evidence           Evidence
}

// spreadShare of an even spacing keeps starts below the urgent lane apart: near
// enough to 1 that an urgent send soon finds a slot, far enough below that a
// late start is caught up.
const spreadShare = 0.9

// backward is how far the clock may go back before stored times count as wrong.
// Less only makes slots wait that much longer.
const backward = 100 * time.Millisecond

// enter brings the state up to now and returns the rule in force.
func (b *Budget) enter(cfg Config, now Time) rule {
	window := micros(cfg.EachWindow())
	r := rule{
		now:        now,
		allowed:    cfg.InWindow(),
		lowerFloor: int64(or(cfg.LowerFloor, defaultLowerFloor)),
		window:     window,
		whole:      window,
		margin:     micros(or(cfg.Margin, defaultMargin)) + b.pause.widened(now),
		maxCredit:  or(micros(cfg.FloorCap), window/2),
		evidence:   cfg.Evidence,
	}
	switch {
	case b.seen == 0:
		b.quiet = now + window + r.margin
		b.seen = now
	case now < b.seen-micros(backward):
		// Every stored time is of a clock that is gone. Taking them as if no
		// time had passed is late by what has passed, never early.
		b.shift(now - b.seen)
		b.quiet = now + window + r.margin
	}
	spaced := b.pause.spaced
	r.requests = b.pause.learned(now, r.allowed, window)
	r.inUse = r.requests
	switch {
	case b.pause.spaced:
		r.requests, r.window = 1, window/Time(r.allowed)
	case spaced:
		// What left lately no longer holds a slot, but Jelou counts it.
		b.quiet = max(b.quiet, b.pause.eased+window+r.margin)
	}
	r.replyCred = min(b.reply.credit(now), r.maxCredit)
	r.ackCred = min(b.ack.credit(now), r.maxCredit)
	r.gap = Time(spreadShare * float64(r.window) / float64(r.requests))
	for len(b.slots) < r.requests {
		b.slots = append(b.slots, slot{})
	}
	// After a long window has been configured away, its waits are no longer due.
	b.quiet = min(b.quiet, now+window+r.margin)
	b.spread = min(b.spread, now+r.gap)
	b.probeTimeout(now)
	return r
}

// free is when the slot may be taken again.
func (s *slot) free(r rule) Time {
	if s.open() {
		return s.lease + r.window + r.margin
	}
	credit := r.replyCred
	if s.onAck {
		credit = r.ackCred
	}
	return s.anchor + r.window + r.margin - credit
}

// open says that nothing was seen yet of the slot's request.
func (s *slot) open() bool { return s.claim != 0 && s.anchor <= s.taken }

// Turn is a decision: whose turn it is and when.
type Turn struct {
	// Lane whose head may leave; zero when nothing waits.
	Lane Lane
	// At is the earliest moment; not before now. Never when nothing waits, or
	// while the company is held.
	At Time
	// Save says that the state must be stored even though nothing was taken: a
	// silent window has begun.
	Save bool

	waiting Lanes
}

// Next says whose turn it is and the earliest moment at which it may leave. When
// that is now and the lane's head turns out to be blocked, ask again without that
// lane: the turn is passed on. When it is later, ask again then: the answer may
// have changed.
func (b *Budget) Next(cfg Config, now Time, waiting Lanes) Turn {
	quiet := b.quiet
	r := b.enter(cfg, now)
	t := Turn{At: Never, Save: b.quiet != quiet, waiting: waiting}
	at := b.open(r)
	if waiting[Urgent] && at < b.pause.eased+r.whole {
		// Just after a pause nobody knows yet what Jelou takes: a burst of
		// urgent sends would all be refused together.
		at = max(at, min(b.spread, b.pause.eased+r.whole))
	}
	t.Lane = b.lane(r.lowerFloor, waiting, b.spread <= at)
	if t.Lane == 0 || at == Never {
		return t
	}
	t.At = at
	if t.Lane != Urgent {
		t.At = max(at, b.spread)
	}
	return t
}

// open is the earliest moment at which fewer slots than requests are not free.
func (b *Budget) open(r rule) Time {
	at := max(r.now, b.quiet, b.pauseEnds())
	if len(b.slots) > r.requests {
		frees := make([]Time, len(b.slots))
		for i := range b.slots {
			frees[i] = b.slots[i].free(r)
		}
		slices.Sort(frees)
		return max(at, frees[len(frees)-r.requests])
	}
	first := Never
	for i := range b.slots {
		first = min(first, b.slots[i].free(r))
	}
	return max(at, first)
}

// Take gives a slot to the turn's lane. The claim number is the company's next,
// above zero; the lease is when the claimant must have stopped. It returns false,
// and nothing changes, when no request may leave now.
func (b *Budget) Take(cfg Config, now Time, t Turn, claim int64, lease Time) bool {
	r := b.enter(cfg, now)
	if t.Lane == 0 || t.At > now || claim <= 0 || b.open(r) > now {
		return false
	}
	s := b.vacate(r)
	s.claim, s.taken, s.lease = claim, now, lease
	if t.Lane != Urgent || now < b.pause.eased+r.whole {
		b.spread = now + r.gap
	}
	b.turned(r.lowerFloor, t.Lane, t.waiting)
	b.probeTaken(claim)
	b.seen = max(b.seen, now)
	return true
}

// vacate returns the slot that has been free longest, and drops the free ones
// that a smaller allowance has left over. A slot that is not free is never
// dropped: its request still counts.
func (b *Budget) vacate(r rule) *slot {
	first := 0
	for i := range b.slots {
		if b.slots[i].free(r) < b.slots[first].free(r) {
			first = i
		}
	}
	b.slots[0], b.slots[first] = b.slots[first], b.slots[0]
	for i := len(b.slots) - 1; i > 0 && len(b.slots) > r.requests; i-- {
		if b.slots[i].free(r) <= r.now {
			b.slots = slices.Delete(b.slots, i, i+1)
		}
	}
	return &b.slots[0]
}

// Clone returns a copy that shares nothing with b.
func (b *Budget) Clone() Budget {
	c := *b
	c.slots = slices.Clone(b.slots)
	return c
}

// Begun says that the state was stored once. Before that, and only then, a silent
// window begins with every look.
func (b *Budget) Begun() bool { return b.seen != 0 }

// Open is how many requests are on their way and nothing was seen of them yet.
func (b *Budget) Open() int {
	n := 0
	for i := range b.slots {
		if b.slots[i].open() {
			n++
		}
	}
	return n
}

// Silence begins a silent window: nothing leaves for one window. It is the answer
// to a clock that jumped, a database that changed its timeline, and a start at
// which no replica was alive to know what is still under way.
func (b *Budget) Silence(cfg Config, now Time) {
	r := b.enter(cfg, now)
	b.quiet = max(b.quiet, now+r.whole+r.margin)
	b.seen = max(b.seen, now)
}

// Status is what a company may know about its pacing.
type Status struct {
	// Requests in use in one window, and the ones Config allows. They differ
	// after Jelou has refused at a lower count.
	Requests, Allowed int
	// Free slots now, and when the next request may leave.
	Free int
	Next Time
	// Pause says why nothing leaves until PauseUntil, which is Never when
	// somebody must end it. NotPaused otherwise.
	Pause      Pause
	PauseUntil Time
	// Probing says that one request is on its way to find out whether a pause
	// is over.
	Probing bool
	// Evidence in use: reply or transport.
	Evidence Evidence
	// Margin and Credit in use, and the mean trip of a reply.
	Margin, Credit, Trip time.Duration
}

// Status describes the state at now.
func (b *Budget) Status(cfg Config, now Time) Status {
	r := b.enter(cfg, now)
	st := Status{
		Requests: r.inUse, Allowed: r.allowed, Next: b.open(r),
		Probing: b.pause.probe == probeOut,
		Margin:  span(r.margin), Credit: span(r.replyCred), Trip: span(b.reply.mean),
	}
	if b.acks(r) {
		st.Evidence, st.Credit = EvidenceTransport, span(r.ackCred)
	}
	busy := 0
	for i := range b.slots {
		if b.slots[i].free(r) > now {
			busy++
		}
	}
	st.Free = max(0, r.requests-busy)
	if b.pause.held || b.pause.probe != probeNone {
		// Until the probe is answered nobody knows that the pause is over.
		st.Pause, st.PauseUntil = b.pause.why(), max(now, b.pauseEnds())
		if st.PauseUntil > now {
			st.Free = 0
		}
	}
	if b.quiet > now {
		st.Free = 0
	}
	return st
}

func span(t Time) time.Duration { return time.Duration(t) * time.Microsecond }
