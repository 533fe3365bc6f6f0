package server

import (
	"net/http"
	"time"

	"github.com/credence-id/credence/federation/endpoint"
)

// BundlePath is where the bundle is served, by both profiles.
const BundlePath = "/bundle"

// handlers makes what the two HTTPS listeners serve: the bundle, and nothing
// else, by the https_spiffe profile; to relying parties with web PKI the
// bundle by https_web, and OIDC discovery and its keys.
func (s *Server) handlers() error {
	bundle, err := endpoint.New(endpoint.Config{Document: func() ([]byte, time.Duration, bool) {
		document, ok := s.cfg.Authority.Document()
		return document, s.cfg.RefreshHint, ok
	}})
	if err != nil {
		return err
	}
	spiffe, web := http.NewServeMux(), http.NewServeMux()
	spiffe.Handle(BundlePath, bundle)
	web.Handle(BundlePath, bundle)
	if s.cfg.OIDC != nil {
		web.Handle("/", s.cfg.OIDC)
	}
	s.spiffe, s.web = spiffe, web
	return nil
}

// bundles are all that agents are told of: ours and the peers', by trust
// domain name.
func (s *Server) bundles() map[string]string {
	all := make(map[string]string)
	for _, b := range s.cfg.Peers.Set().All() {
		// What our edge understood of it, and not the peer's own text: an agent's
		// parser must not fall over an entry that ours ignores.
		document, err := b.Marshal()
		if err != nil {
			s.cfg.Log.Error("bundle not passed on", "trust_domain", b.TrustDomain().Name(), "error", err)
			continue
		}
		all[b.TrustDomain().Name()] = string(document)
	}
	if document, ok := s.cfg.Authority.Document(); ok {
		all[s.cfg.TrustDomain.Name()] = string(document)
	}
	return all
}
