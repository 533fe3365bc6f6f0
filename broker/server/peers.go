package server

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/federation"
)

// refreshTime bounds how long a caller waits for a fetch: it takes five seconds
// at most, and one may be under way.
const refreshTime = 12 * time.Second

// ListPeers says how things stand with the peers, or with one.
func (a adminService) ListPeers(ctx context.Context, r *api.ListPeersRequest) (*api.ListPeersResponse, error) {
	response := &api.ListPeersResponse{}
	if r.GetTrustDomain() == "" {
		for _, status := range a.s.cfg.Peers.Statuses() {
			response.Peers = append(response.Peers, peerInfo(status))
		}
		return response, nil
	}
	td, err := a.peer(r.GetTrustDomain())
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	response.Peers = append(response.Peers, a.peerInfo(td))
	return response, nil
}

// RefreshPeer asks a peer's endpoint now. How that went stands in the answer.
func (a adminService) RefreshPeer(ctx context.Context, r *api.RefreshPeerRequest) (*api.RefreshPeerResponse, error) {
	td, err := a.peer(r.GetTrustDomain())
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	ctx, cancel := context.WithTimeout(ctx, refreshTime)
	defer cancel()
	if err := a.s.cfg.Peers.Refresh(ctx, td); ctx.Err() != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.RefreshPeerResponse{Peer: a.peerInfo(td)}, nil
}

// AcceptPeer believes a peer's bundle that is held because every key changed.
// It is recorded before it is done, as any change of what is trusted.
func (a adminService) AcceptPeer(ctx context.Context, r *api.AcceptPeerRequest) (*api.AcceptPeerResponse, error) {
	td, err := a.peer(r.GetTrustDomain())
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	held := a.peerInfo(td).GetHeldFingerprint()
	switch {
	case held == "":
		err = fmt.Errorf("%w: accepting the bundle of %s: no change is held", broker.ErrRequest, td)
	case r.GetFingerprint() != "" && r.GetFingerprint() != held:
		err = fmt.Errorf("%w: accepting the bundle of %s: what is held has the fingerprint %s", broker.ErrRequest, td, held)
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	event := audit.Event{Kind: "peer.accept", OK: true, Actor: a.s.actor(ctx), Detail: map[string]string{
		"trust_domain": td.Name(), "fingerprint": held,
	}}
	if _, err := a.s.cfg.Audit.Append(ctx, event); err != nil {
		return nil, a.fail(ctx, fmt.Errorf("recording that a bundle is accepted: %w", err))
	}
	if err := a.s.cfg.Peers.Accept(as(ctx, event.Actor), td, held); err != nil { // what was recorded, and no other
		return nil, a.fail(ctx, err)
	}
	return &api.AcceptPeerResponse{Peer: a.peerInfo(td)}, nil
}

// CheckPeer looks at a peer's endpoint, from here, and changes nothing.
func (a adminService) CheckPeer(ctx context.Context, r *api.CheckPeerRequest) (*api.CheckPeerResponse, error) {
	td, err := a.peer(r.GetTrustDomain())
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	findings, err := a.s.cfg.Peers.Check(ctx, td)
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	response := &api.CheckPeerResponse{}
	for _, f := range findings {
		response.Findings = append(response.Findings, &api.PeerFinding{Step: f.Step, Found: f.Found, Problem: f.Problem, Change: f.Change})
	}
	return response, nil
}

// peer is the peer of a name.
func (a adminService) peer(name string) (spiffeid.TrustDomain, error) {
	td, err := identity.ParseTrustDomain(name)
	if err != nil {
		return td, fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	if _, ok := a.s.cfg.Peers.Status(td); !ok {
		return td, fmt.Errorf("peer %s: %w", td, broker.ErrNotFound)
	}
	return td, nil
}

func (a adminService) peerInfo(td spiffeid.TrustDomain) *api.PeerInfo {
	status, _ := a.s.cfg.Peers.Status(td) // of one just removed: nothing
	return peerInfo(status)
}

func peerInfo(s federation.Status) *api.PeerInfo {
	p := &api.PeerInfo{
		TrustDomain: s.TrustDomain.Name(), Url: federation.RedactURL(s.Peer.URL), Profile: "https_web", State: string(s.State), Sequence: s.Sequence,
		FetchedAt: unix(s.FetchedAt), ConfirmedAt: unix(s.ConfirmedAt), TriedAt: unix(s.TriedAt), NextPoll: unix(s.NextPoll),
		HeldAt: unix(s.HeldAt), ClosesAt: unix(s.ClosesAt), MaxStaleness: int64(s.Peer.Staleness() / time.Second), Accept: s.Peer.Accept,
	}
	if h := s.Peer.HTTPSSPIFFE; h != nil {
		p.Profile, p.EndpointId = "https_spiffe", h.EndpointID.String()
	}
	if s.LastError != nil {
		p.LastError = s.LastError.Error()
	}
	if s.Bundle != nil {
		p.Fingerprint = federation.BundleFingerprint(s.Bundle.Bundle)
		p.X509Keys, p.JwtKeys = uint32(len(s.Bundle.X509Authorities())), uint32(len(s.Bundle.JWTAuthorities()))
	}
	if s.Held != nil {
		p.HeldFingerprint = federation.BundleFingerprint(s.Held.Bundle)
	}
	for _, ignored := range s.Ignored {
		p.Ignored = append(p.Ignored, fmt.Sprintf("entry %d: %s", ignored.Index, ignored.Reason))
	}
	return p
}

// RefreshBundle has a peer asked out of turn, for a key that an agent met in a
// token and does not know. Whoever asks how often: once in ten seconds.
func (n nodeService) RefreshBundle(ctx context.Context, r *api.RefreshBundleRequest) (*api.RefreshBundleResponse, error) {
	td, err := identity.ParseTrustDomain(r.GetTrustDomain())
	if err != nil {
		return nil, n.fail(ctx, fmt.Errorf("%w: %w", broker.ErrRequest, err))
	}
	known := func() bool {
		b, ok := n.s.cfg.Peers.Set().Get(td)
		if !ok {
			return false
		}
		_, ok = b.FindJWTAuthority(r.GetKeyId())
		return ok
	}
	if !known() {
		ctx, cancel := context.WithTimeout(ctx, refreshTime)
		defer cancel()
		if _, err := n.s.cfg.Peers.RefreshFor(ctx, td); err != nil {
			n.s.cfg.Log.DebugContext(ctx, "peer asked for a key that an agent met", "trust_domain", td.Name(), "error", err)
		}
	}
	return &api.RefreshBundleResponse{Known: known()}, nil
}
