// Package server is the broker's edges: the gRPC services for nodes and
// operators, the HTTPS listeners for peers and relying parties, who may call
// what, and the one place where errors become statuses.
//
// The token endpoint (POST /token on web, and the service Exchange on agents)
// keeps no session and no credential: each call shows evidence of its own, and
// what it gets ends with that.
//
// It trusts the kernel's word on who is at the admin socket, and certificates
// only as far as our own bundle and the node table go; a peer's bundle counts for
// evidence alone. What is decided and
// signed is left to package broker.
package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/endpoint"
)

// maxMessage bounds a message to the broker: 64 items of 64 KiB of facts, their
// proofs and their keys.
const maxMessage = 6 << 20

// How much an agent sends before it is read.
const (
	streamWindow = 256 << 10
	connWindow   = 1 << 20
)

// maxIdle is how long a connection without a call is kept open: agents have one always.
const maxIdle = 5 * time.Minute

// maxJoins bounds the joins under way at once.
const maxJoins = 64

// Authority is what the edges need of the trust domain's authorities.
type Authority interface {
	broker.Issuer
	x509bundle.Source
	Document() (document []byte, ok bool) // the SPIFFE bundle
	Bundle() *authority.Bundle            // the same, in its parts
	Changed() <-chan struct{}             // closed at the bundle's next change
	CRLs() []authority.CRL                // those that are current
	CRLsChanged() <-chan struct{}         // closed when there is a newer one
	Reload(context.Context) error         // takes over what another broker wrote
	Pin() string
	List() []authority.Status
	OIDCKeys() []authority.PublicKey
	IssuingChain() []*x509.Certificate // of the CA that signs now, without the root
	Acts
}

// Config is the wiring of a Server. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Issuer      string // of JWT-SVIDs; empty: none
	Version     string
	Broker      *broker.Broker
	Authority   Authority
	Store       *store.Store
	Audit       *audit.Log
	AuditDir    string // where the record lies
	// AuditHolds says who reads the record and must have read what is removed;
	// nil: nothing is removed.
	AuditHolds func(context.Context) ([]audit.Hold, error)
	// AuditProblems are why the record is not carried away or kept as it should
	// be; nil: there are none.
	AuditProblems func() []string
	Peers         *federation.Refresher
	Policy        identity.Config
	Resources     resource.Registry
	OIDC          http.Handler // discovery and keys; nil without an issuer
	// Backup writes a backup that the recipients can read, and returns its manifest.
	// Nil: none is made here.
	Backup func(ctx context.Context, w io.Writer, recipients []string) (manifest []byte, err error)
	// Since is the revision of the store before anything of it was read: what was
	// written after it is taken over.
	Since uint64
	// Replica says who this broker is among those that share the store; nil: it has
	// the store for itself.
	Replica     *store.Replica
	Keeper      *store.Keeper // of the snapshot to start from; nil: none is kept
	RefreshHint time.Duration // of our bundle
	Places      []string      // where JWT keys are published besides, and wait to be
	// AdminCredentials tell who is at the admin socket and refuse everybody
	// but root and the daemon's own user.
	AdminCredentials credentials.TransportCredentials
	AdminActor       func(context.Context) string // names the caller, for the record
	AgentsAddress    string                       // where agents reach us, for a token's agent.yaml
	Listen           map[string]string            // addresses by listener, for status
	// The web listener needs one of these three.
	WebCertificate func() (*tls.Certificate, error) // shown by the rules of endpoint.WebServerTLS
	WebTLS         *tls.Config                      // of endpoint.ACME, say
	WebProxied     bool                             // plain HTTP on loopback: a proxy has the certificate
	// Exchanger builds what exchanges at a target's provider for callers without
	// an agent. What it gives ends within a life, and has no more than the
	// scopes, if any: the error wraps exchangers.ErrLife or ErrScope where that
	// cannot be. Nil: no target is exchanged here.
	Exchanger func(t broker.Target, life time.Duration, scopes []string) (exchangers.Exchanger, error)
	// Proofs says to which pod a token is bound that a workload shows on a node of a
	// cluster, by those of the rules that are of that cluster. An error that wraps
	// join.ErrEvidence means that it proves nothing; any other, that it could not be
	// judged. Nil: workloads prove nothing.
	Proofs func(ctx context.Context, rules []join.Rule, cluster string, token []byte) (Pod, error)
	Roles  []Role // who administers by an SVID, on the agents' listener; none: nobody
	Login  *Login // nil: nobody logs in here
	// Health answers gRPC's probes on the admin socket, by what the Server says of
	// itself. Nil: nobody does.
	Health func(*Server) grpc_health_v1.HealthServer
	Calls  []grpc.ServerOption // count the calls on both gRPC listeners
	// Trace traces a request at the token endpoint: what is done for it is done under
	// the context that it returns, and the status of the answer ends it. Nil: nothing
	// is traced.
	Trace     func(r *http.Request, target string) (_ context.Context, end func(status int))
	HeadEvery time.Duration    // how often agents are told how far the record has got; 0: 1 min
	Limits    Limits           // a zero field: its default
	Handshake time.Duration    // how long a handshake may take on agents, and a stranger then to call something; 0: 10 s
	JoinStart time.Duration    // how long a caller of Join may take to begin; 0: 3 s
	Log       *slog.Logger     // nil discards
	Now       func() time.Time // nil means time.Now
}

