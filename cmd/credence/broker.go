package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent/caller"
	watch "github.com/credence-id/credence/agent/telemetry"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/telemetry"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/tracing"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

// brokerParts is a broker put together: what dev and broker run share.
type brokerParts struct {
	file      brokerFile
	store     *store.Store
	since     uint64         // revision of the store before anything of it was read
	replica   *store.Replica // nil: the store is this broker's alone
	keeper    *store.Keeper  // nil: the database is in the data directory
	audit     *audit.Log
	keeping   *keeping
	keys      []*sourceKeys
	authority *authority.Authority
	peers     *federation.Refresher
	broker    *broker.Broker
	server    *server.Server
	listeners server.Listeners
	methods   *joinMethods
	networks  atomic.Pointer[[]netip.Prefix] // that may be dialled, whatever they are
	keepWeb   func(context.Context) error    // nil: nothing to do
	reloads   func(context.Context) error    // likewise
	split     *watch.Split                   // of the admin socket
	metrics   *telemetry.Metrics
	tracing   *tracing.Tracing // nil: off
	now       func() time.Time
	log       *slog.Logger
}

// brokerOptions are what differs between dev and broker run.
type brokerOptions struct {
	listeners server.Listeners
	web       webServing
	webRoots  *x509.CertPool // verify https_web peers; nil: the system's
	keys      keyAccess
	path      string // of broker.yaml; empty: there is none
	now       func() time.Time
	log       *slog.Logger
}

// newBroker puts a broker together in its data directory. Close it.
func newBroker(ctx context.Context, f brokerFile, o brokerOptions) (_ *brokerParts, err error) {
	p := &brokerParts{file: f, listeners: o.listeners, metrics: f.newMetrics(), now: o.now, log: o.log, keepWeb: o.web.keep}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	td, err := identity.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		return nil, err
	}
	if err := checkRestored(f.Data); err != nil {
		return nil, err
	}
	if p.tracing, err = tracing.Open(ctx, f.Traces, "credence-broker", cli.Version(), o.log); err != nil {
		return nil, err
	}
	if err := p.openStore(ctx, o); err != nil {
		return nil, err
	}
	record := f.Audit.config(f.Data, o.log)
	record.Observe = p.metrics.Recorded
	if p.audit, err = audit.Open(record); err != nil {
		return nil, err
	}
	if err := p.recordRestore(ctx); err != nil {
		return nil, err
	}
	if p.keeping, err = p.newKeeping(); err != nil {
		return nil, err
	}
	if err := p.claimName(ctx, o.now()); err != nil {
		return nil, err
	}
	if err := p.openAuthority(ctx, td, o); err != nil {
		return nil, err
	}
	networks, err := f.networks()
	if err != nil {
		return nil, err
	}
	p.networks.Store(&networks)
	outward := fetch.Config{AllowedNow: func() []netip.Prefix { return *p.networks.Load() }, Roots: o.webRoots, Now: o.now, Log: o.log}
	client := fetch.New(outward)
	p.peers, err = federation.New(federation.Config{
		TrustDomain: td, Store: server.RecordPeers(p.store, p.audit), Now: o.now, Log: o.log,
		Fetcher: client, Checker: client,
		Own: func() *x509bundle.Bundle {
			b, _ := p.authority.GetX509BundleForTrustDomain(td)
			return b
		},
	})
	if err != nil {
		return nil, err
	}
	return p, p.openServer(ctx, td, outward, o)
}

func (p *brokerParts) openAuthority(ctx context.Context, td spiffeid.TrustDomain, o brokerOptions) error {
	config, err := p.authorityConfig(ctx, td, o)
	if err != nil {
		return err
	}
	p.authority, err = authority.Open(ctx, config)
	return err
}

// authorityConfig opens what the authority is opened with.
func (p *brokerParts) authorityConfig(ctx context.Context, td spiffeid.TrustDomain, o brokerOptions) (config authority.Config, err error) {
	lead, err := cli.LifeField("jwt_key_lead", p.file.JWTKeyLead, 0, 7*24*time.Hour)
	if err != nil {
		return config, err
	}
	hint, err := p.file.refreshHint()
	if err != nil {
		return config, err
	}
	keys, err := p.openKeys(ctx, o.keys)
	if err != nil {
		return config, err
	}
	config = authority.Config{
		TrustDomain: td, Issuer: p.file.Issuer, Broker: p.file.Name, Records: server.RecordAuthorities(p.store, p.audit), Keys: keys.own, RootKeys: keys.root, JWTKeys: keys.jwt,
		Lives: authority.Lives{Lead: lead, RefreshHint: hint}, CRLURLs: p.file.CRLURLs, Places: p.file.PublishTo, Confirmed: p.store.Places,
		Now: o.now, Log: o.log,
	}
	if p.file.shared() {
		config.Leases = p.store
	}
	return config, p.file.CA.into(&config, o.now)
}

// keyPlaces are where private keys are: own are those of issuing CAs, and all that
// has no place of its own (nil).
type keyPlaces struct{ own, root, jwt authority.Keys }

func (p *brokerParts) openKeys(ctx context.Context, access keyAccess) (places keyPlaces, err error) {
	own, err := openKeys(ctx, p.file, "keys", purposeKeys, p.file.Keys, access)
	if err != nil {
		return places, err
	}
	p.keys = append(p.keys, own)
	places.own = own
	if p.file.shared() && p.file.Keys.Disk != nil {
		shared, err := openShared(p.file, "keys", purposeKeys, p.file.Keys)
		if err != nil {
			return places, err
		}
		places.root, places.jwt = shared, shared
	}
	if p.file.RootKeys == nil {
		return places, nil
	}
	if p.file.shared() && p.file.RootKeys.Disk != nil {
		places.root, err = openShared(p.file, "root_keys", purposeRoot, p.file.RootKeys)
		return places, err
	}
	root, err := openKeys(ctx, p.file, "root_keys", purposeRoot, p.file.RootKeys, access)
	if err != nil {
		return places, err
	}
	p.keys = append(p.keys, root)
	places.root = root
	return places, nil
}

