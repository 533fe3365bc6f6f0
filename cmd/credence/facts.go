package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// targetFacts asks the broker what a Target's provider has to be told of us,
// and will be shown: of all Identities that list it, or of the one named.
func targetFacts(ctx context.Context, c api.AdminClient, target, identity string, now time.Time) (exchangers.Facts, error) {
	r, err := c.InspectTarget(ctx, &api.InspectTargetRequest{Target: target, Identity: identity})
	if err != nil {
		return exchangers.Facts{}, err
	}
	f := exchangers.Facts{Now: now, Issuer: r.GetIssuer(), Discovery: r.GetDiscovery(), JWKS: r.GetJwks(), SharedRoot: r.GetSharedRoot()}
	if f.TrustDomain, err = spiffeid.TrustDomainFromString(r.GetTrustDomain()); err != nil {
		return f, fmt.Errorf("inspecting target %s: %w", target, err)
	}
	settings, ok := registry().Flows[r.GetTarget().GetProvider()]
	if !ok {
		return f, fmt.Errorf("inspecting target %s: flow %q is not one that this program has", target, r.GetTarget().GetProvider())
	}
	if f.Target, err = exchangers.ParseWire(r.GetTarget().GetSettings(), settings()); err != nil {
		return f, fmt.Errorf("inspecting target %s: %w", target, err)
	}
	f.Target.Name, f.Target.Revision = r.GetTarget().GetName(), r.GetTarget().GetRevision()
	for _, p := range r.GetParties() {
		f.Parties = append(f.Parties, exchangers.Party{
			Identity: p.GetIdentity(), SPIFFEID: p.GetSpiffeId(), Subject: p.GetSubject(),
			X509TTL: time.Duration(p.GetX509Ttl()) * time.Second, TokenTTL: time.Duration(p.GetTokenTtl()) * time.Second,
		})
	}
	for _, k := range r.GetKeys() {
		f.Keys = append(f.Keys, exchangers.JWTKey{ID: k.GetId(), Alg: k.GetAlg(), Published: time.Unix(k.GetPublishedAt(), 0), Active: k.GetActive()})
	}
	if f.Anchors, err = certificates(r.GetAnchors()); err != nil {
		return f, fmt.Errorf("inspecting target %s: an anchor: %w", target, err)
	}
	if f.Chain, err = certificates(r.GetChain()); err != nil {
		return f, fmt.Errorf("inspecting target %s: the issuing chain: %w", target, err)
	}
	return f, nil
}

func certificates(all [][]byte) (certs []*x509.Certificate, err error) {
	for _, der := range all {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}