// Login is where people log in, and who checks what they show.
type Login struct {
	Issuer, ClientID, RedirectURI string
	Scopes                        []string
	CA                            string // PEM, of the issuer's certificate; empty: a public one
	// Verify checks an ID token that must have a nonce, and says all of a broker.Login
	// but what is asked for. An error that wraps join.ErrEvidence means that it will
	// never do, and is told; any other, that it could not be judged.
	Verify func(ctx context.Context, token []byte, nonce string) (broker.Login, error)
}

func (c *Config) check() error {
	for name, missing := range map[string]bool{
		"TrustDomain": c.TrustDomain.IsZero(), "Broker": c.Broker == nil, "Authority": c.Authority == nil, "Store": c.Store == nil,
		"Audit": c.Audit == nil, "AuditDir": c.AuditDir == "", "Peers": c.Peers == nil,
		"AdminCredentials": c.AdminCredentials == nil, // gRPC takes none for "let everybody in"
		"AdminActor":       c.AdminActor == nil,
	} {
		if missing {
			return fmt.Errorf("making a server: %s is required", name)
		}
	}
	c.HeadEvery = cmp.Or(c.HeadEvery, headEvery)
	c.JoinStart, c.Handshake = cmp.Or(c.JoinStart, 3*time.Second), cmp.Or(c.Handshake, 10*time.Second)
	if c.Issuer != "" {
		c.Policy.TokenEndpoint = oidc.TokenEndpoint(c.Issuer)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Listeners are what a Server serves on. Each is closed when Run returns.
type Listeners struct {
	Agents net.Listener
	Admin  net.Listener
	SPIFFE net.Listener // nil: no https_spiffe endpoint
	Web    net.Listener // nil: no web listener
}

// A Server is the broker's edges.
type Server struct {
	cfg                       Config
	svid                      ownSVID
	heads                     heads
	joins                     *places
	exchanging                chan struct{} // as many as are under way
	learners                  chan struct{} // as many as wait for a peer's bundle
	sources, callers, domains *limits       // of the token endpoint
	whys, allWhys             *limits       // of what nodes are told
	gone                      gone
	settings                  atomic.Pointer[settings]
	proofs                    *proofs
	changed                   bell
	workers                   *workers
	closing                   chan struct{}
	searches                  chan struct{} // holds who searches the record
	started                   time.Time

	acting   sync.Mutex    // held while an operator acts on an authority
	applying sync.Mutex    // held while resources are changed: one writer at a time
	behind   atomic.Bool   // the store may hold what is not in force yet
	grown    atomic.Bool   // there is memory to give back
	taken    atomic.Uint64 // what was written up to this revision is in force
	beat     time.Time     // when this broker last said that it is there; catchUp's
	unsaved  bool          // what was denied here could not be saved; catchUp's
	savedAt  time.Time     // when that was tried last; catchUp's
	saveWait time.Duration // how long until it is again; catchUp's
	written  atomic.Uint64 // the store's last revision, as it was last seen
	untaken  atomic.Bool   // what others wrote could not be taken over
	behindAt atomic.Int64  // since when, in Unix milliseconds; 0: it is not
	pulseAt  atomic.Int64  // when the locks were last free, likewise
	state    atomic.Pointer[state]
	here     map[string]hereDeny // by name; guarded by applying
	heres    atomic.Int32        // how many these are
	copied   copied              // guarded by applying

	spiffe, web http.Handler
}

// New returns a Server that holds the broker's own SVID and the resources in
// the store.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, joins: newPlaces(maxJoins), workers: newWorkers(), closing: make(chan struct{}), searches: make(chan struct{}, maxSearches), started: cfg.Now()}
	s.taken.Store(cfg.Since)
	s.exchanging, s.learners = make(chan struct{}, maxExchanges), make(chan struct{}, maxLearners)
	first, err := newSettings(nil, cfg.Policy, Settings{cfg.Roles, cfg.Login, cfg.Policy.DNSSuffixes, cfg.Policy.Subjects, cfg.Policy.MinTTL, cfg.Limits}, cfg.Now)
	if err != nil {
		return nil, fmt.Errorf("making a server: %w", err)
	}
	s.settings.Store(first)
	s.proofs = newProofs(&s.cfg)
	s.whys, s.allWhys = newLimits(whyBurst, whyRate, cfg.Now), newLimits(allWhyBurst, allWhyRate, cfg.Now)
	s.sources, s.callers, s.domains = newLimits(sourceBurst, sourceRate, cfg.Now), newLimits(callerBurst, callerRate, cfg.Now), newLimits(domainBurst, domainRate, cfg.Now)
	if err := s.handlers(); err != nil {
		return nil, err
	}
	if err := s.firstOwn(ctx); err != nil {
		return nil, err
	}
	if err := s.readHere(); err != nil {
		return nil, err
	}
	if err := s.load(ctx, nil); err != nil {
		return nil, err
	}
	return s, nil
}

// SVID is the broker's own X509-SVID, without the root; nil where no CA is
// installed yet.
func (s *Server) SVID() *tls.Certificate { return s.svid.certificate() }

// Run serves until ctx ends or a listener fails, then lets calls under way
// finish for a moment, and closes everything. It is called once.
func (s *Server) Run(ctx context.Context, l Listeners) error {
	if err := s.checkListeners(l); err != nil {
		return errors.Join(fmt.Errorf("serving: %w", err), l.close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	agents, admin := s.agentsServer(), s.adminServer()
	errs := make(chan error, 5)
	var running sync.WaitGroup
	running.Go(func() { errs <- serving("agents", agents.Serve(s.gate("agents", l.Agents))) })
	running.Go(func() { errs <- serving("admin", admin.Serve(l.Admin)) })
	var web []*http.Server
	if l.SPIFFE != nil {
		config := endpoint.SPIFFEServerTLS(s.svid.withAnchor)
		server := s.quiet(endpoint.Server(s.bounded(s.spiffe, false), config))
		web = append(web, server)
		running.Go(func() { errs <- serving("spiffe", server.ServeTLS(s.gate("spiffe", l.SPIFFE), "", "")) })
	}
	if l.Web != nil {
		server := s.quiet(endpoint.Server(s.bounded(s.web, s.cfg.WebProxied), s.webTLS()))
		web = append(web, server)
		running.Go(func() { errs <- serving("web", serveWeb(server, s.gate("web", l.Web))) })
	}
	running.Go(func() { s.workers.run(ctx) })
	running.Go(func() { s.keepOwn(ctx) })
	running.Go(func() { s.follow(ctx) })
	running.Go(func() {
		if err := s.catchUp(ctx); err != nil {
			errs <- err
		}
	})
	running.Go(func() { s.tellHeads(ctx) })
	running.Go(func() { s.pulse(ctx) })
	running.Go(func() { s.resume(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	cancel()
	close(s.closing)
	s.stop(agents, admin, web)
	running.Wait()
	return err
}

func (s *Server) checkListeners(l Listeners) error {
	if l.Agents == nil || l.Admin == nil {
		return errors.New("listeners for agents and admin are required")
	}
	if l.Web == nil {
		return nil
	}
	ways := 0
	for _, way := range []bool{s.cfg.WebCertificate != nil, s.cfg.WebTLS != nil, s.cfg.WebProxied} {
		if way {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("for the web listener one of a certificate, a TLS configuration and a proxy is wanted")
	}
	if addr, ok := l.Web.Addr().(*net.TCPAddr); s.cfg.WebProxied && (!ok || !addr.IP.IsLoopback()) {
		return fmt.Errorf("the web listener at %s is not on loopback: plain HTTP is for a proxy on this machine", l.Web.Addr())
	}
	return nil
}

// webTLS is nil where a proxy has the certificate.
func (s *Server) webTLS() *tls.Config {
	if s.cfg.WebCertificate != nil {
		return endpoint.WebServerTLS(s.cfg.WebCertificate)
	}
	return s.cfg.WebTLS
}

func serveWeb(server *http.Server, l net.Listener) error {
	if server.TLSConfig == nil {
		return server.Serve(l)
	}
	return server.ServeTLS(l, "", "")
}

func (l Listeners) close() error {
	var errs []error
	for _, one := range []net.Listener{l.Agents, l.Admin, l.SPIFFE, l.Web} {
		if one != nil {
			errs = append(errs, one.Close())
		}
	}
	return errors.Join(errs...)
}

// quiet keeps strangers' failed handshakes out of the log but for those who
// look for them, and lets the gate see who is idle.
func (s *Server) quiet(h *http.Server) *http.Server {
	h.ErrorLog, h.ConnState = slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), attend
	return h
}

func serving(name string, err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serving %s: %w", name, err)
}

// stop gives calls under way two seconds.
func (s *Server) stop(agents, admin *grpc.Server, web []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var stopping sync.WaitGroup
	for _, g := range []*grpc.Server{agents, admin} {
		stopping.Go(g.GracefulStop)
	}
	for _, h := range web {
		stopping.Go(func() {
			if h.Shutdown(ctx) != nil {
				_ = h.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { stopping.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		agents.Stop()
		admin.Stop()
		<-done
	}
}

func (s *Server) agentsServer() *grpc.Server {
	g := grpc.NewServer(slices.Concat(s.cfg.Calls, []grpc.ServerOption{
		grpc.Creds(shaking{credentials.NewTLS(s.agentsTLS())}),
		grpc.ChainUnaryInterceptor(s.workers.unary, s.recoverUnary, s.unaryAuth),
		grpc.ChainStreamInterceptor(s.recoverStream, s.streamAuth),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(256),
		// Fixed, gRPC sends no pings to measure the path with; and a stranger
		// has no more than this of our memory.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ConnectionTimeout(s.cfg.Handshake),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: 30 * time.Second, Timeout: 10 * time.Second}),
	})...)
	api.RegisterNodeServer(g, nodeService{s: s})
	api.RegisterExchangeServer(g, exchangeService{s: s})
	api.RegisterAdminServer(g, adminService{s: s})
	api.RegisterAuthoritiesServer(g, authoritiesService{s: s})
	return g
}

func (s *Server) adminServer() *grpc.Server {
	g := grpc.NewServer(slices.Concat(s.cfg.Calls, []grpc.ServerOption{
		grpc.Creds(s.cfg.AdminCredentials),
		grpc.ChainUnaryInterceptor(s.recoverUnary, s.recordUnary),
		grpc.ChainStreamInterceptor(s.recoverStream, s.recordStream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(64),
		grpc.ConnectionTimeout(10 * time.Second),
	})...)
	api.RegisterAdminServer(g, adminService{s: s})
	api.RegisterAuthoritiesServer(g, authoritiesService{s: s})
	if s.cfg.Health != nil {
		grpc_health_v1.RegisterHealthServer(g, s.cfg.Health(s))
	}
	return g
}

// follow rings for every stream when a bundle of ours or a peer's or one of our
// CRLs changes.
func (s *Server) follow(ctx context.Context) {
	for {
		own, lists := s.cfg.Authority.Changed(), s.cfg.Authority.CRLsChanged()
		_, peers := s.cfg.Peers.Set().Watch()
		s.changed.ring() // after asking for the channels: no change falls between
		select {
		case <-ctx.Done():
			return
		case <-own:
		case <-lists:
		case <-peers:
		}
	}
}
