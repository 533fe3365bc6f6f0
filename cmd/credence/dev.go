package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

// The two trust domains of dev, and who its demo workloads are.
const (
	devDomain     = "dev.example"
	devPeer       = "partner.example"
	devWorkload   = "/demo/workload"
	devPartner    = "/demo/partner"
	devNode       = "dev"
	devOwner      = "dev"
	devReportTime = 60 * time.Second
)

type devFlags struct {
	once, json bool
	data       string
	port       int
}

func (p *program) devCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine: brokers, agents, a peer, and three clouds",
		Long: `Dev runs two brokers of two trust domains, federated with each other, an agent
each, and a sandbox of AWS, GCP and Azure token services as strict as the real
ones, in one process on loopback, without a network or an account. A demo
workload gets its SVIDs through the Workload API, exchanges them at every
cloud, makes a protected call with what it got, and talks mTLS with a workload
of the peer. Then dev stays up for your own programs, until Ctrl-C.

With --data the directory is made traversable (mode 0711), so that programs of
other users reach the workload socket, which refuses them itself.`,
		Example: "  credence dev\n  credence dev --once --json\n  credence dev --data ./state --port 18440",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.port < 0 || f.port > 65535-20 {
				return cli.BadInput(fmt.Errorf("--port %d: a port from 1 to %d is wanted", f.port, 65535-20))
			}
			return p.dev(cmd.Context(), f)
		},
	}
	cmd.Flags().BoolVar(&f.once, "once", false, "exit after the report: 0 if every step held, 1 if not")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the report as one JSON object")
	cmd.Flags().StringVar(&f.data, "data", "", "keep state in this directory across runs (default: a temporary one)")
	cmd.Flags().IntVar(&f.port, "port", 0, "fix the ports from this one on (default: any that are free)")
	return cmd
}

// devSide is one trust domain of dev: a broker and an agent.
type devSide struct {
	domain string
	run    string // directory of its sockets
	broker *brokerParts
	agent  *agentcmd.Daemon
}

func (s *devSide) socket(name string) string { return filepath.Join(s.run, name+".sock") }

// bundleURL is where the peer fetches this side's bundle.
func (s *devSide) bundleURL() string {
	return "https://" + s.broker.listeners.SPIFFE.Addr().String() + server.BundlePath
}

func (s *devSide) trustDomain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString(s.domain)
}

func (s *devSide) endpointID() string { return "spiffe://" + s.domain + "/credence/broker" }

// dev is one run of the dev command.
type dev struct {
	p     *program
	flags devFlags
	dir   string // state
	log   *slog.Logger
	busy  *cli.Progress // while it starts

	web   *devWeb
	own   *devSide
	peer  *devSide
	cloud *devCloud

	stop    context.CancelFunc
	running sync.WaitGroup
	failed  chan error // a part that ended by itself
	cleanup []func()
}

func (p *program) dev(ctx context.Context, f devFlags) (err error) {
	ctx, stop := context.WithCancel(ctx)
	d := &dev{p: p, flags: f, stop: stop, failed: make(chan error, 16), busy: p.StartProgress("starting")}
	defer func() { d.close() }()
	d.log = slog.New(slog.NewTextHandler(p.Err, &slog.HandlerOptions{Level: slog.LevelError}))
	report, err := d.start(ctx)
	d.busy.Stop()
	if err != nil {
		if ctx.Err() != nil {
			return cli.Coded{Code: 130}
		}
		return err
	}
	if f.json {
		if err := cli.WriteJSON(p.Out, report); err != nil {
			return err
		}
	}
	if f.once {
		if !report.holds() {
			return cli.Coded{Code: cli.ExitNo}
		}
		return nil
	}
	if err := d.announce(report); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		d.say("stopping")
		return nil
	case err := <-d.failed:
		return err
	}
}

// close stops all parts, waits for them, and removes what dev made.
func (d *dev) close() {
	d.stop()
	if d.cloud != nil {
		d.cloud.Close()
	}
	d.running.Wait()
	for _, s := range []*devSide{d.own, d.peer} {
		if s == nil {
			continue
		}
		if s.agent != nil {
			s.agent.Close()
		}
		if s.broker != nil {
			if err := s.broker.close(); err != nil {
				fmt.Fprintln(d.p.Err, "credence: closing the broker of", s.domain+":", err)
			}
		}
	}
	for i := len(d.cleanup) - 1; i >= 0; i-- {
		d.cleanup[i]()
	}
}

// say tells a step to a person.
func (d *dev) say(format string, args ...any) {
	if d.flags.json {
		return
	}
	d.busy.Print(func() {
		fmt.Fprintf(d.p.Out, "%7.3fs  %s\n", time.Since(d.p.started).Seconds(), fmt.Sprintf(format, args...))
	})
}

