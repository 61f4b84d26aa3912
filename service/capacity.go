package service

import (
	"context"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

const (
	// A watched capacity is looked at so often, and told at least so often.
	watchEvery   = time.Second
	watchAtLeast = 15 * time.Second
	// What a failover of the database would cost is asked so often.
	durabilityKept = 30 * time.Second
)

// capacityServer tells how much can be sent.
type capacityServer struct {
	facadev1.UnimplementedCapacityServiceServer
	*core

	mu        sync.Mutex
	durable   bool
	durableAt time.Time
}

// GetCapacity tells it once.
func (s *capacityServer) GetCapacity(ctx context.Context, r *facadev1.GetCapacityRequest) (*facadev1.GetCapacityResponse, error) {
	company, err := s.companyOf(ctx, r.BotId)
	if err != nil {
		return nil, err
	}
	c, err := s.capacity(ctx, company)
	return &facadev1.GetCapacityResponse{Capacity: c}, err
}

// WatchCapacity tells it again whenever it has changed.
func (s *capacityServer) WatchCapacity(r *facadev1.WatchCapacityRequest, stream grpc.ServerStreamingServer[facadev1.WatchCapacityResponse]) error {
	ctx := stream.Context()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	old := s.streamEnd(stream.Context())
	defer old.Stop()
	var told *facadev1.Capacity
	var toldAt time.Time
	for {
		company, err := s.companyOf(ctx, r.BotId) // each time: what the caller may use can change
		if err != nil {
			return err
		}
		c, err := s.capacity(ctx, company)
		if err != nil {
			return err
		}
		if !proto.Equal(c, told) || time.Since(toldAt) >= watchAtLeast {
			told, toldAt = c, time.Now()
			if err := stream.Send(&facadev1.WatchCapacityResponse{Capacity: c}); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopping:
			return newFault(facadev1.ErrorReason_DRAINING, "the server stops; watch again")
		case <-old.C:
			return newFault(facadev1.ErrorReason_DRAINING, "the connection is old; watch again over a new one")
		}
	}
}

// pauseReasons are the reasons of the API for a company's pauses.
var pauseReasons = map[pace.Pause]facadev1.ErrorReason{
	pace.PausedThrottled: facadev1.ErrorReason_UPSTREAM_RATE_LIMITED, pace.PausedRejected: facadev1.ErrorReason_JELOU_UNAUTHORIZED,
	pace.PausedMisconfigured: facadev1.ErrorReason_JELOU_INTERNAL, pace.PausedHeld: facadev1.ErrorReason_LEDGER_HELD,
}

// capacity is a company's as the caller may know it, rounded so that it changes only when something did.
func (s *capacityServer) capacity(ctx context.Context, company *dispatch.Company) (*facadev1.Capacity, error) {
	c, err := s.dispatch.Capacity(ctx, company.ID, callerOf(ctx).Name())
	if err != nil {
		return nil, err
	}
	halt, err := s.halt.read(ctx, s.ledger)
	if err != nil {
		return nil, err
	}
	out := &facadev1.Capacity{
		CompanyId: company.Name, Requests: int32(c.Pace.Allowed), Window: durationpb.New(c.Window),
		UsedShare: math.Round(c.Used*1000) / 1000, UsedShareMine: math.Round(c.Mine*1000) / 1000,
		DurableFailover: s.durableFailover(ctx),
	}
	switch {
	case halt.Held:
		out.Pause = &facadev1.Capacity_Pause{Reason: haltFault(halt).reason.String()}
	case c.Pace.Pause != pace.NotPaused:
		out.Pause = &facadev1.Capacity_Pause{Reason: pauseReasons[c.Pace.Pause].String()}
		if !c.PauseEnds.IsZero() {
			out.Pause.UntilTime = timestamppb.New(c.PauseEnds.Truncate(10 * time.Millisecond))
		}
	}
	for lane := ledger.Urgent; lane <= ledger.Bulk; lane++ {
		l := c.Lanes[lane]
		queue := &facadev1.Capacity_LaneQueue{Lane: facadev1.SendOptions_Lane(lane), Waiting: count32(l.Waiting), WaitingMine: count32(l.Mine)}
		if l.Wait <= maxAhead { // else nobody can say
			queue.ExpectedWait = durationpb.New(l.Wait.Round(10 * time.Millisecond))
		}
		out.Lanes = append(out.Lanes, queue)
	}
	return out, nil
}

// count32 is a count as the API has it.
func count32(n int64) int32 { return int32(min(n, math.MaxInt32)) }

// durableFailover asks what a failover of the database would cost. Where it cannot be asked the answer is the worse one.
func (s *capacityServer) durableFailover(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.durableAt) >= durabilityKept {
		d, err := s.ledger.Durability(ctx)
		s.durable, s.durableAt = err == nil && d.Failover, time.Now()
	}
	return s.durable
}
