package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
)

// What a cut-off may be about.
const (
	CutID        = "id"        // a SPIFFE ID
	CutIdentity  = "identity"  // an Identity, by name
	CutNode      = "node"      // a node, by SPIFFE ID: its own SVIDs and all that it got for its workloads
	CutAuthority = "authority" // an issuing CA or a JWT key, by ID
)

// Bounds of cut-offs.
const (
	MaxCutoffs     = 4096 // that stand at one time
	maxCutValue    = 2048
	maxCutName     = 128
	maxCutReason   = 512
	maxCutActor    = 256
	defaultLongest = 56 * time.Hour // a third of the longest life of an issuing CA
)

// A Cutoff revokes what was issued before a time, known or not. What is issued
// after it is good: it is no Deny.
type Cutoff struct {
	Kind   string
	Value  string
	Before time.Time // zero: now
	Reason string    // for the operator
	Actor  string    // who revoked
	MadeAt time.Time // set by Revoke
}

func requestError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRequest, fmt.Sprintf(format, args...))
}

// CheckCutoff refuses, with an error that wraps ErrRequest, what is no cut-off
// of a trust domain.
func CheckCutoff(td spiffeid.TrustDomain, c Cutoff) error {
	switch {
	case len(c.Reason) > maxCutReason || !utf8.ValidString(c.Reason):
		return requestError("a reason of %d bytes: at most %d of UTF-8 are taken", len(c.Reason), maxCutReason)
	case len(c.Actor) > maxCutActor || !utf8.ValidString(c.Actor):
		return requestError("an actor of %d bytes: at most %d of UTF-8 are taken", len(c.Actor), maxCutActor)
	case c.Value == "" || len(c.Value) > maxCutValue:
		return requestError("%.40q of %d bytes: 1 to %d are taken", c.Kind, len(c.Value), maxCutValue)
	}
	switch c.Kind {
	case CutID, CutNode:
		return checkCutID(td, c)
	case CutIdentity, CutAuthority:
		if len(c.Value) > maxCutName || strings.ContainsFunc(c.Value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return requestError("%s %.200q: its name has 1 to %d printable ASCII characters", c.Kind, c.Value, maxCutName)
		}
		return nil
	}
	return requestError("cut-off of %.40q: id, identity, node and authority are what can be revoked", c.Kind)
}

func checkCutID(td spiffeid.TrustDomain, c Cutoff) error {
	id, err := identity.ParseID(c.Value)
	switch {
	case err != nil:
		return requestError("%s %.200q: %v", c.Kind, c.Value, err)
	case id.TrustDomain() != td || id.Path() == "":
		return requestError("%s %s is no workload or node of %s: only what we issued can be revoked here", c.Kind, id, td)
	case id == identity.BrokerID(td):
		return requestError("%s is the broker itself: credence ca replace issuing is the way to make it new", id)
	case c.Kind == CutNode && !identity.IsNodeID(td, id):
		return requestError("%s is no node: nodes lie under /credence/node/", id)
	}
	return nil
}

// cuts are the cut-offs that stand. They are immutable and swapped whole.
type cuts struct {
	all map[cutKey]Cutoff
	// latest of all authorities': nobody remembers which one signed what an
	// agent holds.
	authorities time.Time
	tokens      []Cutoff  // those that a validator of JWT-SVIDs can judge by
	clear       time.Time // from then on a token's iat, in whole seconds, is past them all
}

type cutKey struct{ kind, value string }

func (c Cutoff) key() cutKey { return cutKey{c.Kind, c.Value} }

func newCuts(all map[cutKey]Cutoff) *cuts {
	c := &cuts{all: all}
	for _, cut := range all {
		if cut.Kind == CutAuthority {
			c.authorities = later(c.authorities, cut.Before)
		}
		if cut.Kind == CutID || cut.Kind == CutAuthority {
			c.tokens = append(c.tokens, cut)
			c.clear = later(c.clear, cut.Before.Add(time.Second-time.Nanosecond).Truncate(time.Second))
		}
	}
	slices.SortFunc(c.tokens, compareCutoffs)
	return c
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// hit returns the cut-off that an SVID falls under. One whose authority is not
// known falls under that of any.
func (c *cuts) hit(i Issued) (Cutoff, bool) {
	if len(c.all) == 0 {
		return Cutoff{}, false
	}
	for _, key := range []cutKey{{CutID, i.SPIFFEID}, {CutIdentity, i.Identity}, {CutNode, i.Node}, {CutAuthority, i.Authority}} {
		if cut, ok := c.all[key]; ok && key.value != "" && i.IssuedAt.Before(cut.Before) {
			return cut, true
		}
	}
	if i.Authority == "" && i.IssuedAt.Before(c.authorities) {
		return Cutoff{Kind: CutAuthority, Before: c.authorities}, true
	}
	return Cutoff{}, false
}

// hitNode returns the cut-off that a node's own SVID falls under. An authority's
// is about what others may have made with it: a node's SVID whose key we know is
// none of these, and makes itself a new one.
func (c *cuts) hitNode(n Node) (Cutoff, bool) {
	cut, hit := c.hit(n.own())
	if hit && cut.Kind == CutAuthority && len(n.Key) > 0 {
		return Cutoff{}, false
	}
	return cut, hit
}

// newest is the time before which nothing that was issued on a decision is
// good any more; zero: all of it is. Which authority signed it is not known
// here, so any authority's counts.
func (c *cuts) newest(id, identity, node string) time.Time {
	if len(c.all) == 0 {
		return time.Time{}
	}
	t := c.authorities
	for _, key := range []cutKey{{CutID, id}, {CutIdentity, identity}, {CutNode, node}} {
		t = later(t, c.all[key].Before)
	}
	return t
}

// covers says whether a cut-off is about a decision for a node.
func (c Cutoff) covers(id, identity, node string) bool {
	switch c.Kind {
	case CutID:
		return c.Value == id
	case CutIdentity:
		return c.Value == identity
	case CutNode:
		return c.Value == node
	}
	return c.Kind == CutAuthority
}

func compareCutoffs(x, y Cutoff) int {
	return cmp.Or(strings.Compare(x.Kind, y.Kind), strings.Compare(x.Value, y.Value))
}
