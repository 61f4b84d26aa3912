package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// admit refuses a send that could not leave in time, or that finds too many before it. A send that is there already is
// never refused: deduplication comes first.
func (s *core) admit(ctx context.Context, n ledger.NewSend, within time.Duration) error {
	wait, err := s.dispatch.Estimate(ctx, n.Company, n.Lane, n.Caller)
	if err != nil {
		return err
	}
	if n.DueAt == 0 && wait > within {
		if known, err := s.known(ctx, n); known || err != nil {
			return err
		}
		f := newFault(facadev1.ErrorReason_WOULD_MISS_DEADLINE, "the send's turn would come in about %s, after the call's deadline or its expire_time; nothing was stored", wait.Round(100*time.Millisecond))
		f.retryAfter = max(wait-within, time.Second)
		return f
	}
	s.dispatch.Added(n.Company, n.Lane, n.Caller, 1)
	return nil
}

// known reports whether the ledger has a send with this request_id.
func (s *core) known(ctx context.Context, n ledger.NewSend) (bool, error) {
	if n.RequestID == "" {
		return false, nil
	}
	_, err := s.ledger.FindByRequestID(ctx, n.Company, n.Caller, n.RequestID)
	if errors.Is(err, ledger.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// estimate is when a send that waits will leave, as far as one can say.
func (s *core) estimate(ctx context.Context, row ledger.Send) *timestamppb.Timestamp {
	if row.State == ledger.Scheduled {
		return timestamp(row.DueAt)
	}
	if row.State != ledger.Pending {
		return nil
	}
	wait, err := s.dispatch.Estimate(ctx, row.ID.Company, row.Lane, row.Caller)
	if err != nil || wait > maxAhead {
		return nil
	}
	return timestamp(time.Now().Add(wait).UnixMicro())
}

// quotaHeaders tells the company's allowance as draft-ietf-httpapi-ratelimit-headers-10 writes it.
func (s *core) quotaHeaders(ctx context.Context, c *dispatch.Company) {
	st := s.dispatch.Status(c.ID)
	window := c.Pace.EachWindow()
	until := int64(1)
	if st.Pause != pace.NotPaused && st.PauseUntil != pace.Never {
		until = wholeSeconds(s.dispatch.Until(st.PauseUntil))
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs( // the headers are gone only when the call is
		headerRateLimitPolicy, fmt.Sprintf(`"jelou";q=%d;w=%d`, st.Allowed, wholeSeconds(window)),
		headerRateLimit, fmt.Sprintf(`"jelou";r=%d;t=%d`, st.Free, max(until, 1)),
	))
}
