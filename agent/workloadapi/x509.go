package workloadapi

import (
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/agent"
)

// FetchX509SVID streams all X509-SVIDs of the caller and the bundles that it
// needs (SPIFFE Workload API §5.2.1): whole, the first at once, then at each
// change.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return each(s, stream, x509Response)
}

func x509Response(own spiffeid.TrustDomain, u agent.Update) (*workload.X509SVIDResponse, error) {
	bundles, err := x509Bundles(own, u)
	if err != nil {
		return nil, err
	}
	m := &workload.X509SVIDResponse{FederatedBundles: bundles, Crl: crls(u)}
	bundle := bundles[own.IDString()]
	delete(bundles, own.IDString())
	for _, v := range u.SVIDs {
		m.Svids = append(m.Svids, &workload.X509SVID{
			SpiffeId: v.ID.String(), X509Svid: derOf(v.Certificates), X509SvidKey: v.KeyDER, Bundle: bundle, Hint: v.Hint,
		})
	}
	return m, nil
}

// FetchX509Bundles streams the X.509 bundles of our own trust domain and of
// those that the caller's identities federate with (SPIFFE Workload API
// §5.2.2).
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return each(s, stream, func(own spiffeid.TrustDomain, u agent.Update) (*workload.X509BundlesResponse, error) {
		bundles, err := x509Bundles(own, u)
		return &workload.X509BundlesResponse{Bundles: bundles, Crl: crls(u)}, err
	})
}

// crls are those of our own CAs, each whole, in DER (SPIFFE Workload API §5.1).
func crls(u agent.Update) (all [][]byte) {
	for _, l := range u.CRLs {
		all = append(all, l.DER)
	}
	return all
}

// x509Bundles are bundles by the SPIFFE ID of their trust domain. One that is
// empty is left out, and our own must not be.
func x509Bundles(own spiffeid.TrustDomain, u agent.Update) (map[string][]byte, error) {
	bundles := make(map[string][]byte, len(u.Bundles))
	for td, b := range u.Bundles {
		if der := derOf(b.X509Authorities); len(der) > 0 {
			bundles[td.IDString()] = der
		}
	}
	if bundles[own.IDString()] == nil {
		return nil, fmt.Errorf("%w: the bundle of %s is empty", agent.ErrUnavailable, own)
	}
	return bundles, nil
}

// derOf is certificates one after the other (SPIFFE Workload API §5.1).
func derOf(certs []*x509.Certificate) []byte {
	der := []byte{}
	for _, c := range certs {
		der = append(der, c.Raw...)
	}
	return der
}
