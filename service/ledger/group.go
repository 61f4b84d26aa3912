package ledger

import (
	"context"
	"sync/atomic"
)

// A group lets concurrent writers share transactions: while one commit runs, the next group fills.
type group[T any] struct {
	waiting chan *member[T]
	size    int
	commit  func(context.Context, []T) error
	closed  chan struct{}
}

// member is one caller's part of a group.
type member[T any] struct {
	work  []T
	taken atomic.Bool // by the group, or by its caller to leave
	done  chan error
}

// The writers that may stand before a group; further ones wait without a place.
const groupQueue = 4096

func newGroup[T any](size int, commit func(context.Context, []T) error) *group[T] {
	return &group[T]{
		waiting: make(chan *member[T], groupQueue),
		size:    size, commit: commit, closed: make(chan struct{}),
	}
}

// do has the work committed. When ctx ends before a group took it nothing was done; after that do waits for the
// answer, which transactionTimeout bounds.
func (g *group[T]) do(ctx context.Context, work []T) error {
	m := &member[T]{work: work, done: make(chan error, 1)}
	select {
	case g.waiting <- m:
	case <-ctx.Done():
		return ctx.Err()
	case <-g.closed:
		return ErrClosed
	}
	select {
	case err := <-m.done:
		return err
	case <-ctx.Done():
	case <-g.closed:
	}
	if m.taken.CompareAndSwap(false, true) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return ErrClosed
	}
	return <-m.done
}

// run commits group after group until ctx ends.
func (g *group[T]) run(ctx context.Context) {
	defer close(g.closed)
	for {
		var members []*member[T]
		select {
		case m := <-g.waiting:
			members = g.fill(m)
		case <-ctx.Done():
			return
		}
		g.commitMembers(members)
	}
}

// fill takes who waits already, up to the group's size.
func (g *group[T]) fill(first *member[T]) []*member[T] {
	var members []*member[T]
	size := 0
	for m := first; ; {
		if m.taken.CompareAndSwap(false, true) {
			members = append(members, m)
			size += len(m.work)
		}
		if size >= g.size {
			return members
		}
		select {
		case m = <-g.waiting:
		default:
			return members
		}
	}
}

// commitMembers commits all members in one transaction, and where one of them is at fault each in its own.
func (g *group[T]) commitMembers(members []*member[T]) {
	// The callers' contexts do not count here: one who leaves must not take the others' commit with him.
	ctx := context.Background()
	var all []T
	for _, m := range members {
		all = append(all, m.work...)
	}
	err := g.commit(ctx, all)
	if err != nil && len(members) > 1 && faulty(err) {
		for _, m := range members {
			m.done <- g.commit(ctx, m.work)
		}
		return
	}
	for _, m := range members {
		m.done <- err
	}
}
