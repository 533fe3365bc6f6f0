package server

import (
	"net/http"
	"strings"
	"time"

	"github.com/credence-id/credence/federation/endpoint"
)

// BundlePath is where the bundle is served, by both profiles.
const BundlePath = "/bundle"

// handlers makes what the two HTTPS listeners serve: the bundle and CRLs, and
// nothing else, by the https_spiffe profile; to relying parties with web PKI
// the same by https_web, OIDC discovery and its keys, and the token endpoint.
func (s *Server) handlers() error {
	bundle, err := endpoint.New(endpoint.Config{Document: func() ([]byte, time.Duration, bool) {
		document, ok := s.cfg.Authority.Document()
		return document, s.cfg.RefreshHint, ok
	}})
	if err != nil {
		return err
	}
	elsewhere := s.cfg.OIDC
	if elsewhere == nil {
		elsewhere = http.NotFoundHandler()
	}
	if path := s.tokenPath(); path != "" {
		elsewhere = s.withToken(path, elsewhere)
	}
	s.spiffe, s.web = s.at(bundle, http.NotFoundHandler()), s.at(bundle, elsewhere)
	return nil
}

// withToken serves the token endpoint besides.
func (s *Server) withToken(path string, elsewhere http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() == path {
			s.token(w, r)
			return
		}
		elsewhere.ServeHTTP(w, r)
	})
}

// at serves the bundle and the CRLs at their paths and nowhere else. http.ServeMux would
// redirect what is nearly it, for good (SPIFFE Federation §5.2.1.3 wants
// redirects that are not remembered). The path is compared as it is spelled:
// what decodes to it is another path to caches and filters before us.
func (s *Server) at(bundle, elsewhere http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.EscapedPath(); {
		case path == BundlePath:
			bundle.ServeHTTP(w, r)
		case strings.HasPrefix(path, crlPrefix):
			s.crl(w, r)
		default:
			elsewhere.ServeHTTP(w, r)
		}
	})
}

// bundles are all that agents are told of: ours and the peers', by trust
// domain name, and the sequence number of ours.
func (s *Server) bundles() (all map[string]string, own uint64) {
	all = make(map[string]string)
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
	b := s.cfg.Authority.Bundle()
	all[s.cfg.TrustDomain.Name()] = string(b.Document)
	return all, b.Sequence
}
