// Command example sends a message, a notification and a batch, and does what a program should when something goes wrong.
//
//	go run ./cmd/jelou-facade serve --sandbox
//	go run ./clients/go/example 127.0.0.1:50051
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/jelou-facade/jelou-facade/clients/go/facade"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

const (
	bot     = "demo"
	lucia   = "593991234567" // wrote to the bot today
	unknown = "593990000001" // never did
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: example HOST:PORT")
	}
	conn, err := facade.Dial(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	messages, batches := facadev1.NewMessageServiceClient(conn), facadev1.NewBatchServiceClient(conn)
	for _, part := range []func() error{
		func() error { return sendSafely(ctx, messages) },
		func() error { return notify(ctx, facadev1.NewNotificationServiceClient(conn)) },
		func() error { return readError(ctx, messages) },
		func() error { return sendPatiently(ctx, messages) },
		func() error { return streamBatch(ctx, batches) },
	} {
		if err := part(); err != nil {
			log.Fatal(err)
		}
	}
}

func text(user, text string) *facadev1.SendMessageRequest {
	return &facadev1.SendMessageRequest{BotId: bot, UserId: user, Message: textMessage(text)}
}

func textMessage(text string) *facadev1.Message {
	return &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: text}}}
}

// sendSafely gives the send an id of the caller's own, so that it can be repeated even after a crash.
func sendSafely(ctx context.Context, messages facadev1.MessageServiceClient) error {
	request := text(lucia, "Su pedido 8841 salió de bodega.")
	request.RequestId = "order-8841"
	first, err := messages.SendMessage(ctx, request)
	if err != nil {
		return err
	}
	fmt.Printf("message: %s\n", first.Send.State)
	again, err := messages.SendMessage(ctx, request)
	if err != nil {
		return err
	}
	if again.Send.SendId == first.Send.SendId {
		fmt.Println("the same request_id again: the same send")
	}
	return nil
}

func notify(ctx context.Context, notifications facadev1.NotificationServiceClient) error {
	answer, err := notifications.SendNotification(ctx, &facadev1.SendNotificationRequest{BotId: bot, Notification: &facadev1.TemplateMessage{
		ElementName: "order_ready", Language: "es", Destinations: []string{lucia}, Parameters: []string{"Lucía", "991"},
	}})
	if err != nil {
		return err
	}
	fmt.Printf("notification: %s, %d recipient\n", answer.Send.State, len(answer.Send.Notifications))
	return nil
}

// readError decides by the reason: the 24-hour window of this user is closed, so only a notification can reach him.
func readError(ctx context.Context, messages facadev1.MessageServiceClient) error {
	_, err := messages.SendMessage(ctx, text(unknown, "¿Cómo le fue con su compra?"))
	failure := facade.Explain(err)
	if failure.Reason != facadev1.ErrorReason_SESSION_WINDOW_CLOSED.String() {
		return fmt.Errorf("want a closed window, got %w", err)
	}
	fmt.Printf("refused: %s %s by %s\n", failure.Code, failure.Reason, failure.Domain)
	return nil
}

// sendPatiently has one second for a send behind twenty others. The server says at once that it is too little, and when to come back.
func sendPatiently(ctx context.Context, messages facadev1.MessageServiceClient) error {
	for i := range 20 {
		before := text(lucia, fmt.Sprintf("Antes %d", i))
		before.Mode = facadev1.SendOptions_QUEUE
		if _, err := messages.SendMessage(ctx, before); err != nil {
			return err
		}
	}
	request := text(lucia, "Su turno es el siguiente.")
	request.RequestId = uuid.NewString() // one for all attempts
	for attempt := 1; ; attempt++ {
		answer, err := sendWithin(ctx, time.Second, messages, request)
		if err == nil {
			fmt.Printf("after the wait: %s\n", answer.Send.State)
			return nil
		}
		failure := facade.Explain(err)
		if failure.RetryDelay == 0 {
			return err
		}
		if attempt == 1 {
			fmt.Printf("too late: %s %s, retry after a wait\n", failure.Code, failure.Reason)
		}
		time.Sleep(failure.RetryDelay)
	}
}

