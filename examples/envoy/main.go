// Command envoy does with an Envoy's configuration what Envoy does: it reads it
// strictly, subscribes to the secrets that it names, each on a stream of its
// own, and completes mTLS with them, as the SPIFFE certificate validator would.
// The other side is the peer of credence dev.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	config := flag.String("config", "envoy.yaml", "Envoy's configuration")
	dev := flag.String("dev", "dev.json", "what credence dev --data wrote")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := run(ctx, *config, *dev); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config, dev string) error {
	bootstrap, err := load(config)
	if err != nil {
		return err
	}
	names := secretNames(bootstrap)
	fmt.Println(filepath.Base(config), "is a configuration of Envoy, and asks for", names)
	var sockets struct {
		Own  string `json:"workload_socket"`
		Peer struct {
			Socket string `json:"workload_socket"`
		} `json:"peer"`
	}
	text, err := os.ReadFile(dev)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &sockets); err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	own, err := side(ctx, sockets.Own, names)
	if err != nil {
		return err
	}
	peer, err := side(ctx, sockets.Peer.Socket, names)
	if err != nil {
		return err
	}
	return handshake(ctx, own, peer)
}

// side is TLS with what an agent gives to a configuration's names.
func side(ctx context.Context, socket string, names []string) (*tls.Config, error) {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true} // verified by SPIFFE ID instead
	for _, name := range names {
		s, err := subscribe(ctx, secret.NewSecretDiscoveryServiceClient(conn), name)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", socket, name, err)
		}
		if t := s.GetTlsCertificate(); t != nil {
			pair, err := tls.X509KeyPair(t.GetCertificateChain().GetInlineBytes(), t.GetPrivateKey().GetInlineBytes())
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			c.Certificates = []tls.Certificate{pair}
			continue
		}
		validator := &tlspb.SPIFFECertValidatorConfig{}
		if err := s.GetValidationContext().GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(validator); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		c.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error { return verify(raw, validator) }
	}
	if len(c.Certificates) == 0 || c.VerifyPeerCertificate == nil {
		return nil, errors.New("the configuration asks for no certificate, or for nothing that verifies peers")
	}
	return c, nil
}

// subscribe gets a secret and acknowledges it.
func subscribe(ctx context.Context, c secret.SecretDiscoveryServiceClient, name string) (*tlspb.Secret, error) {
	stream, err := c.StreamSecrets(ctx)
	if err != nil {
		return nil, err
	}
	node := &core.Node{Id: "web-1", UserAgentName: "envoy", UserAgentVersionType: &core.Node_UserAgentBuildVersion{
		UserAgentBuildVersion: &core.BuildVersion{Version: &typepb.SemanticVersion{MajorNumber: 1, MinorNumber: 38}},
	}}
	q := &discovery.DiscoveryRequest{Node: node, ResourceNames: []string{name}}
	if err := stream.Send(q); err != nil {
		return nil, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	s := &tlspb.Secret{}
	if n := len(m.GetResources()); n != 1 {
		return nil, fmt.Errorf("%d resources", n)
	}
	if err := m.GetResources()[0].UnmarshalTo(s); err != nil {
		return nil, err
	}
	fmt.Printf("%s: version %s\n", s.GetName(), m.GetVersionInfo())
	return s, stream.Send(&discovery.DiscoveryRequest{ResourceNames: q.ResourceNames, VersionInfo: m.GetVersionInfo(), ResponseNonce: m.GetNonce()})
}

// verify holds a chain against the roots of the trust domain that its leaf
// names, and no other.
func verify(raw [][]byte, by *tlspb.SPIFFECertValidatorConfig) error {
	chain, err := x509.ParseCertificates(slices.Concat(raw...))
	if err != nil {
		return err
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, td := range by.GetTrustDomains() {
		if td.GetName() == id.TrustDomain().Name() {
			roots.AppendCertsFromPEM(td.GetTrustBundle().GetInlineBytes())
		}
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// handshake completes mTLS between two sides over loopback.
func handshake(ctx context.Context, server, client *tls.Config) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	dialled := make(chan error, 1)
	go func() {
		conn, err := (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // the server has verified us when it writes
		}
		dialled <- err
	}()
	raw, err := l.Accept()
	if err != nil {
		return err
	}
	defer raw.Close()
	conn := tls.Server(raw, server)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	if err := <-dialled; err != nil {
		return err
	}
	var ids []spiffeid.ID
	for _, c := range []*tls.Config{server, client} {
		leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
		if err != nil {
			return err
		}
		id, err := x509svid.IDFromCert(leaf)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	fmt.Printf("mTLS both ways: %s with %s\n", ids[0], ids[1])
	return nil
}
