package local

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
)

// An Explainer is what Checks needs of an agent to tell why.
type Explainer interface {
	Explain(ctx context.Context, p *caller.Process, audiences []string, target string) (agent.Explained, error)
}

// Explain tells the caller about itself: a pid is refused, so that nobody learns
// of another by asking here.
func (c *Checks) Explain(ctx context.Context, r *api.ExplainRequest) (*api.ExplainResponse, error) {
	if r.GetPid() != 0 {
		return nil, status.Error(codes.InvalidArgument, "pid: the caller is told about itself alone; the admin socket takes one")
	}
	p, err := caller.Required(ctx)
	if err != nil {
		return nil, err
	}
	return Explain(ctx, c.why, p, r, false)
}

// Explain answers for a process. An operator is told all that was attested, and
// what failed attestors said; the process itself its own uid, and which failed.
func Explain(ctx context.Context, a Explainer, p *caller.Process, r *api.ExplainRequest, operator bool) (*api.ExplainResponse, error) {
	if len(r.GetAudiences()) > maxAudiences || len(r.GetTarget()) > 253 {
		return nil, status.Errorf(codes.InvalidArgument, "at most %d audiences, or a target's name, are taken", maxAudiences)
	}
	for _, audience := range r.GetAudiences() {
		if audience == "" || len(audience) > maxAudience {
			return nil, status.Errorf(codes.InvalidArgument, "audience: one has 1 to %d bytes", maxAudience)
		}
	}
	e, err := a.Explain(ctx, p, r.GetAudiences(), r.GetTarget())
	if err != nil {
		return nil, err
	}
	out := &api.ExplainResponse{Granted: e.Refusal == nil, Unknown: e.Unknown, Note: e.Note, Facts: make(map[string]*api.Values), Why: e.Why(operator)}
	for name, values := range e.Facts {
		if operator || strings.HasPrefix(name, "workload.unix.") {
			out.Facts[name] = &api.Values{Values: values}
		}
	}
	for _, v := range e.SVIDs {
		out.Identities = append(out.Identities, &api.ExplainResponse_Identity{SpiffeId: v.ID.String(), Identity: v.Identity, Ends: v.Certificates[0].NotAfter.Unix()})
	}
	for _, n := range e.Near {
		out.Near = append(out.Near, &api.ExplainResponse_Near{Identity: n.GetIdentity(), Item: n.GetItem(), Missing: n.GetMissing(), When: n.GetWhen(), Code: n.GetCode()})
	}
	if e.Refusal != nil {
		info := agent.InfoFor(e.Refusal)
		out.Code, out.Text, out.Record = info.GetReason(), e.Refusal.Error(), info.GetMetadata()["record"]
	}
	return out, nil
}
