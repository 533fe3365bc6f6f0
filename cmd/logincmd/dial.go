package logincmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/cmd/cli"
)

// Trust is by what a broker is known: the bundle of its trust domain or, at the
// first contact, the pinned keys of CAs.
type Trust struct {
	Domain spiffeid.TrustDomain
	Bundle *x509bundle.Bundle
	Pins   []string
}

func (t Trust) verify(shown []*x509.Certificate, now time.Time) error {
	if len(shown) == 0 || len(shown) > 8 {
		return fmt.Errorf("the server shows %d certificates", len(shown))
	}
	bundle := t.Bundle
	if bundle == nil {
		var err error
		if bundle, err = agent.PinnedBundle(t.Domain, shown, t.Pins); err != nil {
			return err
		}
	}
	return agent.VerifyBroker(shown, bundle, now)
}

// Dial opens a connection to the agents' port of a broker, showing a certificate or
// none. It takes nobody but the broker of the trust domain at the other end.
func Dial(address string, trust Trust, show *tls.Certificate, now func() time.Time) (*grpc.ClientConn, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, cli.BadInput(fmt.Errorf("broker %.200q: HOST:PORT of its agents' listener is wanted", address))
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The name plays no part (SPIFFE X509-SVID §5.2): VerifyConnection
		// does all of the verifying.
		InsecureSkipVerify: true,
		NextProtos:         []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if show == nil {
				return &tls.Certificate{}, nil
			}
			return show, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error { return trust.verify(state.PeerCertificates, now()) },
	}
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}
