package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/store"
)

// maxYAML bounds what one apply may bring.
const maxYAML = 4 << 20

type adminService struct {
	api.UnsafeAdminServer
	s *Server
}

func (a adminService) fail(ctx context.Context, err error) error {
	return statusOf(ctx, a.s.cfg.Log, true, err)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Apply makes the broker hold the resources of a text, all or none.
func (a adminService) Apply(ctx context.Context, r *api.ApplyRequest) (*api.ApplyResponse, error) {
	if len(r.GetYaml()) > maxYAML {
		return nil, a.fail(ctx, fmt.Errorf("%w: %d bytes of YAML, at most %d are taken: apply them in parts", broker.ErrRequest, len(r.GetYaml()), maxYAML))
	}
	if r.GetHere() {
		o, problem, err := a.s.applyHere(ctx, a.s.actor(ctx), r)
		if err != nil {
			return nil, a.fail(ctx, err)
		}
		response := a.answer(ctx, o, false)
		if problem != "" {
			response.Warnings = append(response.Warnings, problem)
		}
		return response, nil
	}
	o, err := a.s.apply(ctx, a.s.actor(ctx), r)
	if errors.Is(err, store.ErrAway) {
		err = fmt.Errorf("%w; credence apply --here has a Deny hold on this broker at once, and everywhere when the database is back", err)
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return a.answer(ctx, o, r.GetDryRun()), nil
}

// answer tells an outcome.
func (a adminService) answer(ctx context.Context, o *outcome, dry bool) *api.ApplyResponse {
	response := &api.ApplyResponse{Revision: o.revision, Applied: wire(o.applied), Owned: uint32(o.owned), NeedsYes: o.needsYes()}
	response.Warnings = a.lint(o)
	if dry {
		a.s.addOutstanding(ctx, response.Applied)
		return response
	}
	response.Warnings = append(response.Warnings, a.s.fetchPeers(ctx, o.applied)...)
	return response
}

// countedIdentities bounds of how many Identities a plan says what stands by
// them.
const countedIdentities = 100

// addOutstanding counts the SVIDs that rest on what a plan changes. A plan
// without it is one still.
func (s *Server) addOutstanding(ctx context.Context, all []*api.ApplyResponse_Applied) {
	counted := 0
	for _, a := range all {
		if a.Kind != "Identity" || a.Action != "changed" && a.Action != "deleted" {
			continue
		}
		if counted++; counted > countedIdentities {
			return
		}
		_, n, err := s.cfg.Store.Issued(ctx, broker.IssuedQuery{Identity: a.Name, LiveAt: s.cfg.Now(), Limit: 1})
		if err != nil {
			s.cfg.Log.WarnContext(ctx, "counting what stands by an identity", "error", err)
			return
		}
		a.Outstanding = uint64(n)
	}
}

// fetchPeers fetches the bundles of the peers that were applied, so that the
// operator sees at once whether they can be reached. A peer that cannot be
// reached is a warning: its resource stands, and polling goes on.
func (s *Server) fetchPeers(ctx context.Context, outcome []applied) []string {
	if o, remote := callerOperator(ctx); remote && o.Name != Admin {
		return nil // to have the broker call somebody is not theirs; they changed no Peer either
	}
	var warnings []string
	for _, o := range outcome {
		if o.kind != "Peer" || o.action == "deleted" {
			continue
		}
		td, err := identity.ParseTrustDomain(o.name)
		if err == nil {
			err = s.cfg.Peers.Refresh(ctx, td)
		}
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("Peer %s: %v; it is polled again at the next interval", o.name, err))
		}
	}
	return warnings
}

