// Package workloadapi serves the SPIFFE Workload API (SPIFFE Workload API and
// Workload Endpoint, both Stable) on a Unix socket: who calls is the kernel's
// word, what it gets is the agent's.
//
// The WIT profile (Workload API §7, Incubating) is off: its calls answer
// Unimplemented. Every call must carry the metadata workload.spiffe.io: true,
// but Envoy's of its Secret Discovery Service (agent/sds), which cannot.
//
// Decided where SPIFFE's documents contradict themselves (the numbers are those
// of the tests):
//   - D-10 the service is SpiffeWorkloadAPI without a package, as in the proto.
//   - D-11 JWT bundles are bytes, as in the proto; WIT bundles are not served.
//   - D-15 a token whose subject has no path is not valid.
//   - D-17 a trust domain whose bundle is empty has none: it is left out; where
//     it is our own the answer is Unavailable, never an empty field.
//   - D-18 a token that fails validation is InvalidArgument.
//   - D-23 server reflection and gRPC's health service need no metadata,
//     knowingly: they tell nothing about callers, and their clients don't know
//     the header.
package workloadapi

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
)

// Bounds of what callers send.
const (
	maxMessage     = 256 << 10 // Envoy tells of its every extension, in each request
	maxStreams     = 64        // open calls on one connection
	window         = 64 << 10
	maxConnections = 1024
	maxPerUID      = 128 // so that no user can keep the others out
	maxAudiences   = 16
	maxAudience    = 1024
)

// An Agent is what the Workload API needs of one.
type Agent interface {
	TrustDomain() spiffeid.TrustDomain
	Identities(*caller.Process) *agent.Identities
	Cutoffs() *agent.Cutoffs
	JWT(ctx context.Context, p *caller.Process, audiences []string, id spiffeid.ID) ([]agent.JWTSVID, error)
	LearnKey(ctx context.Context, td spiffeid.TrustDomain, keyID string) bool
}

// Config is the wiring of a Server. Fields are required unless noted.
type Config struct {
	Agent Agent
	Log   *slog.Logger     // nil discards
	Now   func() time.Time // nil means time.Now
	// Options are more of the gRPC server's; their interceptors see all calls
	// first, and how they end.
	Options []grpc.ServerOption
}

// A Server answers the Workload API.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	cfg Config
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg}
}

// GRPC returns a gRPC server for a Unix socket made by caller.Listen, with the
// Workload API and reflection on it. Further services may be registered; but
// for SDS and health they demand the same metadata.
func (s *Server) GRPC() *grpc.Server {
	g := grpc.NewServer(append(slices.Clone(s.cfg.Options),
		grpc.Creds(newLimiter(maxConnections, maxPerUID)),
		grpc.ChainUnaryInterceptor(RecoverUnary(s.cfg.Log), unary),
		grpc.ChainStreamInterceptor(RecoverStream(s.cfg.Log), stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(8<<10),
		// Fixed, gRPC sends no pings to measure a path that is none.
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		// Answers are small, and hundreds of connections stay open.
		grpc.ReadBufferSize(4<<10),
		grpc.WriteBufferSize(4<<10),
		grpc.ConnectionTimeout(5*time.Second),
	)...)
	workload.RegisterSpiffeWorkloadAPIServer(g, s)
	reflection.Register(g)
	return g
}

// CheckMetadata refuses a call without exactly one workload.spiffe.io: true
// (SPIFFE Workload Endpoint §3), which keeps a request forged through another
// program's HTTP client out.
func CheckMetadata(ctx context.Context, method string) error {
	for _, service := range []string{"/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/", "/envoy.service.secret.v3.SecretDiscoveryService/", "/grpc.health.v1.Health/"} {
		if strings.HasPrefix(method, service) {
			return nil
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request: workload.spiffe.io: true")
	}
	return nil
}

// each sends what every update of a caller's view comes to, the first at once,
// until the stream ends. What comes to the same is not sent twice.
func each[M proto.Message](s *Server, stream interface {
	Context() context.Context
	Send(M) error
}, message func(own spiffeid.TrustDomain, u agent.Update) (M, error)) error {
	ctx := stream.Context()
	p, err := caller.Required(ctx)
	if err != nil {
		return err
	}
	view := s.cfg.Agent.Identities(p)
	defer view.Close()
	var last proto.Message
	for {
		u, err := view.Next(ctx)
		if err != nil {
			return agent.StatusOf(ctx, s.cfg.Log, err)
		}
		m, err := message(s.cfg.Agent.TrustDomain(), u)
		if err != nil {
			return agent.StatusOf(ctx, s.cfg.Log, err)
		}
		if last != nil && proto.Equal(m, last) {
			continue
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		last = m
	}
}
