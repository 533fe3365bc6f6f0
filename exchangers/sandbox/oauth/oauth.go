// Package oauth emulates an OAuth 2.0 authorization server for workloads: token
// exchange (RFC 8693), and a JWT as authorization grant and as client
// authentication (RFC 7523); and one protected call, so that a test can see a
// token work and stop working.
//
// It trusts its configuration alone. Each JWT is verified with keys fetched from
// its issuer over TLS; it must be for this server alone, live for an hour at
// most and have a jti, which is taken once (RFC 7523 §3 lets a server ask all of
// that). Nothing else is emulated: no users, no secrets, no refresh tokens.
package oauth

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// life is an access token's.
const life = 10 * time.Minute

// maxTokens bounds memory: more live tokens, and more spent JWTs, than that are
// not taken.
const maxTokens = 10_000

// Config is the wiring of a [Server].
type Config struct {
	// Issuers says how issuers are reached. Its Now is replaced by the server's.
	Issuers sandbox.IssuersConfig
	// Identifier is what the server calls itself, an https URL: the one audience
	// of every JWT that is presented to it. Required.
	Identifier string
	// Grants say who gets what.
	Grants []Grant
	// ClientAuthentication has every token exchange authenticate a client too.
	ClientAuthentication bool
	// Skew is how far clocks may differ; 0 is 60 s.
	Skew time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log is told of each request; nil discards.
	Log func(sandbox.Entry)
}

// A Grant is what the subject of an issuer may have.
type Grant struct {
	Issuer, Subject string
	// ClientID is that of the client which the subject is. Without it the subject
	// authenticates no client; with it no other client_id may stand beside.
	ClientID  string
	Scopes    []string // that may be asked for; all of them if none is
	Resources []string // and audiences (RFC 8693 §2.1, RFC 8707); none: the server's own
}

// A Server is one authorization server. It is safe for concurrent use.
type Server struct {
	TokenFaults, WhoamiFaults sandbox.Faults // the clock is TokenFaults'

	cfg     Config
	now     func() time.Time
	issuers *sandbox.Issuers

	mu     sync.Mutex // guards the rest
	spent  map[string]time.Time
	tokens map[string]token // by sandbox.HashToken
}

type token struct {
	subject, client string
	scopes, targets []string
	expires         time.Time
}

// New returns a Server, or what in cfg is missing or malformed.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, spent: map[string]time.Time{}, tokens: map[string]token{}}
	if s.cfg.Skew == 0 {
		s.cfg.Skew = time.Minute
	}
	s.TokenFaults.Shape, s.WhoamiFaults.Shape = tokenFault, whoamiFault
	s.now = s.TokenFaults.Clock(cfg.Now)
	cfg.Issuers.Now = s.now
	s.issuers = sandbox.NewIssuers(cfg.Issuers)
	if u, err := url.Parse(cfg.Identifier); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("identifier %q: an https URL without query and fragment is wanted", cfg.Identifier)
	}
	seen := map[[2]string]bool{}
	for _, g := range cfg.Grants {
		if err := s.issuers.CheckURL(g.Issuer); err != nil {
			return nil, fmt.Errorf("grant of %q: %w", g.Subject, err)
		}
		if g.Subject == "" || seen[[2]string{g.Issuer, g.Subject}] {
			return nil, fmt.Errorf("grant of %q: it has no subject, or stands twice", g.Subject)
		}
		seen[[2]string{g.Issuer, g.Subject}] = true
	}
	return s, nil
}

// Issuers is the server's view of the issuers that its grants name.
func (s *Server) Issuers() *sandbox.Issuers { return s.issuers }

// Token serves POST /token and the server's metadata (RFC 8414).
func (s *Server) Token() http.Handler {
	return s.TokenFaults.Wrap(sandbox.Serve("oauth_token", s.now, s.cfg.Log, s.serveToken))
}

// Whoami serves GET /whoami: whose an access token is, until it expires.
func (s *Server) Whoami() http.Handler {
	return s.WhoamiFaults.Wrap(sandbox.Serve("oauth_whoami", s.now, s.cfg.Log, s.serveWhoami))
}

func (s *Server) serveWhoami(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	raw := sandbox.Bearer(r)
	s.mu.Lock()
	t, ok := s.tokens[sandbox.HashToken(raw)]
	s.mu.Unlock()
	switch {
	case r.Method != http.MethodGet || r.URL.Path != "/whoami":
		writeError(w, e, &refusal{http.StatusNotFound, "not_found", "GET /whoami is what there is", nil})
	case raw == "" || !ok || !s.now().Before(t.expires):
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`) // RFC 6750 §3
		writeError(w, e, &refusal{http.StatusUnauthorized, "invalid_token", "the access token is unknown or expired", nil})
	default:
		writeJSON(w, http.StatusOK, map[string]any{"sub": t.subject, "client_id": t.client, "scope": strings.Join(t.scopes, " "),
			"aud": t.targets, "exp": t.expires.Unix()})
	}
}

var errFull = errors.New("too many live tokens")

// spend takes a jti once for as long as its JWT lives.
func (s *Server) spend(key string, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	maps.DeleteFunc(s.spent, func(_ string, t time.Time) bool { return now.After(t) })
	if _, ok := s.spent[key]; ok {
		return errors.New("its jti was presented before")
	}
	if len(s.spent) >= maxTokens {
		return errFull
	}
	s.spent[key] = until
	return nil
}

func (s *Server) issue(t token) (string, error) {
	raw := "oauth-" + sandbox.Canary + rand.Text() + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	maps.DeleteFunc(s.tokens, func(_ string, t token) bool { return !now.Before(t.expires) })
	if len(s.tokens) >= maxTokens {
		return "", errFull
	}
	s.tokens[sandbox.HashToken(raw)] = t
	return raw, nil
}
