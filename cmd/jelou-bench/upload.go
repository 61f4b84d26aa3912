package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// upload is a batch as its client sees it, over as many streams as it takes. What it keeps between two streams is what a
// client would keep on disk: the batch's id and the last cursor.
type upload struct {
	spec  *facadev1.BatchSpec // with a request_id, so that an open without an answer is no loss
	items int
	item  func(sequence int) *facadev1.BatchItem // always the same for a sequence
	limit *rate.Limiter                          // of what is sent; nil is none
	dial  func() (*link, error)
	there func() time.Time // since when all that a stream needs is there; nil is always
	cause func() string    // what cuts streams at the moment; nil is nothing in particular
	saw   func(failure)    // is told how each cut stream ended; nil is nobody

	mu    sync.Mutex // guards what follows
	link  *link      // of the stream that is open now, or nil
	cuts  int        // streams that ended before the batch
	ended bool
	wrong []string // what must not be

	// Of the goroutine that runs alone.
	batchID string
	cursor  string
	older   string // the cursor when the latest stream was opened
	acked   int
	results map[int]result // by sequence

	streams  int      // that were opened
	resumes  []resume // of later streams
	repeated int      // results that were seen again, as they may
}

// resume is how long a stream took that was opened after a cut, in ms.
type resume struct {
	cause  string
	open   float64 // from its opening to its first answer
	outage float64 // from the cut to the same
}

// opens are the times of resumes.
func opens(all []resume) []float64 {
	var times []float64
	for _, r := range all {
		times = append(times, r.open)
	}
	return times
}

// link is how one stream reaches a server.
type link struct {
	batches facadev1.BatchServiceClient
	cut     func() // as by a client that is killed
	close   func()
}

// result is the one result of an item.
type result struct {
	cursor string
	state  resultState
	sendID string
}

// run opens streams until the batch has ended.
func (u *upload) run(ctx context.Context) error {
	u.results = map[int]result{}
	var lost time.Time
	cause := ""
	for {
		before := u.streams
		err := u.stream(ctx, &lost, cause)
		if u.ended {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if u.saw != nil {
			u.saw(failureOf(err))
		}
		if f := failureOf(err); !f.mayRepeat() && f.code != codes.Aborted {
			u.fault("a stream ended with %v", err)
			if len(u.wrong) > 20 {
				return fmt.Errorf("batch %s: %s", u.batchID, u.wrong[0])
			}
		}
		u.mu.Lock()
		u.cuts += u.streams - before
		u.mu.Unlock()
		if lost.IsZero() {
			lost = time.Now()
			if u.cause != nil {
				cause = u.cause()
			}
		}
		if err := sleep(ctx, time.Duration(10+rand.IntN(40))*time.Millisecond); err != nil {
			return err
		}
	}
}

func (u *upload) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
}

func (u *upload) fault(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wrong = append(u.wrong, fmt.Sprintf(format, args...))
}

// hold makes a link the one that can be cut, or none.
func (u *upload) hold(l *link) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.link = l
}

// cutNow cuts the stream as a killed client does, and reports whether one was open.
func (u *upload) cutNow() bool {
	u.mu.Lock()
	l := u.link
	u.link = nil
	u.mu.Unlock()
	if l != nil {
		l.cut()
	}
	return l != nil
}

