package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// An Explained is why a process gets what it gets.
type Explained struct {
	Attestation
	SVIDs   []*SVID // that it has
	Refusal error   // nil: what was asked for is granted
	Near    []*api.NodeExplainResponse_Near
	Note    string // why the broker told nothing near
}

// Explain says what a process, attested afresh, gets, or what the nearest
// identities miss of it, as far as a broker tells a node: an operator at the
// broker is told more. Nothing is signed beyond what the process would get.
func (a *Agent) Explain(ctx context.Context, p *caller.Process, audiences []string, target string) (Explained, error) {
	if len(audiences) > 0 && target != "" {
		return Explained{}, status.Error(codes.InvalidArgument, "audiences or a target are asked about, not both")
	}
	i := a.Identities(p)
	defer i.Close()
	u, err := i.Next(ctx)
	out := Explained{Attestation: i.proven, Refusal: err}
	switch {
	case err == nil:
		out.SVIDs = u.SVIDs
		if len(audiences) == 0 && target == "" {
			return out, nil
		}
	case !errors.Is(err, ErrDenied) || i.set == nil:
		return out, nil // there is nobody to ask, or nobody to ask about
	}
	if link := a.link.Load(); link == nil {
		return out, nil
	}
	a.near(ctx, i.set, audiences, target, &out)
	return out, nil
}

// near asks the broker what is missing.
func (a *Agent) near(ctx context.Context, st *set, audiences []string, target string, out *Explained) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := api.NewNodeClient(a.fresh().conn).Explain(ctx, &api.NodeExplainRequest{Workload: a.asks(ctx, st), Audiences: audiences, Target: target})
	switch {
	case err != nil && InfoOf(err) == nil && out.Refusal == nil:
		out.Refusal = a.unavailable(err)
		return
	case err != nil:
		out.Note = fmt.Sprintf("the broker tells no more: %s", status.Convert(err).Message())
		return
	}
	out.Near = r.GetNear()
	switch {
	case r.GetGranted() && out.Refusal != nil:
		out.Note = "the broker grants it by now: ask again"
	case r.GetDenial() != nil && out.Refusal == nil:
		out.Refusal = notListed(&api.IssueJWTRequest{Workload: st.workload, Audiences: audiences, Target: target}, r.GetDenial())
	}
	if len(out.Near) == 0 && out.Refusal != nil && out.Note == "" {
		out.Note = "no identity that this node could get is near, or it is withheld: the operator sees which, at the broker"
	}
}
