package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	health "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/credence-id/credence/agent/caller"
	watch "github.com/credence-id/credence/agent/telemetry"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/telemetry"
	"github.com/credence-id/credence/cmd/cli"
)

// healthFile is health of broker.yaml: where probes ask GET /live and /ready
// besides the admin socket. Ready is false when nothing can be issued or recorded,
// or what is written is not in force; it stays true while the database is away.
type healthFile struct {
	Listen string `yaml:"listen"` // 127.0.0.1:PORT or unix:///PATH; default: nowhere
	// Lets listen be any address, for a kubelet's probes. Others who reach it
	// learn yes or no, and nothing else.
	AnyAddress bool `yaml:"any_address"`
}

// metricsFile is metrics of broker.yaml: where Prometheus asks GET /metrics besides
// the admin socket.
type metricsFile struct {
	Listen string `yaml:"listen"` // 127.0.0.1:PORT or unix:///PATH; any address with allow; default: nowhere
	// SPIFFE IDs of ours: with any, listen speaks TLS with the broker's SVID, and
	// only who shows an X509-SVID of one of these is told.
	Allow []string `yaml:"allow"`
}

// places reads where to listen.
func (f *brokerFile) places() (probes, scrapes *watch.Place, err error) {
	if f.Health.Listen != "" {
		if probes, err = watch.ParsePlace(f.Health.Listen, f.Health.AnyAddress); err != nil {
			return nil, nil, fmt.Errorf("health.listen: %w", err)
		}
	}
	if f.Health.AnyAddress && (probes == nil || !probes.Anywhere) {
		return nil, nil, errors.New("health.any_address: is for a listen that others reach, such as 0.0.0.0:8452")
	}
	if _, err := f.scrapers(); err != nil {
		return nil, nil, err
	}
	if f.Metrics.Listen != "" {
		if scrapes, err = watch.ParsePlace(f.Metrics.Listen, len(f.Metrics.Allow) > 0); err != nil {
			return nil, nil, fmt.Errorf("metrics.listen: %w; with metrics.allow any address will do", err)
		}
	}
	if len(f.Metrics.Allow) > 0 && (scrapes == nil || scrapes.Network != "tcp") {
		return nil, nil, errors.New("metrics.allow: is for a metrics.listen with an address and a port")
	}
	if probes != nil && scrapes != nil && probes.Address == scrapes.Address {
		return nil, nil, errors.New("metrics.listen: health listens there")
	}
	return probes, scrapes, nil
}

// scrapers are who may ask for metrics.
func (f *brokerFile) scrapers() (all []spiffeid.ID, err error) {
	td, err := identity.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust_domain: %w", err)
	}
	for i, text := range f.Metrics.Allow {
		id, err := identity.ParseID(text)
		if err == nil && (id.TrustDomain() != td || id.Path() == "" || identity.IsReserved(id)) {
			err = fmt.Errorf("%s is no workload's or person's of %s", id, td)
		}
		if err != nil {
			return nil, fmt.Errorf("metrics.allow[%d]: %w", i, err)
		}
		all = append(all, id)
	}
	return all, nil
}

// checkPlaces tries to listen where the file says.
func (f *brokerFile) checkPlaces() (all []cli.Finding) {
	probes, scrapes, _ := f.places() // complete has told
	for _, one := range []struct {
		what string
		at   *watch.Place
	}{{"health.listen", probes}, {"metrics.listen", scrapes}} {
		if one.at == nil {
			continue
		}
		l, err := one.at.Listen()
		if err == nil {
			err = l.Close()
		}
		all = append(all, cli.Found(one.what, err))
	}
	return all
}

// newMetrics counts for a broker.
func (f *brokerFile) newMetrics() *telemetry.Metrics {
	kind, _, _ := strings.Cut(f.Store, "://")
	return telemetry.New(telemetry.Config{Version: cli.Version(), TrustDomain: f.TrustDomain, StoreKind: kind})
}

// splitAdmin lets the admin socket speak HTTP too.
func (p *brokerParts) splitAdmin() {
	if p.listeners.Admin == nil {
		return // it is opened, and serves nobody
	}
	p.split = watch.NewSplit(p.listeners.Admin, caller.RequireUID(0, uint32(os.Getuid())))
	p.listeners.Admin = p.split.GRPC()
}

func (p *brokerParts) healthOf(s *server.Server) *watch.Health {
	return watch.NewHealth(watch.HealthConfig{Agent: s, Notes: s.Notes, Says: "credence status", Now: p.now})
}

// healthServer is server.Config's Health.
func (p *brokerParts) healthServer(s *server.Server) health.HealthServer { return p.healthOf(s) }

// watch answers probes and scrapes until ctx ends.
func (p *brokerParts) watch(ctx context.Context) error {
	probes, scrapes, err := p.file.places()
	if err != nil {
		return err
	}
	if scrapes != nil && len(p.file.Metrics.Allow) > 0 {
		allow, err := p.file.scrapers()
		if err != nil {
			return err
		}
		scrapes.TLS = p.server.ScrapeTLS(allow)
	}
	watch.Serve(ctx, watch.Config{
		Health: p.healthOf(p.server), Metrics: p.metrics, Admin: p.split.HTTP(), Profiles: p.file.Pprof, Probes: probes, Scrapes: scrapes, Log: p.log,
	})
	return nil
}
