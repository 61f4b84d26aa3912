package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

// Bounds of one stream. What was received and is not yet durable is all that a stream keeps in memory.
const (
	maxUnacknowledged      = 1000
	maxUnacknowledgedBytes = 160 << 10 // with its row's overhead a stream then stays under 1 MiB
	itemOverhead           = 512       // bytes that an item costs beside its content
	itemsPerAdd            = 250       // items that one transaction stores, so that acknowledgements flow
	resultsPerRead         = 100
	progressEvery          = 5 * time.Second // at least every 15 s is promised
	ownerCheckEvery        = time.Second     // whether a newer stream has taken the batch
	outagePatience         = 10 * time.Second
	outageRetry            = 100 * time.Millisecond
)

// WatchBatch streams results, progress and the end.
func (s *batchServer) WatchBatch(r *facadev1.WatchBatchRequest, stream grpc.ServerStreamingServer[facadev1.WatchBatchResponse]) error {
	id, err := ledger.ParseQueueID(r.BatchId)
	if err != nil {
		return err
	}
	after, err := parseCursor(id, r.AfterCursor)
	if err != nil {
		return err
	}
	if _, err := s.batchNow(stream.Context(), id); err != nil {
		return err
	}
	return s.report(stream.Context(), id, after, nil, reporter{
		result: func(result *facadev1.BatchResult) error {
			return stream.Send(&facadev1.WatchBatchResponse{Event: &facadev1.WatchBatchResponse_Result{Result: result}})
		},
		progress: func(b *facadev1.Batch) error {
			return stream.Send(&facadev1.WatchBatchResponse{Event: &facadev1.WatchBatchResponse_Progress{Progress: &facadev1.BatchProgress{Batch: b}}})
		},
		end: func(b *facadev1.Batch) error {
			return stream.Send(&facadev1.WatchBatchResponse{Event: &facadev1.WatchBatchResponse_End{End: &facadev1.BatchEnd{Batch: b}}})
		},
	})
}

// StreamBatch uploads and reports at once. One goroutine receives, one stores, and this one alone sends: it never
// waits for the client to read before more is received.
func (s *batchServer) StreamBatch(stream grpc.BidiStreamingServer[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse]) error {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return newFault(facadev1.ErrorReason_INVALID_FIELD, "open: must be the first message of the stream")
	}
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return newFault(facadev1.ErrorReason_INVALID_FIELD, "open: must be the first message of the stream")
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	u, after, err := s.openUpload(ctx, open)
	if err != nil {
		return err
	}
	touch(ctx, "", batchName(u.batch.ID))
	note(ctx, slog.String("batch_id", u.batch.ID.String()))
	err = stream.Send(&facadev1.StreamBatchResponse{Event: &facadev1.StreamBatchResponse_Opened{Opened: &facadev1.BatchOpened{
		BatchId: u.batch.ID.String(), NextSequence: int32(u.batch.NextPos), MaxUnacknowledged: maxUnacknowledged,
	}}})
	if err != nil {
		return err
	}
	go func() { cancel(u.receive(stream)) }()
	go func() {
		if err := u.store(ctx); err != nil {
			cancel(err)
		}
	}()
	err = s.report(ctx, u.batch.ID, after, u, reporter{
		ack: func(through int64) error {
			return stream.Send(&facadev1.StreamBatchResponse{Event: &facadev1.StreamBatchResponse_Ack{Ack: &facadev1.BatchAck{ThroughSequence: int32(through)}}})
		},
		result: func(result *facadev1.BatchResult) error {
			return stream.Send(&facadev1.StreamBatchResponse{Event: &facadev1.StreamBatchResponse_Result{Result: result}})
		},
		progress: func(b *facadev1.Batch) error {
			return stream.Send(&facadev1.StreamBatchResponse{Event: &facadev1.StreamBatchResponse_Progress{Progress: &facadev1.BatchProgress{Batch: b}}})
		},
		end: func(b *facadev1.Batch) error {
			return stream.Send(&facadev1.StreamBatchResponse{Event: &facadev1.StreamBatchResponse_End{End: &facadev1.BatchEnd{Batch: b}}})
		},
	})
	return err
}

