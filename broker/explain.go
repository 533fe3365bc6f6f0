package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker/identity"
)

// A Why is what a node is told of one of its workloads: nothing of any rule that
// it could not meet by what it says of its workloads.
type Why struct {
	Denial *Denial // nil: something is granted
	Near   []identity.Near
}

// Explain says what a node's workload misses. That a node asks is a denial's
// record too: it learns by no way that leaves no trace. What is granted is not
// told: the node gets it by asking for it.
func (b *Broker) Explain(ctx context.Context, node Node, r JWTRequest) (Why, error) {
	if len(r.Audiences) > MaxAudiences || len(r.Audiences) > 0 && r.Target != "" {
		return Why{}, fmt.Errorf("explaining to %s: %w: give at most %d audiences, or a target", node.ID, ErrRequest, MaxAudiences)
	}
	if !fits(maxAsked, r.Audiences, r.Audiences...) || len(r.Target) > maxTarget {
		return Why{}, fmt.Errorf("explaining to %s: %w: at most %d bytes of audiences, or %d of a target's name, are taken", node.ID, ErrRequest, maxAsked, maxTarget)
	}
	if err := b.standing(node); err != nil {
		return Why{}, fmt.Errorf("explaining: %w", err)
	}
	policy := b.ground(node.ID)
	whole := b.request(node, r.Workload)
	request := whole
	request.Audiences, request.Target = r.Audiences, r.Target
	_, err := policy.Set.Decide(request)
	if err == nil {
		return Why{}, nil
	}
	if !errors.Is(err, identity.ErrDenied) {
		return Why{}, fmt.Errorf("explaining to %s: %w: %w", node.ID, ErrRequest, err)
	}
	code := DeniedAll
	if len(r.Audiences) > 0 || r.Target != "" {
		code = refusedToken(policy, whole, r, err)
	}
	denial, err := b.deny(ctx, policy, node, request, "explain", err, code)
	if err != nil {
		return Why{}, err
	}
	return Why{denial, policy.Set.NearTo(request)}, nil
}
