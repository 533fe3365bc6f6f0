// Package tracing sends OpenTelemetry traces of a broker or an agent to a
// collector, by OTLP over gRPC, where its file says so. Off, it is nothing: no
// handler stands in any call.
//
// A trace context (W3C traceparent) that a caller brings is taken up, but forces
// nothing: of the traces that others began only so many a second are kept, whoever
// they are, and of ours a ratio. Baggage and tracestate are not taken.
//
// It trusts the collector with who asked for what and when: methods, codes and
// times. No span has a token, key, fact's value or text that a caller chose.
package tracing

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
)

// Settings are traces of broker.yaml and agent.yaml.
type Settings struct {
	// host:port of a collector that speaks OTLP by gRPC; empty: no traces. TLS 1.3,
	// but plain on loopback without ca_file.
	OTLP   string  `yaml:"otlp"`
	CAFile string  `yaml:"ca_file"` // PEM, of the collector's certificate; empty: a public one
	Ratio  float64 `yaml:"ratio"`   // how many of the traces that begin here are kept, above 0 to 1; default 0.01
}

// Bounds of traces that others began: at once, and for each second after that.
const (
	remoteBurst = 20
	remoteRate  = 10
)

// closing is how long the last spans have to get to the collector.
const closing = 2 * time.Second

// Complete fills defaults in and checks.
func (s *Settings) Complete() error {
	if s.OTLP == "" {
		if s.CAFile != "" || s.Ratio != 0 {
			return errors.New("otlp: is required: host:port of a collector")
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(s.OTLP); err != nil {
		return fmt.Errorf("otlp: %q: host:port is wanted", s.OTLP)
	}
	if s.Ratio == 0 {
		s.Ratio = 0.01
	}
	if s.Ratio < 0 || s.Ratio > 1 {
		return fmt.Errorf("ratio: %v: above 0 to 1 is wanted", s.Ratio)
	}
	return nil
}

// Tracing is where spans go. The nil Tracing is off.
type Tracing struct {
	provider *sdk.TracerProvider
}

// Open connects to the collector, or returns nil where there is none. A collector
// that is away costs spans and nothing else.
func Open(ctx context.Context, s Settings, service, version string, log *slog.Logger) (*Tracing, error) {
	if s.OTLP == "" {
		return nil, nil
	}
	creds, err := s.credentials()
	if err != nil {
		return nil, err
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(s.OTLP), otlptracegrpc.WithTimeout(5 * time.Second)}
	if creds == nil {
		options = append(options, otlptracegrpc.WithInsecure())
	} else {
		options = append(options, otlptracegrpc.WithTLSCredentials(creds))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("traces.otlp: %w", err)
	}
	return New(sdk.WithBatcher(&quiet{SpanExporter: Mute(exporter), log: log}, sdk.WithMaxQueueSize(2048)), s.Ratio, service, version), nil
}

// New returns a Tracing that hands spans on as spans says.
func New(spans sdk.TracerProviderOption, ratio float64, service, version string) *Tracing {
	sampler := sdk.ParentBased(sdk.TraceIDRatioBased(ratio), sdk.WithRemoteParentSampled(&limited{left: remoteBurst, now: time.Now}))
	who := resource.NewSchemaless(attribute.String("service.name", service), attribute.String("service.version", version))
	return &Tracing{provider: sdk.NewTracerProvider(spans, sdk.WithSampler(sampler), sdk.WithResource(who), sdk.WithRawSpanLimits(sdk.SpanLimits{
		AttributeValueLengthLimit: 256, AttributeCountLimit: 32, EventCountLimit: 16, LinkCountLimit: 4, AttributePerEventCountLimit: 8, AttributePerLinkCountLimit: 8,
	}))}
}

// credentials are nil for plain text, which loopback alone has.
func (s Settings) credentials() (credentials.TransportCredentials, error) {
	host, _, err := net.SplitHostPort(s.OTLP)
	if err != nil {
		return nil, fmt.Errorf("traces.otlp: %w", err)
	}
	addr, err := netip.ParseAddr(host)
	if s.CAFile == "" && (host == "localhost" || err == nil && addr.IsLoopback()) {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if s.CAFile != "" {
		text, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("traces.ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("traces.ca_file: %s holds no certificate", s.CAFile)
		}
	}
	return credentials.NewTLS(config), nil
}

// Provider makes tracers.
func (t *Tracing) Provider() trace.TracerProvider {
	if t == nil {
		return noop.NewTracerProvider()
	}
	return t.provider
}

// Tracer makes spans under a name; it is nil where nothing is traced.
func (t *Tracing) Tracer(name string) trace.Tracer {
	if t == nil {
		return nil
	}
	return t.Provider().Tracer(name)
}

// Server has the calls of a gRPC server traced; nothing, where it is off.
func (t *Tracing) Server() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(t.options()...))}
}

