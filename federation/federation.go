// Package federation knows foreign trust domains: which there are, their
// bundles, and how fresh these are.
//
// A bundle is believed only for the trust domain that its Peer names, and only
// as it came over that Peer's authenticated endpoint (SPIFFE Federation §5) or
// from the operator. Bundles of different trust domains are never merged. The
// HTTP client that fetches lies in federation/fetch, the server of our own
// bundle in federation/endpoint; who may rely on which peer is left to
// Identities.
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
	MaxStaleness time.Duration // 0: 24 h; past it the bundle's staleness is shouted, never hidden
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
	Fingerprint string // "sha256:" and the hex SHA-256 of a CA's DER SubjectPublicKeyInfo in the shown chain
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
}
