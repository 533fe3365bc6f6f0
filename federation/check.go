package federation

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A CheckRequest is a Request whose answer is looked at step by step.
type CheckRequest struct {
	Request
	TrustDomain spiffeid.TrustDomain // whose bundle it ought to be
	Unproven    error                // why an https_spiffe endpoint cannot be verified; then HTTPSSPIFFE has the ID alone
	Last        *Bundle              // what we believe of it; nil: nothing yet
}

// The steps of a check, in their order: each needs those before it.
const (
	StepDNS         = "dns"
	StepTCP         = "tcp"
	StepProfile     = "profile"
	StepCertificate = "certificate"
	StepID          = "spiffe_id"
	StepBundle      = "bundle"
	StepSequence    = "sequence"
	StepClock       = "clock"
)

// A Finding is what one step of a check found.
type Finding struct {
	Step    string
	Found   string
	Problem string // what is wrong; none: ""
	Change  string // the one thing to change
	Other   bool   // the endpoint is of the other profile
}

// A Checker looks at a bundle endpoint as far as it gets, and changes nothing.
type Checker interface {
	Check(context.Context, CheckRequest) []Finding
}

// Check looks at the endpoint of the peer td as the next poll would, step by
// step, up to the first that fails.
func (r *Refresher) Check(ctx context.Context, td spiffeid.TrustDomain) ([]Finding, error) {
	if r.checker == nil {
		return nil, errors.New("checking a peer: there is no checker")
	}
	p, ok := r.poller(td)
	if !ok {
		return nil, fmt.Errorf("checking the peer %s: it is none", td)
	}
	j := p.job()
	req := CheckRequest{TrustDomain: td, Request: Request{
		URL: j.peer.URL, HTTPSWeb: j.peer.HTTPSWeb, AllowPrivate: j.peer.AllowPrivate,
	}}
	if j.held != nil {
		req.Last = j.held.bundle
	}
	if h := j.peer.HTTPSSPIFFE; h != nil {
		if req.HTTPSSPIFFE, req.Unproven = r.authentication(j); req.Unproven != nil {
			req.HTTPSSPIFFE = &Authentication{EndpointID: h.EndpointID}
		}
	}
	return r.checker.Check(ctx, req), nil
}
