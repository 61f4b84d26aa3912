package service

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/keyring"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

type batchServer struct {
	facadev1.UnimplementedBatchServiceServer
	*core
}

// CreateBatch stores a sealed batch, all of it or nothing. A crash after the commit loses the answer only: the repeated call, with
// its request_id, finds the batch.
func (s *batchServer) CreateBatch(ctx context.Context, r *facadev1.CreateBatchRequest) (*facadev1.CreateBatchResponse, error) {
	new, err := s.newBatch(ctx, r.Spec)
	if err != nil {
		return nil, err
	}
	if r.ValidateOnly && r.Spec.RequestId != "" {
		return nil, invalidField("spec.request_id", "must be empty with validate_only: nothing is stored that it could name")
	}
	if err := refuseRepeated(ctx, "batch", "spec.request_id", r.Spec.RequestId); err != nil {
		return nil, err
	}
	new.Hash, new.HashVersion = s.keys.Digest(hashVersion, batchHash(r.Spec, r.Items))
	sends := make([]ledger.NewSend, len(r.Items))
	for i, item := range r.Items {
		if item.Sequence != 0 && int(item.Sequence) != i+1 {
			return nil, invalidField(fmt.Sprintf("items[%d].sequence", i), "must be %d, or 0 to be filled in", i+1)
		}
		if sends[i], err = s.newItem(ctx, new, r.Spec, item, int64(i+1)); err != nil {
			return nil, within(err, fmt.Sprintf("items[%d]", i))
		}
	}
	if r.ValidateOnly {
		return &facadev1.CreateBatchResponse{}, nil
	}
	if err := s.accepts(ctx); err != nil {
		return nil, err
	}
	if err := s.admitBatch(ctx, new, sends); err != nil {
		return nil, err
	}
	b, joined, err := s.ledger.CreateSealedBatch(ctx, new, sends)
	if err != nil || joined {
		s.dispatch.Added(new.Company, new.Lane, new.Caller, -len(sends))
	}
	if err != nil {
		return nil, aboutBatch(ctx, b.ID, err)
	}
	touch(ctx, "", batchName(b.ID))
	return &facadev1.CreateBatchResponse{Batch: s.toBatch(ctx, b)}, nil
}

// newBatch is the row of a new batch.
func (s *batchServer) newBatch(ctx context.Context, spec *facadev1.BatchSpec) (ledger.NewBatch, error) {
	company, err := s.companyOf(ctx, spec.BotId)
	if err != nil {
		return ledger.NewBatch{}, err
	}
	lane := facadev1.SendOptions_BULK
	if l := spec.Options.GetLane(); l != facadev1.SendOptions_LANE_UNSPECIFIED {
		lane = l
	}
	c := callerOf(ctx)
	if err := mayUseLane(c, lane); err != nil {
		return ledger.NewBatch{}, err
	}
	labels, err := labelsOf(spec.Options)
	if err != nil {
		return ledger.NewBatch{}, err
	}
	now := time.Now()
	if _, err := future("spec.options.expire_time", spec.Options.GetExpireTime(), now); err != nil {
		return ledger.NewBatch{}, err
	}
	if _, err := future("spec.options.schedule_time", spec.Options.GetScheduleTime(), now); err != nil {
		return ledger.NewBatch{}, err
	}
	hash, version := s.keys.Digest(hashVersion, batchHash(spec, nil))
	return ledger.NewBatch{
		Company: company.ID, Lane: ledger.Lane(lane), Caller: c.Name(), Weight: c.Weight(), Bot: spec.BotId,
		RequestID: spec.RequestId, Hash: hash, HashVersion: version,
		Labels: labels, Spec: s.keys.Seal(keyring.Spec, mustMarshal(spec)), Paused: spec.Paused,
	}, nil
}

// batchHash identifies a batch by its bot and, where they come with it, its items.
func batchHash(spec *facadev1.BatchSpec, items []*facadev1.BatchItem) []byte {
	h := sha256.New()
	h.Write(writeBytes(nil, []byte(spec.BotId)))
	for _, item := range items {
		if n, f := normalize(item); f == nil {
			h.Write(contentHash(spec.BotId, n))
		}
	}
	return h.Sum(nil)
}

// newItem is the row of an item: the single call's, with the batch's defaults.
func (s *batchServer) newItem(ctx context.Context, b ledger.NewBatch, spec *facadev1.BatchSpec, item *facadev1.BatchItem, pos int64) (ledger.NewSend, error) {
	n, f := normalize(item)
	if f != nil {
		return ledger.NewSend{}, f
	}
	if lane := item.GetOptions().GetLane(); lane != facadev1.SendOptions_LANE_UNSPECIFIED && ledger.Lane(lane) != b.Lane {
		return ledger.NewSend{}, invalidField("options.lane", "is the batch's; leave it out of the item")
	}
	options := withDefaults(item.GetOptions(), spec.GetOptions())
	send, err := s.newSend(ctx, b.Company, b.Bot, n, options, facadev1.SendOptions_Lane(b.Lane))
	send.RequestID, send.Pos = item.RequestId, pos
	if send.ExpireAt == 0 {
		send.ExpireAt = time.Now().Add(maxAhead).UnixMicro()
	}
	return send, err
}

