package federation

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A Fetcher reads a bundle endpoint once. It bounds size and time, and does not
// retry: on error the last good bundle stays.
type Fetcher interface {
	Fetch(context.Context, Request) (Response, error)
}

// A Request is one GET of a bundle endpoint. Exactly one of HTTPSSPIFFE and
// HTTPSWeb is set; there is no way from one to the other (SPIFFE Federation
// §7.2).
type Request struct {
	URL          string
	HTTPSSPIFFE  *Authentication
	HTTPSWeb     *HTTPSWeb
	IfNoneMatch  string // the ETag of the document we have; empty asks for it whole
	AllowPrivate bool   // the URL may lead to a loopback, link-local or private address
}

// Authentication is how an https_spiffe server is known: it shows an X509-SVID
// of exactly EndpointID that verifies by Bundle. Where that is nil, Fingerprint
// names a CA in the shown chain, under which the SVID verifies, or else the
// authorities of the bundle that the server gives (BundleFingerprint), by which
// it verifies then. The host name plays no part (SPIFFE Federation §5.2.2.4).
type Authentication struct {
	EndpointID  spiffeid.ID
	Bundle      *x509bundle.Bundle
	Fingerprint string
}

// A Response is an endpoint's authenticated answer. It says nothing about whose
// bundle the document is: the caller knew that before (SPIFFE Federation
// §5.2.1.4).
type Response struct {
	Document    []byte
	ETag        string
	NotModified bool        // the document is still the one of IfNoneMatch
	PeerID      spiffeid.ID // whom the server proved to be; zero with https_web
}