// Get returns resources as apply takes them.
func (a adminService) Get(ctx context.Context, r *api.GetRequest) (*api.GetResponse, error) {
	if r.GetRevision() != 0 {
		response, err := a.s.getAt(ctx, r)
		if err != nil {
			return nil, a.fail(ctx, err)
		}
		return response, nil
	}
	st := a.s.state.Load()
	response := &api.GetResponse{Revision: st.last}
	for _, row := range st.resources {
		if (r.GetKind() == "" || strings.EqualFold(row.row.Kind, r.GetKind())) && (r.GetName() == "" || row.row.Name == r.GetName()) {
			text, err := row.resource.Text()
			if err != nil {
				return nil, a.fail(ctx, err)
			}
			response.Resources = append(response.Resources, &api.Resource{
				Kind: row.row.Kind, Name: row.row.Name, Revision: row.row.Revision, Owner: row.row.Owner,
				Yaml: text, Actor: row.row.Actor, WrittenAt: row.row.WrittenAt.Unix(),
			})
		}
	}
	return response, nil
}

// Delete removes one resource. One that others name is refused.
func (a adminService) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	kind := r.GetKind()
	for _, row := range a.s.state.Load().resources {
		if strings.EqualFold(row.row.Kind, kind) {
			kind = row.row.Kind
		}
	}
	remove := a.s.remove
	if r.GetHere() {
		remove = a.s.removeHere
		if strings.EqualFold(kind, "Deny") {
			kind = "Deny" // though none is stored
		}
	}
	if err := remove(ctx, a.s.actor(ctx), r.GetOwner(), kind, r.GetName()); err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.DeleteResponse{Revision: a.s.policyRevision()}, nil
}

// CreateToken makes a join token, of which the broker keeps the hash.
func (a adminService) CreateToken(ctx context.Context, r *api.CreateTokenRequest) (*api.CreateTokenResponse, error) {
	ttl := time.Duration(r.GetTtl()) * time.Second
	if r.GetTtl() == 0 {
		ttl = token.DefaultTTL
	}
	err := errors.Join(token.CheckName(r.GetNode()), token.CheckLabels(r.GetLabels()))
	if r.GetTtl() < 0 || r.GetTtl() > int64(token.MaxTTL/time.Second) {
		err = errors.Join(err, fmt.Errorf("a life of %d seconds: at most %s is taken", r.GetTtl(), token.MaxTTL))
	}
	if err != nil {
		return nil, a.fail(ctx, fmt.Errorf("%w: creating a token: %w", broker.ErrRequest, err))
	}
	text, hash := token.New()
	actor := a.s.actor(ctx)
	expires := a.s.cfg.Now().Add(ttl)
	event := audit.Event{Kind: "token", OK: true, Actor: actor, NotAfter: expires, Detail: map[string]string{
		"node": r.GetNode(), "token_sha256": hex.EncodeToString(hash),
	}}
	for label, value := range r.GetLabels() {
		event.Detail["label."+label] = value
	}
	if _, err := a.s.cfg.Audit.Append(ctx, event); err != nil {
		return nil, a.fail(ctx, fmt.Errorf("recording a token: %w", err))
	}
	if err := a.s.cfg.Store.CreateToken(ctx, store.Token{Hash: hash, Node: r.GetNode(), Labels: r.GetLabels(), ExpiresAt: expires, CreatedBy: actor}); err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.CreateTokenResponse{
		Token: text, Expires: expires.Unix(), TrustDomain: a.s.cfg.TrustDomain.Name(),
		AgentsAddress: a.s.cfg.AgentsAddress, CaPin: a.s.cfg.Authority.Pin(),
	}, nil
}

