package ledger

import (
	"context"
	"time"
)

const (
	// How often it is looked for batches that have to be finished when nothing tells so.
	tidyEvery = time.Second
	// How often retention begins again, and its rest between two chunks of rows: it has time.
	retainEvery = time.Hour
	retainRest  = 100 * time.Millisecond
	retainChunk = 500
	// How often it is looked whether a failover would lose anything.
	durabilityEvery = 10 * time.Second
	// Queues that one look takes up.
	tidyQueues = 100
)

// tidySoon has cancelled batches looked at.
func (l *Ledger) tidySoon() {
	select {
	case l.untidy <- struct{}{}:
	default:
	}
}

// tidy does, beside Run, what has to happen to whole queues although nobody calls: it gives cancelled items their
// results, seals what was abandoned, completes replays whose maker is gone and deletes what is older than its retention.
// Every step is a bounded transaction that any replica may do; two that do the same wait for each other and find
// it done.
func (l *Ledger) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	retain := time.NewTimer(0)
	defer retain.Stop()
	durability := time.NewTicker(durabilityEvery)
	defer durability.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.untidy:
			l.report(ctx, "rewrite cancelled batches", l.rewriteCancelled(ctx))
		case <-tick.C:
			l.report(ctx, "rewrite cancelled batches", l.rewriteCancelled(ctx))
			l.report(ctx, "seal abandoned batches", l.sealAbandoned(ctx))
			l.report(ctx, "complete replays", l.completeReplays(ctx))
			l.report(ctx, "compare the ledger with what it was", l.lookBack(ctx))
		case <-retain.C:
			_, more, err := l.Retain(ctx, l.retention, retainChunk)
			l.report(ctx, "delete what is older than its retention", err)
			if more {
				retain.Reset(retainRest)
			} else {
				retain.Reset(retainEvery)
			}
		case <-durability.C:
			l.report(ctx, "see whether failover is durable", l.noteDurability(ctx))
		}
	}
}
