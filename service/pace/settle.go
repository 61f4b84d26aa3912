package pace

import "time"

// Outcome is what became of a request, as far as its slot is concerned.
type Outcome int8

const (
	// Lost: nothing was seen of it. It keeps its slot until its lease has ended,
	// and a window longer; evidence that comes late may still be settled.
	Lost Outcome = iota
	// NeverLeft: not a byte of it was written. The slot is as it was before.
	NeverLeft
	// Answered: an answer, whatever its status, unless it is one of the below.
	Answered
	// Closed: the peer closed or reset the connection. It reads nothing more from
	// it, so the request has arrived by then or never will; but how long that took
	// says nothing about the route.
	Closed
	// Throttled: a 429.
	Throttled
	// Rejected: Jelou refuses the company's credential, so every other request
	// would be refused too.
	Rejected
	// Misconfigured: the same of the company's account.
	Misconfigured
)

// Reply is what the claimant saw of a request. It carries durations by the
// claimant's own clock, never times.
type Reply struct {
	Outcome Outcome
	// Ago is how long before now the answer or the close was seen, rather too short
	// than too long: now was read before it came to whoever fills this in.
	Ago time.Duration
	// Trip is from the first byte written to the first byte of the answer. It
	// must not hold the making of a connection: the credit would be too large.
	// Zero means unknown.
	Trip time.Duration
	// AckAgo and AckTrip are the same for the transport's acknowledgement: of an
	// HTTP/2 PING sent after the request, or of its last byte by the peer's kernel.
	// AckTrip zero means that there was none.
	AckAgo, AckTrip time.Duration
	// RetryAfter as Jelou said with a 429. Zero means that it did not.
	RetryAfter time.Duration
}

// Settle tells what became of a claim. It returns false, and nothing changes,
// when the claim holds no slot: it was settled before, or its lease ended so
// long ago that somebody else has the slot.
func (b *Budget) Settle(cfg Config, now Time, claim int64, reply Reply) bool {
	r := b.enter(cfg, now)
	s := b.find(claim)
	if s == nil {
		if !b.acks(r) || reply.Outcome < Throttled {
			return false
		}
		// Its slot was free before its answer came; what the answer says about the
		// company is true all the same.
		b.seen = max(b.seen, now)
		b.judge(r, &slot{taken: now}, now, reply, false)
		return true
	}
	b.seen = max(b.seen, now)
	b.learn(&r, reply)
	at := s.evidence(now, reply.Ago, reply.Trip)
	switch {
	case reply.Outcome == NeverLeft:
		s.claim = 0
	case b.acks(r) && reply.AckTrip > 0:
		b.anchor(s, s.evidence(now, reply.AckAgo, reply.AckTrip), reply.AckTrip, true)
	case reply.Outcome != Lost:
		b.anchor(s, at, reply.Trip, false)
	}
	b.judge(r, s, at, reply, b.pause.probe == probeOut && b.pause.claim == claim)
	return true
}

// Acked tells of the transport's acknowledgement while the answer is still out.
// Where that is the evidence, the slot is free one window after it, however long
// the answer takes. It returns false, and nothing changes, where it is not.
func (b *Budget) Acked(cfg Config, now Time, claim int64, ago, trip time.Duration) bool {
	r := b.enter(cfg, now)
	s := b.find(claim)
	if s == nil || trip <= 0 || !b.acks(r) {
		return false
	}
	b.seen = max(b.seen, now)
	s.anchor, s.onAck, s.refused = s.evidence(now, ago, trip), true, false
	return true
}

func (b *Budget) find(claim int64) *slot {
	if claim <= 0 {
		return nil
	}
	for i := range b.slots {
		if b.slots[i].claim == claim {
			return &b.slots[i]
		}
	}
	return nil
}

// evidence is when something was seen that took a trip and was seen so long ago.
// It is not before the trip can have ended, whatever the claimant's clock says,
// and not after now.
func (s *slot) evidence(now Time, ago, trip time.Duration) Time {
	return min(now, max(now-micros(ago), s.taken+micros(trip)))
}

