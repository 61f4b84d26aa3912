package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// text is a message of so many words.
func text(words string) *facadev1.Message {
	return &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: words}}}
}

// message is a request of a text to somebody new.
func (t *tenant) message(bot string, lane facadev1.SendOptions_Lane) *facadev1.SendMessageRequest {
	user := t.user()
	return &facadev1.SendMessageRequest{
		BotId: bot, UserId: user, Message: text("Su pedido " + user + " salió de bodega."),
		Options: &facadev1.SendOptions{Lane: lane},
	}
}

// adders is how many calls add at the same time.
const adders = 32

// fill puts so many sends of each tenant into the BULK lane, through all facades, one of each tenant after the other.
func (c *cluster) fill(ctx context.Context, each int, all ...*tenant) error {
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(adders)
	for range each {
		for _, t := range all {
			calls.Go(func() error {
				r := t.message(t.bot(), facadev1.SendOptions_BULK)
				r.Mode = facadev1.SendOptions_QUEUE
				if _, err := c.any().messages.SendMessage(ctx, r); err != nil {
					return fmt.Errorf("queue a send of %s: %w", t.name, err)
				}
				return nil
			})
		}
	}
	return calls.Wait()
}

// batchItems is the most that one CreateBatch takes.
const batchItems = 1000

// batch gives a tenant's sends as batches of at most batchItems each, in the BULK lane.
func (c *cluster) batch(ctx context.Context, t *tenant, items int) ([]*facadev1.Batch, error) {
	var batches []*facadev1.Batch
	for items > 0 {
		r := &facadev1.CreateBatchRequest{Spec: &facadev1.BatchSpec{BotId: t.bot(), Options: &facadev1.SendOptions{Lane: facadev1.SendOptions_BULK}}}
		for range min(items, batchItems) {
			user := t.user()
			r.Items = append(r.Items, &facadev1.BatchItem{UserId: user, Content: &facadev1.BatchItem_Message{Message: text("Novedad para " + user)}})
		}
		items -= len(r.Items)
		answer, err := c.any().batches.CreateBatch(ctx, r)
		if err != nil {
			return nil, err
		}
		batches = append(batches, answer.Batch)
	}
	return batches, nil
}

// stock makes so many sends of a tenant wait in the BULK lane, as batches where the server takes them.
func (c *cluster) stock(ctx context.Context, t *tenant, items int) error {
	_, err := c.batch(ctx, t, items)
	if status.Code(err) == codes.Unimplemented {
		return c.fill(ctx, items, t)
	}
	return err
}

// keepFull stocks the tenants for a time at full demand and a little longer.
func (c *cluster) keepFull(ctx context.Context, long time.Duration, all ...*tenant) error {
	first := all[0]
	each := int(float64(first.allowed())*(long.Seconds()+5)/first.every().Seconds()) + 20
	return c.fill(ctx, each, all...)
}
