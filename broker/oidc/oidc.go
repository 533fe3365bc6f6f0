// Package oidc shows the trust domain to OpenID Connect relying parties, such
// as clouds: a discovery document and the RS256 keys that verify its
// JWT-SVIDs; and to OAuth clients the metadata of its token endpoint.
//
// It trusts the keys that it is handed, and reads nothing of a request but its
// method, path and conditions. The documents' bytes change only when what they
// say does. They are not the SPIFFE bundle, whose keys have another use
// (SPIFFE Trust Domain and Bundle §4.2.2). Their form over HTTP is left to
// federation/endpoint, TLS and limits to the listener.
package oidc

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation/endpoint"
)

// Config is the wiring of a Handler. Fields are required unless noted.
type Config struct {
	Issuer string                       // as in the tokens' iss; see CheckIssuer
	Keys   func() []authority.PublicKey // those published now; only RS256 is shown
	MaxAge time.Duration                // how long caches may keep them: the refresh hint; 0: 300 s
	Log    *slog.Logger                 // nil discards
}

// A Handler serves the three documents, at the issuer's paths and nowhere else. Until there is a key it answers 503: an empty key set would be cached.
type Handler struct {
	keys      func() []authority.PublicKey
	log       *slog.Logger
	discovery string // paths
	jwks      string
	document  *endpoint.Document // the discovery document
	metadata  string
	server    *endpoint.Document // of metadata
	cache     string             // Cache-Control
	last      atomic.Pointer[keySet]
}

// New returns the handler of cfg.Issuer, and refuses what CheckIssuer does.
func New(cfg Config) (*Handler, error) {
	if _, err := CheckIssuer(cfg.Issuer); err != nil {
		return nil, err
	}
	if cfg.Keys == nil {
		return nil, fmt.Errorf("serving issuer %s: no keys", cfg.Issuer)
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 300 * time.Second
	}
	if cfg.MaxAge < time.Second {
		return nil, fmt.Errorf("serving issuer %s: documents that are fresh for %s: want at least 1s", cfg.Issuer, cfg.MaxAge)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u, err := url.Parse(cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("serving issuer %s: %w", cfg.Issuer, err)
	}
	document, err := json.Marshal(discovery(cfg.Issuer))
	if err != nil {
		return nil, fmt.Errorf("serving issuer %s: %w", cfg.Issuer, err)
	}
	metadata, err := json.Marshal(metadataOf(cfg.Issuer))
	if err != nil {
		return nil, fmt.Errorf("serving issuer %s: %w", cfg.Issuer, err)
	}
	cache := CacheControl(cfg.MaxAge)
	return &Handler{
		keys:      cfg.Keys,
		log:       cfg.Log,
		discovery: u.Path + "/.well-known/openid-configuration",
		jwks:      u.Path + "/keys",
		document:  endpoint.NewDocument(document, cache),
		metadata:  "/.well-known/oauth-authorization-server" + u.Path, // RFC 8414 §3.1
		server:    endpoint.NewDocument(metadata, cache),
		cache:     cache,
	}, nil
}

// CacheControl is that of all documents, whoever serves them.
func CacheControl(age time.Duration) string {
	return "public, max-age=" + strconv.Itoa(int(age/time.Second))
}

// Paths are those of the documents, for the listener's multiplexer.
func (h *Handler) Paths() []string { return []string{h.discovery, h.jwks, h.metadata} }

// ServeHTTP serves GET and HEAD. Web pages of any origin may read the answer:
// it is public.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath() // as it is spelled: an issuer has no escapes
	if path != h.discovery && path != h.jwks && path != h.metadata {
		http.NotFound(w, r)
		return
	}
	header := w.Header()
	header.Set("Access-Control-Allow-Origin", "*")
	document, err := h.keySet()
	if err != nil {
		h.log.WarnContext(r.Context(), "OIDC keys not served", "error", err)
		header.Set("Retry-After", "1")
		header.Set("Cache-Control", "no-store")
		http.Error(w, "the keys are not published yet", http.StatusServiceUnavailable)
		return
	}
	if path == h.discovery {
		document = h.document
	}
	if path == h.metadata {
		document = h.server
	}
	document.ServeHTTP(w, r)
}

// Documents are discovery and keys, for who serves them in a Handler's place: a
// token endpoint is nobody's but the broker's.
func Documents(issuer string, keys []authority.PublicKey) (configuration, jwks []byte, err error) {
	if _, err := CheckIssuer(issuer); err != nil {
		return nil, nil, err
	}
	if jwks, err = encode(onlyRS256(keys)); err != nil {
		return nil, nil, fmt.Errorf("the keys of issuer %s: %w", issuer, err)
	}
	configuration, err = json.Marshal(discovery(issuer))
	return configuration, jwks, err
}

// configuration is the part of OpenID Connect Discovery 1.0 §3 that clouds
// read. A field that is there but empty makes some of them refuse it all.
type configuration struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	SigningAlgs   []string `json:"id_token_signing_alg_values_supported"`
}

func discovery(issuer string) configuration {
	return configuration{
		Issuer:        issuer,
		JWKSURI:       issuer + "/keys",
		ResponseTypes: []string{"id_token"},
		SubjectTypes:  []string{"public"},
		SigningAlgs:   []string{"RS256"},
	}
}

// TokenEndpoint is the URL of an issuer's token endpoint, which is the audience
// of the tokens that it takes.
func TokenEndpoint(issuer string) string { return issuer + "/token" }

// metadata is RFC 8414 §2. Discovery has none of it: some clouds refuse what they
// do not expect.
type metadata struct {
	Issuer        string   `json:"issuer"`
	TokenEndpoint string   `json:"token_endpoint"`
	JWKSURI       string   `json:"jwks_uri"`
	GrantTypes    []string `json:"grant_types_supported"`
	ResponseTypes []string `json:"response_types_supported"` // required, though nothing here asks for one
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
}

func metadataOf(issuer string) metadata {
	return metadata{
		Issuer:        issuer,
		TokenEndpoint: TokenEndpoint(issuer),
		JWKSURI:       issuer + "/keys",
		GrantTypes:    []string{"urn:ietf:params:oauth:grant-type:token-exchange"},
		ResponseTypes: []string{"none"},
		AuthMethods:   []string{"none"},
	}
}