// anchor gives the slot its evidence.
func (b *Budget) anchor(s *slot, at Time, trip time.Duration, onAck bool) {
	s.claim, s.anchor, s.onAck, s.refused = 0, at, onAck, false
	if trip > 0 {
		b.late = mean(b.late, at-s.taken-micros(trip))
	}
}

// meanOf is how many samples a mean remembers.
const meanOf = 32

func mean(old, sample Time) Time {
	if old == 0 {
		return sample
	}
	return old + (sample-old)/meanOf
}

// trips remembers the fastest trip of the last five to ten minutes: of the five
// minutes that began at since, and of the five before.
type trips struct {
	since           Time
	fastest, before Time
	count, counted  int64 // how many trips each of them was the fastest of
	mean            Time
}

const tripsKept = 300 * second

// A minimum of n varied trips is not yet the fastest there is: the next record is
// expected to be lower by about their spread over n. Taking off several times
// that makes a record that costs a window rare (one in e^10 where trips are
// spread evenly), and costs little once many were seen.
const (
	tripsDoubt = 20
	tripsLeast = 16 // below that there is no credit
)

func (t *trips) see(now, trip Time) {
	switch age := now - t.since; {
	case age >= 2*tripsKept:
		*t = trips{since: now}
	case age >= tripsKept:
		*t = trips{since: t.since + tripsKept, before: t.fastest, counted: t.count, mean: t.mean}
	}
	if t.fastest == 0 || trip < t.fastest {
		t.fastest = trip
	}
	t.count++
	t.mean += (trip - t.mean) / Time(min(t.count+t.counted, meanOf))
}

// least is the fastest trip, and of how many; zero when none is known.
func (t *trips) least(now Time) (trip Time, of int64) {
	switch age := now - t.since; {
	case age >= 2*tripsKept:
		return 0, 0
	case age >= tripsKept || t.before == 0:
		return t.fastest, t.count
	}
	return min(t.fastest, t.before), t.count + t.counted
}

// credit is as much of the fastest trip as can be relied on.
func (t *trips) credit(now Time) Time {
	trip, of := t.least(now)
	if of < tripsLeast {
		return 0
	}
	return max(0, trip-tripsDoubt*max(0, t.mean-trip)/Time(of))
}

// over is by how much a trip took longer than the fastest.
func (t *trips) over(now, trip Time) Time {
	least, _ := t.least(now)
	return trip - least
}

// learn takes a reply's trips into account. A faster one than any before
// shortens the credit of every slot at once.
func (b *Budget) learn(r *rule, reply Reply) {
	trip, ack := micros(reply.Trip), micros(reply.AckTrip)
	if reply.Outcome == Closed || reply.Outcome == NeverLeft {
		trip = 0
	}
	if trip > 0 {
		b.reply.see(r.now, trip)
		r.replyCred = min(r.replyCred, b.reply.credit(r.now))
	}
	if ack > 0 {
		b.ack.see(r.now, ack)
		r.ackCred = min(r.ackCred, b.ack.credit(r.now))
	}
	if trip > 0 && ack > 0 {
		b.weigh(*r, b.reply.over(r.now, trip)-b.ack.over(r.now, ack))
	}
}

// acks says whether the transport's evidence is in use.
func (b *Budget) acks(r rule) bool {
	return r.evidence == EvidenceTransport || r.evidence == EvidenceAuto && b.onAck
}

// autoShare of the window, lost to waiting for replies, is what makes AUTO assume
// that Jelou counts at its edge; autoReplies are needed to say so; autoBack is
// how long it goes back to replies when a 429 proves the assumption wrong.
const (
	autoShare   = 20
	autoReplies = 2 * meanOf
	autoBack    = 60 * 60 * 1_000_000
)

// weigh takes in what a reply's evidence cost a slot more than the transport's.
func (b *Budget) weigh(r rule, cost Time) {
	b.cost = mean(b.cost, cost)
	b.costs = min(b.costs+1, autoReplies)
	if !b.onAck && b.costs == autoReplies && b.cost > r.window/autoShare && r.now >= b.replyUntil {
		b.onAck = true
	}
}
