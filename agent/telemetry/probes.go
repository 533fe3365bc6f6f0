package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Names of the gRPC health service. The empty name, and that of the Workload
// API's service, are readiness as well.
const (
	Liveness  = "liveness"
	Readiness = "readiness"

	workloadAPI = "SpiffeWorkloadAPI"
)

// freshFor is how long an answer about readiness stands: who asks without end
// must not keep the agent busy.
const freshFor = time.Second

// HealthConfig is the wiring of a Health. Fields are required unless noted.
type HealthConfig struct {
	Agent Probed
	// Notes are told beside readiness to who may know why; nil: there are none.
	Notes func() []string
	// Says names the command that says why; empty: credence agent status.
	Says string
	// Public has it say no more than yes or no, and each call at once: for the
	// workload socket, which everybody on the machine can reach.
	Public bool
	Now    func() time.Time // nil means time.Now
}

// A Health answers probes: gRPC's health service, and HTTP.
type Health struct {
	health.UnsafeHealthServer
	cfg HealthConfig

	mu      sync.Mutex // guards what follows
	at      time.Time
	unready []string
}

// NewHealth returns a Health.
func NewHealth(cfg HealthConfig) *Health {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Notes == nil {
		cfg.Notes = func() []string { return nil }
	}
	cfg.Says = cmp.Or(cfg.Says, "credence agent status")
	return &Health{cfg: cfg}
}

// ready says why the agent is not.
func (h *Health) ready() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := h.cfg.Now(); h.at.IsZero() || now.Sub(h.at).Abs() >= freshFor {
		h.at, h.unready = now, h.cfg.Agent.Unready()
	}
	return h.unready
}

// of is a service's state, and why it is bad.
func (h *Health) of(service string) (health.HealthCheckResponse_ServingStatus, []string) {
	var why []string
	switch service {
	case Liveness:
		why = h.cfg.Agent.Hung()
	case "", Readiness, workloadAPI:
		why = h.ready()
	default:
		return health.HealthCheckResponse_SERVICE_UNKNOWN, nil
	}
	if len(why) > 0 {
		return health.HealthCheckResponse_NOT_SERVING, why
	}
	return health.HealthCheckResponse_SERVING, nil
}

// Check answers at once. Why something is bad stands in the trailer "why".
func (h *Health) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	s, why := h.of(r.GetService())
	if s == health.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Error(codes.NotFound, "liveness and readiness are what there is; no name is readiness")
	}
	if len(why) > 0 && !h.cfg.Public {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("why", strconv.QuoteToASCII(strings.Join(why, "; "))))
	}
	return &health.HealthCheckResponse{Status: s}, nil
}

// List answers for both.
func (h *Health) List(context.Context, *health.HealthListRequest) (*health.HealthListResponse, error) {
	all := make(map[string]*health.HealthCheckResponse)
	for _, name := range []string{"", Liveness, Readiness} {
		s, _ := h.of(name)
		all[name] = &health.HealthCheckResponse{Status: s}
	}
	return &health.HealthListResponse{Statuses: all}, nil
}

// Watch tells a service's state, and each change of it.
func (h *Health) Watch(r *health.HealthCheckRequest, stream grpc.ServerStreamingServer[health.HealthCheckResponse]) error {
	if h.cfg.Public {
		return status.Error(codes.Unimplemented, "ask by Check; Watch is on the agent's admin socket")
	}
	look := time.NewTicker(freshFor)
	defer look.Stop()
	for last := health.HealthCheckResponse_UNKNOWN; ; {
		if s, _ := h.of(r.GetService()); s != last {
			if err := stream.Send(&health.HealthCheckResponse{Status: s}); err != nil {
				return err
			}
			last = s
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-look.C:
		}
	}
}

// routes adds GET /live and /ready; telling says why.
func (h *Health) routes(mux *http.ServeMux, telling bool) {
	none := func() []string { return nil }
	answer := func(good string, why, notes func() []string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			words := why()
			if len(words) == 0 {
				fmt.Fprintln(w, good)
				for _, note := range notes() {
					fmt.Fprintln(w, "but", note)
				}
				return
			}
			if !telling {
				words = []string{h.cfg.Says + " says why"}
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "not %s: %s\n", good, strings.Join(words, "\n"))
		}
	}
	notes := none
	if telling {
		notes = h.cfg.Notes
	}
	mux.HandleFunc("GET /live", answer("live", h.cfg.Agent.Hung, none))
	mux.HandleFunc("GET /ready", answer("ready", h.ready, notes))
}
