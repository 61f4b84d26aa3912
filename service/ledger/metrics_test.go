package ledger

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestBacklogs: what waits is counted by company, lane and caller, over all queues, and aged by what could leave.
func TestBacklogs(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		acme, other := mustCompany(t, l, "acme"), mustCompany(t, l, "other")
		mustAdd(t, l, newSend(acme, 1), newSend(acme, 2))
		later := newSend(acme, 3)
		later.DueAt = time.Now().Add(time.Hour).UnixMicro()
		mustAdd(t, l, later)
		running, paused := newBatch(acme), newBatch(acme)
		paused.Paused = true
		for i, b := range []NewBatch{running, paused} {
			mustAdd(t, l, items(acme, mustCreate(t, l, b).ID.Queue, 0, i+3)...)
		}
		mustAdd(t, l, newSend(other, 1))
		got, err := l.Backlogs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byKey := map[Backlog]bool{}
		for _, b := range got {
			if b.Oldest <= 0 || b.Oldest > time.Minute {
				t.Errorf("the oldest of %+v waits %v", b, b.Oldest)
			}
			b.Oldest = 0
			byKey[b] = true
		}
		loose, batch := newSend(acme, 1), newBatch(acme)
		want := map[Backlog]bool{
			{Company: acme, Lane: loose.Lane, Caller: loose.Caller, Waiting: 2, Scheduled: 1}: true,
			{Company: acme, Lane: batch.Lane, Caller: batch.Caller, Waiting: 3, Paused: 4}:    true,
			{Company: other, Lane: loose.Lane, Caller: loose.Caller, Waiting: 1}:              true,
		}
		if diff := cmp.Diff(want, byKey); diff != "" {
			t.Error(diff)
		}
	})
}
