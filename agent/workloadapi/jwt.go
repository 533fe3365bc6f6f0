package workloadapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/federation"
)

// FetchJWTSVID returns JWT-SVIDs for the audiences asked for, of one identity
// or of all that the caller has (SPIFFE Workload API §6.2.1).
func (s *Server) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := checkAudiences(r.GetAudience()); err != nil {
		return nil, err
	}
	var id spiffeid.ID
	if r.GetSpiffeId() != "" {
		var err error
		if id, err = federation.ParseID(r.GetSpiffeId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
		}
	}
	p, err := caller.Required(ctx)
	if err != nil {
		return nil, err
	}
	svids, err := s.cfg.Agent.JWT(ctx, p, r.GetAudience(), id)
	if err != nil {
		return nil, agent.StatusOf(ctx, s.cfg.Log, err)
	}
	m := &workload.JWTSVIDResponse{}
	for _, v := range svids {
		m.Svids = append(m.Svids, &workload.JWTSVID{SpiffeId: v.ID.String(), Svid: v.Token, Hint: v.Hint})
	}
	return m, nil
}

func checkAudiences(audiences []string) error {
	if len(audiences) == 0 || len(audiences) > maxAudiences {
		return status.Errorf(codes.InvalidArgument, "audience: 1 to %d are taken", maxAudiences)
	}
	for _, a := range audiences {
		if a == "" || len(a) > maxAudience {
			return status.Errorf(codes.InvalidArgument, "audience: one has 1 to %d bytes", maxAudience)
		}
	}
	return nil
}

// FetchJWTBundles streams the JWT bundles of our own trust domain and of those
// that the caller's identities federate with (SPIFFE Workload API §6.2.2). A
// trust domain that makes no JWT-SVIDs has none; our own is there always.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return each(s, stream, jwtResponse)
}

func jwtResponse(own spiffeid.TrustDomain, u agent.Update) (*workload.JWTBundlesResponse, error) {
	m := &workload.JWTBundlesResponse{Bundles: make(map[string][]byte, len(u.Bundles))}
	for td, b := range u.Bundles {
		if len(b.JWTAuthorities) == 0 && td != own {
			continue
		}
		document, err := jwks(b)
		if err != nil {
			return nil, err
		}
		m.Bundles[td.IDString()] = document
	}
	return m, nil
}

// jwks is a trust domain's JWT authorities, and no key of another use.
func jwks(b *agent.Bundle) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, id := range slices.Sorted(maps.Keys(b.JWTAuthorities)) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: b.JWTAuthorities[id], KeyID: id, Use: "jwt-svid"})
	}
	document, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("marshalling the JWT bundle of %s: %w", b.TrustDomain, err)
	}
	return document, nil
}

// learned says whether a key that a token names, and that nobody here knew, has
// come meanwhile, and updates what the caller may know.
func (s *Server) learned(ctx context.Context, view *agent.Identities, key *federation.UnknownKeyError, u *agent.Update) bool {
	if !s.cfg.Agent.LearnKey(ctx, key.TrustDomain, key.KeyID) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second) // it is there, or is not for this caller
	defer cancel()
	next, err := view.Next(ctx)
	if err != nil {
		return false
	}
	*u = next
	return true
}

// ValidateJWTSVID validates a token for the caller, under the bundles that the
// caller may use (SPIFFE Workload API §6.2.3), and against what the broker has
// revoked of our own: as long as that is not known, none is valid. Numbers above 2^53 lose
// precision in the claims that it returns: google.protobuf.Struct holds
// doubles.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if r.GetSvid() == "" {
		return nil, status.Error(codes.InvalidArgument, "svid: none given")
	}
	if err := checkAudiences([]string{r.GetAudience()}); err != nil {
		return nil, err
	}
	p, err := caller.Required(ctx)
	if err != nil {
		return nil, err
	}
	view := s.cfg.Agent.Identities(p)
	defer view.Close()
	u, err := view.Next(ctx)
	if err != nil {
		return nil, agent.StatusOf(ctx, s.cfg.Log, err)
	}
	id, claims, err := validate(r.GetSvid(), r.GetAudience(), u.Bundles, s.cfg.Agent.Cutoffs(), s.cfg.Now())
	if unknown := new(federation.UnknownKeyError); errors.As(err, &unknown) && s.learned(ctx, view, unknown, &u) {
		id, claims, err = validate(r.GetSvid(), r.GetAudience(), u.Bundles, s.cfg.Agent.Cutoffs(), s.cfg.Now())
	}
	if errors.Is(err, agent.ErrUnavailable) {
		return nil, agent.StatusOf(ctx, s.cfg.Log, err)
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the JWT-SVID is not valid: %v", err)
	}
	fields, err := structpb.NewStruct(claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the JWT-SVID is not valid: its claims: %v", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: id.String(), Claims: fields}, nil
}
