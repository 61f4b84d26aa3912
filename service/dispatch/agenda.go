package dispatch

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// look is a way to look at a company.
type look int8

const (
	claimLook  look = iota // claim from it: takes its lock
	glanceLook             // read what it is at: disturbs nobody
	looks
)

// agenda says which companies to look at, when and how. Each is on it once, or is being looked at.
type agenda struct {
	mu      sync.Mutex
	waiting [looks]byTime
	changed [looks]chan struct{} // a first one became due sooner
}

// appointment is a company's place on the agenda.
type appointment struct {
	at    time.Time
	how   look
	index int  // in its heap
	taken bool // it is being looked at
	gone  bool // it is not looked at any more
}

func newAgenda() *agenda {
	a := &agenda{}
	for how := range a.changed {
		a.changed[how] = make(chan struct{}, 1)
	}
	return a
}

// set puts a company on the agenda, in place of what stood there. Nothing happens while it is being looked at: who
// looks knows better afterwards.
func (a *agenda) set(c *company, at time.Time, how look) { a.change(c, at, how, false) }

// sooner is set where nothing sooner stands there.
func (a *agenda) sooner(c *company, at time.Time, how look) { a.change(c, at, how, true) }

func (a *agenda) change(c *company, at time.Time, how look, onlySooner bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := &c.appointment
	if p.taken || p.gone || onlySooner && p.index >= 0 && !at.Before(p.at) {
		return
	}
	if p.index >= 0 {
		heap.Remove(&a.waiting[p.how], p.index)
	}
	a.put(c, at, how)
}

// release puts a company back that was looked at.
func (a *agenda) release(c *company, at time.Time, how look) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.appointment.taken = false
	if !c.appointment.gone {
		a.put(c, at, how)
	}
}

// retire takes a company off the agenda for good, or until it is enlisted again.
func (a *agenda) retire(c *company) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := &c.appointment
	p.gone = true
	if p.index >= 0 {
		heap.Remove(&a.waiting[p.how], p.index)
	}
}

// retired reports whether a company is not looked at any more.
func (a *agenda) retired(c *company) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return c.appointment.gone
}

// enlist lets a company on the agenda again, and reports whether it was retired.
func (a *agenda) enlist(c *company) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := c.appointment.gone
	c.appointment.gone = false
	return was
}

func (a *agenda) put(c *company, at time.Time, how look) {
	c.appointment.at, c.appointment.how = at, how
	heap.Push(&a.waiting[how], c)
	if c.appointment.index == 0 {
		select {
		case a.changed[how] <- struct{}{}:
		default: // it was told already
		}
	}
}

// take waits until companies are due and takes up to most of them. It returns none when ctx ends.
func (a *agenda) take(ctx context.Context, how look, most int) []*company {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil { // also at full demand, when there is always one due
		due, wait := a.takeDue(how, most)
		if len(due) > 0 {
			return due
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-a.changed[how]:
		case <-ctx.Done():
		}
	}
	return nil
}

// takeDue takes what is due now, and says how long until the next is.
func (a *agenda) takeDue(how look, most int) (due []*company, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	waiting := &a.waiting[how]
	for len(*waiting) > 0 && len(due) < most {
		if wait := time.Until((*waiting)[0].appointment.at); wait > 0 {
			return due, wait
		}
		c := heap.Pop(waiting).(*company)
		c.appointment.taken = true
		due = append(due, c)
	}
	return due, time.Hour
}

// byTime is a heap.
type byTime []*company

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(i, j int) bool { return h[i].appointment.at.Before(h[j].appointment.at) }
func (h byTime) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].appointment.index, h[j].appointment.index = i, j
}

func (h *byTime) Push(c any) {
	c.(*company).appointment.index = len(*h)
	*h = append(*h, c.(*company))
}

func (h *byTime) Pop() any {
	last := len(*h) - 1
	c := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	c.appointment.index = -1
	return c
}
