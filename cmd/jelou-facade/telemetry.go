package main

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/reload"
	"github.com/jelou-facade/jelou-facade/service/telemetry"
	"github.com/jelou-facade/jelou-facade/service/version"
)

// telemetryWait is how long the last traces may take to leave at the stop.
const telemetryWait = 3 * time.Second

// openTelemetry begins to measure and, where a collector is named, to trace. What it could not send at the end is only logged.
func openTelemetry(ctx context.Context, c *configv1.Telemetry, instance string, log *slog.Logger) (*telemetry.Telemetry, func(), error) {
	// What goes wrong in the background is told here only: OpenTelemetry has one place for it in a process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry", slog.Any("error", err)) }))
	t, err := telemetry.Open(ctx, telemetry.Config{
		Version: version.Read().Version, Instance: instance, Endpoint: c.GetOtlpEndpoint(), SampleRatio: c.GetSampleRatio(),
	})
	if err != nil {
		return nil, nil, err
	}
	return t, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), telemetryWait)
		defer cancel()
		if err := t.Close(ctx); err != nil {
			log.Warn("the last traces were not sent", slog.Any("error", err))
		}
	}, nil
}

// observeConfig tells which version of each part of the configuration is in force, and which one was refused.
func observeConfig(meter metric.Meter, parts func() []reload.Status) error {
	info, err := meter.Int64ObservableGauge("jelou.config.info", metric.WithDescription("1 for the version of each part of the configuration that is in force, and for one that was refused; secrets have no version."))
	if err != nil {
		return err
	}
	refused, err := meter.Int64ObservableGauge("jelou.config.refused", metric.WithDescription("1 while the files of a part of the configuration are refused and older ones are in force (/configz says why)."))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, p := range parts() {
			part, isRefused := attribute.String("part", p.Part), int64(0)
			o.ObserveInt64(info, 1, metric.WithAttributes(part, attribute.String("version", p.Version), attribute.String("state", "in_force")))
			if p.Refused != nil {
				isRefused = 1
				o.ObserveInt64(info, 1, metric.WithAttributes(part, attribute.String("version", p.Refused.Version), attribute.String("state", "refused")))
			}
			o.ObserveInt64(refused, isRefused, metric.WithAttributes(part))
		}
		return nil
	}, info, refused)
	return err
}
