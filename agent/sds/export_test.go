package sds

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
)

// Whole is a stream's session without the stream.
type Whole struct{ c *whole }

// NewWhole is one that nothing was asked of.
func NewWhole() Whole { return Whole{newWhole()} }

// Ask takes a request in and answers.
func (w Whole) Ask(q *discovery.DiscoveryRequest, u agent.Update) (*discovery.DiscoveryResponse, error) {
	return ask[*discovery.DiscoveryRequest, *discovery.DiscoveryResponse](w.c, q, u)
}

// Delta is the same of an incremental one.
type Delta struct{ c *delta }

// NewDelta is one that nothing was asked of.
func NewDelta() Delta { return Delta{newDelta()} }

// Ask takes a request in and answers.
func (d Delta) Ask(q *discovery.DeltaDiscoveryRequest, u agent.Update) (*discovery.DeltaDiscoveryResponse, error) {
	return ask[*discovery.DeltaDiscoveryRequest, *discovery.DeltaDiscoveryResponse](d.c, q, u)
}

func ask[Q request, A any](c session[Q, A], q Q, u agent.Update) (none A, err error) {
	if err := check(q); err != nil {
		return none, err
	}
	if _, err := c.take(q); err != nil {
		return none, err
	}
	s := New(Config{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")})
	return c.answer(s.catalogOf(u, plain(q.GetNode(), false)))
}
