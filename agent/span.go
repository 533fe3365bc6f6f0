package agent

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/credence-id/credence/exchangers"
)

// traced is what an exchange keeps of the context of who asked first: the broker's
// part of it belongs to the same trace.
func traced(ctx context.Context) context.Context {
	return trace.ContextWithSpanContext(context.Background(), trace.SpanContextFromContext(ctx))
}

// joining traces a try to join, of which the broker's part is the rest. Nothing that
// was shown is in it.
func (a *Agent) joining(ctx context.Context) (_ context.Context, end func(error)) {
	if a.cfg.Tracer == nil {
		return ctx, func(error) {}
	}
	ctx, span := a.cfg.Tracer.Start(ctx, "join")
	span.SetAttributes(attribute.String("credence.join_method", a.cfg.Join.Method))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, outcomeOf(err))
		}
		span.End()
	}
}

// asking traces a call for X509-SVIDs as far as it is waited for: one call is for many,
// and belongs to the trace of the first of them.
func (a *Agent) asking(ctx context.Context, questions []question) (_ context.Context, end func(error)) {
	var callers []trace.Link
	for _, q := range questions {
		if q.caller.IsValid() {
			callers = append(callers, trace.Link{SpanContext: q.caller})
		}
	}
	if a.cfg.Tracer == nil || len(callers) == 0 {
		return ctx, func(error) {}
	}
	ctx, span := a.cfg.Tracer.Start(trace.ContextWithSpanContext(ctx, callers[0].SpanContext), "issue", trace.WithLinks(callers[1:]...))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, outcomeOf(err))
		}
		span.End()
	}
}

// span traces an exchange, as far as one is waited for: with what the cloud calls
// its answer, which is how both sides find the same. Nothing that was shown or
// given is in it.
func (a *Agent) span(ctx context.Context, t Target) (_ context.Context, end func(exchangers.Credential, error)) {
	if a.cfg.Tracer == nil {
		return ctx, func(exchangers.Credential, error) {}
	}
	ctx, span := a.cfg.Tracer.Start(ctx, "exchange")
	span.SetAttributes(attribute.String("credence.target", t.Name), attribute.String("credence.flow", t.Flow))
	return ctx, func(c exchangers.Credential, err error) {
		request := c.RequestID
		if err != nil {
			span.SetStatus(codes.Error, outcomeOf(err))
			var refused *exchangers.Error
			if errors.As(err, &refused) {
				request = exchangers.Clean(refused.RequestID)
			}
		}
		if request != "" {
			span.SetAttributes(attribute.String("credence.cloud_request_id", request))
		}
		span.End()
	}
}