// stream runs one stream to its end. lost is when the one before it was cut, and cause why; zero where there was none.
func (u *upload) stream(ctx context.Context, lost *time.Time, cause string) error {
	l, err := u.dial()
	if err != nil {
		return err
	}
	defer l.close()
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	opening := time.Now()
	s, err := l.batches.StreamBatch(ctx)
	if err != nil {
		return err
	}
	after := u.cursor
	if rand.IntN(5) == 0 {
		after = u.older // as a client that did not come to keep its latest
	}
	u.older = after
	open := &facadev1.StreamBatchRequest_Open{AfterCursor: after, Batch: &facadev1.StreamBatchRequest_Open_Spec{Spec: u.spec}}
	if u.batchID != "" {
		open.Batch = &facadev1.StreamBatchRequest_Open_BatchId{BatchId: u.batchID}
	}
	// A failed Send only says that the stream is over; Recv says why.
	_ = s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Open_{Open: open}})
	first, err := s.Recv()
	if err != nil {
		return err
	}
	opened := first.GetOpened()
	if opened == nil {
		return errors.New("the first message is not opened")
	}
	if !lost.IsZero() {
		if u.there != nil {
			opening = later(opening, u.there())
		}
		u.resumes = append(u.resumes, resume{cause, ms(time.Since(opening)), ms(time.Since(*lost))})
		*lost = time.Time{}
	}
	if u.batchID != "" && u.batchID != opened.BatchId {
		u.fault("opened as another batch")
	}
	u.batchID = opened.BatchId
	u.streams++
	next := int(opened.NextSequence)
	if next <= u.acked {
		u.fault("%d items were acknowledged and %d are there", u.acked, next-1)
	}
	u.hold(l)
	defer u.hold(nil)
	sending.Go(func() { u.send(ctx, s, next) })
	for {
		m, err := s.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the stream ended without end and without an error")
			}
			return err
		}
		switch e := m.Event.(type) {
		case *facadev1.StreamBatchResponse_Ack:
			u.acked = max(u.acked, int(e.Ack.ThroughSequence))
		case *facadev1.StreamBatchResponse_Result:
			u.see(e.Result)
		case *facadev1.StreamBatchResponse_End:
			u.end()
			return nil
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// send uploads the items from one on, and the seal.
func (u *upload) send(ctx context.Context, s facadev1.BatchService_StreamBatchClient, next int) {
	for sequence := next; sequence <= u.items; sequence++ {
		if u.limit != nil && u.limit.Wait(ctx) != nil {
			return
		}
		if s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Item{Item: u.item(sequence)}}) != nil {
			return
		}
	}
	if s.Send(&facadev1.StreamBatchRequest{Request: &facadev1.StreamBatchRequest_Seal_{Seal: &facadev1.StreamBatchRequest_Seal{ItemCount: int32(u.items)}}}) == nil {
		_ = s.CloseSend() // Recv says what went wrong
	}
}

// see takes in a result. The same one may come again after a cut, with the same cursor.
func (u *upload) see(r *facadev1.BatchResult) {
	sequence := int(r.Send.GetSequence())
	now := result{r.Cursor, r.Send.GetState(), r.Send.GetSendId()}
	switch before, seen := u.results[sequence]; {
	case sequence < 1 || sequence > u.items || waits(now.state):
		u.fault("result of item %d in state %v", sequence, now.state)
	case !seen:
		u.results[sequence] = now
	case before.cursor != now.cursor || before.sendID != now.sendID:
		u.fault("item %d has two results", sequence)
	default:
		u.repeated++
	}
	u.cursor = r.Cursor
}

// missing is how many items have no result although the batch has ended.
func (u *upload) missing() int { return u.items - len(u.results) }

// watchAgain reads all results from the beginning, which must be those that were seen, each once.
func (u *upload) watchAgain(ctx context.Context, batches facadev1.BatchServiceClient) (*facadev1.Batch, error) {
	s, err := batches.WatchBatch(ctx, &facadev1.WatchBatchRequest{BatchId: u.batchID})
	if err != nil {
		return nil, err
	}
	again := map[int]bool{}
	for {
		m, err := s.Recv()
		if err != nil {
			return nil, err
		}
		if end := m.GetEnd(); end != nil {
			if len(again) != u.items {
				u.fault("%d items of %d have a result", len(again), u.items)
			}
			return end.Batch, nil
		}
		r := m.GetResult()
		if r == nil {
			continue
		}
		sequence := int(r.Send.GetSequence())
		if again[sequence] {
			u.fault("item %d has two results in one reading", sequence)
		}
		again[sequence] = true
		u.see(r)
	}
}
