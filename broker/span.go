package broker

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
)

// The steps of a decision that are spans of their own.
const (
	spanDecide = "decide"
	spanSign   = "sign"
	spanRecord = "record"
)

// span traces one step. What it says of it is whether it went well, and nothing of
// what it was about: facts, keys and texts of callers are no span's.
func (b *Broker) span(ctx context.Context, step, kind string) (_ context.Context, end func(error)) {
	if b.cfg.Tracer == nil {
		return ctx, func(error) {}
	}
	ctx, span := b.cfg.Tracer.Start(ctx, step)
	if kind != "" {
		span.SetAttributes(attribute.String("credence.kind", kind))
	}
	return ctx, func(err error) {
		if outcome := outcomeOf(err); err != nil {
			span.SetStatus(codes.Error, outcome)
		}
		span.End()
	}
}
