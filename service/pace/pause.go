package pace

import "slices"

// Pause is why a company's sends do not leave.
type Pause int8

const (
	// NotPaused means that they do.
	NotPaused Pause = iota
	// PausedThrottled: Jelou answered 429.
	PausedThrottled
	// PausedRejected: Jelou refuses the company's credential.
	PausedRejected
	// PausedHeld: a person, or a ledger that cannot be trusted, holds it back.
	PausedHeld
	// PausedMisconfigured: Jelou refuses the company's account.
	PausedMisconfigured
)

// pause is what a company does after Jelou has refused it as a whole: wait, send
// one request as a probe, and go on when that is answered.
type pause struct {
	held    bool
	reason  Pause
	until   Time
	strikes int64 // refused probes in a row
	probe   probe
	claim   int64 // of the probe that is out
	eased   Time  // when it last began to send more than before

	// A 429 may mean that requests arrived closer than they left: the margin is
	// wider by this, and halves every minute.
	wide   Time
	wideAt Time

	// Or that Jelou takes fewer requests than configured: then so many are
	// used, and at raiseAt one more is tried.
	limit int64
	// Or that it takes them only evenly spaced: until raiseAt none leaves before
	// its share of the window has passed since the one before.
	spaced    bool
	raiseAt   Time
	raiseStep Time
	limitedAt Time
}

// probe is where the one request stands.
type probe int8

const (
	probeNone probe = iota
	probeDue
	probeOut
)

const (
	second Time = 1_000_000

	maxRetryAfter = 600 * second

	wideFirst = second / 100
	wideHalf  = 60 * second
	widePart  = 4 // at most this part of the window

	rejectedFirst = 5 * second
	rejectedMost  = 300 * second

	throttledAlike = 5 // refused probes before the pause grows
	throttledMost  = 30 * second

	raiseFirst = 30 * second
	raiseMost  = 1800 * second
	raiseFresh = 3600 * second // since the last limit: start over
	easing     = 10            // windows after easing in which a 429 speaks about it
)

// Hold stops all sends until Resume.
func (b *Budget) Hold() { b.pause.held = true }

// Resume ends every pause at once; a probe goes first. It is for a person, and
// for a credential that has changed.
func (b *Budget) Resume(now Time) {
	b.pause.held = false
	b.pause.strikes = 0
	if b.pause.probe != probeNone {
		b.pause.until = min(b.pause.until, now)
	}
}

func (p *pause) why() Pause {
	if p.held {
		return PausedHeld
	}
	return p.reason
}

// pauseEnds is when the next request may leave, as far as pauses know.
func (b *Budget) pauseEnds() Time {
	p := &b.pause
	switch {
	case p.held:
		return Never
	case p.probe == probeDue:
		return p.until
	case p.probe == probeOut:
		if s := b.find(p.claim); s != nil {
			return s.lease
		}
	}
	return 0
}

func (b *Budget) probeTaken(claim int64) {
	if b.pause.probe == probeDue {
		b.pause.probe, b.pause.claim = probeOut, claim
	}
}

// probeTimeout makes another probe due when nothing came of the one that is out,
// for its claimant may be dead.
func (b *Budget) probeTimeout(now Time) {
	if b.pause.probe == probeOut && b.pauseEnds() <= now {
		b.pause.probe = probeDue
	}
}

// judge draws a reply's consequences for the whole company.
func (b *Budget) judge(r rule, s *slot, at Time, reply Reply, isProbe bool) {
	p := &b.pause
	switch reply.Outcome {
	case Throttled:
		b.throttled(r, s, at, micros(reply.RetryAfter), isProbe)
	case Rejected:
		p.stop(at, backoff(rejectedFirst, p.struck(isProbe), rejectedMost), PausedRejected, isProbe)
	case Misconfigured:
		p.stop(at, backoff(rejectedFirst, p.struck(isProbe), rejectedMost), PausedMisconfigured, isProbe)
	case Answered:
		if isProbe {
			p.probe, p.reason, p.strikes, p.eased = probeNone, NotPaused, 0, at
		}
	case Lost, Closed:
		if isProbe {
			p.probe, p.until = probeDue, max(p.until, at+r.whole)
		}
	case NeverLeft:
		if isProbe {
			p.probe = probeDue
		}
	}
}

// struck is how many probes in a row were refused, this one included.
func (p *pause) struck(isProbe bool) int64 {
	if isProbe {
		return p.strikes + 1
	}
	return p.strikes
}

