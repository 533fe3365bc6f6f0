package broker

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"

	"github.com/credence-id/credence/broker/audit"
)

// Joins, logins, exchanges, and the steps of each, are spans of their own.
const (
	spanJoin     = "join"
	spanLogin    = "login"
	spanExchange = "exchange"
	spanEvidence = "evidence" // what a machine showed is judged
	spanDecide   = "decide"
	spanSign     = "sign"
	spanRecord   = "record"
	spanTrade    = "trade" // at a target's provider
)

// outcome is what a span tells of how something ended that may be denied: the code
// in the record.
func outcome(d *Denial, err error) attribute.KeyValue {
	text := outcomeOf(err)
	if d != nil && err == nil {
		text = d.Code
	}
	return attribute.String("credence.outcome", text)
}

// recorded appends to the record, as a step.
func (b *Broker) recorded(ctx context.Context, events ...audit.Event) error {
	ctx, end := b.span(ctx, spanRecord, "")
	_, err := b.cfg.Audit.Append(ctx, events...)
	end(err)
	return err
}

// span traces one step. What it says of it is whether it went well, and nothing of
// what it was about: facts, keys and texts of callers are no span's.
func (b *Broker) span(ctx context.Context, step, kind string) (_ context.Context, end func(error, ...attribute.KeyValue)) {
	if b.cfg.Tracer == nil {
		return ctx, func(error, ...attribute.KeyValue) {}
	}
	ctx, span := b.cfg.Tracer.Start(ctx, step)
	if kind != "" {
		span.SetAttributes(attribute.String("credence.kind", kind))
	}
	return ctx, func(err error, more ...attribute.KeyValue) {
		span.SetAttributes(more...)
		if outcome := outcomeOf(err); err != nil {
			span.SetStatus(codes.Error, outcome)
		}
		span.End()
	}
}
