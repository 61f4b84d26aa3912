package main

import (
	"fmt"
	"time"

	"github.com/jelou-facade/jelou-facade/service/jelousim"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// campaigns are batches of callers that share a company: one with a hundred beside one with one, and one with a batch so
// large that nobody can wait for its rows when it is cancelled.
type campaigns struct {
	b      *bench
	engine *engine
	shared *tenant // two callers, each with a bot of its own
	large  *tenant
	items  int
	batch  ledger.QueueID // the large one
}

const (
	manyBatches = "many-batches"
	oneBatch    = "one-batch"
)

// startCampaigns stores the batches and begins to send.
func (b *bench) startCampaigns(p *postgres) (*campaigns, error) {
	c := &campaigns{b: b, shared: tenants("shared", 1)[0], large: tenants("large", 1)[0], items: pick(b, 1_000_000, 20_000)}
	c.shared.bots = []string{manyBatches, oneBatch}
	c.large.bots = []string{"cancelled", "after-cancel"}
	_, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkNear}}, c.shared, c.large)
	if err != nil {
		return nil, err
	}
	url, err := p.database()
	if err != nil {
		return nil, err
	}
	if c.engine, err = b.startEngine("campaigns", url, c.shared, c.large); err != nil {
		return nil, err
	}
	b.progress("a batch of %d items that will be cancelled", c.items)
	if c.batch, err = c.engine.batch(b.ctx, c.large, c.large.bots[0], "campaigner", c.items); err != nil {
		return nil, err
	}
	for range 100 {
		if _, err := c.engine.batch(b.ctx, c.shared, manyBatches, manyBatches, 30); err != nil {
			return nil, err
		}
	}
	_, err = c.engine.batch(b.ctx, c.shared, oneBatch, oneBatch, 3000)
	return c, err
}

// found looks who got what, cancels the large batch and sends once more.
func (c *campaigns) found() error {
	b := c.b
	sends, err := c.shared.sim.sends(b.ctx)
	if err != nil {
		return err
	}
	got, began := map[string]float64{}, time.Time{}
	for _, s := range sends {
		if s.Bot == oneBatch && began.IsZero() {
			began = s.At // both have something waiting from here on
		}
		if !began.IsZero() {
			got[s.Bot]++
		}
	}
	both := got[manyBatches] + got[oneBatch]
	b.found.set("one_batch_share", rounded(got[oneBatch]/max(both, 1), 3))
	b.found.atLeast("one_batch_share", 0.49)
	b.found.atMost("one_batch_share", 0.51)
	t := b.found.table("Two callers of a company in the bulk lane", "caller", "arrived")
	t.add("100 batches", int(got[manyBatches]))
	t.add("1 batch", int(got[oneBatch]))
	return c.cancel()
}

// cancel measures how soon the caller of the large batch is served again.
func (c *campaigns) cancel() error {
	b := c.b
	began := time.Now()
	if _, err := c.engine.ledger.CancelBatch(b.ctx, c.batch); err != nil {
		return err
	}
	took := time.Since(began)
	if err := c.engine.add(b.ctx, c.large, c.large.bots[1], "campaigner", 1, 1); err != nil {
		return err
	}
	for time.Since(began) < 10*time.Second {
		sends, err := c.large.sim.sends(b.ctx)
		if err != nil {
			return err
		}
		for _, s := range sends {
			if s.Bot == c.large.bots[1] {
				b.found.set("cancelled_items", c.items)
				b.found.set("cancel_ms", rounded(ms(took), 1))
				b.found.set("cancel_to_next_ms", rounded(ms(s.At.Sub(began)), 0))
				b.found.atMost("cancel_to_next_ms", 2000)
				return nil
			}
		}
		if err := b.sleep(50 * time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("10 s after a batch of %d was cancelled its caller's next send has not arrived", c.items)
}