// reporter sends the events of a stream.
type reporter struct {
	ack           func(through int64) error
	result        func(*facadev1.BatchResult) error
	progress, end func(*facadev1.Batch) error
}

// report sends what there is to say about a batch until it has ended, the client has left, or the server stops. Results are read
// from the ledger by their numbers, so that a stream keeps none of them.
func (s *batchServer) report(ctx context.Context, id ledger.QueueID, after int64, u *uploading, to reporter) error {
	err := s.reportAll(ctx, id, after, u, to)
	if ctx.Err() != nil {
		// What ended the other half of the stream says more than what it cut off here.
		return context.Cause(ctx)
	}
	return err
}

func (s *batchServer) reportAll(ctx context.Context, id ledger.QueueID, after int64, u *uploading, to reporter) error {
	changed, unsubscribe := s.ledger.Subscribe(id)
	defer unsubscribe()
	progress := time.NewTicker(progressEvery)
	defer progress.Stop()
	owner := time.NewTicker(ownerCheckEvery)
	defer owner.Stop()
	old := s.streamEnd(ctx)
	defer old.Stop()
	acked, look := int64(0), true
	for {
		if u != nil {
			if through := u.durable.Load(); through > acked {
				acked = through
				if err := to.ack(acked); err != nil {
					return err
				}
			}
		}
		if look {
			last, more, ended, err := s.reportResults(ctx, id, after, to)
			if err != nil {
				return err
			}
			after = last
			switch {
			case more:
				continue // acknowledgements in between
			case ended:
				b, err := s.batchNow(ctx, id)
				if err != nil {
					return err
				}
				return to.end(s.toBatch(ctx, b))
			}
		}
		look = true
		select {
		case <-changed:
		case <-u.stored():
			look = false // results have a signal of their own
		case <-progress.C:
			b, err := s.batchNow(ctx, id)
			if err != nil {
				return err
			}
			if err := to.progress(s.toBatch(ctx, b)); err != nil {
				return err
			}
		case <-owner.C:
			b, err := s.batchNow(ctx, id)
			if err != nil {
				return err
			}
			if u != nil && b.Uploader != u.uploader {
				return ledger.ErrStreamReplaced
			}
		case <-s.stopping:
			return newFault(facadev1.ErrorReason_DRAINING, "the server stops; reopen the batch with the last cursor seen").with("batch_id", id.String())
		case <-old.C:
			return newFault(facadev1.ErrorReason_DRAINING, "the connection is old; reopen the batch with the last cursor seen over a new one").with("batch_id", id.String())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// batchNow reads the batch if the caller may see it.
func (s *batchServer) batchNow(ctx context.Context, id ledger.QueueID) (b ledger.Batch, err error) {
	err = s.outlast(ctx, func() error {
		b, err = s.visibleBatch(ctx, id)
		return err
	})
	return b, err
}

// reportResults sends the results after a number, at most one read's, and says whether there may be more, and whether there can be none.
func (s *batchServer) reportResults(ctx context.Context, id ledger.QueueID, after int64, to reporter) (last int64, more, ended bool, err error) {
	var rows []ledger.Send
	err = s.outlast(ctx, func() (err error) {
		rows, ended, err = s.ledger.Results(ctx, id, after, resultsPerRead)
		return err
	})
	if err != nil {
		return after, false, false, err
	}
	for _, row := range rows {
		send, err := s.toSend(ctx, row)
		if err != nil {
			return after, false, false, err
		}
		if err := to.result(&facadev1.BatchResult{Cursor: cursorOf(id, row.ResultNo), Send: send}); err != nil {
			return after, false, false, err
		}
		after = row.ResultNo
	}
	return after, len(rows) == resultsPerRead, ended, nil
}

// uploading is the receiving half of a stream: what came in and is not yet durable.
type uploading struct {
	*batchServer
	new      ledger.NewBatch
	spec     *facadev1.BatchSpec
	batch    ledger.Batch
	uploader int64

	items   chan *received
	room    chan struct{} // signalled when bytes have become durable
	bytes   atomic.Int64  // received and not yet durable
	durable atomic.Int64  // all items up to it are
	signal  chan struct{} // something became durable
	next    int64         // the sequence that the next item must have
}

// received is an item on its way into the ledger, or the seal.
type received struct {
	send ledger.NewSend
	size int64
	seal *facadev1.StreamBatchRequest_Seal
}

// stored signals that more is durable; nil, which never comes, where nothing is uploaded.
func (u *uploading) stored() <-chan struct{} {
	if u == nil {
		return nil
	}
	return u.signal
}

// openUpload makes or finds the batch and takes the uploader's role.
func (s *batchServer) openUpload(ctx context.Context, open *facadev1.StreamBatchRequest_Open) (*uploading, int64, error) {
	var id ledger.QueueID
	if spec := open.GetSpec(); spec != nil {
		new, err := s.newBatch(ctx, spec)
		if err != nil {
			return nil, 0, err
		}
		if err := refuseRepeated(ctx, "batch", "open.spec.request_id", spec.RequestId); err != nil {
			return nil, 0, err
		}
		if err := s.accepts(ctx); err != nil {
			return nil, 0, err
		}
		b, _, err := s.ledger.CreateBatch(ctx, new)
		if err != nil {
			return nil, 0, reopenable(err)
		}
		id = b.ID
	} else {
		var err error
		if id, err = ledger.ParseQueueID(open.GetBatchId()); err != nil {
			return nil, 0, err
		}
	}
	after, err := parseCursor(id, open.AfterCursor)
	if err != nil {
		return nil, 0, err
	}
	b, uploader, err := s.openVisibleBatch(ctx, id)
	if err != nil {
		return nil, 0, reopenable(err)
	}
	u := &uploading{
		batchServer: s, batch: b, uploader: uploader, next: b.NextPos,
		items: make(chan *received, maxUnacknowledged), room: make(chan struct{}, 1), signal: make(chan struct{}, 1),
	}
	u.durable.Store(b.NextPos - 1)
	if u.spec, err = s.openSpec(b); err != nil {
		return nil, 0, err
	}
	u.new = ledger.NewBatch{Company: id.Company, Lane: b.Lane, Bot: b.Bot}
	return u, after, nil
}

// receive reads the stream until it ends. What it returns ends the whole stream; a half-close or a seal does not: results
// are still to come.
func (u *uploading) receive(stream grpc.BidiStreamingServer[facadev1.StreamBatchRequest, facadev1.StreamBatchResponse]) error {
	ctx := stream.Context()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			<-ctx.Done()
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		in := &received{}
		switch r := m.Request.(type) {
		case *facadev1.StreamBatchRequest_Item:
			if in, err = u.item(ctx, r.Item); err != nil {
				return err
			}
		case *facadev1.StreamBatchRequest_Seal_:
			in.seal = r.Seal
		default:
			return newFault(facadev1.ErrorReason_INVALID_FIELD, "open: must come once, as the first message")
		}
		if err := u.waitForRoom(ctx); err != nil {
			return err
		}
		u.bytes.Add(in.size)
		select {
		case u.items <- in:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitForRoom stops reading while too many bytes are not durable; HTTP/2's flow control then stops the client.
func (u *uploading) waitForRoom(ctx context.Context) error {
	for u.bytes.Load() >= maxUnacknowledgedBytes {
		select {
		case <-u.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// item checks an item. A bad one costs itself: it takes its number and its result says why.
func (u *uploading) item(ctx context.Context, item *facadev1.BatchItem) (*received, error) {
	in := &received{size: int64(proto.Size(item)) + itemOverhead}
	seq := int64(item.Sequence)
	if seq < 1 || seq > u.next {
		return nil, u.gap()
	}
	send, err := u.checkedItem(ctx, item, seq)
	if err != nil {
		bad := ledger.NewSend{Company: u.new.Company, Lane: u.new.Lane, Caller: callerOf(ctx).Name(), Bot: u.new.Bot, Kind: kindOf(item), Pos: seq}
		bad.Hash, bad.HashVersion = u.keys.Digest(hashVersion, contentHash(u.new.Bot, item))
		send = u.failedItem(bad, itemFault(err))
	}
	send.Queue, send.Uploader = u.batch.ID.Queue, u.uploader
	if seq == u.next {
		u.next++
	}
	in.send = send
	return in, nil
}

// checkedItem is the row of an item that keeps its rules.
func (u *uploading) checkedItem(ctx context.Context, item *facadev1.BatchItem, seq int64) (ledger.NewSend, error) {
	if err := checkRules(u.validator, item); err != nil {
		return ledger.NewSend{}, err
	}
	return u.newItem(ctx, u.new, u.spec, item, seq)
}

func (u *uploading) gap() error {
	return newFault(facadev1.ErrorReason_SEQUENCE_MISMATCH, "item.sequence: must be %d, or a lower one again; nothing of this item was stored", u.next).
		with("batch_id", u.batch.ID.String()).with("expected_sequence", strconv.FormatInt(u.next, 10))
}

// store puts what was received into the ledger, as many items at once as have come.
func (u *uploading) store(ctx context.Context) error {
	for {
		var group []*received
		select {
		case in := <-u.items:
			group = append(group, in)
		case <-ctx.Done():
			return ctx.Err()
		}
		for len(group) < itemsPerAdd && len(u.items) > 0 {
			group = append(group, <-u.items)
		}
		if err := u.storeGroup(ctx, group); err != nil {
			return err
		}
	}
}

// storeGroup stores items, and the seal where it stands among them. A crash before the commit loses nothing that was
// acknowledged: the client sends from the last acknowledgement on.
func (u *uploading) storeGroup(ctx context.Context, group []*received) error {
	var sends []ledger.NewSend
	var size int64
	var seal *facadev1.StreamBatchRequest_Seal
	for _, in := range group {
		if in.seal != nil {
			seal = in.seal
			continue
		}
		if seal != nil {
			return ledger.ErrSealed
		}
		sends, size = append(sends, in.send), size+in.size
	}
	if len(sends) > 0 {
		// Again after a commit of which nobody knows: an item's number keeps it from being stored twice.
		if err := u.outlast(ctx, func() error { return u.addItems(ctx, sends) }); err != nil {
			return err
		}
		u.durable.Store(max(u.durable.Load(), sends[len(sends)-1].Pos))
		u.bytes.Add(-size)
		notify(u.room)
		notify(u.signal)
	}
	if seal == nil {
		return nil
	}
	err := u.outlast(ctx, func() error {
		_, err := u.ledger.Seal(ctx, u.batch.ID, int64(seal.ItemCount), u.uploader)
		return err
	})
	if err != nil {
		return err
	}
	notify(u.signal)
	return nil
}

// outlast repeats what the ledger's database was away for, a while, so that one that is restarted ends no stream.
func (s *core) outlast(ctx context.Context, do func() error) error {
	for began := time.Now(); ; {
		err := do()
		if !away(err) || time.Since(began) > outagePatience {
			return reopenable(err)
		}
		select {
		case <-time.After(outageRetry):
		case <-s.stopping:
			return reopenable(err)
		case <-ctx.Done():
			return err
		}
	}
}

// away reports whether the ledger's database could not be reached.
func away(err error) bool {
	return errors.Is(err, ledger.ErrUnavailable) || errors.Is(err, ledger.ErrUncertain)
}

// reopenable is a stream's error. What a database that went away may have stored is no question here: the batch says it to whoever
// reopens it.
func reopenable(err error) error {
	if !away(err) {
		return err
	}
	return newFault(facadev1.ErrorReason_LEDGER_UNAVAILABLE, "the ledger's database cannot be reached; reopen the batch with the last cursor seen").because(err)
}

// notify leaves a signal, if none is there.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
