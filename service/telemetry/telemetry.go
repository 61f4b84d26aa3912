// Package telemetry is where the process's metrics and traces go: metrics to whoever reads them from Handler, traces to
// an OTLP collector where one is configured, and nowhere otherwise. It guarantees that nothing is sent anywhere
// that nobody has asked for, and that a collector that is slow or away costs spans and never a call.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// Config is what a Telemetry says of the process, and where it sends traces.
type Config struct {
	Version  string // of this program
	Instance string // tells this process from others; empty: none is said

	// Endpoint is the URL of an OTLP collector, which begins with http:// or https://. Empty: what the standard variables
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT say, and no traces where they say nothing. The
	// other variables of the OTLP exporter and the SDK count too.
	Endpoint string
	// SampleRatio is the part of the calls that is traced whose caller has not decided it, 0 to 1. Zero: what
	// OTEL_TRACES_SAMPLER says, all where it says nothing.
	SampleRatio float64
	// Exporter gets the spans in place of a collector. Nil: none.
	Exporter sdktrace.SpanExporter
}

// Telemetry is where metrics and traces go. The zero value takes them and keeps nothing.
type Telemetry struct {
	registry *prometheus.Registry
	meters   *sdkmetric.MeterProvider
	tracers  *sdktrace.TracerProvider // nil: no traces
}

// name is what instruments and spans are attributed to.
const name = "github.com/jelou-facade/jelou-facade"

// Open begins. Close it.
func Open(ctx context.Context, c Config) (*Telemetry, error) {
	about, err := describe(ctx, c)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{registry: prometheus.NewRegistry()}
	// The runtime's own: memory, garbage collection, goroutines, open files.
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reader, err := exporter.New(exporter.WithRegisterer(t.registry), exporter.WithoutScopeInfo(), exporter.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes))
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	t.meters = sdkmetric.NewMeterProvider(sdkmetric.WithResource(about), sdkmetric.WithReader(reader))
	spans := c.Exporter
	if spans == nil {
		if spans, err = collector(ctx, c.Endpoint); err != nil {
			return nil, errors.Join(fmt.Errorf("traces: %w", err), t.meters.Shutdown(ctx))
		}
	}
	if spans != nil {
		options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about), sdktrace.WithBatcher(spans)}
		if sampler := samplerOf(c.SampleRatio); sampler != nil {
			options = append(options, sdktrace.WithSampler(sampler))
		}
		t.tracers = sdktrace.NewTracerProvider(options...)
	}
	return t, nil
}

// describe is what every metric and span says about the process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES may say more.
func describe(ctx context.Context, c Config) (*resource.Resource, error) {
	own := resource.NewSchemaless(semconv.ServiceName("jelou-facade"), semconv.ServiceVersion(c.Version))
	if c.Instance != "" {
		own = resource.NewSchemaless(append(own.Attributes(), semconv.ServiceInstanceID(c.Instance))...)
	}
	return resource.New(ctx, resource.WithAttributes(own.Attributes()...), resource.WithTelemetrySDK(), resource.WithFromEnv())
}

// protocols are the ways to a collector, as OTEL_EXPORTER_OTLP_PROTOCOL names them.
var protocols = map[string]func(ctx context.Context, endpoint string) (sdktrace.SpanExporter, error){
	"grpc": func(ctx context.Context, endpoint string) (sdktrace.SpanExporter, error) {
		var options []otlptracegrpc.Option
		if endpoint != "" {
			options = append(options, otlptracegrpc.WithEndpointURL(endpoint))
		}
		return otlptrace.New(ctx, otlptracegrpc.NewClient(options...))
	},
	"http/protobuf": func(ctx context.Context, endpoint string) (sdktrace.SpanExporter, error) {
		var options []otlptracehttp.Option
		if endpoint != "" {
			options = append(options, otlptracehttp.WithEndpointURL(endpoint))
		}
		return otlptrace.New(ctx, otlptracehttp.NewClient(options...))
	},
}

// collector leads to the collector that the configuration or the environment names; nil where neither does.
func collector(ctx context.Context, endpoint string) (sdktrace.SpanExporter, error) {
	disabled := os.Getenv("OTEL_SDK_DISABLED") == "true" || os.Getenv("OTEL_TRACES_EXPORTER") == "none"
	if disabled || endpoint == "" && firstOf("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return nil, nil
	}
	protocol := firstOf("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
	if protocol == "" {
		protocol = "grpc"
	}
	open, ok := protocols[protocol]
	if !ok {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q is neither grpc nor http/protobuf", protocol)
	}
	return open(ctx, endpoint)
}

// firstOf is the first of the environment's variables that is set.
func firstOf(names ...string) string {
	for _, name := range names {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	return ""
}

// samplerOf follows the caller's decision, and where there is none takes a part; nil leaves it to the environment.
func samplerOf(ratio float64) sdktrace.Sampler {
	if ratio == 0 && os.Getenv("OTEL_TRACES_SAMPLER") != "" {
		return nil
	}
	if ratio == 0 {
		ratio = 1
	}
	return sdktrace.ParentBased(linked{sdktrace.TraceIDRatioBased(ratio)})
}

// linked traces what is linked to something that is traced: the attempt of a send whose call is, in a trace of its own.
type linked struct {
	sdktrace.Sampler
}

func (s linked) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	for _, link := range p.Links {
		if link.SpanContext.IsSampled() {
			return sdktrace.AlwaysSample().ShouldSample(p)
		}
	}
	return s.Sampler.ShouldSample(p)
}

// Meter makes the instruments.
func (t *Telemetry) Meter() metric.Meter {
	if t.meters == nil {
		return noopmetric.Meter{}
	}
	return t.meters.Meter(name)
}

// Tracer makes the spans.
func (t *Telemetry) Tracer() trace.Tracer {
	if t.tracers == nil {
		return nooptrace.Tracer{}
	}
	return t.tracers.Tracer(name)
}

// Handler answers the metrics in Prometheus' formats.
func (t *Telemetry) Handler() http.Handler {
	if t.registry == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Close sends what has not been sent, for as long as ctx lasts.
func (t *Telemetry) Close(ctx context.Context) error {
	var errs []error
	if t.tracers != nil {
		errs = append(errs, t.tracers.Shutdown(ctx))
	}
	if t.meters != nil {
		errs = append(errs, t.meters.Shutdown(ctx))
	}
	return errors.Join(errs...)
}
