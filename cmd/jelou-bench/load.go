package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

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

// batch streams a batch of so many items in the BULK lane, seals it, and leaves it to itself.
func (f *facade) batch(ctx context.Context, t *tenant, items int) (id string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.batches.StreamBatch(ctx)
	if err != nil {
		return "", err
	}
	spec := &facadev1.BatchSpec{BotId: t.bot(), Options: &facadev1.SendOptions{Lane: facadev1.SendOptions_BULK}}
	open := &facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: spec}}
	if err := stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}}); err != nil {
		return "", err
	}
	window := make(chan struct{}, items) // an item may leave
	uploads, uploading := errgroup.WithContext(ctx)
	uploads.Go(func() error { return t.upload(uploading, stream, items, window) })
	uploads.Go(func() error {
		id, err = follow(stream, items, window)
		return err
	})
	if err := uploads.Wait(); err != nil {
		return id, err
	}
	for { // the seal is not acknowledged
		answer, err := f.batches.GetBatch(ctx, &facadev1.GetBatchRequest{BatchId: id})
		if err != nil || answer.Batch.State != facadev1.Batch_OPEN {
			return id, err
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return id, err
		}
	}
}

// upload sends a batch's items and seals it.
func (t *tenant) upload(ctx context.Context, stream facadev1.BatchService_StreamBatchClient, items int, window <-chan struct{}) error {
	for i := range items {
		select {
		case <-window:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		user := t.user()
		item := &facadev1.BatchItem{Sequence: int32(i + 1), UserId: user, Content: &facadev1.BatchItem_Message{Message: text("Novedad para " + user)}}
		if err := stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: item}}); err != nil {
			return err
		}
	}
	seal := &facadev1.StreamBatchRequest_Seal{ItemCount: int32(items)}
	return stream.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: seal}})
}

// follow reads a batch's stream until all its items are durable, and lets as many items leave as may be unacknowledged.
func follow(stream facadev1.BatchService_StreamBatchClient, items int, window chan<- struct{}) (id string, err error) {
	for let, acked, most := 0, 0, 0; acked < items; {
		answer, err := stream.Recv()
		if err != nil {
			return id, err
		}
		switch e := answer.Event.(type) {
		case *facadev1.StreamBatchResponse_Opened:
			id, most = e.Opened.BatchId, int(e.Opened.MaxUnacknowledged)
		case *facadev1.StreamBatchResponse_Ack:
			acked = int(e.Ack.ThroughSequence)
		}
		for ; let < min(items, acked+most); let++ {
			window <- struct{}{}
		}
	}
	return id, nil
}

// keepFull stocks the tenants for a time at full demand and a little longer.
func (c *cluster) keepFull(ctx context.Context, long time.Duration, all ...*tenant) error {
	first := all[0]
	each := int(float64(first.allowed())*(long.Seconds()+5)/first.every().Seconds()) + 20
	return c.fill(ctx, each, all...)
}
