package login

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/credence-id/credence/broker/join/bearer"
)

// Settings are login: of broker.yaml. The comments of its fields are its manual.
type Settings struct {
	Issuer   string `yaml:"issuer"`    // required: the provider, as its ID tokens say it in iss, byte for byte
	ClientID string `yaml:"client_id"` // required: of a public client (no secret; code flow with PKCE) that is registered there
	// Claims are user.* facts, each by the claim that it is of: its name, or that of
	// an object, a dot and its member's. Default {groups: groups}. user.issuer,
	// user.sub and user.email (if email_verified is true) are always there.
	Claims     map[string]string `yaml:"claims"`
	Scopes     []string          `yaml:"scopes"`     // what is asked for; default [openid, email]
	Algorithms []string          `yaml:"algorithms"` // that tokens may be signed by; default: all that are asymmetric
	// RedirectURI is what is registered for the client: http on loopback. Without a
	// port any is used (RFC 8252 §7.3). Default http://127.0.0.1/callback.
	RedirectURI string `yaml:"redirect_uri"`
	CAFile      string `yaml:"ca_file"` // CA certificates (PEM) that the provider's is of, where it isn't a public one's
}

const (
	maxClaims = 32
	maxScopes = 32
)

var (
	factName  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	scopeText = regexp.MustCompile(`^[\x21\x23-\x5B\x5D-\x7E]{1,200}$`) // RFC 6749 §3.3
)

// Complete fills in defaults and says what is wrong with the rest, the field's
// name first.
func (s *Settings) Complete() error {
	if err := bearer.CheckIssuer(s.Issuer); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	if s.ClientID == "" || len(s.ClientID) > 512 {
		return errors.New("client_id: is required, and has at most 512 bytes")
	}
	if s.Claims == nil {
		s.Claims = map[string]string{"groups": "groups"}
	}
	if len(s.Claims) > maxClaims {
		return fmt.Errorf("claims: %d, at most %d are taken", len(s.Claims), maxClaims)
	}
	for fact, claim := range s.Claims {
		if !factName.MatchString(fact) || slices.Contains([]string{"issuer", "sub", "email"}, fact) {
			return fmt.Errorf("claims: %.80q: the name of a fact is wanted, in [a-z0-9_], and none of issuer, sub and email", fact)
		}
		if claim == "" || len(claim) > 512 {
			return fmt.Errorf("claims: %s: the name of a claim is wanted", fact)
		}
	}
	if len(s.Scopes) == 0 {
		s.Scopes = []string{"openid", "email"}
	}
	if !slices.Contains(s.Scopes, "openid") || len(s.Scopes) > maxScopes {
		return fmt.Errorf("scopes: at most %d are taken, and openid is among them", maxScopes)
	}
	for _, scope := range s.Scopes {
		if !scopeText.MatchString(scope) {
			return fmt.Errorf("scopes: %.80q is none", scope)
		}
	}
	for _, alg := range s.Algorithms {
		if !slices.Contains(bearer.Algorithms, alg) {
			return fmt.Errorf("algorithms: %q: some of %s are taken", alg, strings.Join(bearer.Algorithms, ", "))
		}
	}
	if s.RedirectURI == "" {
		s.RedirectURI = "http://127.0.0.1/callback"
	}
	if err := checkRedirect(s.RedirectURI); err != nil {
		return fmt.Errorf("redirect_uri: %w", err)
	}
	return nil
}

// checkRedirect takes http URLs on loopback: what comes back there is good for a
// person's SVID, and must reach that person's machine alone.
func checkRedirect(text string) error {
	u, err := url.Parse(text)
	wrong := fmt.Errorf("%.200q: http://127.0.0.1/PATH, http://[::1]/PATH or http://localhost/PATH is wanted, with a port or without", text)
	if err != nil || u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#") || u.Path == "" || u.String() != text {
		return wrong
	}
	if host := u.Hostname(); host != "127.0.0.1" && host != "::1" && host != "localhost" {
		return wrong
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return wrong
		}
	}
	return nil
}