// withDefaults is an item's options with what is unset from the batch's.
func withDefaults(o, defaults *facadev1.SendOptions) *facadev1.SendOptions {
	if defaults == nil {
		return o
	}
	merged := proto.CloneOf(defaults)
	proto.Merge(merged, o)
	return merged
}

// within puts the path of the item in front of an error's fields.
func within(err error, path string) error {
	f, ok := errors.AsType[*fault](err)
	if !ok {
		return err
	}
	for _, v := range f.fields {
		v.Field = path + "." + v.Field
	}
	f.message = path + "." + f.message
	return f
}

// addItems stores items.
func (s *core) addItems(ctx context.Context, sends []ledger.NewSend) error {
	if err := s.admitItems(ctx, sends); err != nil {
		return err
	}
	added, err := s.ledger.Add(ctx, sends)
	if err != nil {
		return err
	}
	for _, a := range added {
		if a.Err != nil {
			return a.Err
		}
	}
	return nil
}

// failedItem is an item that takes its number and has its result already; its content is not kept.
func (s *core) failedItem(n ledger.NewSend, f *fault) ledger.NewSend {
	n.RequestID, n.Body, n.DueAt, n.ExpireAt = "", nil, 0, 0
	n.Final = &ledger.Final{Reason: f.reason.String(), Result: s.sealedResult(&facadev1.Send{Error: f.GRPCStatus().Proto()})}
	return n
}

// GetBatch reads one batch.
func (s *batchServer) GetBatch(ctx context.Context, r *facadev1.GetBatchRequest) (*facadev1.GetBatchResponse, error) {
	b, err := s.batch(ctx, r.BatchId, s.ledger.Batch)
	return &facadev1.GetBatchResponse{Batch: b}, err
}

// CancelBatch cancels what has not left.
func (s *batchServer) CancelBatch(ctx context.Context, r *facadev1.CancelBatchRequest) (*facadev1.CancelBatchResponse, error) {
	b, err := s.batch(ctx, r.BatchId, s.ledger.CancelBatch)
	return &facadev1.CancelBatchResponse{Batch: b}, err
}

// PauseBatch stops sending.
func (s *batchServer) PauseBatch(ctx context.Context, r *facadev1.PauseBatchRequest) (*facadev1.PauseBatchResponse, error) {
	b, err := s.batch(ctx, r.BatchId, s.ledger.PauseBatch)
	return &facadev1.PauseBatchResponse{Batch: b}, err
}

// ResumeBatch sends again.
func (s *batchServer) ResumeBatch(ctx context.Context, r *facadev1.ResumeBatchRequest) (*facadev1.ResumeBatchResponse, error) {
	b, err := s.batch(ctx, r.BatchId, s.ledger.ResumeBatch)
	return &facadev1.ResumeBatchResponse{Batch: b}, err
}

// batch runs one operation of the ledger on a batch.
func (s *batchServer) batch(ctx context.Context, batchID string, operate func(context.Context, ledger.QueueID) (ledger.Batch, error)) (*facadev1.Batch, error) {
	id, err := ledger.ParseQueueID(batchID)
	if err != nil {
		return nil, err
	}
	if _, err := s.visibleBatch(ctx, id); err != nil {
		return nil, err
	}
	b, err := operate(ctx, id)
	if err != nil {
		return nil, aboutBatch(ctx, id, err)
	}
	return s.toBatch(ctx, b), nil
}

// aboutBatch names the batch of which the ledger cannot say what became of it.
func aboutBatch(ctx context.Context, id ledger.QueueID, err error) error {
	if errors.Is(err, ledger.ErrUncertain) {
		touch(ctx, "", batchName(id))
	}
	return about(err, "batch_id", id.String())
}

// ListBatches lists batches, newest first.
func (s *batchServer) ListBatches(ctx context.Context, r *facadev1.ListBatchesRequest) (*facadev1.ListBatchesResponse, error) {
	filter := ledger.BatchFilter{
		Companies: s.companies(ctx), Caller: listedCaller(ctx), Bot: r.BotId, RequestID: r.RequestId, Labels: r.Labels,
		From: microsOf(r.CreateTimeFrom), To: microsOf(r.CreateTimeTo),
	}
	for _, state := range r.States {
		filter.States = append(filter.States, ledgerBatchStates[state])
	}
	after, err := pageCursor(r, r.PageToken)
	if err != nil {
		return nil, err
	}
	batches, next, err := s.ledger.Batches(ctx, filter, after, orDefault(int(r.PageSize), defaultPageSize))
	if err != nil {
		return nil, err
	}
	response := &facadev1.ListBatchesResponse{NextPageToken: cursorToken(r, next)}
	for _, b := range batches {
		response.Batches = append(response.Batches, s.toBatch(ctx, b))
	}
	return response, nil
}

