package pace

import "slices"

// Share is one of several that are served by their tags.
type Share struct {
	Tag     Tag
	Weight  int
	Waiting int
	// First says that it goes before the one asked for when their tags are equal.
	First bool
}

// Ahead is how many of a lane's requests go before a new one of the share own,
// whose Waiting go before it in its own share. Inside a share the same is
// asked for queues: the answer and the queue's own Waiting add up to the share's.
func Ahead(v Tag, own Share, others []Share) int {
	n := own.Waiting
	at := v.Join(own.Tag) + Tag(own.Waiting)*cost(own.Weight)
	for _, o := range others {
		behind := at - v.Join(o.Tag)
		if o.First {
			behind++
		}
		if each := cost(o.Weight); behind > 0 {
			n += min(o.Waiting, int((behind+each-1)/each))
		}
	}
	return n
}

// Backlog is what waits when somebody asks for an estimate.
type Backlog struct {
	// Waiting in each lane, without the request asked about.
	Waiting [lanes]int
	// Ahead is how many of its own lane go before it. For the last of a new batch
	// of n they are n − 1 more.
	Ahead int
}

// place is how many requests leave before a new one of lane l: while urgent ones
// are among them, and after those. It follows lane and turned: of the lanes below,
// one for so many turns; of the lanes above, all but those turns.
func (b *Budget) place(floor int64, l Lane, q Backlog) (mixed, after int64) {
	x := int64(q.Ahead)
	var below int64
	for k := l + 1; k <= Read; k++ {
		below += int64(q.Waiting[k])
	}
	x += min(below, (x+b.passed[l])/(floor-1))
	for above := l - 1; above >= Urgent; above-- {
		turns := (x+1)*(floor-1) - b.passed[above]
		before := min(int64(q.Waiting[above]), max(0, turns))
		if above == Urgent {
			between := min(x, (before+b.passed[Urgent])/(floor-1))
			return before + between, x - between
		}
		x += before
	}
	return x, 0
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
	mixed, after := b.place(r.lowerFloor, l, q)
	starts, cycle := b.starts(r), b.cycle(r)
	at := func(starts []Time, x int64) Time {
		n := int64(len(starts))
		return starts[x%n] + Time(x/n)*cycle
	}
	if l == Urgent {
		return at(starts, mixed)
	}
	// Below the urgent lane the first use of each slot is spread; later ones
	// then are by themselves.
	spread := make([]Time, len(starts))
	next := b.spread
	for i := range spread {
		spread[i] = max(next, at(starts, mixed+int64(i)))
		next = spread[i] + r.gap
	}
	return at(spread, after)
}

// cycle is how long a slot is taken for. It counts on the whole of the fastest
// trip: where that is not relied on yet, it soon will be.
func (b *Budget) cycle(r rule) Time {
	t := &b.reply
	if b.acks(r) {
		t = &b.ack
	}
	return r.window + r.margin + b.late + max(t.over(r.now, t.mean), t.mean-r.maxCredit)
}

// starts is when each slot can next be used, in order, as far as can be told.
func (b *Budget) starts(r rule) []Time {
	frees := make([]Time, len(b.slots))
	for i := range b.slots {
		frees[i] = b.expected(r, &b.slots[i])
	}
	slices.Sort(frees)
	frees = frees[len(frees)-r.requests:]
	first := max(r.now, b.quiet)
	rest := first
	switch b.pause.probe {
	case probeDue:
		first = max(first, b.pause.until)
		rest = first + b.reply.mean
	case probeOut:
		first += b.reply.mean
		rest = first
	}
	for i := range frees {
		frees[i] = max(frees[i], first)
		first = rest
	}
	return frees
}

// expected is when the slot will be free: one that is taken, as soon as others
// were, or as if its answer came now.
func (b *Budget) expected(r rule, s *slot) Time {
	free := s.free(r)
	if !s.open() {
		return free
	}
	soon := max(s.taken+b.cycle(r), r.now+r.window+r.margin-r.replyCred)
	return min(free, soon)
}