// Client has the calls of a gRPC client traced; nothing, where it is off.
func (t *Tracing) Client() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(t.options()...))}
}

func (t *Tracing) options() []otelgrpc.Option {
	return []otelgrpc.Option{otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(parent{}), otelgrpc.WithFilter(known)}
}

// known are our own services and the protocols that we serve: a stranger's name for a
// method is no span's.
func known(i *stats.RPCTagInfo) bool {
	switch service(i.FullMethodName) {
	case "credence.broker.v1.Node", "credence.exchange.v1.Exchange", "credence.broker.v1.Admin", "credence.broker.v1.Authorities",
		"credence.agent.v1.Credentials", "credence.agent.v1.Checks", "credence.agent.v1.SVIDs", "SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService":
		return true
	}
	return false
}

func service(method string) string {
	for i := len(method) - 1; i > 0; i-- {
		if method[i] == '/' {
			return method[1:i]
		}
	}
	return ""
}

// Close sends what is left, for a moment.
func (t *Tracing) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // spans are lost where the collector is away
}

// limited samples so many a second.
type limited struct {
	now func() time.Time

	mu   sync.Mutex // guards what follows
	left float64
	at   time.Time
}

// ShouldSample implements sdk.Sampler.
func (l *limited) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if passed := now.Sub(l.at).Seconds(); passed > 0 && !l.at.IsZero() {
		l.left = min(remoteBurst, l.left+passed*remoteRate)
	}
	l.at = now
	result := sdk.SamplingResult{Decision: sdk.Drop, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
	if l.left >= 1 {
		l.left--
		result.Decision = sdk.RecordAndSample
	}
	return result
}

// Description implements sdk.Sampler.
func (*limited) Description() string { return "Limited" }

// quiet tells the log once that spans are lost, and when they are not any more.
type quiet struct {
	sdk.SpanExporter
	log  *slog.Logger
	away bool // one batch is sent at a time
}

// ExportSpans implements sdk.SpanExporter.
func (q *quiet) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := q.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !q.away:
		q.log.WarnContext(ctx, "traces are lost", "error", err)
	case err == nil && q.away:
		q.log.InfoContext(ctx, "traces are sent again")
	}
	q.away = err != nil
	return nil // else the SDK writes it to standard error
}

// Mute hands spans on without what an error said: that may be a caller's text.
func Mute(e sdk.SpanExporter) sdk.SpanExporter { return muted{e} }

type muted struct{ sdk.SpanExporter }

// ExportSpans implements sdk.SpanExporter.
func (m muted) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	quiet := make([]sdk.ReadOnlySpan, len(spans))
	for i, s := range spans {
		quiet[i] = mute{s}
	}
	return m.SpanExporter.ExportSpans(ctx, quiet)
}

type mute struct{ sdk.ReadOnlySpan }

// Status implements sdk.ReadOnlySpan.
func (m mute) Status() sdk.Status { return sdk.Status{Code: m.ReadOnlySpan.Status().Code} }

// Events implements sdk.ReadOnlySpan.
func (m mute) Events() []sdk.Event { return nil }
