// Package sds serves Envoy's Secret Discovery Service v3 beside the Workload
// API, on the same Unix socket: who calls is the kernel's word, what it gets is
// the agent's. Envoy cannot send the metadata that the Workload API demands, so
// none is wanted here; all else is the same.
//
// Resources by name: "default" is the first of the caller's SVIDs, "ROOTCA" what
// verifies our own trust domain, "ALL" that and all that the caller's identities
// federate with; a SPIFFE ID is that SVID, a trust domain's ID
// (spiffe://td.example) what verifies it. No name, or "*", means every SVID and
// trust domain under its ID. The first three can be named otherwise.
//
// A trust domain is verified by Envoy's SPIFFE certificate validator, which
// holds each trust domain's SVIDs against its own roots alone and always wants a
// client's certificate. Where it is switched off, or for an Envoy before 1.18,
// the roots are trusted_ca instead, and there is no "ALL": roots of several
// trust domains in one list could speak for each other. The validator takes a
// chain only up to a self-signed root: with broker.yaml's anchor: ours, switch
// it off.
//
// A name that gives nothing fails the stream with InvalidArgument and a reason,
// which Envoy logs, and Envoy tries again, within half a second to half a
// minute. There is never an empty secret. What Envoy was given it keeps, as long
// as it runs, whatever becomes of the stream and whatever a delta stream
// removes. So when a Deny or an eviction ends a stream with PermissionDenied,
// Envoy goes on with the SVID that it has until peers refuse it: at its expiry,
// or by its CRL; stop the Envoy to be sure. Roots of a peer that has gone leave
// it with the next "ALL", but not if it asked for that trust domain alone.
//
// CRLs are left out. With one, Envoy refuses every certificate of a CA that it
// has no current list of: each SVID of an issuing CA that began after the last
// push, and all of them once the agent has been away from its broker for the
// life of a list. Revocation must not be what stops those who are not revoked.
package sds

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
)

// A View is one caller's, for as long as its stream is open; *agent.Identities
// is one.
type View interface {
	Next(context.Context) (agent.Update, error)
	Close()
}

// Names are those of the resources that have no SPIFFE ID for a name.
type Names struct {
	SVID       string // empty means default
	Bundle     string // empty means ROOTCA
	AllBundles string // empty means ALL
}

// Config is the wiring of a Server. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Identities  func(*caller.Process) View
	Names       Names
	// DisableSPIFFECertValidation gives roots as trusted_ca, to an Envoy whose
	// node metadata doesn't say otherwise under disable_spiffe_cert_validation.
	DisableSPIFFECertValidation bool
	Log                         *slog.Logger     // nil discards
	Now                         func() time.Time // nil means time.Now
}

// A Server answers envoy.service.secret.v3.SecretDiscoveryService. Register it
// on a gRPC server with caller.Credentials.
type Server struct {
	secret.UnsafeSecretDiscoveryServiceServer
	cfg      Config
	refusals refusals
}

// New returns a Server.
func New(cfg Config) *Server {
	cfg.Names.SVID = cmp.Or(cfg.Names.SVID, "default")
	cfg.Names.Bundle = cmp.Or(cfg.Names.Bundle, "ROOTCA")
	cfg.Names.AllBundles = cmp.Or(cfg.Names.AllBundles, "ALL")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg}
}
