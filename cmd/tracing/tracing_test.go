package tracing_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/cmd/tracing"
)

// sink is a collector.
type sink struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	got []*collector.ExportTraceServiceRequest
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, r)
	return &collector.ExportTraceServiceResponse{}, nil
}

func serve(t *testing.T, register func(*grpc.Server), options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(options...)
	register(g)
	var running sync.WaitGroup
	running.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); running.Wait() })
	return l.Addr().String()
}

// Spans reach a collector, with who sent them.
func TestSpansReachTheCollector(t *testing.T) {
	t.Parallel()
	s := &sink{}
	at := serve(t, func(g *grpc.Server) { collector.RegisterTraceServiceServer(g, s) })
	tr, err := tracing.Open(t.Context(), tracing.Settings{OTLP: at, Ratio: 1}, "credence-test", "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := tr.Provider().Tracer("t").Start(t.Context(), "decide")
	span.End()
	tr.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := fmt.Sprint(s.got); !strings.Contains(text, "decide") || !strings.Contains(text, "credence-test") {
		t.Error(text)
	}
}

// A collector that is away costs spans, and nothing else.
func TestNoCollector(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	tr, err := tracing.Open(t.Context(), tracing.Settings{OTLP: at, Ratio: 1}, "credence-test", "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := tr.Provider().Tracer("t").Start(t.Context(), "decide")
	span.End()
	tr.Close()
}

// Off, nothing stands in any call.
func TestOff(t *testing.T) {
	t.Parallel()
	tr, err := tracing.Open(t.Context(), tracing.Settings{}, "s", "v", nil)
	if err != nil || tr != nil || len(tr.Server())+len(tr.Client()) > 0 {
		t.Errorf("%v %v", tr, err)
	}
	tr.Close()
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what string
		s    tracing.Settings
		good bool
	}{
		{"none", tracing.Settings{}, true}, {"a collector", tracing.Settings{OTLP: "otel:4317"}, true}, {"all", tracing.Settings{OTLP: "otel:4317", Ratio: 1}, true},
		{"no port", tracing.Settings{OTLP: "otel"}, false}, {"a ratio alone", tracing.Settings{Ratio: 1}, false},
		{"more than all", tracing.Settings{OTLP: "otel:4317", Ratio: 1.1}, false}, {"less than none", tracing.Settings{OTLP: "otel:4317", Ratio: -1}, false},
	} {
		if err := c.s.Complete(); (err == nil) != c.good {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// workload is a service by a name of ours that answers with a secret of a caller.
func workload(g *grpc.Server) {
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "SpiffeWorkloadAPI", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Ask", Handler: func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
			return nil, status.Error(codes.Unknown, "canary-in-an-error")
		}}},
	}, nil)
}

// A trace that a stranger began is taken up, but so many a second and no more, and
// nothing that the stranger said stands in it.
func TestStrangersForceNothing(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tr := tracing.New(sdk.WithSyncer(tracing.Mute(spans)), 1e-9, "credence-test", "v1")
	at := serve(t, workload, tr.Server()...)
	conn, err := grpc.NewClient(at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(n int, method string) {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", fmt.Sprintf("00-%032x-%016x-01", n, n), "tracestate", "k=canary-in-tracestate", "baggage", "k=canary-in-baggage", "authorization", "Bearer canary-in-a-header")
		_ = conn.Invoke(ctx, method, &health.HealthCheckRequest{Service: "canary-in-a-request"}, &health.HealthCheckResponse{})
	}
	ask(1, "/SpiffeWorkloadAPI/Ask")
	ask(2, "/canary.in.a.Service/Method")
	for n := range 1000 {
		ask(n+3, "/SpiffeWorkloadAPI/Ask")
	}
	all := spans.GetSpans() // before Close, which forgets them
	tr.Close()
	if len(all) == 0 || len(all) > 500 {
		t.Fatalf("%d of 1002 were traced", len(all))
	}
	if got := all[0].SpanContext.TraceID().String(); got != fmt.Sprintf("%032x", 1) {
		t.Errorf("the trace is %s, not the caller's", got)
	}
	for _, span := range all {
		if text := fmt.Sprintf("%+v", span); strings.Contains(text, "canary") {
			t.Fatal(text)
		}
	}
}
