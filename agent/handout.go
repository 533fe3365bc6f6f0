package agent

import (
	"context"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// auditable refuses what could not be reported, before anything is made for it.
func (r *reports) auditable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if err := r.Room(ctx); err != nil {
		return unreported(err)
	}
	return nil
}

func unreported(err error) error {
	return &Unavailable{Code: AgentUnavailable, Reason: "the audience is audited (use: audited in jwt.audiences), and a hand-out cannot be reported: " + err.Error()}
}

// handOut makes it durable that a caller gets these tokens, one report each:
// whatever spool.full says, what cannot be reported is not handed out.
func (r *reports) handOut(ctx context.Context, st *set, audiences []string, e tokenEntry) error {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	for _, v := range e.svids {
		if err := r.auditable(ctx); err != nil {
			return err // and nothing is told as lost
		}
		m := r.handOutOf(st, audiences, v)
		if text, err := protojson.Marshal(m); err != nil || len(text) > spool.MaxRecord {
			m.HandOuts[0].Facts = nil // the set's digest stands for them
		}
		if err := r.append(ctx, m); err != nil {
			return unreported(err)
		}
	}
	return nil
}

func (r *reports) handOutOf(st *set, audiences []string, v heldJWT) *api.ReportRequest {
	digest := sha256.Sum256([]byte(v.Token))
	h := &api.HandOut{
		Time: r.agent.cfg.Now().Unix(), SpiffeId: v.ID.String(), Identity: v.identity, Audiences: audiences, TokenId: tokenID(v.Token),
		Digest: digest[:], Expires: v.Expires.Unix(), Set: st.id[:], Facts: make(map[string]*api.Values),
	}
	for name := range v.depends {
		if values, ok := st.workload.GetFacts()[name]; ok {
			h.Facts[name] = values
		}
	}
	return &api.ReportRequest{HandOuts: []*api.HandOut{h}}
}

// tokenID is a token's jti; the digest names one that has none.
func tokenID(token string) string {
	j, err := federation.ParseJWT(token)
	if err != nil || j.Claims["jti"] == nil {
		return ""
	}
	return fmt.Sprint(j.Claims["jti"])
}