func sendWithin(ctx context.Context, timeout time.Duration, messages facadev1.MessageServiceClient, request *facadev1.SendMessageRequest) (*facadev1.SendMessageResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return messages.SendMessage(ctx, request)
}

const items = 8

// item makes the n-th item from 1; the fourth is blank and costs itself only.
func item(n int) *facadev1.StreamBatchRequest {
	body := fmt.Sprintf("Esta semana los envíos son gratis (%d).", n)
	if n == 4 {
		body = " "
	}
	return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: &facadev1.BatchItem{
		Sequence: int32(n), UserId: lucia, Content: &facadev1.BatchItem_Message{Message: textMessage(body)},
	}}}
}

func open(o *facadev1.StreamBatchRequest_Open) *facadev1.StreamBatchRequest {
	return &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: o}}
}

// streamBatch uploads and reads results at the same time, loses the stream on the way, and goes on where it was.
func streamBatch(ctx context.Context, batches facadev1.BatchServiceClient) error {
	place, err := uploadHalf(ctx, batches)
	if err != nil {
		return err
	}
	fmt.Println("batch: left after item 5")
	stream, err := batches.StreamBatch(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(open(&facadev1.StreamBatchRequest_Open{
		Batch: &facadev1.StreamBatchRequest_Open_BatchId{BatchId: place.batchID}, AfterCursor: place.cursor,
	})); err != nil {
		return err
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch e := event.Event.(type) {
		case *facadev1.StreamBatchResponse_Opened:
			fmt.Printf("batch: reopened at item %d\n", e.Opened.NextSequence)
			if err := uploadFrom(stream, int(e.Opened.NextSequence)); err != nil {
				return err
			}
		case *facadev1.StreamBatchResponse_Progress:
			counts := e.Progress.Batch.Counts
			log.Printf("%d of %d sent", counts.Sent, counts.Accepted)
		case *facadev1.StreamBatchResponse_Result:
			place.result(e.Result)
		case *facadev1.StreamBatchResponse_End:
			counts := e.End.Batch.Counts
			for _, failed := range place.failed {
				fmt.Println(failed)
			}
			fmt.Printf("batch: %s, %d accepted, %d sent, %d failed\n", e.End.Batch.State, counts.Accepted, counts.Sent, counts.Failed)
		}
	}
}

// place is all that is needed to go on after a cut: a program that may crash stores batch and cursor.
type place struct {
	batchID, cursor string
	failed          []string
}

func (p *place) result(r *facadev1.BatchResult) {
	p.cursor = r.Cursor
	if r.Send.State != facadev1.Send_SENT {
		p.failed = append(p.failed, fmt.Sprintf("item %d: %s %s", r.Send.Sequence, r.Send.State, r.Send.ErrorReason))
	}
}

// uploadHalf leaves once five items are stored and two have results, as a crash would.
func uploadHalf(ctx context.Context, batches facadev1.BatchServiceClient) (*place, error) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	stream, err := batches.StreamBatch(ctx)
	if err != nil {
		return nil, err
	}
	spec := &facadev1.BatchSpec{BotId: bot, DisplayName: "Envíos gratis"}
	if err := stream.Send(open(&facadev1.StreamBatchRequest_Open{Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: spec}})); err != nil {
		return nil, err
	}
	for n := 1; n <= 5; n++ {
		if err := stream.Send(item(n)); err != nil {
			return nil, err
		}
	}
	p := &place{}
	for stored, results := int32(0), 0; stored < 5 || results < 2; {
		event, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		switch e := event.Event.(type) {
		case *facadev1.StreamBatchResponse_Opened:
			p.batchID = e.Opened.BatchId
		case *facadev1.StreamBatchResponse_Ack:
			stored = e.Ack.ThroughSequence
		case *facadev1.StreamBatchResponse_Result:
			p.result(e.Result)
			results++
		}
	}
	return p, nil
}

func uploadFrom(stream grpc.BidiStreamingClient[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse], next int) error {
	for n := next; n <= items; n++ {
		if err := stream.Send(item(n)); err != nil {
			return err
		}
	}
	seal := &facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: &facadev1.StreamBatchRequest_Seal{ItemCount: items}}}
	if err := stream.Send(seal); err != nil {
		return err
	}
	return stream.CloseSend()
}
