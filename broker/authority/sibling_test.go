package authority_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/exchangers/aws"
	cloud "github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/federation"
)

const (
	anchorARN  = "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/11111111-2222-3333-4444-555555555555"
	profileARN = "arn:aws:rolesanywhere:us-east-1:123456789012:profile/66666666-7777-8888-9999-000000000000"
	roleARN    = "arn:aws:iam::123456789012:role/checkout"

	checkoutPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"rolesanywhere.amazonaws.com"},
  "Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
  "Condition":{"StringEquals":{"aws:PrincipalTag/x509SAN/URI":"spiffe://example.org/shop/checkout"},"ArnEquals":{"aws:SourceArn":"` + anchorARN + `"}}}]}`
)

// presented is an X509-SVID as exchangers are handed it.
type presented struct{ svid *x509svid.SVID }

func (p presented) ID() spiffeid.ID                              { return p.svid.ID }
func (p presented) X509(context.Context) (*x509svid.SVID, error) { return p.svid, nil }
func (p presented) JWT(context.Context) (string, error)          { return "", errors.New("no JWT-SVID") }
func svidOf(chain []*x509.Certificate, key crypto.Signer) presented {
	return presented{&x509svid.SVID{ID: spiffeid.RequireFromURI(chain[0].URIs[0]), Certificates: chain, PrivateKey: key}}
}

// anywhere exchanges an SVID at a Roles Anywhere whose anchor is the only root
// of our bundle.
func anywhere(t *testing.T, now func() time.Time, anchor *x509.Certificate, p presented) error {
	t.Helper()
	c, err := cloud.New(cloud.Config{
		Now: now, Account: "123456789012", Region: "us-east-1",
		TrustAnchors: []cloud.TrustAnchor{{ARN: anchorARN, Certificates: []*x509.Certificate{anchor}, Enabled: true}},
		Profiles:     []cloud.Profile{{ARN: profileARN, RoleARNs: []string{roleARN}, Enabled: true}},
		Roles:        []cloud.Role{{ARN: roleARN, TrustPolicy: checkoutPolicy}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(c.RolesAnywhere())
	defer server.Close()
	exchanger, err := aws.New(aws.Config{
		Settings: &aws.RolesAnywhere{Role: roleARN, TrustAnchor: anchorARN, Profile: profileARN},
		Endpoint: server.URL, Client: server.Client(), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = exchanger.Exchange(t.Context(), p)
	return err
}

// checkout is an SVID of ours with a name that Roles Anywhere asks for.
func checkout(t *testing.T, e *env, a *authority.Authority) presented {
	t.Helper()
	key := newKey(t)
	g := grant(t, identity.Identity{X509: &identity.X509{Subject: "CN=checkout"}},
		identity.Request{Keys: []identity.KeyDigest{digestOf(t, key.Public())}, Time: e.clock.now()})
	chain, err := a.SignX509(t.Context(), g, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return svidOf(chain, key)
}

// Another CA under the corporate root signs a leaf with an ID of ours. With
// that root as anchor everybody believes it, which is why its owner is asked
// what else it signs; with our own CA as anchor nobody does: not an agent, not a
// peer, not Roles Anywhere.
func TestSibling(t *testing.T) {
	for _, tt := range []struct {
		name, anchor string
		pathLen      int
		believed     bool
	}{
		{"anchor root", "root", 1, true},
		{"anchor ours", "ours", 1, false},
		{"anchor ours, path length 0", "ours", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, a := byHand(t, func(c *authority.Config) { c.Anchor, c.SharedRoot = tt.anchor, "shared" })
			root := newPKI(t, "Corporate Root", nil, nil)
			policy := newPKI(t, "Policy CA", root, nil)
			chain := policy.grant(csrOf(t, a, false), 1000*day, start, func(c *x509.Certificate) {
				c.MaxPathLen, c.MaxPathLenZero = tt.pathLen, tt.pathLen == 0
			})
			if _, err := a.Install(t.Context(), chain); err != nil {
				t.Fatal(err)
			}
			sibling := newPKI(t, "Laptop CA", policy, nil)
			// The chain that it shows may hold our CA's certificate too: it is public.
			leaf, key := sibling.svid("/shop/checkout", pkix.Name{CommonName: "checkout"})
			broker, _ := sibling.svid("/credence/broker", pkix.Name{})
			peers := peerOf(t, a)
			for name, verify := range map[string]func(p []*x509.Certificate) error{
				"an agent, of its broker": func([]*x509.Certificate) error {
					if _, err := federation.CheckForm(broker[0]); err != nil {
						return err
					}
					_, _, err := federation.VerifyX509(append(broker, chain[0]), a, start)
					return err
				},
				"a peer": func(p []*x509.Certificate) error {
					_, _, err := federation.VerifyX509(append(p, chain[0]), peers, start)
					return err
				},
				"Roles Anywhere": func(p []*x509.Certificate) error {
					return anywhere(t, e.clock.now, a.Bundle().X509Authorities[0], svidOf(p, key))
				},
			} {
				if err := verify(leaf); (err == nil) != tt.believed {
					t.Errorf("%s: %v", name, err)
				}
			}
			// What it is compared with: the same of ours.
			ours := checkout(t, e, a)
			if _, _, err := federation.VerifyX509(ours.svid.Certificates, peers, start); err != nil {
				t.Error(err)
			}
			if err := anywhere(t, e.clock.now, a.Bundle().X509Authorities[0], ours); err != nil {
				t.Error(err)
			}
		})
	}
}

// peerOf is what a peer believes that fetched our bundle.
func peerOf(t testing.TB, a *authority.Authority) *federation.Set {
	t.Helper()
	document, _ := a.Document()
	b, err := federation.ParseBundle(td, document)
	if err != nil {
		t.Fatal(err)
	}
	var peers federation.Set
	peers.Put(b)
	return &peers
}

// svid is a leaf of p's, fit in form, with what stands between p and its root.
func (p *pki) svid(path string, subject pkix.Name) ([]*x509.Certificate, crypto.Signer) {
	p.t.Helper()
	key := newKey(p.t)
	template := &x509.Certificate{
		SerialNumber: serialNumber(), Subject: subject, NotBefore: start.Add(-time.Minute), NotAfter: start.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{{Scheme: "spiffe", Host: td.Name(), Path: path}},
	}
	chain := []*x509.Certificate{p.certify(template, key.Public())}
	for ca := p; ca.parent != nil; ca = ca.parent {
		chain = append(chain, ca.cert)
	}
	return chain, key
}
