package server_test

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/server"
)

const inspected = `kind: Identity
name: b-template
spiffe_id: /ns/{workload.unix.uid}/b
match: [{node.name: n1}]
x509: {ttl: 30m, subject: "CN=b-template"}
targets: [t1]
---
kind: Identity
name: a-plain
spiffe_id: spiffe://example.org/a
match: [{node.name: n1}]
targets: [t1]
---
kind: Identity
name: c-items
spiffe_id: /{workload.unix.uid}/{node.name}
match:
  - {node.name: n1, workload.unix.uid: 33}
  - {node.name: n2, workload.unix.uid: "4*"}
  - {node.name: n1, workload.unix.uid: 33, workload.unix.gid: 1}
targets: [t1]
---
kind: Identity
name: no-target
spiffe_id: /c
match: [{node.name: n1}]
`

func TestInspectTarget(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	e.apply(target + "---\n" + inspected)
	r, err := e.admin().InspectTarget(t.Context(), &api.InspectTargetRequest{Target: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	want := []*api.InspectTargetResponse_Party{
		{Identity: "a-plain", SpiffeId: "spiffe://example.org/a", X509Ttl: 3600, TokenTtl: 900},
		{Identity: "b-template", SpiffeId: "spiffe://example.org/ns/{workload.unix.uid}/b", Subject: "CN=b-template", X509Ttl: 1800, TokenTtl: 900},
		{Identity: "c-items", SpiffeId: "spiffe://example.org/33/n1", X509Ttl: 3600, TokenTtl: 900},
		{Identity: "c-items", SpiffeId: "spiffe://example.org/{workload.unix.uid}/n2", X509Ttl: 3600, TokenTtl: 900},
	}
	if d := cmp.Diff(want, r.GetParties(), protocmp.Transform()); d != "" {
		t.Errorf("parties: %s", d)
	}
	if r.GetTrustDomain() != "example.org" || r.GetIssuer() != e.issuer || r.GetSharedRoot() {
		t.Errorf("trust domain %q, issuer %q, shared root %v", r.GetTrustDomain(), r.GetIssuer(), r.GetSharedRoot())
	}
	if g := r.GetTarget(); g.GetName() != "t1" || g.GetProvider() != "cloud" || g.GetRevision() == 0 || !bytes.Contains(g.GetSettings(), []byte(`"aud":"sts"`)) {
		t.Errorf("target: %v", g)
	}
	for path, got := range map[string][]byte{"/.well-known/openid-configuration": r.GetDiscovery(), "/keys": r.GetJwks()} {
		if r, served := do(t, e.client(nil), "GET", e.issuer+path, nil); r.StatusCode != 200 || !bytes.Equal(served, got) {
			t.Errorf("%s is served as %d %q, and told of as %q", path, r.StatusCode, served, got)
		}
	}
	var active []string
	for _, k := range r.GetKeys() {
		if k.GetActive() {
			active = append(active, k.GetAlg())
		}
		if k.GetPublishedAt() == 0 || !strings.Contains(string(e.authority.Bundle().Document), k.GetId()) {
			t.Errorf("key %v is not in the bundle", k)
		}
	}
	if len(r.GetKeys()) != len(e.authority.Bundle().JWTKeys) || len(active) != 2 {
		t.Errorf("%d keys are told of, active are %v", len(r.GetKeys()), active)
	}
	if len(r.GetAnchors()) != 1 || len(r.GetChain()) != 1 {
		t.Fatalf("%d anchors, a chain of %d", len(r.GetAnchors()), len(r.GetChain()))
	}
	anchor, _ := x509.ParseCertificate(r.GetAnchors()[0])
	ca, _ := x509.ParseCertificate(r.GetChain()[0])
	if err := ca.CheckSignatureFrom(anchor); err != nil {
		t.Errorf("the chain does not lead to the anchor: %v", err)
	}
}

func TestInspectTargetOfOneIdentity(t *testing.T) {
	e := newEnv(t)
	e.apply(target + "---\n" + inspected)
	r, err := e.admin().InspectTarget(t.Context(), &api.InspectTargetRequest{Target: "t1", Identity: "b-template"})
	if err != nil || len(r.GetParties()) != 1 || r.GetParties()[0].GetIdentity() != "b-template" {
		t.Errorf("%v, %v", r.GetParties(), err)
	}
	for name, c := range map[string]struct {
		target, identity string
		code             codes.Code
		says             string
	}{
		"no such target":              {"t2", "", codes.NotFound, `target "t2"`},
		"no target":                   {"", "", codes.NotFound, "target"},
		"no such identity":            {"t1", "nobody", codes.NotFound, `identity "nobody"`},
		"an identity that has it not": {"t1", "no-target", codes.InvalidArgument, "does not list target t1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.admin().InspectTarget(t.Context(), &api.InspectTargetRequest{Target: c.target, Identity: c.identity})
			if text := wantCode(t, err, c.code); !strings.Contains(text, c.says) {
				t.Errorf("it says %q", text)
			}
		})
	}
}

// underShared stands under a root that signs for others too, and has no JWT
// key yet.
type underShared struct{ server.Authority }

func (underShared) OIDCKeys() []authority.PublicKey { return nil }
func (u underShared) List() []authority.Status {
	all := u.Authority.List()
	for i := range all {
		all[i].Shared = all[i].Use == authority.Root
	}
	return all
}

func TestInspectTargetUnderASharedRoot(t *testing.T) {
	e := newEnv(t, withIssuer, func(e *env) { e.trust = func(a server.Authority) server.Authority { return underShared{a} } })
	e.apply(target)
	r, err := e.admin().InspectTarget(t.Context(), &api.InspectTargetRequest{Target: "t1"})
	if err != nil || !r.GetSharedRoot() || len(r.GetParties()) != 0 || len(r.GetJwks()) != 0 || len(r.GetDiscovery()) != 0 {
		t.Errorf("%v, %v", r, err)
	}
}
