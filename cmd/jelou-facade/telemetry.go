package main

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
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
