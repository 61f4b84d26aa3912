package ledger

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// The operations that are measured: what a call waits for.
const (
	addOperation     = "add"
	bulkAddOperation = "bulk_add"
	changeOperation  = "change"
	claimOperation   = "claim"
)

// metrics are the ledger's instruments. Their attributes are the operations above and whether it went well.
type metrics struct {
	took metric.Float64Histogram
	size metric.Int64Histogram
}

func newMetrics(meter metric.Meter) *metrics {
	if meter == nil {
		meter = noop.Meter{}
	}
	return &metrics{
		took: must(meter.Float64Histogram("jelou.ledger.transaction.duration", metric.WithUnit("s"),
			metric.WithDescription("How long the ledger's transactions took, by operation and result."),
			metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10))),
		size: must(meter.Int64Histogram("jelou.ledger.group.size",
			metric.WithDescription("How many sends or changes were committed together, by operation."),
			metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))),
	}
}

// must is for what fails only by a wrong constant.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// noteTransaction measures one transaction.
func (m *metrics) noteTransaction(ctx context.Context, operation string, began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.took.Record(ctx, time.Since(began).Seconds(), metric.WithAttributes(attribute.String("operation", operation), attribute.String("result", result)))
}

// measured measures a group's commits.
func measured[T any](m *metrics, operation string, commit func(context.Context, []T) error) func(context.Context, []T) error {
	return func(ctx context.Context, work []T) error {
		began := time.Now()
		err := commit(ctx, work)
		m.noteTransaction(ctx, operation, began, err)
		m.size.Record(ctx, int64(len(work)), metric.WithAttributes(attribute.String("operation", operation)))
		return err
	}
}
