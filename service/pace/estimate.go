package pace

import "slices"

// Share is one of several that are served by their tags.
type Share struct {
	Tag     Tag
	Weight  int
	Waiting int
}

// Ahead is how many of a lane's requests go before a new one of the share own,
// whose Waiting go before it in its own share. Inside a share the same is
// asked for queues: the answer and the queue's own Waiting add up to the share's.
func Ahead(v Tag, own Share, others []Share) int {
	n := own.Waiting
	at := v.Join(own.Tag) + Tag(own.Waiting)*cost(own.Weight)
	for _, o := range others {
		if behind := at - v.Join(o.Tag); behind >= 0 {
			n += min(o.Waiting, int(behind/cost(o.Weight))+1)
		}
	}
	return n
}

// Backlog is what waits when somebody asks for an estimate.
type Backlog struct {
	// Waiting in each lane, without the request asked about.
	Waiting [lanes]int
	// Ahead is how many of its own lane go before it.
	Ahead int
}

// place is how many requests of all lanes leave before a new one of lane l. It
// follows lane and turned: of the lanes below, one for so many turns; of the lanes
// above, all but those turns.
func (b *Budget) place(floor int64, l Lane, q Backlog) int64 {
	x := int64(q.Ahead)
	var below int64
	for k := l + 1; k <= Read; k++ {
		below += int64(q.Waiting[k])
	}
	x += min(below, (x+b.passed[l])/(floor-1))
	for above := l - 1; above >= Urgent; above-- {
		turns := (x+1)*(floor-1) - b.passed[above]
		x += min(int64(q.Waiting[above]), max(0, turns))
	}
	return x
}

// Estimate is when a new request of lane l will start if nobody else comes and
// Jelou goes on as it did. It is Never while the company is held. What is counted
// in the backlog may have changed since: the answer is an estimate, but costs no
// lock.
func (b *Budget) Estimate(cfg Config, now Time, l Lane, q Backlog) Time {
	r := b.enter(cfg, now)
	if b.pause.held {
		return Never
	}
	starts := b.starts(r, l)
	x, n := b.place(r.lowerFloor, l, q), int64(len(starts))
	return starts[x%n] + Time(x/n)*(r.window+max(b.excess, r.margin))
}

// starts is when each slot will next be used, in order, as far as can be told.
func (b *Budget) starts(r rule, l Lane) []Time {
	frees := make([]Time, len(b.slots))
	for i := range b.slots {
		frees[i] = b.expected(r, &b.slots[i])
	}
	slices.Sort(frees)
	frees = frees[len(frees)-r.requests:]
	from := max(r.now, b.quiet)
	rest := from
	switch b.pause.probe {
	case probeDue:
		from = max(from, b.pause.until)
		rest = from + b.reply.mean
	case probeOut:
		from += b.reply.mean
		rest = from
	}
	next := from
	if l != Urgent {
		next = max(next, b.spread)
	}
	for i := range frees {
		frees[i] = max(frees[i], next)
		next = max(next, rest)
		if l != Urgent {
			next = max(next, frees[i]+r.gap)
		}
	}
	return frees
}

// expected is when the slot will be free: one that is taken, as soon as others
// were, or as if its answer came now.
func (b *Budget) expected(r rule, s *slot) Time {
	free := s.free(r)
	if s.claim == 0 {
		return free
	}
	soon := max(s.taken+r.window+b.excess, r.now+r.window+r.margin-r.replyCred)
	return min(free, soon)
}
