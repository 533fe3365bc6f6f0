// Package login checks what an OpenID provider says of a person, for the broker:
// an ID token (OpenID Connect Core §2) that was made for our client alone and for
// the one key that its nonce names.
//
// It trusts the keys that exactly one provider publishes, the one that broker.yaml
// names: nothing in a token says where to ask. Who has a person's token and not
// its key can do no more with it than have that very key certified; a token of
// another client of the provider, or of another trust domain, is nothing here. How
// the person got it is the business of their program (cmd/logincmd), and what they
// may have that of Identities' user.* terms.
package login

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

// MaxAge is how old an ID token may be: it is shown as soon as it is made.
const MaxAge = 5 * time.Minute

// maxValues bounds how many values one fact has.
const maxValues = 256

// Config is the wiring of a Verifier.
type Config struct {
	Settings Settings         // complete
	Keys     oidc.KeySet      // nil: what the issuer publishes, by Get
	Get      bearer.Get       // fetches what the issuer publishes
	Now      func() time.Time // nil means time.Now
}

// A Verifier checks ID tokens of one provider for one client. It may be used
// concurrently.
type Verifier struct {
	settings Settings
	bearer   *bearer.Verifier
}

// A Person is who a token is about.
type Person struct {
	Subject string
	Facts   identity.Facts // user.*
	// Unknown are facts that the token has something of, but not what they could be
	// told by: an e-mail address that is not verified, more groups than fit. A Deny
	// on them holds.
	Unknown []string
	Digest  [32]byte // by which the token is spent
	Expires time.Time
}

// New returns the Verifier of complete settings.
func New(cfg Config) (*Verifier, error) {
	if cfg.Keys == nil {
		if cfg.Get == nil {
			return nil, errors.New("checking logins: keys, or what fetches them, are required")
		}
		cfg.Keys = bearer.NewRemote(cfg.Settings.Issuer, cfg.Get, cfg.Now)
	}
	b, err := bearer.New(bearer.Config{
		Issuer: cfg.Settings.Issuer, Audience: cfg.Settings.ClientID, Party: true, Keys: cfg.Keys,
		Algorithms: cfg.Settings.Algorithms, MaxAge: MaxAge, Now: cfg.Now,
	})
	return &Verifier{cfg.Settings, b}, err
}

// Verify checks a token that must have a nonce. An error that wraps
// join.ErrEvidence means that it will never do, and may be told to whoever showed
// it; any other, that the provider's keys could not be had.
func (v *Verifier) Verify(ctx context.Context, token []byte, nonce string) (Person, error) {
	t, err := v.bearer.Verify(ctx, token)
	if err != nil {
		return Person{}, err
	}
	got, _ := t.Claims["nonce"].(string)
	if nonce == "" || subtle.ConstantTimeCompare([]byte(got), []byte(nonce)) != 1 {
		return Person{}, fmt.Errorf("%w: it was made for another key (nonce)", join.ErrEvidence)
	}
	p := Person{Subject: t.Subject, Digest: t.Digest, Expires: t.Expires}
	if p.Facts, p.Unknown, err = v.facts(t); err != nil {
		return Person{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return p, nil
}

// facts are what a token says of a person, and what it says in vain.
func (v *Verifier) facts(t bearer.Token) (facts identity.Facts, unknown []string, err error) {
	m := map[string]any{"issuer": v.settings.Issuer, "sub": t.Subject}
	if email, there := t.Claims["email"]; there {
		text, _ := email.(string)
		if verified, _ := t.Claims["email_verified"].(bool); verified && text != "" {
			m["email"] = text
		} else {
			unknown = append(unknown, "user.email")
		}
	}
	for fact, claim := range v.settings.Claims {
		value, there := lookUp(t.Claims, claim)
		switch {
		case !there && elsewhere(t.Claims, claim):
			unknown = append(unknown, "user."+fact)
		case there && value != nil:
			m[fact] = value
		}
	}
	if facts, err = bearer.Facts("user", m); err != nil {
		return facts, nil, err
	}
	kept := map[string][]string{}
	for fact, value := range m {
		name := "user." + fact
		values := facts.Get(name)
		list, isList := value.([]any)
		switch {
		case isList && len(list) == 0: // a person of no groups
		case len(values) == 0 || len(values) > maxValues || slices.ContainsFunc(values, func(s string) bool { return s == "" || len(s) > 1024 }):
			unknown = append(unknown, name)
		default:
			kept[name] = values
		}
	}
	slices.Sort(unknown)
	facts, err = identity.NewFacts("user", kept)
	return facts, unknown, err
}

// lookUp finds a claim by its name, or else as a member of the object that stands
// before a dot in it.
func lookUp(claims map[string]any, name string) (any, bool) {
	if v, there := claims[name]; there {
		return v, true
	}
	for at := range len(name) {
		if name[at] != '.' {
			continue
		}
		if inner, ok := claims[name[:at]].(map[string]any); ok {
			if v, there := lookUp(inner, name[at+1:]); there {
				return v, true
			}
		}
	}
	return nil, false
}

// elsewhere says whether a claim is kept apart from the token (OpenID Connect Core
// §5.6.2), as some providers do with more groups than fit.
func elsewhere(claims map[string]any, name string) bool {
	names, _ := claims["_claim_names"].(map[string]any)
	first, _, _ := strings.Cut(name, ".")
	_, whole := names[name]
	_, part := names[first]
	return whole || part
}
