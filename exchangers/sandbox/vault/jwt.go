package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"}

func (j *JWT) check(issuers *sandbox.Issuers) error {
	if err := issuers.CheckURL(j.DiscoveryURL); err != nil {
		return fmt.Errorf("oidc_discovery_url: %w", err)
	}
	for _, alg := range j.SupportedAlgs {
		if !slices.Contains(algorithms, alg) {
			return fmt.Errorf("jwt_supported_algs: %q is not one of %s", alg, strings.Join(algorithms, ", "))
		}
	}
	var names []string
	for _, r := range j.Roles {
		names = append(names, r.Name)
		if err := r.check(); err != nil {
			return fmt.Errorf("role %q: %w", r.Name, err)
		}
	}
	return unique(names)
}

func (r JWTRole) check() error {
	switch {
	case r.UserClaim == "":
		return errors.New("user_claim: a user claim must be defined on the role")
	case len(r.BoundAudiences) == 0 || slices.Contains(r.BoundAudiences, ""):
		return errors.New("bound_audiences: one is wanted: each JWT-SVID has an audience")
	case r.BoundSubject == "" && len(r.BoundClaims) == 0:
		return errors.New("bound_subject: it or bound_claims is wanted: else whoever has a token of the issuer is let in")
	}
	for claim, values := range r.BoundClaims {
		if claim == "" || strings.HasPrefix(claim, "/") || len(values) == 0 {
			return fmt.Errorf("bound_claims: %q: a claim's name and values are wanted", claim)
		}
	}
	return r.Token.check()
}

func (s *Server) jwtLogin(r *http.Request, e *sandbox.Entry, m Mount) (map[string]any, *refusal) {
	in, no := read(r, e, "role", "jwt")
	if no != nil {
		return nil, no
	}
	if in["role"] == "" {
		return nil, bad("missing role", nil)
	}
	i := slices.IndexFunc(m.JWT.Roles, func(r JWTRole) bool { return r.Name == in["role"] })
	if i < 0 {
		return nil, bad(fmt.Sprintf("role %q could not be found", in["role"]), nil)
	}
	role := m.JWT.Roles[i]
	if in["jwt"] == "" {
		return nil, bad("missing token", nil)
	}
	e.Token = sandbox.HashToken(in["jwt"])
	t, no := s.verify(r.Context(), m.JWT, role, in["jwt"])
	if no != nil {
		return nil, no
	}
	name, err := t.Text(role.UserClaim)
	if errors.Is(err, sandbox.ErrNoClaim) {
		return nil, bad(fmt.Sprintf("claim %q not found in token", role.UserClaim), nil)
	}
	if err != nil {
		return nil, bad(fmt.Sprintf("claim %q could not be converted to string", role.UserClaim), nil)
	}
	if err := role.claims(t); err != nil {
		return nil, bad("error validating claims: "+err.Error(), nil)
	}
	return s.opened(session{namespace: m.Namespace, path: "auth/" + m.Path + "/login", name: m.Path + "-" + name, meta: map[string]string{"role": role.Name}}, role.Token)
}

// verify checks the signature first, then the claims, in OpenBao's order.
func (s *Server) verify(ctx context.Context, j *JWT, role JWTRole, raw string) (*sandbox.JWT, *refusal) {
	invalid := func(text string, why error) (*sandbox.JWT, *refusal) {
		return nil, bad("error validating token: "+text, why)
	}
	t, err := sandbox.ParseJWT(raw)
	if err != nil {
		return invalid("error verifying token signature: malformed jwt", err)
	}
	key, err := s.issuers.Key(ctx, j.DiscoveryURL, t.KeyID)
	if err != nil && !errors.Is(err, sandbox.ErrUnknownKey) {
		return nil, bad("error configuring token validator: error fetching the keys of oidc_discovery_url", err)
	}
	if err == nil {
		err = key.Fits(t.Algorithm)
	}
	if err == nil {
		err = t.Verify(key.Public, t.Algorithm)
	}
	if err != nil {
		return invalid("error verifying token signature: failed to verify id token signature", err)
	}
	if supported := j.SupportedAlgs; len(supported) > 0 && !slices.Contains(supported, t.Algorithm) {
		return invalid("invalid algorithm (alg) header parameter: token signed with unexpected algorithm", nil)
	}
	issuer := j.BoundIssuer
	if issuer == "" {
		issuer = j.DiscoveryURL
	}
	if iss, err := t.Text("iss"); err != nil || iss != issuer {
		return invalid("invalid issuer (iss) claim", fmt.Errorf("iss %q, not %s", iss, issuer))
	}
	if sub, err := t.Text("sub"); role.BoundSubject != "" && (err != nil || sub != role.BoundSubject) {
		return invalid("invalid subject (sub) claim", fmt.Errorf("sub %q, not %s", sub, role.BoundSubject))
	}
	aud, err := t.Audiences()
	if err != nil || !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(role.BoundAudiences, a) }) {
		return invalid("invalid audience (aud) claim: audience claim does not match any expected audience", fmt.Errorf("aud %q, none of %q", aud, role.BoundAudiences))
	}
	if text, why := s.times(t); text != "" {
		return invalid(text, why)
	}
	return t, nil
}

func (s *Server) times(t *sandbox.JWT) (string, error) {
	iat, err1 := t.Time("iat")
	exp, err2 := t.Time("exp")
	nbf, err3 := t.Time("nbf")
	if errors.Is(err3, sandbox.ErrNoClaim) {
		nbf, err3 = iat, nil
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return "no issued at (iat), not before (nbf), or expiration time (exp) claims in token", err
	}
	now := s.now()
	late, early := now.Add(-s.cfg.Skew), now.Add(s.cfg.Skew)
	at := func(c time.Time) error { return fmt.Errorf("it is %s here, the claim says %s", now.UTC(), c.UTC()) }
	switch {
	case early.Before(nbf):
		return "invalid not before (nbf) claim: token not yet valid", at(nbf)
	case late.After(exp):
		return "invalid expiration time (exp) claim: token is expired", at(exp)
	case early.Before(iat):
		return "invalid issued at (iat) claim: token issued in the future", at(iat)
	}
	return "", nil
}

// claims compares the bound claims: of each one value, with one of the token's.
func (r JWTRole) claims(t *sandbox.JWT) error {
	for _, claim := range slices.Sorted(maps.Keys(r.BoundClaims)) {
		v := t.Claims[claim]
		if v == nil {
			return fmt.Errorf("claim %q is missing", claim)
		}
		if !slices.ContainsFunc(r.BoundClaims[claim], func(want string) bool { return r.has(v, want) }) {
			return fmt.Errorf("claim %q does not match any associated bound claim values", claim)
		}
	}
	return nil
}

func (r JWTRole) has(claim any, want string) bool {
	switch v := claim.(type) {
	case string:
		return v == want || r.Glob && glob(want, v)
	case json.Number: // what the role's JSON would have as a number
		return !r.Glob && v.String() == want
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { _, list := e.([]any); return !list && r.has(e, want) })
	}
	return false
}

// glob matches the whole of s: a star is any run, slashes too.
func glob(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, first)
	parts := strings.Split(rest, "*")
	last := parts[len(parts)-1]
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return ok && strings.HasSuffix(s, last)
}
