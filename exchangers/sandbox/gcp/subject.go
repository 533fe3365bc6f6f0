package gcp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

func invalidGrant(text string, why error) *refusal { return oauth("invalid_grant", text, why) }

// verify checks the subject token against the provider and returns it with its
// expiry. The header's alg is judged before any key is looked for.
func (c *Cloud) verify(ctx context.Context, p *provider, raw string) (*sandbox.JWT, time.Time, *refusal) {
	t, err := sandbox.ParseJWT(raw)
	if err != nil {
		return nil, time.Time{}, invalidGrant("Unable to parse the ID Token.", err)
	}
	if t.Algorithm != "RS256" && t.Algorithm != "ES256" {
		return nil, time.Time{}, invalidGrant("Unable to verify the ID Token signature.", fmt.Errorf("alg %q", t.Algorithm))
	}
	if no := checkIssuer(p, t); no != nil {
		return nil, time.Time{}, no
	}
	if no := checkAudience(p, t); no != nil {
		return nil, time.Time{}, no
	}
	key, err := c.key(ctx, p, t)
	if err == nil {
		err = t.Verify(key.Public, t.Algorithm)
	}
	switch {
	case errors.Is(err, sandbox.ErrSignature):
		return nil, time.Time{}, invalidGrant("Unable to verify the ID Token signature.", err)
	case err != nil: // also a key of another type
		return nil, time.Time{}, invalidGrant("Error connecting to the given credential's issuer.", err)
	}
	exp, err := c.checkTimes(t)
	if err != nil {
		iat := t.Claims["iat"]
		if iat == nil {
			iat = "null"
		}
		return nil, time.Time{}, invalidGrant(fmt.Sprintf("ID Token issued at %v is stale to sign-in.", iat), err)
	}
	return t, exp, nil
}

func checkIssuer(p *provider, t *sandbox.JWT) *refusal {
	iss, err := t.Text("iss")
	if err != nil {
		iss = "null"
	}
	if err != nil || iss != p.Issuer {
		return invalidGrant(fmt.Sprintf("The issuer in ID Token %s does not match the expected one in config: %s.", iss, p.Issuer), err)
	}
	return nil
}

// checkAudience wants every aud to be expected: a token that is also for
// somebody else could have come from there. A configured list turns the default
// off.
func checkAudience(p *provider, t *sandbox.JWT) *refusal {
	expected := p.AllowedAudiences
	if len(expected) == 0 {
		expected = []string{"https:" + p.name(), p.name()}
	}
	given, err := t.Audiences()
	for _, a := range given {
		if !slices.Contains(expected, a) {
			err = fmt.Errorf("aud %q is not expected", a)
		}
	}
	if err != nil {
		return invalidGrant(fmt.Sprintf("The audience in ID Token %v does not match the expected audience.", given), err)
	}
	return nil
}

func (c *Cloud) key(ctx context.Context, p *provider, t *sandbox.JWT) (sandbox.Key, error) {
	uploaded := sandbox.Metadata{Keys: p.keys}
	k, err := uploaded.Key(t.KeyID)
	if p.keys == nil {
		k, err = c.issuers.Key(ctx, p.Issuer, t.KeyID)
	}
	if err != nil {
		return k, err
	}
	return k, k.Fits(t.Algorithm)
}

// checkTimes wants iat and exp, a life of at most 24 h, and the present within.
func (c *Cloud) checkTimes(t *sandbox.JWT) (time.Time, error) {
	iat, err1 := t.Time("iat")
	exp, err2 := t.Time("exp")
	nbf, err3 := t.Time("nbf")
	if errors.Is(err3, sandbox.ErrNoClaim) {
		err3 = nil
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return exp, err
	}
	now := c.now()
	switch life := exp.Sub(iat); {
	case life <= 0:
		return exp, errors.New("exp is not after iat")
	case life > 24*time.Hour && !c.cfg.LenientTokenLife:
		return exp, errors.New("exp is more than 24 h after iat")
	case iat.After(now.Add(c.cfg.Skew)):
		return exp, errors.New("iat is in the future")
	case nbf.After(now.Add(c.cfg.Skew)):
		return exp, errors.New("nbf is in the future")
	case !now.Before(exp.Add(c.cfg.Skew)):
		return exp, errors.New("exp has passed")
	}
	return exp, nil
}
