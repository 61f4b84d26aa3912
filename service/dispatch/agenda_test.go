package dispatch

import (
	"context"
	"testing"
	"time"
)

// Where something is always due, a stop must come through all the same: else a server at full demand never ends.
func TestAgendaEndsAtFullDemand(t *testing.T) {
	a := newAgenda()
	c := &company{appointment: appointment{index: -1}}
	a.set(c, time.Now(), claimLook)
	ctx, stop := context.WithCancel(t.Context())
	if got := a.take(ctx, claimLook, 1); len(got) != 1 || got[0] != c {
		t.Fatalf("took %v, want the company that is due", got)
	}
	a.release(c, time.Now(), claimLook)
	stop()
	if got := a.take(ctx, claimLook, 1); got != nil {
		t.Errorf("took %v after the stop", got)
	}
}
