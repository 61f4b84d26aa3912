package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

// fakeCommit is a commit that waits to be let through.
type fakeCommit struct {
	begun chan []int
	end   chan error
}

func newGroupTest(t *testing.T, size int) (*group[int], fakeCommit) {
	t.Helper()
	f := fakeCommit{make(chan []int), make(chan error)}
	g := newGroup(size, func(_ context.Context, work []int) error {
		f.begun <- work
		return <-f.end
	})
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	go g.run(ctx)
	return g, f
}

// start calls do and gives its answer later.
func start(ctx context.Context, g *group[int], work ...int) chan error {
	answer := make(chan error, 1)
	go func() { answer <- g.do(ctx, work) }()
	synctest.Wait()
	return answer
}

func TestGroupFillsWhileOneCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := newGroupTest(t, 100)
		first := start(t.Context(), g, 1)
		if got := <-f.begun; !slices.Equal(got, []int{1}) {
			t.Errorf("first commit %v", got)
		}
		var rest []chan error
		for i := range 64 {
			rest = append(rest, start(t.Context(), g, 10+i))
		}
		f.end <- nil
		if err := <-first; err != nil {
			t.Error(err)
		}
		if got := <-f.begun; len(got) != 64 {
			t.Errorf("the second commit is shared by %d", len(got))
		}
		f.end <- nil
		for _, answer := range rest {
			if err := <-answer; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestGroupIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := newGroupTest(t, 10)
		start(t.Context(), g, 0)
		<-f.begun
		for i := range 8 {
			start(t.Context(), g, 3*i, 3*i+1, 3*i+2)
		}
		f.end <- nil
		for _, want := range []int{12, 12} {
			if got := <-f.begun; len(got) != want {
				t.Errorf("a group of %d, want %d", len(got), want)
			}
			f.end <- nil
		}
	})
}

func TestOneMembersFaultIsHisAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := newGroupTest(t, 10)
		fault := fmt.Errorf("refused: %w", errFault{})
		start(t.Context(), g, 0)
		<-f.begun
		good, bad, other := start(t.Context(), g, 1), start(t.Context(), g, 2), start(t.Context(), g, 3)
		f.end <- nil
		for _, step := range []struct {
			work []int
			err  error
		}{{[]int{1, 2, 3}, fault}, {[]int{1}, nil}, {[]int{2}, fault}, {[]int{3}, nil}} {
			if got := <-f.begun; !slices.Equal(got, step.work) {
				t.Errorf("commit of %v, want %v", got, step.work)
			}
			f.end <- step.err
		}
		if err := errors.Join(<-good, <-other); err != nil {
			t.Error(err)
		}
		if err := <-bad; !errors.Is(err, fault) {
			t.Errorf("who was at fault got %v", err)
		}
	})
}

// errFault is what pgx says of a value that does not fit.
type errFault struct{}

func (errFault) Error() string { return "failed to encode args[0]" }

func TestWhoLeavesBeforeTheGroupIsNotCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := newGroupTest(t, 10)
		start(t.Context(), g, 0)
		<-f.begun
		leaving, leave := context.WithCancel(t.Context())
		gone, stays := start(leaving, g, 1), start(t.Context(), g, 2)
		leave()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		f.end <- nil
		if got := <-f.begun; !slices.Equal(got, []int{2}) {
			t.Errorf("commit of %v", got)
		}
		f.end <- nil
		if err := <-stays; err != nil {
			t.Error(err)
		}
	})
}

func TestWhoLeavesDuringTheCommitGetsItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f := newGroupTest(t, 10)
		leaving, leave := context.WithCancel(t.Context())
		answer := start(leaving, g, 1)
		<-f.begun
		leave()
		synctest.Wait()
		f.end <- nil
		if err := <-answer; err != nil {
			t.Errorf("it was committed, and its caller was told %v", err)
		}
	})
}
