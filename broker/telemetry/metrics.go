// Package telemetry counts what a broker does, and tells how it stands, as
// Prometheus metrics.
//
// It trusts the broker's word. It tells no secret, and no label is a stranger's
// choice: they are of a known few words, IDs of authorities and names of peers,
// these two bounded. Of nodes it tells how many there are and when the first ends,
// never each. When something ends is told as a time, so that an alert needs to know
// no life. The names are frozen by a test: dashboards and alerts hang on them.
//
// Where metrics are served, and to whom, is left to cmd/credence.
package telemetry

import (
	"context"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
)

const namespace = "credence_broker"

// maxScrapes bounds the scrapes at once.
const maxScrapes = 4

// buckets reach from a signature to a disk that stands still, in seconds.
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Config is the wiring of Metrics. Fields are required unless noted.
type Config struct {
	Version     string
	TrustDomain string
	StoreKind   string // "sqlite" or "postgres"
}

// Metrics counts what a broker does, in a registry of its own. Its methods may be
// called concurrently.
type Metrics struct {
	registry *prometheus.Registry

	svids, requests, denials, joins, renewals, calls *prometheus.CounterVec
	requestTime, joinTime, callTime                  *prometheus.HistogramVec
	recordTime                                       prometheus.Histogram
	streams                                          *prometheus.GaugeVec
}

// New returns Metrics that have counted nothing.
func New(cfg Config) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.svids = m.counter("svids_issued_total", "SVIDs that were signed and released, by kind or by what asked for them.", "kind")
	m.requests = m.counter("svid_requests_total", "Calls that asked for SVIDs: ok got some or needs none, denied, failed.", "kind", "outcome")
	m.denials = m.counter("denials_total", "What was denied, by the code in the record.", "kind", "code")
	m.joins = m.counter("joins_total", "Machines that tried to become a node.", "method", "outcome")
	m.renewals = m.counter("node_renewals_total", "Nodes that asked for their own SVID anew, without a join.", "outcome")
	m.calls = m.counter("calls_total", "gRPC calls that ended.", "method", "code")
	m.requestTime = m.histogram("svid_request_duration_seconds", "From a call that asks for SVIDs until the record has them.", "kind")
	m.joinTime = m.histogram("join_duration_seconds", "How long a join took.", "method")
	m.callTime = m.histogram("call_duration_seconds", "How long a gRPC call took that is no stream.", "method")
	m.recordTime = prometheus.NewHistogram(histogramOpts("record_write_duration_seconds", "How long it took to make durable what had gathered for the record."))
	m.streams = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "open_streams", Help: "gRPC streams that are open."}, []string{"method"})
	built := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": cfg.Version, "goversion": runtime.Version(), "trust_domain": cfg.TrustDomain, "store": cfg.StoreKind},
	})
	built.Set(1)
	m.registry.MustRegister(m.recordTime, m.streams, built, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func histogramOpts(name, help string) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}
}

func (m *Metrics) histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(histogramOpts(name, help), labels)
	m.registry.MustRegister(h)
	return h
}

// Of has the state of a broker told besides, as it is at each scrape. It is called
// once.
func (m *Metrics) Of(b Broker) { m.registry.MustRegister(snapshot{b}) }

// Gatherer yields all metrics.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// Observe counts what happened; it is broker.Config's Observe.
func (m *Metrics) Observe(e broker.Event) {
	switch e.What {
	case broker.EventIssued:
		m.svids.WithLabelValues(e.Subject).Add(float64(e.Count))
		m.requests.WithLabelValues(e.Subject, e.Outcome).Inc()
		m.requestTime.WithLabelValues(e.Subject).Observe(e.Took.Seconds())
	case broker.EventDenied:
		m.denials.WithLabelValues(e.Subject, e.Outcome).Inc()
	case broker.EventJoined:
		m.joins.WithLabelValues(e.Subject, e.Outcome).Inc()
		m.joinTime.WithLabelValues(e.Subject).Observe(e.Took.Seconds())
	case broker.EventRenewed:
		m.renewals.WithLabelValues(e.Outcome).Inc()
	}
}

// Recorded counts a write of the record; it is audit.Config's Observe.
func (m *Metrics) Recorded(c audit.Commit) { m.recordTime.Observe(c.Took.Seconds()) }

// ServerOptions have the calls of a gRPC server counted. gRPC asks them only about
// methods that are registered: their names are no caller's choice.
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