// ListNodes lists the nodes that joined.
func (a adminService) ListNodes(_ context.Context, r *api.ListNodesRequest) (*api.ListNodesResponse, error) {
	response := &api.ListNodesResponse{}
	for _, n := range a.s.cfg.Broker.Nodes() {
		if r.GetId() != "" && r.GetId() != n.ID && r.GetId() != n.Name {
			continue
		}
		response.Nodes = append(response.Nodes, &api.NodeInfo{
			Id: n.ID, Name: n.Name, Method: n.Method, JoinRule: n.JoinRule, JoinedAt: n.JoinedAt.Unix(), ExpiresAt: n.ExpiresAt.Unix(),
			EvictedAt: unix(n.EvictedAt), Facts: values(n.Facts.Map()), Connected: a.s.cfg.Broker.Connected(n.ID),
			Acknowledged: a.s.cfg.Broker.Acknowledged(n.ID), EvictReason: a.s.cfg.Broker.EvictReason(n),
			Joins: n.Joins.Joins, Recoveries: n.Joins.Recoveries, RefusedAt: unix(n.Joins.RefusedAt),
		})
	}
	return response, nil
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// EvictNode shuts a node out and bans its return.
func (a adminService) EvictNode(ctx context.Context, r *api.EvictNodeRequest) (*api.EvictNodeResponse, error) {
	n, err := a.findNode(r.GetId())
	problem := ""
	switch {
	case err != nil:
	case r.GetHere():
		n, problem, err = a.s.cfg.Broker.EvictHere(ctx, n.ID, a.s.actor(ctx), r.GetReason())
	default:
		n, err = a.s.cfg.Broker.Evict(ctx, n.ID, a.s.actor(ctx), r.GetReason())
		if errors.Is(err, store.ErrAway) {
			err = fmt.Errorf("%w; credence node evict --here shuts it out on this broker at once, and everywhere when the database is back", err)
		}
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.EvictNodeResponse{Revision: n.Revision, Problem: problem}, nil
}

// AllowNode lets an evicted node join again.
func (a adminService) AllowNode(ctx context.Context, r *api.AllowNodeRequest) (*api.AllowNodeResponse, error) {
	n, err := a.findNode(r.GetId())
	if err == nil {
		err = a.s.cfg.Broker.Allow(ctx, n.ID, a.s.actor(ctx), r.GetReason())
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.AllowNodeResponse{}, nil
}

func (a adminService) findNode(id string) (broker.Node, error) {
	for _, n := range a.s.cfg.Broker.Nodes() {
		if n.ID == id || n.Name == id {
			return n, nil
		}
	}
	return broker.Node{}, fmt.Errorf("node %s: %w", id, broker.ErrNotFound)
}

// ShowBundle returns our bundle, or a peer's as last believed.
func (a adminService) ShowBundle(ctx context.Context, r *api.ShowBundleRequest) (*api.ShowBundleResponse, error) {
	if r.GetTrustDomain() == "" || r.GetTrustDomain() == a.s.cfg.TrustDomain.Name() {
		document, ok := a.s.cfg.Authority.Document()
		if !ok {
			return nil, a.fail(ctx, errors.New("no bundle yet"))
		}
		return &api.ShowBundleResponse{TrustDomain: a.s.cfg.TrustDomain.Name(), Document: document}, nil
	}
	td, err := identity.ParseTrustDomain(r.GetTrustDomain())
	if err != nil {
		return nil, a.fail(ctx, fmt.Errorf("%w: %w", broker.ErrRequest, err))
	}
	status, known := a.s.cfg.Peers.Status(td)
	bundle, ok := a.s.cfg.Peers.Set().Get(td)
	if !known && !ok {
		return nil, a.fail(ctx, fmt.Errorf("peer %s: %w", td, broker.ErrNotFound))
	}
	response := &api.ShowBundleResponse{TrustDomain: td.Name(), FetchedAt: unix(status.FetchedAt), ConfirmedAt: unix(status.ConfirmedAt)}
	if status.LastError != nil {
		response.LastError = status.LastError.Error()
	}
	if ok {
		response.Document = bundle.Document()
	}
	return response, nil
}

// ListAuthorities lists the keys that sign, and what happens to them next.
func (a adminService) ListAuthorities(ctx context.Context, _ *api.ListAuthoritiesRequest) (*api.ListAuthoritiesResponse, error) {
	response := &api.ListAuthoritiesResponse{}
	for _, r := range a.s.cfg.Authority.List() {
		_, outstanding, err := a.s.cfg.Store.Issued(ctx, broker.IssuedQuery{Authority: r.ID, LiveAt: a.s.cfg.Now(), Limit: 1})
		if err != nil {
			return nil, a.fail(ctx, err)
		}
		one := info(r)
		one.Outstanding = uint64(outstanding)
		response.Authorities = append(response.Authorities, one)
	}
	return response, nil
}
