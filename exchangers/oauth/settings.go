package oauth

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// Settings are the settings of oauth: exactly one of the modes.
type Settings struct {
	TokenExchange   *TokenExchange   `yaml:"token_exchange,omitempty" json:"token_exchange,omitempty"`
	ClientAssertion *ClientAssertion `yaml:"client_assertion,omitempty" json:"client_assertion,omitempty"`
	JWTBearer       *JWTBearer       `yaml:"jwt_bearer,omitempty" json:"jwt_bearer,omitempty"`
	VaultJWT        *VaultJWT        `yaml:"vault_jwt,omitempty" json:"vault_jwt,omitempty"`
	VaultCert       *VaultCert       `yaml:"vault_cert,omitempty" json:"vault_cert,omitempty"`
}

// TokenExchange presents the JWT-SVID as subject token (RFC 8693 §2.1).
type TokenExchange struct {
	// URL of the token endpoint. The Target's endpoint comes before it.
	TokenURL string `yaml:"token_url" json:"token_url"`
	// Of the JWT-SVID: what the server calls itself, byte for byte.
	TokenAudience string `yaml:"audience" json:"audience"`
	// What the token is for: names that the server knows, and URIs (RFC 8693
	// §2.1, audience and resource); the default is the server's.
	RequestedAudiences []string `yaml:"requested_audiences,omitempty" json:"requested_audiences,omitempty"`
	Resources          []string `yaml:"resources,omitempty" json:"resources,omitempty"`
	// The default is the server's.
	Scopes []string `yaml:"scopes,omitempty" json:"scopes,omitempty"`
	// A URI like urn:ietf:params:oauth:token-type:access_token; the default is
	// the server's.
	RequestedTokenType string `yaml:"requested_token_type,omitempty" json:"requested_token_type,omitempty"`
	// Only where the server wants one.
	ClientID string `yaml:"client_id,omitempty" json:"client_id,omitempty"`
	// jwt-bearer (RFC 7523 §2.2) or jwt-spiffe: a second JWT-SVID, of the same
	// audience, is the client's assertion. The default is none.
	ClientAuth string `yaml:"client_auth,omitempty" json:"client_auth,omitempty"`
}

// ClientAssertion authenticates a client by the JWT-SVID, and asks for its
// client credentials grant (RFC 7523 §2.2, RFC 6749 §4.4).
type ClientAssertion struct {
	// URL of the token endpoint. The Target's endpoint comes before it.
	TokenURL string `yaml:"token_url" json:"token_url"`
	// Of the JWT-SVID: what the server calls itself, byte for byte.
	TokenAudience string `yaml:"audience" json:"audience"`
	// The default is none: the server takes the JWT-SVID's subject.
	ClientID string `yaml:"client_id,omitempty" json:"client_id,omitempty"`
	// jwt-bearer or jwt-spiffe, the last part of the assertion's type; the
	// default is jwt-bearer.
	ClientAuth string `yaml:"client_auth,omitempty" json:"client_auth,omitempty"`
	// The default is the server's.
	Scopes []string `yaml:"scopes,omitempty" json:"scopes,omitempty"`
	// What the token is for (RFC 8707); the default is the server's.
	Resources []string `yaml:"resources,omitempty" json:"resources,omitempty"`
}

// JWTBearer presents the JWT-SVID as authorization grant (RFC 7523 §2.1).
type JWTBearer struct {
	// URL of the token endpoint. The Target's endpoint comes before it.
	TokenURL string `yaml:"token_url" json:"token_url"`
	// Of the JWT-SVID: what the server calls itself, byte for byte.
	TokenAudience string `yaml:"audience" json:"audience"`
	// Only where the server wants one.
	ClientID string `yaml:"client_id,omitempty" json:"client_id,omitempty"`
	// The default is the server's.
	Scopes []string `yaml:"scopes,omitempty" json:"scopes,omitempty"`
	// What the token is for (RFC 8707); the default is the server's.
	Resources []string `yaml:"resources,omitempty" json:"resources,omitempty"`
}

