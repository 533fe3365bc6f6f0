package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/oidc"
)

// InspectTarget tells what the provider of a Target has to be told of us, and
// will be shown: the policy in force, and the authorities as they are now.
func (a adminService) InspectTarget(ctx context.Context, r *api.InspectTargetRequest) (*api.InspectTargetResponse, error) {
	st := a.s.state.Load()
	target, ok := st.policy.Targets[r.GetTarget()]
	if !ok {
		return nil, a.fail(ctx, fmt.Errorf("target %.60q: %w", r.GetTarget(), broker.ErrNotFound))
	}
	parties, err := a.s.parties(st, r.GetTarget(), r.GetIdentity())
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	response := &api.InspectTargetResponse{
		TrustDomain: a.s.cfg.TrustDomain.Name(), Parties: parties, Issuer: a.s.cfg.Issuer,
		Target: &api.Target{Name: target.Name, Revision: target.Revision, Provider: target.Flow, Settings: target.Settings},
	}
	if err := a.s.inspectAuthorities(response); err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// parties are the Identities that list a target, by name: all of them, or the
// one that is asked for.
func (s *Server) parties(st *state, target, only string) ([]*api.InspectTargetResponse_Party, error) {
	if only != "" {
		if _, ok := st.find("Identity", only); !ok {
			return nil, fmt.Errorf("identity %.60q: %w", only, broker.ErrNotFound)
		}
	}
	var all []*api.InspectTargetResponse_Party
	for _, r := range st.resources {
		i := r.resource.Identity
		if i == nil || only != "" && i.Name != only || !slices.Contains(i.Targets, target) {
			continue
		}
		some, err := s.partiesOf(st, i)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if only != "" && len(all) == 0 {
		return nil, fmt.Errorf("%w: identity %s does not list target %s: add it to its targets", broker.ErrRequest, only, target)
	}
	return all, nil
}

// partiesOf are those of one Identity: one for each SPIFFE ID that it can grant.
func (s *Server) partiesOf(st *state, i *identity.Identity) (all []*api.InspectTargetResponse_Party, err error) {
	parties, err := i.Parties(s.cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	x509, token, _ := st.policy.Set.Lives(i.Name)
	for _, p := range parties {
		all = append(all, &api.InspectTargetResponse_Party{
			Identity: i.Name, SpiffeId: p.SPIFFEID, Subject: p.Subject, X509Ttl: int64(x509 / time.Second), TokenTtl: int64(token / time.Second),
		})
	}
	return all, nil
}

// inspectAuthorities adds the keys and certificates that providers see. Its
// documents are those that the web listener serves; without a key there are
// none yet.
func (s *Server) inspectAuthorities(r *api.InspectTargetResponse) error {
	var err error
	if keys := s.cfg.Authority.OIDCKeys(); s.cfg.Issuer != "" && len(keys) > 0 {
		if r.Discovery, r.Jwks, err = oidc.Documents(s.cfg.Issuer, keys); err != nil {
			return err
		}
	}
	published := map[string]bool{}
	bundle := s.cfg.Authority.Bundle()
	for _, k := range bundle.JWTKeys {
		published[k.ID] = true
	}
	for _, a := range s.cfg.Authority.List() {
		r.SharedRoot = r.SharedRoot || a.Shared
		if a.Use == authority.JWTKey && published[a.ID] {
			r.Keys = append(r.Keys, &api.InspectTargetResponse_JWTKey{
				Id: a.ID, Alg: a.Alg, PublishedAt: unix(a.PublishedAt), Active: a.State == authority.Active,
			})
		}
	}
	for _, c := range bundle.X509Authorities {
		r.Anchors = append(r.Anchors, c.Raw)
	}
	for _, c := range s.cfg.Authority.IssuingChain() {
		r.Chain = append(r.Chain, c.Raw)
	}
	return nil
}
