package service

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/ledger"
)

type sendServer struct {
	facadev1.UnimplementedSendServiceServer
	*core
}

// GetSend reads one send.
func (s *sendServer) GetSend(ctx context.Context, r *facadev1.GetSendRequest) (*facadev1.GetSendResponse, error) {
	id, err := ledger.ParseID(r.SendId)
	if err != nil {
		return nil, err
	}
	row, err := s.visibleSend(ctx, id)
	if err != nil {
		return nil, err
	}
	send, err := s.toSend(ctx, row)
	if err != nil {
		return nil, err
	}
	return &facadev1.GetSendResponse{Send: send}, nil
}

// CancelSend cancels what has not left.
func (s *sendServer) CancelSend(ctx context.Context, r *facadev1.CancelSendRequest) (*facadev1.CancelSendResponse, error) {
	id, err := ledger.ParseID(r.SendId)
	if err != nil {
		return nil, err
	}
	if _, err := s.visibleSend(ctx, id); err != nil {
		return nil, err
	}
	row, cancelled, err := s.ledger.Cancel(ctx, id)
	if err != nil {
		return nil, about(err, "send_id", r.SendId)
	}
	if !cancelled {
		return nil, newFault(facadev1.ErrorReason_ALREADY_SENDING, "too late to cancel: the send is %s", states[row.State]).with("send_id", r.SendId)
	}
	send, err := s.toSend(ctx, row)
	if err != nil {
		return nil, err
	}
	return &facadev1.CancelSendResponse{Send: send}, nil
}

var ledgerStates = func() map[facadev1.Send_State]ledger.State {
	m := map[facadev1.Send_State]ledger.State{}
	for of, in := range states {
		m[in] = of
	}
	return m
}()

// ResolveSend settles an unknown send.
func (s *sendServer) ResolveSend(ctx context.Context, r *facadev1.ResolveSendRequest) (*facadev1.ResolveSendResponse, error) {
	id, err := ledger.ParseID(r.SendId)
	if err != nil {
		return nil, err
	}
	if _, err := s.visibleSend(ctx, id); err != nil {
		return nil, err
	}
	if !callerOf(ctx).MayResolve() {
		return nil, newFault(facadev1.ErrorReason_CALLER_FORBIDDEN, "this caller may not resolve sends; its `may_resolve` in the server's configuration would allow it")
	}
	to := ledgerStates[r.State]
	reason := ""
	if to == ledger.Failed {
		reason = facadev1.ErrorReason_OUTCOME_UNKNOWN.String()
	}
	row, resolved, err := s.ledger.Resolve(ctx, id, to, reason)
	if err != nil {
		return nil, about(err, "send_id", r.SendId)
	}
	if !resolved {
		return nil, newFault(facadev1.ErrorReason_NOT_UNKNOWN, "only an UNKNOWN send can be resolved; this one is %s", states[row.State]).with("send_id", r.SendId)
	}
	send, err := s.toSend(ctx, row)
	if err != nil {
		return nil, err
	}
	return &facadev1.ResolveSendResponse{Send: send}, nil
}

const defaultPageSize = 100

// ListSends lists sends: newest first, those of a batch by sequence.
func (s *sendServer) ListSends(ctx context.Context, r *facadev1.ListSendsRequest) (*facadev1.ListSendsResponse, error) {
	filter := ledger.SendFilter{
		Companies: s.companies(ctx), Caller: listedCaller(ctx), Bot: r.BotId, RequestID: r.RequestId, Reasons: r.ErrorReasons, Labels: r.Labels,
		From: microsOf(r.CreateTimeFrom), To: microsOf(r.CreateTimeTo),
	}
	for _, state := range r.States {
		filter.States = append(filter.States, ledgerStates[state])
	}
	if r.BatchId != "" {
		id, err := ledger.ParseQueueID(r.BatchId)
		if err != nil {
			return nil, err
		}
		filter.Queue = id
	}
	after, err := pageCursor(r, r.PageToken)
	if err != nil {
		return nil, err
	}
	rows, next, err := s.ledger.Sends(ctx, filter, after, orDefault(int(r.PageSize), defaultPageSize))
	if err != nil {
		return nil, err
	}
	response := &facadev1.ListSendsResponse{NextPageToken: cursorToken(r, next)}
	for _, row := range rows {
		send, err := s.toSend(ctx, row)
		if err != nil {
			return nil, err
		}
		response.Sends = append(response.Sends, send)
	}
	return response, nil
}

// microsOf is a filter's time; 0 for none.
func microsOf(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixMicro()
}
