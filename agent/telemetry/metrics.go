package telemetry

import (
	"context"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
)

const namespace = "credence_agent"

// Bounds.
const (
	maxNames   = 512 // different values of a label that operators name; more are "other"
	maxScrapes = 4   // at once
)

// MetricsConfig is the wiring of Metrics.
type MetricsConfig struct {
	Version   string
	SPIFFEIDs bool // name SPIFFE IDs in labels: one series for each that is held
}

// Metrics counts what an agent does, in a registry of its own. Its methods may
// be called concurrently.
type Metrics struct {
	cfg      MetricsConfig
	registry *prometheus.Registry

	node, svids, refusals, watch, asked                *prometheus.CounterVec
	attestations, exchanges, delivered, calls, outputs *prometheus.CounterVec
	attestTime, callTime, askTime                      *prometheus.HistogramVec
	streams                                            *prometheus.GaugeVec
	targets                                            names
}

// NewMetrics returns Metrics that have counted nothing.
func NewMetrics(cfg MetricsConfig) *Metrics {
	m := &Metrics{cfg: cfg, registry: prometheus.NewRegistry()}
	m.node = m.counter("node_renewals_total", "Tries to join or to renew the node's SVID.", "outcome")
	m.svids = m.counter("svid_renewals_total", "Answers of the broker about the X509-SVIDs of one workload.", "outcome")
	m.refusals = m.counter("refusals_total", "Callers that this agent refused by itself.", "code")
	m.watch = m.counter("watch_streams_total", "Watch streams to a broker: ok began, failed ended or could not begin.", "outcome")
	m.attestations = m.counter("attestations_total", "Attestations of processes.", "attestor", "outcome")
	m.exchanges = m.counter("exchanges_total", "Exchanges with providers: ok, or the class of the failure.", "target", "flow", "outcome")
	m.delivered = m.counter("credentials_delivered_total", "Credentials that callers asked for; those beyond exchanges were held.", "target", "flow", "outcome")
	m.calls = m.counter("calls_total", "gRPC calls on the agent's sockets that ended.", "method", "code")
	m.outputs = m.counter("output_acts_total", "What was done for outputs: write, erase, hook.", "output", "act", "outcome")
	m.asked = m.counter("broker_calls_total", "gRPC calls to a broker that are no streams.", "method", "code")
	m.askTime = m.histogram("broker_call_duration_seconds", "How long a broker took to answer, or was waited for.", "method")
	m.attestTime = m.histogram("attestation_duration_seconds", "How long an attestor took.", "attestor")
	m.callTime = m.histogram("call_duration_seconds", "How long a gRPC call took that is no stream.", "method")
	m.streams = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "open_streams", Help: "gRPC streams that are open."}, []string{"method"})
	built := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": cfg.Version, "goversion": runtime.Version()},
	})
	built.Set(1)
	m.registry.MustRegister(m.streams, built, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: name, Help: help, Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, labels)
	m.registry.MustRegister(h)
	return h
}

// Of has the state of an agent told besides, as it is at each scrape. It is
// called once.
func (m *Metrics) Of(a Agent) { m.registry.MustRegister(snapshot{a, m.cfg.SPIFFEIDs, &m.targets}) }

// Gatherer yields all metrics.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Observe counts what happened; it is agent.Config's Observe.
func (m *Metrics) Observe(e agent.Event) {
	switch e.What {
	case agent.EventNode:
		m.node.WithLabelValues(e.Outcome).Inc()
	case agent.EventSVIDs:
		m.svids.WithLabelValues(e.Outcome).Inc()
	case agent.EventRefused:
		m.refusals.WithLabelValues(e.Outcome).Inc()
	case agent.EventWatched:
		m.watch.WithLabelValues(e.Outcome).Inc()
	case agent.EventAttested:
		m.attestations.WithLabelValues(e.Subject, e.Outcome).Inc()
		m.attestTime.WithLabelValues(e.Subject).Observe(e.Took.Seconds())
	case agent.EventCalled:
		m.asked.WithLabelValues(e.Subject, e.Outcome).Inc()
		m.askTime.WithLabelValues(e.Subject).Observe(e.Took.Seconds())
	case agent.EventExchanged:
		m.exchanges.WithLabelValues(m.targets.bounded(e.Subject), e.Detail, e.Outcome).Inc()
	case agent.EventDelivered:
		m.delivered.WithLabelValues(m.targets.bounded(e.Subject), e.Detail, e.Outcome).Inc()
	}
}

// Output counts the acts of an output; it returns output.Config's Count.
func (m *Metrics) Output(name string) func(act string, err error) {
	return func(act string, err error) {
		outcome := agent.OutcomeOK
		if err != nil {
			outcome = agent.OutcomeFailed
		}
		m.outputs.WithLabelValues(name, act, outcome).Inc()
	}
}

// ServerOptions have the calls of a gRPC server counted. gRPC asks them only
// about methods that are registered: their names are no caller's choice.
func (m *Metrics) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(m.unary), grpc.ChainStreamInterceptor(m.stream)}
}

func (m *Metrics) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method, began := methodOf(info.FullMethod), time.Now()
	answer, err := next(ctx, req)
	m.callTime.WithLabelValues(method).Observe(time.Since(began).Seconds())
	m.calls.WithLabelValues(method, codeOf(err)).Inc()
	return answer, err
}

func (m *Metrics) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	method := methodOf(info.FullMethod)
	open := m.streams.WithLabelValues(method)
	open.Inc()
	defer open.Dec()
	err := next(srv, stream)
	m.calls.WithLabelValues(method, codeOf(err)).Inc()
	return err
}

func methodOf(full string) string { return strings.TrimPrefix(full, "/") }

// codeOf is an error's status. One of a context is what gRPC makes of it.
func codeOf(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Code().String()
	}
	return status.FromContextError(err).Code().String()
}

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// names bounds how many different ones there are.
type names struct {
	mu    sync.Mutex // guards known
	known map[string]bool
}

func (n *names) bounded(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known[name] {
		if len(n.known) >= maxNames {
			return "other"
		}
		if n.known == nil {
			n.known = make(map[string]bool)
		}
		n.known[name] = true
	}
	return name
}