// start brings everything up and runs the main job once.
func (d *dev) start(ctx context.Context) (*devReport, error) {
	if err := d.directories(); err != nil {
		return nil, cli.BadInput(err)
	}
	var err error
	if d.web, err = openDevWeb(filepath.Join(d.dir, "web"), filepath.Join(d.dir, "ca.pem")); err != nil {
		return nil, err
	}
	ports := &portList{next: d.flags.port}
	if err := d.brokers(ctx, ports); err != nil {
		return nil, err
	}
	if d.cloud, err = openDevCloud(ctx, d, ports); err != nil {
		return nil, err
	}
	d.say("the sandbox clouds listen: AWS, GCP and Azure token services (%s)", d.cloud.lenient())
	if err := d.agents(ctx); err != nil {
		return nil, err
	}
	jobCtx, cancel := context.WithTimeout(ctx, devReportTime)
	defer cancel()
	return d.mainJob(jobCtx), ctx.Err()
}

// directories makes the state directory and the one of the sockets. The
// latter lies where other users get to, and is the same for the same state.
func (d *dev) directories() (err error) {
	if d.dir = d.flags.data; d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "credence-dev-"); err != nil {
			return err
		}
		dir := d.dir
		d.cleanup = append(d.cleanup, func() { _ = os.RemoveAll(dir) })
	}
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(d.dir, 0o711); err != nil {
		return fmt.Errorf("--data %s: %w", d.dir, err)
	}
	unlock, err := lockState(d.dir)
	if err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, unlock)
	run, err := socketDir(d.dir)
	if err != nil {
		return err
	}
	if run != filepath.Join(d.dir, "run") {
		d.cleanup = append(d.cleanup, func() { _ = os.RemoveAll(run) })
	}
	d.own = &devSide{domain: devDomain, run: run}
	d.peer = &devSide{domain: devPeer, run: filepath.Join(run, "peer")}
	if err := os.MkdirAll(d.peer.run, 0o755); err != nil {
		return err
	}
	return os.Chmod(d.peer.run, 0o755)
}

// portList hands out listeners: of consecutive ports, or of any.
type portList struct{ next int }

func (l *portList) listen() (net.Listener, error) {
	port := l.next
	if port > 0 {
		l.next++
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, cli.BadInput(fmt.Errorf("listening: %w", err))
	}
	return listener, nil
}

// brokers brings both brokers up, side by side.
func (d *dev) brokers(ctx context.Context, ports *portList) error {
	for _, s := range []*devSide{d.own, d.peer} {
		f, o, err := d.brokerSetup(s, ports)
		if err != nil {
			return err
		}
		s.broker = &brokerParts{file: f, listeners: o.listeners}
	}
	var opening sync.WaitGroup
	errs := make([]error, 2)
	for i, s := range []*devSide{d.own, d.peer} {
		opening.Go(func() {
			o := brokerOptions{listeners: s.broker.listeners, now: d.p.Now, log: d.log.With("trust_domain", s.domain), webRoots: d.web.roots}
			if s == d.own {
				o.web.cert = d.web.certificate
			}
			b, err := newBroker(ctx, s.broker.file, o)
			if err != nil {
				errs[i] = fmt.Errorf("broker of %s: %w", s.domain, err)
				s.broker = nil
				return
			}
			s.broker = b
		})
	}
	opening.Wait()
	if err := errors.Join(errs...); err != nil {
		return cli.BadInput(err)
	}
	for _, s := range []*devSide{d.own, d.peer} {
		d.goOn(ctx, "broker of "+s.domain, s.broker.run)
		d.say("the broker of trust domain %s is up: root %s, agents on %s", s.domain, s.broker.authority.Pin()[:23]+"...", s.broker.listeners.Agents.Addr())
	}
	return nil
}

// goOn runs a part until dev stops.
func (d *dev) goOn(ctx context.Context, what string, part func(context.Context) error) {
	d.running.Go(func() {
		err := part(ctx)
		if ctx.Err() == nil {
			d.failed <- fmt.Errorf("%s ended: %w", what, errors.Join(err, errors.New("see above")))
		}
	})
}

func (d *dev) brokerSetup(s *devSide, ports *portList) (f brokerFile, o brokerOptions, err error) {
	f = brokerFile{TrustDomain: s.domain, Data: filepath.Join(d.dir, "broker"), Admin: s.socket("admin")}
	if s == d.peer {
		f.Data = filepath.Join(d.dir, "peer", "broker")
	}
	listen := func(into *net.Listener) {
		if err == nil {
			*into, err = ports.listen()
		}
	}
	listen(&o.listeners.Agents)
	listen(&o.listeners.SPIFFE)
	if s == d.own {
		listen(&o.listeners.Web)
	}
	if err != nil {
		return f, o, err
	}
	if s == d.own {
		f.Issuer = "https://" + o.listeners.Web.Addr().String()
	}
	if err := os.MkdirAll(filepath.Dir(f.Data), 0o711); err != nil {
		return f, o, err
	}
	if o.listeners.Admin, err = caller.Listen(f.Admin, 0o600); err != nil {
		return f, o, cli.BadInput(err)
	}
	return f, o, f.complete()
}

