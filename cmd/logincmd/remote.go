package logincmd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/cmd/cli"
)

// fetchTime is how long the Workload API may take.
const fetchTime = 15 * time.Second

// Remote opens a connection to the agents' port of a broker, to administer it by
// an SVID that has a role there: that in a directory, as svid x509 --out writes it;
// or else a login's that has not ended; or else what the Workload API gives to this
// process.
func Remote(ctx context.Context, address, dir string, now func() time.Time) (*grpc.ClientConn, error) {
	show, trust, err := credentialsOf(ctx, dir, now)
	if err != nil {
		return nil, err
	}
	return Dial(address, trust, show, now)
}

func credentialsOf(ctx context.Context, dir string, now func() time.Time) (*tls.Certificate, Trust, error) {
	if dir != "" {
		svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"))
		if err != nil {
			return nil, Trust{}, cli.BadInput(fmt.Errorf("--svid %s: %w", dir, err))
		}
		bundle, err := x509bundle.Load(svid.ID.TrustDomain(), filepath.Join(dir, "svid_bundle.pem"))
		if err != nil {
			return nil, Trust{}, cli.BadInput(fmt.Errorf("--svid %s: %w", dir, err))
		}
		return certificate(svid), Trust{Domain: svid.ID.TrustDomain(), Bundle: bundle}, nil
	}
	l, err := Load()
	if err == nil {
		if show := l.Certificate(now()); show != nil {
			return show, Trust{Domain: l.Domain, Bundle: l.Bundle}, nil
		}
	}
	switch socket := os.Getenv(cli.WorkloadVariable); {
	case socket != "":
		return workloads(ctx, socket)
	case err == nil:
		err = cli.WithCode(cli.ExitDenied, errors.New("your login has ended: run credence login"))
	case errors.Is(err, errNone):
		err = cli.BadInput(fmt.Errorf("by which SVID? run credence login, give --svid DIR, or set %s", cli.WorkloadVariable))
	}
	return nil, Trust{}, err
}

// workloads is the first SVID that the Workload API gives to this process.
func workloads(ctx context.Context, socket string) (*tls.Certificate, Trust, error) {
	path, err := cli.SocketPath(socket)
	if err != nil {
		return nil, Trust{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+path))
	if err != nil {
		return nil, Trust{}, cli.Reached("agent", path, err)
	}
	svid := x.DefaultSVID()
	bundle, err := x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, Trust{}, err
	}
	return certificate(svid), Trust{Domain: svid.ID.TrustDomain(), Bundle: bundle}, nil
}

func certificate(svid *x509svid.SVID) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}