// VaultJWT logs in to OpenBao or Vault with the JWT-SVID (auth method jwt).
type VaultJWT struct {
	// URL of the server, as in VAULT_ADDR. The Target's endpoint comes before it.
	URL string `yaml:"url" json:"url"`
	// Of the JWT-SVID: one of the role's bound_audiences.
	TokenAudience string `yaml:"audience" json:"audience"`
	// Of the mount. Give it a token_ttl, and no token_num_uses: one login serves
	// until half of that is over.
	Role string `yaml:"role" json:"role"`
	// Path of the mount; the default is jwt.
	Mount string `yaml:"mount,omitempty" json:"mount,omitempty"`
	// The default is the server's root namespace.
	Namespace string `yaml:"namespace,omitempty" json:"namespace,omitempty"`
}

// VaultCert logs in to OpenBao or Vault by mTLS with the X509-SVID (auth method
// cert).
type VaultCert struct {
	// URL of the server, as in VAULT_ADDR. The Target's endpoint comes before
	// it. Its TLS must end there, not before.
	URL string `yaml:"url" json:"url"`
	// Name of the certificate role, which holds our bundle and, in
	// allowed_uri_sans, the SPIFFE ID. For its tokens see VaultJWT. The Identity
	// needs an x509.subject with a CN: these servers name who logs in by it.
	Role string `yaml:"role" json:"role"`
	// Path of the mount; the default is cert.
	Mount string `yaml:"mount,omitempty" json:"mount,omitempty"`
	// The default is the server's root namespace.
	Namespace string `yaml:"namespace,omitempty" json:"namespace,omitempty"`
}

// A mode is one way to exchange.
type mode interface {
	name() string
	audience() string // of the JWT-SVID; empty: the X509-SVID is presented
	validate() error
}

func (*TokenExchange) name() string   { return "token_exchange" }
func (*ClientAssertion) name() string { return "client_assertion" }
func (*JWTBearer) name() string       { return "jwt_bearer" }
func (*VaultJWT) name() string        { return "vault_jwt" }
func (*VaultCert) name() string       { return "vault_cert" }

func (m *TokenExchange) audience() string   { return m.TokenAudience }
func (m *ClientAssertion) audience() string { return m.TokenAudience }
func (m *JWTBearer) audience() string       { return m.TokenAudience }
func (m *VaultJWT) audience() string        { return m.TokenAudience }
func (*VaultCert) audience() string         { return "" }

// set are the modes that are not left out.
func (s Settings) set() (all []mode) {
	if s.TokenExchange != nil {
		all = append(all, s.TokenExchange)
	}
	if s.ClientAssertion != nil {
		all = append(all, s.ClientAssertion)
	}
	if s.JWTBearer != nil {
		all = append(all, s.JWTBearer)
	}
	if s.VaultJWT != nil {
		all = append(all, s.VaultJWT)
	}
	if s.VaultCert != nil {
		all = append(all, s.VaultCert)
	}
	return all
}

// Limits implements exchangers.Limited.
func (s Settings) Limits() (l exchangers.Limits) {
	if s.VaultCert != nil {
		l = exchangers.Limits{Provider: "OpenBao or Vault", WantsRDN: "CN"}
	}
	return l
}

// Audience of the JWT-SVID; empty for vault_cert.
func (s Settings) Audience() string {
	if set := s.set(); len(set) == 1 {
		return set[0].audience()
	}
	return ""
}

// Validate names the mode and the field that cannot be, and what can.
func (s Settings) Validate() error {
	set := s.set()
	if len(set) != 1 {
		return errors.New("exactly one of token_exchange, client_assertion, jwt_bearer, vault_jwt and vault_cert is wanted")
	}
	if err := set[0].validate(); err != nil {
		return fmt.Errorf("%s: %w", set[0].name(), err)
	}
	return nil
}

const maxList = 32

const (
	tokenTypes   = "urn:ietf:params:oauth:token-type:"
	accessToken  = tokenTypes + "access_token"
	jwtType      = tokenTypes + "jwt"
	refreshToken = tokenTypes + "refresh_token"
)

