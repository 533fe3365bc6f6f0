// Package agentcmd is the agent as a program: agent.yaml, what it builds, and the
// verbs that both credence and credence-agent have. It names the drivers that a
// node needs: attestors, outputs, exchangers.
//
// It links nothing that signs and no database. What each part does is left to its
// package.
package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	health "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/credence-id/credence/agent"
	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/agent/sds"
	"github.com/credence-id/credence/agent/telemetry"
	"github.com/credence-id/credence/agent/workloadapi"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/flows"
	"github.com/credence-id/credence/cmd/tracing"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
)

// Daemon is an agent put together: what dev and agent run share.
type Daemon struct {
	Agent    *agent.Agent
	workload net.Listener
	admin    net.Listener
	sds      sdsFile
	outputs  []delivered
	watch    []func(context.Context) error // what attestors watch
	watched  *watched
	tracing  *tracing.Tracing // nil: off
	service  *service         // who manages us; nil: nobody
	lock     *os.File         // of the data directory
	now      func() time.Time
	log      *slog.Logger
}

// spread is over how long agents that start, or lose their broker, at one time
// go to a broker.
const spread = 5 * time.Second

// New puts an agent together. evidence nil proves the node as the file says.
func New(f File, evidence func(context.Context) ([]byte, error), now func() time.Time, log *slog.Logger) (_ *Daemon, err error) {
	p := &Daemon{sds: f.SDS, now: now, log: log}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	// Where callers cannot be told, nothing could be served: say so now.
	self, err := caller.Open(os.Getpid())
	if err != nil {
		return nil, err
	}
	self.Close()
	td, err := federation.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		return nil, err
	}
	kept, err := f.Spool.spool()
	if err != nil {
		return nil, err
	}
	var bundle []byte
	if f.Trust.Bundle != "" {
		if bundle, err = cli.ReadSmall(f.Trust.Bundle); err != nil {
			return nil, fmt.Errorf("trust.bundle: %w", err)
		}
	}
	apart := time.Duration(0)
	if evidence == nil { // it is an agent of its own
		apart = spread
	}
	if p.watched, err = f.watched(); err != nil {
		return nil, err
	}
	if p.tracing, err = tracing.Open(context.Background(), f.Traces, "credence-agent", cli.Version(), log); err != nil {
		return nil, err
	}
	// The node's own state is nobody's business; the sockets beside it are every
	// user's.
	if err := os.MkdirAll(f.Data, 0o711); err != nil {
		return nil, err
	}
	if p.lock, err = lockData(f.Data); err != nil {
		return nil, err
	}
	attestors, watch, err := attestors(f.Attest, log)
	if err != nil {
		return nil, err
	}
	p.watch = watch
	p.Agent, err = agent.New(agent.Config{
		TrustDomain: td, Broker: f.Broker, CAPins: f.Trust.CAPin, Bundle: bundle, Data: filepath.Join(f.Data, "node"),
		Join: f.Join.join(td.Name(), f.Data, evidence),
		Seal: f.Seal, Spread: apart,
		Attestors: attestors,
		Exchanger: exchanger, Spool: kept, Version: cli.Version(), Dial: p.tracing.Client(), Tracer: p.tracing.Tracer("credence/agent"), Observe: p.watched.metrics.Observe, Now: now, Log: log,
	})
	if err != nil {
		return nil, err
	}
	p.watched.metrics.Of(p.Agent)
	if p.outputs, err = f.deliveries(p.tracing.Request("credentials"), now, log); err != nil {
		return nil, err
	}
	if err := f.eraseLeftovers(context.Background(), log); err != nil {
		return nil, err
	}
	if p.workload, err = f.handed.listen("workload", f.Socket, 0o666); err != nil {
		return nil, err
	}
	p.admin, err = f.handed.listen("admin", f.Admin, 0o600)
	return p, err
}

// Run serves until ctx ends or the agent cannot go on, and then closes p.
func (p *Daemon) Run(ctx context.Context) error {
	// It also keeps the lock's file from being collected, and the lock with it,
	// while nothing else knows of p any more.
	defer p.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	counted := append(p.watched.metrics.ServerOptions(), p.tracing.Server()...)
	workload := workloadapi.New(workloadapi.Config{Agent: p.Agent, Log: p.log, Options: counted}).GRPC()
	health.RegisterHealthServer(workload, telemetry.NewHealth(telemetry.HealthConfig{Agent: p.Agent, Public: true, Now: p.now}))
	agentapi.RegisterCredentialsServer(workload, local.NewService(p.Agent, p.log))
	agentapi.RegisterChecksServer(workload, local.NewChecks(p.Agent, p.log))
	agentapi.RegisterSVIDsServer(workload, local.NewSVIDs(p.Agent, p.log))
	secret.RegisterSecretDiscoveryServiceServer(workload, sds.New(p.sds.config(p.Agent, p.log)))
	admin := newAdmin(p.Agent, p.log, counted...)
	errs := make(chan error, 3+len(p.outputs)+len(p.watch))
	var running sync.WaitGroup
	running.Go(func() { errs <- p.Agent.Run(ctx); cancel() })
	running.Go(func() { errs <- workload.Serve(p.workload); cancel() })
	running.Go(func() { errs <- p.serveAdmin(ctx, admin); cancel() })
	if p.service != nil {
		running.Go(func() { p.service.run(ctx, p.Agent) })
	}
	for _, d := range p.outputs {
		running.Go(func() { errs <- d.run(ctx, p.Agent, p.watched.metrics.Output(d.output.Name), p.now, p.log) })
	}
	for _, watch := range p.watch {
		running.Go(func() { errs <- watch(ctx) })
	}
	<-ctx.Done()
	end(workload)
	admin.Stop()
	running.Wait()
	close(errs)
	var all []error
	for err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, grpc.ErrServerStopped) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// lastWords is how long open streams have to tell why they end: who is entitled no
