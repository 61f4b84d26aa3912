package service

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/grpc/codes"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
	"github.com/jelou-facade/jelou-facade/service/version"
)

// A transport is how a call came.
type transport string

const (
	overGRPC  transport = "grpc"
	overREST  transport = "rest"
	overAdmin transport = "admin" // only what panics there
)

// otherMethod stands in metrics and in the log for what reaches no method.
const otherMethod = "_OTHER"

// callMetrics are rate, errors and duration of the calls. Their attributes are closed sets: methods, codes and reasons of the
// protos, and callers of the configuration.
type callMetrics struct {
	calls    metric.Float64Histogram
	refusals metric.Int64Counter
	requests metric.Float64Histogram
}

var callSeconds = metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)

func newCallMetrics(meter metric.Meter) *callMetrics {
	return &callMetrics{
		calls: must(meter.Float64Histogram("rpc.server.call.duration", metric.WithUnit("s"), callSeconds,
			metric.WithDescription("How long calls took, over gRPC and REST, by method and code. A stream is one call."))),
		refusals: must(meter.Int64Counter("jelou.call.errors",
			metric.WithDescription("Calls that ended with an error, by caller and reason (docs/errors.md)."))),
		requests: must(meter.Float64Histogram("http.server.request.duration", metric.WithUnit("s"), callSeconds,
			metric.WithDescription("How long REST requests took, those among them that reach no method."))),
	}
}

// must is for what fails only by a wrong constant.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// enlist begins what callers get of this program's own faults at 0: the rule sees an increase only of what it has seen before.
func (m *callMetrics) enlist(set *caller.Set) {
	for _, name := range append(set.Names(), nobody) {
		m.refusals.Add(context.Background(), 0, refusalOf(name, facadev1.ErrorReason_INTERNAL.String()))
	}
}

func refusalOf(name, reason string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("caller", name), attribute.String("reason", reason))
}

// note measures a call that is over.
func (m *callMetrics) note(ctx context.Context, c *call, code codes.Code, reason string) {
	m.calls.Record(ctx, time.Since(c.start).Seconds(), metric.WithAttributes(
		semconv.RPCSystemNameGRPC, semconv.RPCMethod(c.rpc()), semconv.RPCResponseStatusCode(codeNames[code]), attribute.String("transport", string(c.transport))))
	if reason != "" {
		m.refusals.Add(ctx, 1, refusalOf(callerName(ctx), reason))
	}
}

// knownMethod is a request's method, for those that the routes have, and what stands for all others.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodHead, http.MethodOptions:
		return method
	}
	return otherMethod
}

// request measures a REST request that was answered.
func (m *callMetrics) request(r *http.Request, took time.Duration, code int) {
	m.requests.Record(r.Context(), took.Seconds(), metric.WithAttributes(
		semconv.HTTPRequestMethodKey.String(knownMethod(r.Method)), attribute.String("http.response.status_code", strconv.Itoa(code))))
}

// observeServer tells about the process: what it is, whether it is ready, how the ledger stands, and who was not let in.
func observeServer(t *telemetry.Telemetry, s *core, r *readiness, d *doors) {
	meter, build := t.Meter(), version.Read()
	about := must(meter.Int64ObservableGauge("jelou.build.info", metric.WithDescription("1, with the version and the commit of this program.")))
	ready := must(meter.Int64ObservableGauge("jelou.ready", metric.WithDescription("1 while this process takes calls (/readyz says why not).")))
	up := must(meter.Int64ObservableGauge("jelou.ledger.up", metric.WithDescription("1 while the ledger's database answers.")))
	writable := must(meter.Int64ObservableGauge("jelou.ledger.writable", metric.WithDescription("0 while the ledger's database answers but is full or read-only, so that no sends are taken.")))
	missed := must(meter.Int64ObservableCounter("jelou.ledger.key_missing", metric.WithDescription("Times that something stored could not be opened, because this process has not got its key.")))
	held := must(meter.Int64ObservableGauge("jelou.ledger.held", metric.WithDescription("1 while the ledger is held until a person releases it, by cause: moved or rewound.")))
	durable := must(meter.Int64ObservableGauge("jelou.ledger.durable_failover", metric.WithDescription("1 where a failover of the database loses nothing that was confirmed.")))
	refused := must(meter.Int64ObservableCounter("jelou.credentials.refused", metric.WithDescription("Credentials of callers that were refused, by reason.")))
	built := metric.WithAttributes(attribute.String("version", build.Version), attribute.String("commit", build.Commit), attribute.String("go", build.Go))
	moved, rewound := metric.WithAttributes(attribute.String("cause", "moved")), metric.WithAttributes(attribute.String("cause", "rewound"))
	must(meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		c := r.current()
		o.ObserveInt64(about, 1, built)
		o.ObserveInt64(ready, oneIf(c.ready()))
		o.ObserveInt64(up, oneIf(c.ledgerUp))
		o.ObserveInt64(writable, oneIf(c.unwritable == nil))
		o.ObserveInt64(missed, s.unopened.count.Load())
		o.ObserveInt64(held, oneIf(c.halt.Held && !c.halt.Rewound), moved)
		o.ObserveInt64(held, oneIf(c.halt.Held && c.halt.Rewound), rewound)
		o.ObserveInt64(durable, oneIf(c.durability.Failover))
		for reason, n := range d.refusals() {
			o.ObserveInt64(refused, n, metric.WithAttributes(attribute.String("reason", string(reason))))
		}
		return nil
	}, about, ready, up, writable, missed, held, durable, refused))
}

func oneIf(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