// ReplayBatch makes a new batch of what did not go. Repeated without a request_id it sends nothing twice: the ledger replays a send
// once, whoever asks, so a second call finds nothing that is left.
func (s *batchServer) ReplayBatch(ctx context.Context, r *facadev1.ReplayBatchRequest) (*facadev1.ReplayBatchResponse, error) {
	id, err := ledger.ParseQueueID(r.BatchId)
	if err != nil {
		return nil, err
	}
	source, err := s.visibleBatch(ctx, id)
	if err != nil {
		return nil, err
	}
	spec, err := s.openSpec(source)
	if err != nil {
		return nil, err
	}
	spec.RequestId, spec.Paused = r.RequestId, r.Paused
	if spec.Options != nil {
		spec.Options.ExpireTime, spec.Options.ScheduleTime = r.ExpireTime, nil
	} else if r.ExpireTime != nil {
		spec.Options = &facadev1.SendOptions{ExpireTime: r.ExpireTime}
	}
	new, err := s.newBatch(ctx, spec)
	if err != nil {
		return nil, err
	}
	new.Caller = source.Caller // also where an admin asks: it stays with whose sends these are
	request := proto.CloneOf(r)
	request.RequestId = ""
	new.Hash, new.HashVersion = s.keys.Digest(hashVersion, messageHash(request.ProtoReflect()))
	replay := ledger.NewReplay{NewBatch: new, Source: id, Reasons: r.ErrorReasons, ExpireAt: microsOf(r.ExpireTime), Traceparent: traceparentOf(ctx)}
	if replay.ExpireAt == 0 {
		replay.ExpireIn = maxAhead
	}
	for _, state := range r.States {
		replay.States = append(replay.States, ledgerStates[state])
	}
	b, _, err := s.ledger.Replay(ctx, replay)
	if err != nil {
		return nil, aboutBatch(ctx, b.ID, err)
	}
	touch(ctx, "", batchName(b.ID))
	return &facadev1.ReplayBatchResponse{Batch: s.toBatch(ctx, b)}, nil
}

var ledgerBatchStates = map[facadev1.Batch_State]ledger.BatchState{
	facadev1.Batch_OPEN: ledger.BatchOpen, facadev1.Batch_RUNNING: ledger.BatchRunning,
	facadev1.Batch_COMPLETED: ledger.BatchCompleted, facadev1.Batch_CANCELLED: ledger.BatchCancelled,
}

var batchStates = func() map[ledger.BatchState]facadev1.Batch_State {
	m := map[ledger.BatchState]facadev1.Batch_State{}
	for in, of := range ledgerBatchStates {
		m[of] = in
	}
	return m
}()

// openSpec is what the caller said about a batch.
func (s *core) openSpec(b ledger.Batch) (*facadev1.BatchSpec, error) {
	stored, err := s.open(keyring.Spec, b.Spec)
	if err != nil {
		return nil, err
	}
	spec := &facadev1.BatchSpec{}
	return spec, proto.Unmarshal(stored, spec)
}

// toBatch is a batch as callers see it.
func (s *core) toBatch(ctx context.Context, b ledger.Batch) *facadev1.Batch {
	spec, err := s.openSpec(b)
	if err != nil { // its counts are worth more than its name
		spec = &facadev1.BatchSpec{BotId: b.Bot, RequestId: b.RequestID}
	}
	batch := &facadev1.Batch{
		BatchId: b.ID.String(), Spec: spec, State: batchStates[b.State], Paused: b.Paused,
		Counts: &facadev1.BatchCounts{
			Accepted: int32(b.Counts.Accepted), Scheduled: int32(b.Counts.Scheduled), Pending: int32(b.Counts.Pending), Sending: int32(b.Counts.Sending),
			Sent: int32(b.Counts.Sent), Failed: int32(b.Counts.Failed), Unknown: int32(b.Counts.Unknown), Cancelled: int32(b.Counts.Cancelled), Expired: int32(b.Counts.Expired),
		},
		NextSequence: int32(b.NextPos), CreateTime: timestamp(b.CreatedAt), EndTime: timestamp(b.EndedAt),
		EstimatedEndTime: s.estimateBatch(ctx, b),
	}
	if b.Source != (ledger.QueueID{}) {
		batch.SourceBatchId = b.Source.String()
	}
	return batch
}

// A cursor is a result's number with a check of its batch.
func cursorOf(batch ledger.QueueID, number int64) string {
	return strconv.FormatInt(number, 36) + "-" + cursorCheck(batch)
}

func cursorCheck(batch ledger.QueueID) string {
	return strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(batch.String()))), 36)
}

func parseCursor(batch ledger.QueueID, cursor string) (int64, error) {
	if cursor == "" {
		return 0, nil
	}
	number, check, _ := strings.Cut(cursor, "-")
	n, err := strconv.ParseInt(number, 36, 64)
	if err != nil || n < 0 || check != cursorCheck(batch) {
		return 0, invalidField("after_cursor", "is not a cursor of this batch; use one of its results, or none to begin")
	}
	return n, nil
}

// itemFault is a bad item's error, as far as its own rules say.
func itemFault(err error) *fault {
	f, ok := errors.AsType[*fault](err)
	if !ok {
		return newFault(facadev1.ErrorReason_INTERNAL, internalMessage).because(err)
	}
	return f
}
