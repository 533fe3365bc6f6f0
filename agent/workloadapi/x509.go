package workloadapi

import (
	"bytes"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
)

// FetchX509SVID streams all X509-SVIDs of the caller and the bundles that it
// needs (SPIFFE Workload API §5.2.1): whole, the first at once, then at each
// change.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	own := s.cfg.Agent.TrustDomain()
	return s.each(stream.Context(), func(u agent.Update) error {
		m, err := x509Response(own, u)
		if err != nil {
			return s.fail(stream.Context(), err)
		}
		return stream.Send(m)
	})
}

func x509Response(own spiffeid.TrustDomain, u agent.Update) (*workload.X509SVIDResponse, error) {
	bundle := derOf(u.Bundles[own].X509Authorities)
	if len(bundle) == 0 {
		return nil, status.Error(codes.Unavailable, "the trust domain's bundle is empty")
	}
	m := &workload.X509SVIDResponse{FederatedBundles: make(map[string][]byte)}
	for _, v := range u.SVIDs {
		key, err := x509.MarshalPKCS8PrivateKey(v.Key)
		if err != nil {
			return nil, fmt.Errorf("marshalling the key of %s: %w", v.ID, err)
		}
		m.Svids = append(m.Svids, &workload.X509SVID{
			SpiffeId: v.ID.String(), X509Svid: derOf(v.Certificates), X509SvidKey: key, Bundle: bundle, Hint: v.Hint,
		})
	}
	for td, b := range u.Bundles {
		if td != own {
			m.FederatedBundles[td.IDString()] = derOf(b.X509Authorities)
		}
	}
	return m, nil
}

// FetchX509Bundles streams the X.509 bundles of our own trust domain and of
// those that the caller's identities federate with (SPIFFE Workload API
// §5.2.2).
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	var last map[string][]byte
	return s.each(stream.Context(), func(u agent.Update) error {
		bundles := make(map[string][]byte, len(u.Bundles))
		for td, b := range u.Bundles {
			bundles[td.IDString()] = derOf(b.X509Authorities)
		}
		if last != nil && sameBundles(bundles, last) {
			return nil // an SVID was renewed, no bundle changed
		}
		last = bundles
		return stream.Send(&workload.X509BundlesResponse{Bundles: bundles})
	})
}

func sameBundles(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for td, document := range a {
		other, ok := b[td]
		if !ok || !bytes.Equal(document, other) {
			return false
		}
	}
	return true
}

// derOf is certificates one after the other (SPIFFE Workload API §5.1).
func derOf(certs []*x509.Certificate) []byte {
	der := []byte{}
	for _, c := range certs {
		der = append(der, c.Raw...)
	}
	return der
}
