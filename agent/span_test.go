package agent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/exchangers"
)

// TestExchangesAreTraced holds that a trace has what the cloud calls its answer,
// granted or refused, and nothing of what was given.
func TestExchangesAreTraced(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	sky := &cloud{}
	b, a := started(t, exchanging(sky), func(c *agent.Config) {
		c.Tracer = sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)).Tracer("test")
	})
	b.Grant(targeting("/a", 1, "aws", "gcp"))
	given := credential(t, a, "aws")
	sky.mu.Lock()
	sky.refuse = &exchangers.Error{Provider: "gcp", Class: exchangers.Config, RequestID: "no-1", Message: "marked"}
	sky.mu.Unlock()
	if _, err := a.Credential(t.Context(), process(t), "gcp"); err == nil {
		t.Error("it is not refused")
	}
	var got []string
	for _, s := range spans.Ended() {
		if s.Name() != "exchange" {
			continue
		}
		for _, kv := range s.Attributes() {
			got = append(got, fmt.Sprintf("%s %s=%s %s", s.Name(), kv.Key, kv.Value.AsString(), s.Status().Code))
		}
		if text := fmt.Sprint(s.Attributes(), s.Events(), s.Status()); strings.Contains(text, given) || strings.Contains(text, "marked") {
			t.Errorf("a span tells %s", text)
		}
	}
	want := []string{
		"exchange credence.target=aws Unset", "exchange credence.flow=aws_roles_anywhere Unset", "exchange credence.cloud_request_id=q-1 Unset",
		"exchange credence.target=gcp Error", "exchange credence.flow=aws_roles_anywhere Error", "exchange credence.cloud_request_id=no-1 Error",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// traced has an agent's calls of the broker, and its own part, be spans.
func traced(spans *tracetest.SpanRecorder) func(*agent.Config) {
	return func(c *agent.Config) {
		provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
		c.Tracer = provider.Tracer("test")
		c.Dial = []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{})))}
	}
}

// heardTraces yields the trace of each of a broker's calls of one method, which has
// been made.
func heardTraces(b *agenttest.Broker, method string) func(*testing.T) trace.TraceID {
	heard := make(chan trace.TraceID, 100)
	b.Before(method, func(ctx context.Context) error {
		got, _ := metadata.FromIncomingContext(ctx)
		header := propagation.HeaderCarrier{}
		for _, value := range got.Get("traceparent") {
			header.Set("traceparent", value)
		}
		heard <- trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), header)).TraceID()
		return nil
	})
	return func(t *testing.T) (id trace.TraceID) {
		t.Helper()
		select {
		case id = <-heard:
		default:
			t.Fatalf("the broker heard no %s", method)
		}
		return id
	}
}

// TestBrokersPartIsOfTheCallersTrace holds that what the broker makes for an exchange
// is of the trace of who asked for it, though the exchange goes on without them; and
// of the next who asks, where it is made anew.
func TestBrokersPartIsOfTheCallersTrace(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	b, a := started(t, exchanging(&cloud{jwt: true}), traced(spans))
	b.Grant(targeting("/a", 1, "aws"))
	heard := heardTraces(b, "IssueJWT")
	for n, ask := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := a.Credential(ctx, process(t), "aws"); return err },
		func(ctx context.Context) error { _, _, err := a.Try(ctx, process(t), "aws"); return err },
	} {
		theirs := trace.TraceID{byte(n + 1)}
		ctx := trace.ContextWithRemoteSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: theirs, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled}))
		if err := ask(ctx); err != nil {
			t.Fatal(err)
		}
		if got := heard(t); got != theirs {
			t.Errorf("%d: the broker heard trace %s, not the caller's", n, got)
		}
	}
}

// TestJoinsAreTraced holds that a try to join, and the broker's part of it, are one
// trace.
func TestJoinsAreTraced(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	heard := heardTraces(b, "Join")
	spans := tracetest.NewSpanRecorder()
	cfg := config(t, b)
	traced(spans)(&cfg)
	run(t, cfg).ready()
	for _, s := range spans.Ended() {
		if s.Name() != "join" {
			continue
		}
		if got := heard(t); got != s.SpanContext().TraceID() || s.Status().Code != codes.Unset || fmt.Sprint(s.Attributes()) != "[{credence.join_method token}]" {
			t.Errorf("the broker heard trace %s of %s: %v %v", got, s.SpanContext().TraceID(), s.Status(), s.Attributes())
		}
		return
	}
	t.Error("it is not traced")
}

// TestX509IssuanceIsOfTheFirstCallersTrace holds that what the broker is asked for many
// is of the trace of the first who waits for it; of others' it has links.
func TestX509IssuanceIsOfTheFirstCallersTrace(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	attestor := &facts{all: uid("1000")}
	b, a := started(t, traced(spans), func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	b.Grant(grant("/a"))
	heard := heardTraces(b, "IssueX509")
	theirs := trace.TraceID{7}
	next := func(sampled trace.TraceFlags) {
		t.Helper()
		i := a.Identities(process(t))
		defer i.Close()
		ctx := trace.ContextWithRemoteSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: theirs, SpanID: trace.SpanID{1}, TraceFlags: sampled}))
		if _, err := i.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	next(trace.FlagsSampled)
	if got := heard(t); got != theirs {
		t.Errorf("the broker heard trace %s, not the caller's", got)
	}
	var issues int
	for _, s := range spans.Ended() {
		if s.Name() == "issue" && s.SpanContext().TraceID() == theirs && s.Status().Code == codes.Unset {
			issues++
		}
	}
	if issues != 1 {
		t.Errorf("%d spans, want 1", issues)
	}
	attestor.set(uid("1001"))
	next(0)
	if got := heard(t); got == theirs {
		t.Error("a trace that nobody keeps is gone on with")
	}
}
