package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	health "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/credence-id/credence/agent/telemetry"
	"github.com/credence-id/credence/cmd/cli"
)

// healthFile is health of agent.yaml: where probes ask GET /live and /ready
// besides the admin socket. Live is false when a loop of the agent hangs, ready
// when less than a quarter of an SVID's life is left and its renewal failed.
type healthFile struct {
	Listen string `yaml:"listen"` // 127.0.0.1:PORT or unix:///PATH; default: nowhere
	// Lets listen be any address, for a kubelet's probes. Others who reach it
	// learn yes or no, and nothing else.
	AnyAddress bool `yaml:"any_address"`
}

// metricsFile is metrics of agent.yaml: where Prometheus asks GET /metrics
// besides the admin socket.
type metricsFile struct {
	Listen    string `yaml:"listen"`     // 127.0.0.1:PORT or unix:///PATH; default: nowhere
	SPIFFEIDs bool   `yaml:"spiffe_ids"` // one series for each SPIFFE ID that is held, for all who can ask
}

// places reads where to listen.
func (f *File) places() (probes, scrapes *telemetry.Place, err error) {
	if f.Health.Listen != "" {
		if probes, err = telemetry.ParsePlace(f.Health.Listen, f.Health.AnyAddress); err != nil {
			return nil, nil, fmt.Errorf("health.listen: %w", err)
		}
	}
	if f.Health.AnyAddress && (probes == nil || !probes.Anywhere) {
		return nil, nil, errors.New("health.any_address: is for a listen that others reach, such as 0.0.0.0:8452")
	}
	if f.Metrics.Listen != "" {
		if scrapes, err = telemetry.ParsePlace(f.Metrics.Listen, false); err != nil {
			return nil, nil, fmt.Errorf("metrics.listen: %w", err)
		}
	}
	if probes != nil && scrapes != nil && probes.Address == scrapes.Address {
		return nil, nil, errors.New("metrics.listen: health listens there")
	}
	return probes, scrapes, nil
}

// checkPlaces tries to listen where the file says.
func (f *File) checkPlaces() (all []cli.Finding) {
	probes, scrapes, _ := f.places() // Complete has told
	try := func(what string, p *telemetry.Place) {
		if p == nil {
			return
		}
		l, err := p.Listen()
		if err == nil {
			err = l.Close()
		}
		all = append(all, cli.Found(what, err))
	}
	try("health.listen", probes)
	try("metrics.listen", scrapes)
	return all
}

// watched is what those ask who watch over the agent.
type watched struct {
	metrics         *telemetry.Metrics
	probes, scrapes *telemetry.Place
	profiles        bool
}

func (f *File) watched() (*watched, error) {
	probes, scrapes, err := f.places()
	if err != nil {
		return nil, err
	}
	m := telemetry.NewMetrics(telemetry.MetricsConfig{Version: cli.Version(), SPIFFEIDs: f.Metrics.SPIFFEIDs})
	return &watched{metrics: m, probes: probes, scrapes: scrapes, profiles: f.Pprof}, nil
}

// serveAdmin serves the admin socket, gRPC and HTTP, until ctx ends or g is
// stopped, which it must be.
func (p *Daemon) serveAdmin(ctx context.Context, g *grpc.Server) error {
	split := telemetry.NewSplit(p.admin, owner())
	h := telemetry.NewHealth(telemetry.HealthConfig{Agent: p.Agent, Now: p.now})
	health.RegisterHealthServer(g, h)
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	serving.Go(split.Run)
	serving.Go(func() {
		telemetry.Serve(ctx, telemetry.Config{
			Health: h, Metrics: p.watched.metrics, Admin: split.HTTP(), Profiles: p.watched.profiles,
			Probes: p.watched.probes, Scrapes: p.watched.scrapes, Log: p.log,
		})
	})
	return g.Serve(split.GRPC())
}