// more, as on a node that was evicted, learns that by PermissionDenied (SPIFFE
// Workload API §5.2.1), and is not told that the agent is away.
const lastWords = time.Second

func end(workload *grpc.Server) {
	late := time.AfterFunc(lastWords, workload.Stop)
	defer late.Stop()
	workload.GracefulStop()
}

// Close lets the sockets and the data directory go. It may be called more than once.
func (p *Daemon) Close() {
	for _, l := range []net.Listener{p.workload, p.admin} {
		if l != nil {
			_ = l.Close() // it may be closed already
		}
	}
	if p.lock != nil {
		_ = p.lock.Close() // nothing was written
	}
	p.tracing.Close()
}

// owner lets root and our own uid use the admin socket.
func owner() func(*caller.Process) error { return caller.RequireUID(0, uint32(os.Getuid())) }

func newAdmin(a *agent.Agent, log *slog.Logger, more ...grpc.ServerOption) *grpc.Server {
	g := grpc.NewServer(append(slices.Clone(more),
		grpc.Creds(caller.CredentialsFor(owner())),
		grpc.ChainUnaryInterceptor(workloadapi.RecoverUnary(log)),
		grpc.ChainStreamInterceptor(workloadapi.RecoverStream(log)),
	)...)
	agentapi.RegisterAdminServer(g, admin{agent: a})
	return g
}

// admin answers the operator on the node.
type admin struct {
	agentapi.UnsafeAdminServer
	agent *agent.Agent
}

// Attest proves a process as the Workload API would.
func (a admin) Attest(ctx context.Context, r *agentapi.AttestRequest) (*agentapi.AttestResponse, error) {
	process, err := caller.Open(int(r.GetPid()))
	if err != nil {
		return nil, err
	}
	defer process.Close()
	t, err := a.agent.Attest(ctx, process)
	if err != nil {
		return nil, err
	}
	out := &agentapi.AttestResponse{Node: a.agent.NodeID(), Unknown: t.Unknown, Why: t.Why(true), Facts: map[string]*agentapi.Values{}}
	for name, values := range t.Facts {
		out.Facts[name] = &agentapi.Values{Values: values}
	}
	return out, nil
}

// Explain says what a process gets, or what it misses.
func (a admin) Explain(ctx context.Context, r *agentapi.ExplainRequest) (*agentapi.ExplainResponse, error) {
	process, err := caller.Open(int(r.GetPid()))
	if err != nil {
		return nil, err
	}
	defer process.Close()
	return local.Explain(ctx, a.agent, process, r, true)
}

// Status tells how the agent does.
func (a admin) Status(context.Context, *agentapi.StatusRequest) (*agentapi.StatusResponse, error) {
	s := a.agent.Status()
	out := &agentapi.StatusResponse{
		Node: s.Node, Connected: s.Connected, Trouble: s.Trouble, Needs: s.Needs, Seal: s.Seal,
		Backlog: s.Spool.Backlog, Lost: s.Spool.Lost, SpoolTrouble: s.Spool.Trouble,
		Hung: a.agent.Hung(), Unready: a.agent.Unready(),
	}
	for to, at := range map[*int64]time.Time{&out.NodeEnds: s.NodeEnds, &out.HeardAt: s.Heard} {
		if !at.IsZero() {
			*to = at.Unix()
		}
	}
	for _, h := range s.Held {
		out.Held = append(out.Held, &agentapi.StatusResponse_Held{
			SpiffeId: h.ID.String(), Identity: h.Identity, Ends: h.Ends.Unix(), Workloads: uint32(h.Workloads), Lent: h.Lent, Jwt: audiences(h.JWT),
		})
	}
	for _, session := range s.Sessions {
		one := &agentapi.StatusResponse_Session{Target: session.Target, Flow: session.Flow, SpiffeId: session.ID.String()}
		if !session.Expires.IsZero() {
			one.Ends = session.Expires.Unix()
		}
		if session.Failure != nil {
			one.Failing, one.Trouble = session.Failing.Unix(), exchangers.Clean(session.Failure.Error())
		}
		out.Sessions = append(out.Sessions, one)
	}
	return out, nil
}

func audiences(all []agent.JWTHolding) (out []*agentapi.StatusResponse_Held_JWT) {
	for _, j := range all {
		one := &agentapi.StatusResponse_Held_JWT{Audience: j.Audience, Use: j.Use}
		if !j.Ends.IsZero() {
			one.Ends = j.Ends.Unix()
		}
		out = append(out, one)
	}
	return out
}

// exchanger builds the exchanger of a target.
func exchanger(t agent.Target) (exchangers.Exchanger, error) {
	settings, ok := flows.All()[t.Flow]
	if !ok {
		return nil, fmt.Errorf("flow %q is not one that this program has: update the agent", t.Flow)
	}
	parsed, err := exchangers.ParseWire(t.Settings, settings())
	if err != nil {
		return nil, err
	}
	return flows.Exchanger(parsed)
}
