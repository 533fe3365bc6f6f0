package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/federation/federationtest"
)

// trusting is an authority in whose bundle stand others besides, so that a test
// can sign what ours never would.
type trusting struct {
	server.Authority
	more atomic.Pointer[x509bundle.Bundle]
}

func (a *trusting) GetX509BundleForTrustDomain(of spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	own, err := a.Authority.GetX509BundleForTrustDomain(of)
	if err != nil {
		return nil, err
	}
	both := own.Clone()
	if more := a.more.Load(); more != nil {
		for _, c := range more.X509Authorities() {
			both.AddX509Authority(c)
		}
	}
	return both, nil
}

// TestClientCertificateVectors are the vectors of section B, shown to the
// agents' listener by a client.
func TestClientCertificateVectors(t *testing.T) {
	authority := &trusting{}
	e := newEnv(t, func(e *env) {
		e.trust = func(a server.Authority) server.Authority { authority.Authority = a; return authority }
	})
	address := e.listeners.Agents.Addr().String()
	for _, v := range federationtest.X509Vectors(t, time.Now(), "/credence/node/n1") {
		t.Run(v.Name, func(t *testing.T) {
			authority.more.Store(v.Bundle)
			show := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &tls.Certificate{Certificate: v.Shown, PrivateKey: v.Key}, nil
			}
			_, err := handshake(t, address, &tls.Config{GetClientCertificate: show})
			want := v.Peer && v.Bundle.TrustDomain() == td
			if len(v.Shown) == 0 {
				want = true // a stranger, who may call Join alone
			}
			if (err == nil) != want {
				t.Errorf("error %v, want let in = %v", err, want)
			}
		})
	}
	// Whoever is let in is no node for that.
	cert := federationtest.NewCA(t, time.Now(), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	authority.more.Store(cert.Bundle(td))
	shown := cert.SVID(t, spiffeid.RequireFromPath(td, "/credence/node/n1"))
	_, err := api.NewNodeClient(e.dial(&shown)).IssueX509(t.Context(), &api.IssueX509Request{})
	wantCode(t, err, codes.Unauthenticated)
}

// TestIDVectorsInRequests are the vectors of section A where nodes and
// operators name IDs and trust domains.
func TestIDVectorsInRequests(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			if v.Input == "" {
				return // then none is asked for
			}
			r, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}, SpiffeId: v.Input})
			if v.Valid() && (err != nil || r.GetDenial() == nil) || !v.Valid() && status.Code(err) != codes.InvalidArgument {
				t.Errorf("%.80q: %v, %v: %s", v.Input, r, err, v.Reason)
			}
		})
	}
	for _, v := range federationtest.TrustDomains(t) {
		t.Run(v.ID, func(t *testing.T) {
			want := codes.InvalidArgument
			if v.Valid() {
				want = codes.NotFound
			}
			if v.Input == "" || v.Input == td.Name() {
				want = codes.OK // our own
			}
			if _, err := e.admin().ShowBundle(t.Context(), &api.ShowBundleRequest{TrustDomain: v.Input}); status.Code(err) != want {
				t.Errorf("%.80q: %v, want %v: %s", v.Input, err, want, v.Reason)
			}
		})
	}
}
