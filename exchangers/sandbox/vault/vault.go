// Package vault emulates OpenBao and Vault as far as a workload's logins go: the
// auth methods jwt and cert, mounted where the configuration says, in namespaces
// too, and what a token is good for without a policy: looking at itself, and
// revoking itself.
//
// It trusts its configuration alone. A JWT is verified with the keys that the
// mount's discovery URL publishes, fetched over TLS; a certificate with the CAs
// of the role, by which clients come. It answers in OpenBao's words. It is
// stricter where the real ones leave a gap to whoever configures them: a JWT has
// iat and exp, a kid, and the bound issuer, which is the discovery URL unless the
// mount says another; a role of cert names the URIs that it lets in, and one of
// jwt an audience and a subject or claim. Left out are policies, secrets, renewal
// (no token is renewable), entities, key sets that are not discovered, and roles
// of people.
package vault

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// defaultTTL is a token's where its role has none, as a fresh server has it.
const defaultTTL = 768 * time.Hour

// maxTokens bounds memory: with more live ones nobody logs in.
const maxTokens = 4_000

// Config is the wiring of a [Server].
type Config struct {
	// Issuers says how issuers are reached. Its Now is replaced by the server's.
	Issuers sandbox.IssuersConfig
	// Mounts are the auth methods.
	Mounts []Mount
	// Skew is the roles' clock_skew_leeway; 0 is 60 s.
	Skew time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log is told of each request; nil discards.
	Log func(sandbox.Entry)
}

// A Mount is an auth method at a path: exactly one of JWT and Cert.
type Mount struct {
	Namespace string // such as team/shop; empty is the root
	Path      string // such as jwt; may have slashes
	JWT       *JWT
	Cert      *Cert
}

// JWT is the configuration of auth method jwt, and its roles.
type JWT struct {
	DiscoveryURL  string   // oidc_discovery_url
	BoundIssuer   string   // empty: DiscoveryURL
	SupportedAlgs []string // jwt_supported_algs; none: all that are asymmetric
	Roles         []JWTRole
}

// A JWTRole lets in who has one of the audiences, and the subject and claims.
type JWTRole struct {
	Name           string
	BoundAudiences []string // one of them; required
	BoundSubject   string   // empty: any
	BoundClaims    map[string][]string
	Glob           bool   // bound_claims_type glob, not string: a star is any run
	UserClaim      string // whose value names the token's holder; required
	Token          Token
}

// Cert is auth method cert.
type Cert struct {
	Roles []CertRole
}

// A CertRole lets in who has a certificate of one of the CAs with one of the URIs.
type CertRole struct {
	Name           string
	Certificates   []*x509.Certificate // CAs
	AllowedURISANs []string            // a star is any run
	Token          Token
}

// Token is what a role's tokens are.
type Token struct {
	TTL      time.Duration // token_ttl; 0 is 768 h
	Policies []string      // token_policies, besides default
}

// A Server is one OpenBao or Vault. It is safe for concurrent use.
type Server struct {
	Faults sandbox.Faults // and the clock

	cfg     Config
	now     func() time.Time
	issuers *sandbox.Issuers

	mu     sync.Mutex // guards the rest
	tokens map[string]session
}

// New returns a Server, or what in cfg no server would let be configured.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, tokens: map[string]session{}}
	if s.cfg.Skew == 0 {
		s.cfg.Skew = time.Minute
	}
	s.Faults.Shape = fault
	s.now = s.Faults.Clock(cfg.Now)
	cfg.Issuers.Now = s.now
	s.issuers = sandbox.NewIssuers(cfg.Issuers)
	seen := map[string]bool{}
	for _, m := range cfg.Mounts {
		if err := s.check(m); err != nil {
			return nil, fmt.Errorf("mount %q: %w", m.at(), err)
		}
		if seen[m.at()] {
			return nil, fmt.Errorf("mount %q: it stands twice", m.at())
		}
		seen[m.at()] = true
	}
	return s, nil
}

func (s *Server) check(m Mount) error {
	switch {
	case (m.JWT == nil) == (m.Cert == nil):
		return errors.New("exactly one of jwt and cert is wanted")
	case m.Path == "" || !clean(m.Path) || m.Namespace != "" && !clean(m.Namespace):
		return errors.New("path and namespace are names joined by slashes, without one at the ends")
	case m.Cert != nil:
		return m.Cert.check()
	}
	return m.JWT.check(s.issuers)
}

func clean(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, " \t\r\n?#%") {
			return false
		}
	}
	return true
}

// at is the mount's path from the root namespace.
func (m Mount) at() string { return join(m.Namespace, "auth/"+m.Path) }

func join(namespace, path string) string {
	if namespace = strings.Trim(namespace, "/"); namespace == "" {
		return path
	}
	return namespace + "/" + path
}

func (t Token) check() error {
	if t.TTL < 0 || t.TTL%time.Second != 0 {
		return fmt.Errorf("token_ttl %s: whole seconds are wanted", t.TTL)
	}
	return nil
}

// unique says whether each role has a name of its own.
func unique(names []string) error {
	slices.Sort(names)
	for i, name := range names {
		if !clean(name) || strings.Contains(name, "/") || i > 0 && names[i-1] == name {
			return fmt.Errorf("role %q: it has no proper name, or stands twice", name)
		}
	}
	return nil
}

// Issuers is the server's view of the issuers that its mounts name.
func (s *Server) Issuers() *sandbox.Issuers { return s.issuers }

// Handler serves the API. Certificates of clients are judged here: ask for one in
// TLS, and verify none.
func (s *Server) Handler() http.Handler {
	return s.Faults.Wrap(sandbox.Serve("vault", s.now, s.cfg.Log, s.serve))
}

// A session is what a login made.
type session struct {
	namespace, accessor, path, name string
	meta                            map[string]string
	policies                        []string
	ttl                             time.Duration
	created                         time.Time
}

func (t session) expires() time.Time { return t.created.Add(t.ttl) }

// open makes a token.
func (s *Server) open(t session, of Token) (string, session, error) {
	t.accessor, t.created, t.ttl = rand.Text(), s.now(), of.TTL
	if t.ttl == 0 {
		t.ttl = defaultTTL
	}
	t.policies = slices.Compact(slices.Sorted(slices.Values(append([]string{"default"}, of.Policies...))))
	raw := "s." + sandbox.Canary + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tokens) >= maxTokens {
		maps.DeleteFunc(s.tokens, func(_ string, held session) bool { return !t.created.Before(held.expires()) })
	}
	if len(s.tokens) >= maxTokens {
		return "", t, errors.New("too many live tokens")
	}
	s.tokens[sandbox.HashToken(raw)] = t
	return raw, t, nil
}

// held is the session of a token that lives, in its own namespace.
func (s *Server) held(raw, namespace string) (session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[sandbox.HashToken(raw)]
	return t, ok && raw != "" && t.namespace == namespace && s.now().Before(t.expires())
}

func (s *Server) revoke(raw string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, sandbox.HashToken(raw))
}