func (p *brokerParts) openServer(ctx context.Context, td spiffeid.TrustDomain, outward fetch.Config, o brokerOptions) (err error) {
	minTTL, err := p.file.minTTL()
	if err != nil {
		return err
	}
	policy := identity.Config{
		TrustDomain: td, JWT: p.file.Issuer != "", DNSSuffixes: p.file.DNSSuffixes, Subjects: p.file.Subjects, MinTTL: minTTL,
	}
	empty, err := identity.NewSet(policy, identity.Resources{})
	if err != nil {
		return err
	}
	p.methods = &joinMethods{trustDomain: td, store: p.store, svid: p.verifySVID(td, o.now), fetch: outward, now: o.now, log: o.log}
	p.broker, err = broker.New(ctx, broker.Config{
		TrustDomain: td, Method: p.methods.of, Issuer: p.authority, Store: p.store, Away: p.store.Writable, Audit: p.audit,
		Record: p.audit, Index: p.store, CRLs: server.Lists{Authority: p.authority}, Origin: p.file.Name, DenyFile: filepath.Join(p.file.Data, "revoked.jsonl"),
		Policy: &broker.Policy{Set: empty}, Observe: p.metrics.Observe, Tracer: p.tracing.Tracer("credence/broker"), Now: o.now, Log: o.log,
	})
	if err != nil {
		return err
	}
	hint, err := p.file.refreshHint()
	if err != nil {
		return err
	}
	var discovery http.Handler
	if p.file.Issuer != "" {
		discovery, err = oidc.New(oidc.Config{Issuer: p.file.Issuer, Keys: p.authority.OIDCKeys, MaxAge: hint})
		if err != nil {
			return err
		}
	}
	listen := map[string]string{"agents": p.listeners.Agents.Addr().String()}
	if p.listeners.SPIFFE != nil {
		listen["spiffe"] = p.listeners.SPIFFE.Addr().String()
	}
	if p.listeners.Web != nil {
		listen["web"] = p.listeners.Web.Addr().String()
	}
	settings, err := p.settings(p.file)
	if err != nil {
		return err
	}
	p.server, err = server.New(ctx, server.Config{
		TrustDomain: td, Issuer: p.file.Issuer, Version: cli.Version(), Broker: p.broker, Authority: p.authority, Backup: p.backupTo(o.path, o.now),
		Store: p.store, Audit: p.audit, AuditDir: filepath.Join(p.file.Data, "audit"), AuditHolds: p.keeping.holds, AuditProblems: p.keeping.problems, Peers: p.peers, Policy: policy, Resources: registry(), OIDC: discovery,
		Since: p.since, Replica: p.replica, Keeper: p.keeper, RefreshHint: hint, Places: p.file.PublishTo, AgentsAddress: listen["agents"], Listen: listen,
		AdminCredentials: caller.CredentialsFor(caller.RequireUID(0, uint32(os.Getuid()))),
		AdminActor:       adminActor, WebCertificate: o.web.cert, WebTLS: o.web.tls, WebProxied: o.web.proxied, Exchanger: exchangerFor, Proofs: p.methods.pod, Login: settings.Login, Roles: settings.Roles, Limits: settings.Limits,
		Health: p.healthServer, Calls: append(p.metrics.ServerOptions(), p.tracing.Server()...), Trace: p.tracing.Request("token"), Now: o.now, Log: o.log,
	})
	if err != nil {
		return err
	}
	p.metrics.Of(p.server)
	p.splitAdmin()
	return nil
}

// adminActor names who is at the admin socket, for the record.
func adminActor(ctx context.Context) string {
	if p, ok := caller.FromContext(ctx); ok {
		return fmt.Sprintf("uid:%d", p.UID())
	}
	return "unknown"
}

// run serves until ctx ends.
func (p *brokerParts) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, 9)
	var running sync.WaitGroup
	if p.reloads != nil {
		running.Go(func() { errs <- p.reloads(ctx) })
	}
	running.Go(p.split.Run)
	running.Go(func() { errs <- p.watch(ctx) })
	if p.keepWeb != nil {
		running.Go(func() { errs <- p.keepWeb(ctx); cancel() })
	}
	if p.keeper != nil {
		running.Go(func() { errs <- p.keeper.Run(ctx); cancel() })
	}
	running.Go(func() { errs <- p.keeping.run(ctx); cancel() })
	running.Go(func() { errs <- p.authority.Run(ctx); cancel() })
	running.Go(func() { errs <- p.peers.Run(ctx); cancel() })
	running.Go(func() { errs <- p.broker.Run(ctx); cancel() })
	running.Go(func() { errs <- p.server.Run(ctx, p.listeners); cancel() })
	running.Wait()
	close(errs)
	var all []error
	for err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// close lets go of what was opened, the record last.
func (p *brokerParts) close() error {
	var errs []error
	if p.broker != nil {
		errs = append(errs, p.broker.Close())
	}
	if p.keeping != nil {
		errs = append(errs, p.keeping.close())
	}
	if p.audit != nil {
		errs = append(errs, p.audit.Close())
	}
	for _, k := range p.keys {
		errs = append(errs, k.close())
	}
	p.tracing.Close()
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	for _, l := range []net.Listener{p.listeners.Agents, p.listeners.Admin, p.listeners.SPIFFE, p.listeners.Web} {
		if l != nil {
			_ = l.Close() // it may be closed already
		}
	}
	return errors.Join(errs...)
}
