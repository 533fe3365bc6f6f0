// Package telemetry says how an agent does, to those who watch over it: the
// gRPC health service and GET /live and /ready for probes, Prometheus metrics,
// and pprof where it is switched on.
//
// All of it is on the agent's admin socket, by HTTP/1.1 beside gRPC, for root
// and the agent's own uid. Besides, health and metrics may each have a listener
// on loopback or on a Unix socket of their own; only health may be told to
// listen elsewhere, for a kubelet's probes, and says no more than yes or no
// there. pprof is on the admin socket alone.
//
// It trusts the agent's word. It tells no secret: labels are of a known few
// words, names that operators wrote, and SPIFFE IDs only where they are asked
// for. What an agent counts is left to package agent. The places and the probes are
// a broker's as well, whose metrics are another package's.
package telemetry

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/credence-id/credence/agent"
)

// An Agent is what is told about. *agent.Agent is one.
type Agent interface {
	Probed
	Status() agent.Status
}

// Probed is what probes ask: a broker is too.
type Probed interface {
	Hung() []string    // why it does not live; empty: it does
	Unready() []string // why nothing should be asked of it; empty: it is ready
}

// Scraped is what tells metrics.
type Scraped interface {
	Handler() http.Handler // of GET /metrics
}

// Config is the wiring of Serve. Fields are required unless noted.
type Config struct {
	Health   *Health
	Metrics  Scraped
	Admin    net.Listener // of Split: who may use it has been checked
	Profiles bool         // pprof on Admin
	Probes   *Place       // of GET /live and /ready besides; nil: nowhere
	Scrapes  *Place       // of GET /metrics besides; nil: nowhere
	Log      *slog.Logger // nil discards
}

// again is when to try to listen again.
const again = 10 * time.Second

// Serve answers until ctx ends. A place where it cannot listen is told to the
// log, and tried again: workloads are served all the same.
func Serve(ctx context.Context, cfg Config) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	admin := http.NewServeMux()
	cfg.Health.routes(admin, true)
	admin.Handle("GET /metrics", cfg.Metrics.Handler())
	if cfg.Profiles {
		profiles(admin)
	}
	var serving sync.WaitGroup
	serving.Go(func() { serve(ctx, cfg.Admin, admin, 0) }) // a profile takes as long as it is asked to
	if p := cfg.Probes; p != nil {
		mux := http.NewServeMux()
		cfg.Health.routes(mux, !p.Anywhere)
		serving.Go(func() { p.serve(ctx, mux, cfg.Log) })
	}
	if p := cfg.Scrapes; p != nil {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", cfg.Metrics.Handler())
		serving.Go(func() { p.serve(ctx, mux, cfg.Log) })
	}
	serving.Wait()
}

// serve answers on l until ctx ends or l is closed.
func serve(ctx context.Context, l net.Listener, h http.Handler, write time.Duration) {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: write, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0),
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	_ = s.Serve(l) // it ends by Close
}