func backoff(first Time, times int64, most Time) Time {
	return min(first<<min(times, 20), most)
}

// stop pauses the company. What was under way when a pause began may lengthen it
// but begins no other.
func (p *pause) stop(at, wait Time, reason Pause, isProbe bool) {
	if p.probe != probeNone && !isProbe {
		p.until = max(p.until, at+wait)
		return
	}
	p.strikes = p.struck(isProbe)
	p.probe, p.reason, p.until = probeDue, reason, at+wait
}

// throttled answers a 429. Its reason is unknown: requests that arrived closer
// than they left, a limit that is lower than configured, one that wants them
// spaced, or somebody else who uses the same credential. The first time the
// margin is widened. When it happens again just after sending has begun again,
// Jelou's count is known, for it began at nothing. Where it took none that came
// soon after another, requests are spaced from then on; else, or when even that
// was refused, as many are used as it took.
func (b *Budget) throttled(r rule, s *slot, at, retryAfter Time, isProbe bool) {
	s.refused = true
	p := &b.pause
	wait := max(r.whole+r.margin, min(retryAfter, maxRetryAfter))
	if n := p.struck(isProbe) - throttledAlike; n > 0 {
		wait = max(wait, backoff(r.whole, n, throttledMost))
	}
	if p.probe == probeNone {
		apart := r.whole / Time(r.allowed)
		took, even := b.took(s, at-r.whole, apart)
		switch again := at-p.eased < easing*r.whole; {
		case again && p.spaced && r.allowed > 1:
			// Spaced requests leave no slots to count: they were so far apart.
			p.limitTo(at, max(1, min(int64((s.taken-p.eased)/apart), int64(r.allowed-1))))
		case again && even && took < int64(r.inUse):
			p.space(at)
		case again && took > 0 && took < int64(r.inUse):
			p.limitTo(at, took)
		default:
			p.widen(at, r.whole)
		}
	}
	b.onAck, b.costs, b.replyUntil = false, 0, at+autoBack
	p.stop(at, wait, PausedThrottled, isProbe)
}

// took counts the requests that Jelou took since, before the refused one. They
// are even when none of them left sooner after another than apart, and the refused one did.
func (b *Budget) took(refused *slot, since, apart Time) (n int64, even bool) {
	var left []Time
	for i := range b.slots {
		s := &b.slots[i]
		settled := s.anchor > since && !s.refused
		underWay := s.claim != 0 && s.taken > since && s.taken < refused.taken
		if s != refused && (settled || underWay) {
			n++
			left = append(left, s.taken)
		}
	}
	slices.Sort(left)
	for i := 1; i < len(left); i++ {
		if left[i]-left[i-1] < apart {
			return n, false
		}
	}
	return n, n > 0 && refused.taken-left[n-1] < apart
}

// widened is how much wider the margin is.
func (p *pause) widened(now Time) Time {
	halvings := max(0, now-p.wideAt) / wideHalf
	if p.wide == 0 || halvings > 40 {
		return 0
	}
	return p.wide >> halvings
}

func (p *pause) widen(at, window Time) {
	p.wide = min(max(wideFirst, 2*p.widened(at)), window/widePart)
	p.wideAt = at
}

func (p *pause) limitTo(at Time, requests int64) {
	p.limit, p.spaced = requests, false
	p.learn(at)
}

func (p *pause) space(at Time) {
	p.limit, p.spaced = 0, true
	p.learn(at)
}

// learn says when what was learned is to be tried again.
func (p *pause) learn(at Time) {
	if at-p.limitedAt > raiseFresh {
		p.raiseStep = 0
	}
	p.raiseStep = min(max(raiseFirst, 2*p.raiseStep), raiseMost)
	p.limitedAt, p.raiseAt = at, at+p.raiseStep
}

// learned is how many requests are in use: those allowed, unless Jelou was found
// to take fewer. One more is tried when its time has come, and the next soon
// after it went well.
func (p *pause) learned(now Time, allowed int, window Time) int {
	if p.spaced && now >= p.raiseAt {
		p.spaced, p.eased = false, p.raiseAt
	}
	for p.limit > 0 && now >= p.raiseAt {
		p.eased = p.raiseAt
		p.raiseAt += easing * window
		p.limit++
		if p.limit >= int64(allowed) {
			p.limit = 0
		}
	}
	if p.limit == 0 {
		return allowed
	}
	return min(allowed, int(p.limit))
}
