package identity

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of the claims that one Identity adds.
const (
	maxClaims      = 64
	maxClaimsBytes = 4 << 10
	maxClaimsDepth = 6
)

// registeredClaims mean something to those who verify tokens: an Identity
// that could set them could forge it (RFC 7519 §4.1, RFC 7800, RFC 8693 §4,
// RFC 9068, RFC 9396, OpenID Connect Core §2).
var registeredClaims = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti",
	"act", "may_act", "cnf", "client_id", "azp", "scope", "scp",
	"authorization_details", "nonce", "auth_time", "acr", "amr", "at_hash", "c_hash", "sid", "sub_id", "events",
}

// isRegistered says whether a claim is Credence's alone to set. Some verifiers
// compare names without regard to case, as Go's encoding/json does, so that
// "Sub" would be read as sub.
func isRegistered(name string) bool {
	return slices.ContainsFunc(registeredClaims, func(r string) bool { return strings.EqualFold(r, name) })
}

// claimTemplates are claims with a *template in place of each text that has
// facts.
type claimTemplates struct {
	claims map[string]any
	facts  []string
}

// reads adds the names of facts that the claims have.
func (t *claimTemplates) reads(all []string) []string {
	if t == nil {
		return all
	}
	return append(all, t.facts...)
}

// compileClaims copies claims, which are JSON's types and Go's integers. The
// copy shares nothing with what the caller may still change. Where there are
// facts in them the templates are not nil.
func compileClaims(claims map[string]any) (map[string]any, *claimTemplates, error) {
	if claims == nil {
		return nil, nil, nil
	}
	if len(claims) > maxClaims {
		return nil, nil, fmt.Errorf("%d claims: at most %d are taken", len(claims), maxClaims)
	}
	for name := range claims {
		if isRegistered(name) {
			return nil, nil, fmt.Errorf("%q is a registered claim: Credence alone sets it", name)
		}
	}
	c := &claimCopier{left: maxClaimsBytes}
	clone, err := c.copy(claims, maxClaimsDepth)
	if err != nil {
		return nil, nil, err
	}
	compiled := clone.(map[string]any)
	if len(c.facts) == 0 {
		return compiled, nil, nil
	}
	return compiled, &claimTemplates{compiled, c.facts}, nil
}

// renderClaims are the claims with what the facts say, under the same bounds.
func (i *identity) renderClaims(e *evidence) (map[string]any, *refusal) {
	if i.claims == nil {
		return i.JWT.Claims, nil
	}
	c := &claimCopier{left: maxClaimsBytes, e: e}
	claims, err := c.copy(i.claims.claims, maxClaimsDepth)
	if err != nil {
		return nil, unrendered("jwt.claims", c.refused, err)
	}
	return claims.(map[string]any), nil
}

// A claimCopier copies claims within bounds. It spends left for each byte, and
// for each value. Without evidence it parses templates, with it it renders them.
type claimCopier struct {
	left    int
	e       *evidence
	facts   []string // that were parsed
	refused string   // the fact that could not be rendered
}

func (c *claimCopier) spend(n int) error {
	if c.left -= n; c.left < 0 {
		return fmt.Errorf("claims are more than %d bytes", maxClaimsBytes)
	}
	return nil
}

func (c *claimCopier) copy(v any, depth int) (any, error) {
	if depth == 0 {
		return nil, fmt.Errorf("claims are more than %d deep", maxClaimsDepth)
	}
	if err := c.spend(2); err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return v, c.spend(8)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("claim of %v, which JSON can't say", v)
		}
		return v, c.spend(8)
	case string:
		return c.text(v)
	case *template:
		text, name, err := v.render(c.e, inText)
		if err != nil {
			c.refused = name
			return nil, err
		}
		return text, c.spend(len(text))
	case []string:
		all := make([]any, len(v))
		for i := range v {
			all[i] = v[i]
		}
		return c.list(all, depth)
	case []any:
		return c.list(v, depth)
	case map[string]any:
		return c.mapping(v, depth)
	default:
		return nil, fmt.Errorf("claim of type %T: want strings, numbers, booleans, lists and maps", v)
	}
}

// text copies a text, or parses it where it is a template.
func (c *claimCopier) text(s string) (any, error) {
	if err := c.spend(len(s)); err != nil {
		return nil, err
	}
	if !utf8.ValidString(s) {
		return nil, errors.New("a claim is not UTF-8")
	}
	if c.e != nil || !strings.ContainsAny(s, "{}") {
		return s, nil
	}
	t, err := parseTemplate(s, inText)
	if err != nil {
		return nil, fmt.Errorf("%.100q: %w", s, err)
	}
	if t.constant() {
		return t.lits[0], nil
	}
	c.facts = t.names(c.facts)
	return &t, nil
}

func (c *claimCopier) list(v []any, depth int) (any, error) {
	clone := make([]any, 0, min(len(v), maxClaimsBytes))
	for _, x := range v {
		copied, err := c.copy(x, depth-1)
		if err != nil {
			return nil, err
		}
		clone = append(clone, copied)
	}
	return clone, nil
}

func (c *claimCopier) mapping(v map[string]any, depth int) (any, error) {
	clone := make(map[string]any, min(len(v), maxClaims))
	for name, x := range v {
		switch {
		case name == "" || !utf8.ValidString(name):
			return nil, errors.New("a claim's name is empty or not UTF-8")
		case strings.ContainsAny(name, "{}"):
			return nil, fmt.Errorf("claim %.100q: a name is no template, so it has no braces", name)
		}
		if err := c.spend(len(name)); err != nil {
			return nil, err
		}
		copied, err := c.copy(x, depth-1)
		if err != nil {
			return nil, err
		}
		clone[name] = copied
	}
	return clone, nil
}

// checkText takes what may be part of a text: UTF-8 without control characters.
func checkText(s string) error {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("is not UTF-8, or has control characters")
	}
	return nil
}
