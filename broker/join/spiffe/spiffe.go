// Package spiffe is the join method of machines that have an X509-SVID: of another
// trust domain, whose SPIRE say has attested them, or of our own.
//
// A node shows its SVID with its chain, and signs our fresh challenge with its key.
// Whether the SVID is good (X509-SVID §5) is found out by a function that is handed
// in, by the bundle of the SVID's own trust domain and no other; before that is
// asked, the rule must list the trust domain, and the ID must not be under /credence/:
// what is ours or another broker's, or a node's, vouches for no machine. What is
// signed has our trust domain, the challenge and the node's new key in it: neither a
// recording nor what was signed for somebody else does for us, and ours does for
// nobody else. A
// JWT-SVID is no evidence: it can be copied, and agents hand out the same one for
// minutes, which could count only once.
//
// Whoever has the key is the node, again and again: it rejoins by itself, with the
// SVID that it has by then. It is banned by its SPIFFE ID: each machine needs one of
// its own.
package spiffe

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/possession"
)

// Method is the name of this join method.
const Method = "spiffe"

const maxTrustDomains = 64

// Settings are those of a JoinRule.
type Settings struct {
	// TrustDomains whose SVIDs count; required. Another's count while it is a Peer;
	// ours has to be listed too.
	TrustDomains []string `yaml:"trust_domains"`
}

// Validate implements join.Settings.
func (s *Settings) Validate() error {
	if len(s.TrustDomains) == 0 || len(s.TrustDomains) > maxTrustDomains {
		return fmt.Errorf("trust_domains: %d of them: 1 to %d are wanted", len(s.TrustDomains), maxTrustDomains)
	}
	for n, name := range s.TrustDomains {
		if _, err := identity.ParseTrustDomain(name); err != nil {
			return fmt.Errorf("trust_domains: %w", err)
		}
		if slices.Contains(s.TrustDomains[:n], name) {
			return fmt.Errorf("trust_domains: %s is there twice", name)
		}
	}
	return nil
}

// Verify returns whose X509-SVID a chain is, leaf first, if it is good at present:
// by the bundle of its own trust domain, which is ours or a peer's that is believed,
// and not revoked. An error wrapping join.ErrEvidence means that it will never be.
type Verify func(ctx context.Context, chain []*x509.Certificate) (spiffeid.ID, error)

// Config is the wiring of a method. All fields are required.
type Config struct {
	Settings    *Settings
	TrustDomain string
	Verify      Verify
}

type method struct{ cfg Config }

// New returns the method of a rule.
func New(cfg Config) (join.Method, error) {
	if cfg.TrustDomain == "" || cfg.Verify == nil {
		return nil, errors.New("joining by spiffe: a trust domain and what verifies are required")
	}
	return method{cfg}, cfg.Settings.Validate()
}

// Join verifies an SVID, then that its key is the node's.
func (m method) Join(ctx context.Context, shown []byte, ask join.Challenge) (join.Proof, error) {
	chain, err := possession.Parse(shown)
	if err != nil {
		return join.Proof{}, err
	}
	claimed, err := m.claimed(chain[0])
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	id, err := m.cfg.Verify(ctx, chain)
	if err != nil {
		return join.Proof{}, err
	}
	if id != claimed {
		return join.Proof{}, fmt.Errorf("%w: it says %s, and is %s", join.ErrEvidence, claimed, id)
	}
	if err := possession.Prove(ctx, ask, Method, m.cfg.TrustDomain, chain[0].PublicKey); err != nil {
		return join.Proof{}, err
	}
	return proofOf(id, chain[0])
}

// claimed is whose a certificate says that it is, if the rule would take that one.
func (m method) claimed(leaf *x509.Certificate) (spiffeid.ID, error) {
	if len(leaf.URIs) != 1 {
		return spiffeid.ID{}, fmt.Errorf("%d URIs: an X509-SVID has one", len(leaf.URIs))
	}
	id, err := identity.ParseID(leaf.URIs[0].String())
	switch {
	case err != nil:
		return spiffeid.ID{}, err
	case !slices.Contains(m.cfg.Settings.TrustDomains, id.TrustDomain().Name()):
		return spiffeid.ID{}, fmt.Errorf("%s: its trust domain is not in trust_domains", id)
	case id.Path() == "" || identity.IsReserved(id):
		return spiffeid.ID{}, fmt.Errorf("%s is no machine's", id)
	}
	return id, nil
}

// proofOf is what an SVID proves.
func proofOf(id spiffeid.ID, leaf *x509.Certificate) (join.Proof, error) {
	facts, err := identity.NewFacts("node."+Method, map[string][]string{
		"node.spiffe.id": {id.String()}, "node.spiffe.trust_domain": {id.TrustDomain().Name()}, "node.spiffe.path": {id.Path()},
		"node.spiffe.serial": {hex.EncodeToString(leaf.SerialNumber.Bytes())},
	})
	if err != nil {
		return join.Proof{}, err
	}
	return join.Proof{Name: nameOf(id), Facts: facts, DurableKey: id.String()}, nil
}

// nameOf is a node's name: trust domain and path, the trust domain first, so that
// no path is another's machine; what is too long for a name is told by its digest.
func nameOf(id spiffeid.ID) string {
	text := strings.TrimPrefix(id.String(), "spiffe://")
	name := join.NodeName(text)
	if len(name) < len(text) {
		sum := sha256.Sum256([]byte(text))
		name = name[:46] + "-" + hex.EncodeToString(sum[:8])
	}
	return name
}