var (
	audience = regexp.MustCompile(`^[!-~]{1,600}$`)
	word     = regexp.MustCompile(`^[!-~]{1,255}$`)
	scope    = regexp.MustCompile(`^[!#-\[\]-~]{1,255}$`) // RFC 6749 §3.3
	role     = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
	mount    = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}$`)
	dots     = regexp.MustCompile(`(^|/)\.+(/|$)`)
)

func (m *TokenExchange) validate() error {
	if err := checkServer("token_url", m.TokenURL, m.TokenAudience); err != nil {
		return err
	}
	if m.ClientAuth != "" && !isClientAuth(m.ClientAuth) {
		return errClientAuth
	}
	if err := checkEach("requested_audiences", m.RequestedAudiences, word, "1 to 255 printable characters without spaces"); err != nil {
		return err
	}
	if t := m.RequestedTokenType; t != "" && (!isURI(t) || t == refreshToken) {
		return fmt.Errorf("requested_token_type %q: it must be a URI like %s, and no refresh token's", exchangers.Clean(t), accessToken)
	}
	return checkRequest(m.ClientID, m.Scopes, m.Resources)
}

func (m *ClientAssertion) validate() error {
	if err := checkServer("token_url", m.TokenURL, m.TokenAudience); err != nil {
		return err
	}
	if m.ClientAuth != "" && !isClientAuth(m.ClientAuth) {
		return errClientAuth
	}
	return checkRequest(m.ClientID, m.Scopes, m.Resources)
}

func (m *JWTBearer) validate() error {
	if err := checkServer("token_url", m.TokenURL, m.TokenAudience); err != nil {
		return err
	}
	return checkRequest(m.ClientID, m.Scopes, m.Resources)
}

func (m *VaultJWT) validate() error {
	if err := checkServer("url", m.URL, m.TokenAudience); err != nil {
		return err
	}
	return checkLogin(m.Role, m.Mount, m.Namespace)
}

func (m *VaultCert) validate() error {
	if err := checkURL("url", m.URL); err != nil {
		return err
	}
	return checkLogin(m.Role, m.Mount, m.Namespace)
}

var errClientAuth = errors.New("client_auth: it must be jwt-bearer or jwt-spiffe, or left out")

func isClientAuth(s string) bool { return s == "jwt-bearer" || s == "jwt-spiffe" }

func checkURL(field, text string) error {
	if text == "" {
		return fmt.Errorf("%s: it is missing: it must be https://HOST, with the path that the server has", field)
	}
	return exchangers.CheckEndpoint(field, text)
}

func checkServer(field, text, aud string) error {
	if err := checkURL(field, text); err != nil {
		return err
	}
	if !audience.MatchString(aud) {
		return errors.New("audience: it must be 1 to 600 printable characters without spaces: what the server expects in a JWT-SVID's aud")
	}
	return nil
}

func checkRequest(clientID string, scopes, resources []string) error {
	if clientID != "" && !word.MatchString(clientID) {
		return errors.New("client_id: it must be 1 to 255 printable characters without spaces")
	}
	if err := checkEach("scopes", scopes, scope, `1 to 255 printable characters without spaces, " and \`); err != nil {
		return err
	}
	if len(resources) > maxList {
		return fmt.Errorf("resources: %d of them: at most %d are taken", len(resources), maxList)
	}
	for _, r := range resources {
		if !isURI(r) {
			return fmt.Errorf("resources: %q: it must be a whole URI without a fragment", exchangers.Clean(r))
		}
	}
	return nil
}

func checkEach(field string, all []string, form *regexp.Regexp, what string) error {
	if len(all) > maxList {
		return fmt.Errorf("%s: %d of them: at most %d are taken", field, len(all), maxList)
	}
	for _, one := range all {
		if !form.MatchString(one) {
			return fmt.Errorf("%s: %q: it must be %s", field, exchangers.Clean(one), what)
		}
	}
	return nil
}

// isURI says whether s is an absolute URI without a fragment (RFC 8707 §2).
func isURI(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.IsAbs() && (u.Host != "" || u.Opaque != "") && !strings.Contains(s, "#") && word.MatchString(s)
}

func checkLogin(name, path, namespace string) error {
	switch {
	case !role.MatchString(name):
		return fmt.Errorf("role %q: it must be 1 to 128 letters, digits and _.-", exchangers.Clean(name))
	case path != "" && (!mount.MatchString(path) || dots.MatchString(path)):
		return fmt.Errorf("mount %q: it must be a path of letters, digits and _.-, without auth/ and without slashes around it", exchangers.Clean(path))
	case namespace != "" && (!mount.MatchString(namespace) || dots.MatchString(namespace)):
		return fmt.Errorf("namespace %q: it must be a path of letters, digits and _.-, without slashes around it", exchangers.Clean(namespace))
	}
	return nil
}
