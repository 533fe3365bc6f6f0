package tracing

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// traceparent is the one header that is read.
const traceparent = "traceparent"

// parent takes up which trace a call belongs to, and no tracestate: that is text of
// the caller's choice, which spans would carry to the collector.
type parent struct{ propagation.TraceContext }

// Extract implements propagation.TextMapPropagator.
func (p parent) Extract(ctx context.Context, c propagation.TextMapCarrier) context.Context {
	return p.TraceContext.Extract(ctx, only{c})
}

// Fields implements propagation.TextMapPropagator.
func (parent) Fields() []string { return []string{traceparent} }

type only struct{ propagation.TextMapCarrier }

func (o only) Get(name string) string {
	if name != traceparent {
		return ""
	}
	return o.TextMapCarrier.Get(name)
}

// takeUp is r's context in the trace that r says it belongs to. Two that it says are
// none (W3C Trace Context §3.2).
func takeUp(r *http.Request) context.Context {
	if len(r.Header.Values(traceparent)) != 1 {
		return r.Context()
	}
	return parent{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
}

// Request traces requests over HTTP that a server has let in, as spans of one name:
// nothing of a request is in them but its trace and, if it has one, the target that
// it is about, which an operator named. It is nil where nothing is traced.
func (t *Tracing) Request(name string) func(r *http.Request, target string) (_ context.Context, end func(status int)) {
	if t == nil {
		return nil
	}
	tracer := t.Tracer("credence/http")
	return func(r *http.Request, target string) (context.Context, func(int)) {
		ctx, span := tracer.Start(takeUp(r), name, trace.WithSpanKind(trace.SpanKindServer))
		if target != "" {
			span.SetAttributes(attribute.String("credence.target", target))
		}
		return ctx, func(status int) {
			span.SetAttributes(attribute.Int("http.response.status_code", status))
			if status >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, "")
			}
			span.End()
		}
	}
}

// Carry is Request of a program that sends no spans itself, and whose calls are made
// under Onward.
func Carry(r *http.Request, _ string) (_ context.Context, end func(status int)) {
	return takeUp(r), func(int) {}
}

// Onward has a gRPC call carry the trace that ctx is of, if any.
func Onward(ctx context.Context) context.Context {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	header := propagation.MapCarrier{}
	parent{}.Inject(ctx, header)
	return metadata.AppendToOutgoingContext(ctx, traceparent, header.Get(traceparent))
}