// agents brings both agents up, and applies the resources meanwhile.
func (d *dev) agents(ctx context.Context) error {
	for _, s := range []*devSide{d.own, d.peer} {
		f := agentcmd.File{
			TrustDomain: s.domain, Data: filepath.Join(d.dir, "agent"), Broker: []string{s.broker.listeners.Agents.Addr().String()},
			Socket: s.socket("workload"), Admin: s.socket("agent-admin"),
		}
		if s == d.peer {
			f.Data = filepath.Join(d.dir, "peer", "agent")
		}
		f.Trust.CAPin = []string{s.broker.authority.Pin()}
		f.Join.Method = "token"
		a, err := agentcmd.New(f, s.joinToken, d.p.Now, d.log.With("trust_domain", s.domain))
		if err != nil {
			return cli.BadInput(fmt.Errorf("agent of %s: %w", s.domain, err))
		}
		s.agent = a
		d.goOn(ctx, "agent of "+s.domain, func(ctx context.Context) error { return d.keepAgent(ctx, s, f, a) })
	}
	if err := d.applyResources(ctx); err != nil {
		return err
	}
	for _, s := range []*devSide{d.own, d.peer} {
		select {
		case <-s.agent.Agent.Ready():
			d.say("node %s joined with a single-use token; its agent serves %s", s.agent.Agent.NodeID(), "unix://"+s.socket("workload"))
		case err := <-d.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// keepAgent runs an agent. An evicted one ends; dev waits until its node is
// allowed back, and has it join again as an operator would.
func (d *dev) keepAgent(ctx context.Context, s *devSide, f agentcmd.File, a *agentcmd.Daemon) error {
	for {
		err := a.Run(ctx)
		a.Close()
		if ctx.Err() != nil || !s.evicted(ctx) {
			return err
		}
		d.say("node %s of %s is evicted: its SVIDs and credentials are erased; let it come back with: credence node allow %[1]s", devNode, s.domain)
		for s.evicted(ctx) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(200 * time.Millisecond):
			}
		}
		if a, err = agentcmd.New(f, s.joinToken, d.p.Now, d.log.With("trust_domain", s.domain)); err != nil {
			return err
		}
		d.say("node %s of %s is allowed back and joins again", devNode, s.domain)
	}
}

// evicted says whether the side's node stands evicted.
func (s *devSide) evicted(ctx context.Context) (evicted bool) {
	err := s.admin(ctx, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.ListNodes(ctx, &api.ListNodesRequest{Id: devNode})
		for _, n := range r.GetNodes() {
			evicted = n.GetEvictedAt() != 0
		}
		return err
	})
	return err == nil && evicted
}

// admin calls a side's broker over its admin socket.
func (s *devSide) admin(ctx context.Context, do func(context.Context, api.AdminClient) error) error {
	conn, err := cli.DialSocket("unix://" + s.socket("admin"))
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(ctx, api.NewAdminClient(conn))
}

func (s *devSide) joinToken(ctx context.Context) (evidence []byte, err error) {
	err = s.admin(ctx, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.CreateToken(ctx, &api.CreateTokenRequest{Node: devNode})
		evidence = []byte(r.GetToken())
		return err
	})
	return evidence, err
}

// applyResources makes both brokers hold what the demo needs. Each knows the
// other as a peer by the fingerprint of its root.
func (d *dev) applyResources(ctx context.Context) error {
	uid := os.Getuid()
	own := fmt.Sprintf(`kind: Identity
name: demo
spiffe_id: %s
match:
  - node.name: %s
    workload.unix.uid: "%d"
x509: {subject: "CN=demo"}
jwt: {audiences: ["**"]}
federates_with: [%s]
targets: [%s]
---
%s---
%s`, devWorkload, devNode, uid, devPeer, strings.Join(targetNames, ", "), peerYAML(d.peer), d.cloud.targets())
	partner := fmt.Sprintf(`kind: Identity
name: partner
spiffe_id: %s
match:
  - node.name: %s
    workload.unix.uid: "%d"
federates_with: [%s]
---
%s`, devPartner, devNode, uid, devDomain, peerYAML(d.own))
	for s, text := range map[*devSide]string{d.own: own, d.peer: partner} {
		err := s.admin(ctx, func(ctx context.Context, c api.AdminClient) error {
			r, err := c.Apply(ctx, &api.ApplyRequest{Yaml: []byte(text), Owner: devOwner, File: "dev"})
			for _, w := range r.GetWarnings() {
				if strings.HasPrefix(w, "Peer ") {
					return errors.New(w)
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("applying to %s: %w", s.domain, err)
		}
	}
	d.say("%s and %s federate: each fetched the other's bundle over https_spiffe", devDomain, devPeer)
	return nil
}

func peerYAML(s *devSide) string {
	return fmt.Sprintf(`kind: Peer
name: %s
url: %s
https_spiffe: {endpoint_id: "%s", fingerprint: "%s"}
allow_private: true
`, s.domain, s.bundleURL(), s.endpointID(), s.broker.authority.Pin())
}
