// Package federation knows foreign trust domains: which there are, their
// bundles, and how fresh these are.
//
// A bundle is believed only for the trust domain that its Peer names, and only
// as it came over that Peer's authenticated endpoint (SPIFFE Federation §5) or
// from the operator. Bundles of different trust domains are never merged. The
// HTTP client that fetches lies in federation/fetch, the server of our own
// bundle in federation/endpoint; who may rely on which peer is left to
// Identities.
//
// Decided where SPIFFE's documents contradict themselves (the numbers are those
// of the tests):
//   - D-01 IDs and trust domains have one spelling: capitals are refused, never
//     folded, in text and in certificates.
//   - D-02 a CA needs no SPIFFE ID, D-03 it may have one that ends in a slash:
//     corporate roots have neither, and who signs authenticates nobody by it.
//   - D-04 wit-svid is a third use: its keys are kept apart and verify nothing.
//   - D-06 the hint's member is spiffe_refresh_hint alone.
//   - D-12 of peers, a kid is unique within its use; ours are over all uses.
//   - D-13 a CA may have digitalSignature.
//   - D-14 what §4 of X509-SVID asks of issuers is held against our own SVIDs;
//     of peers, what §5 asks of validators and no more.
package federation

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Peer is a foreign trust domain, as its resource says. Exactly one of
// HTTPSSPIFFE and HTTPSWeb is set (SPIFFE Federation §5.1: the profile is never
// guessed).
type Peer struct {
	TrustDomain  spiffeid.TrustDomain // the resource's name
	Revision     uint64
	URL          string // https, without user information
	HTTPSSPIFFE  *HTTPSSPIFFE
	HTTPSWeb     *HTTPSWeb
	MaxStaleness time.Duration // 0: 24 h; see Refresher
	AllowPrivate bool          // the URL may lead to a loopback, link-local or private address
	Accept       []string      // path patterns of its identities that may be evidence
}

// HTTPSSPIFFE is the https_spiffe profile: the server shows an X509-SVID of
// exactly EndpointID. One of Bundle and Fingerprint bootstraps the first
// fetch where the endpoint lies in the peer's own trust domain.
type HTTPSSPIFFE struct {
	EndpointID  spiffeid.ID
	BundleFile  string // as it was written; Bundle holds the file's text
	Bundle      []byte // SPIFFE bundle JSON or PEM
	Fingerprint string // BundleFingerprint of the peer's bundle, or Fingerprint of a CA in the shown chain
}

// HTTPSWeb is the https_web profile: web PKI.
type HTTPSWeb struct{}

// A Stored is a peer's bundle as it was last believed.
type Stored struct {
	TrustDomain spiffeid.TrustDomain
	Sequence    uint64
	Document    []byte    // SPIFFE bundle JSON, as fetched
	FetchedAt   time.Time // when this content was first fetched
	ConfirmedAt time.Time // when the endpoint last gave it
	Held        []byte    // a document that waits to be accepted in its place; none: nil
	HeldAt      time.Time // since when something does
}
