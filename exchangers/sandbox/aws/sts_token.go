package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// tokenAlgorithms are those that STS documents.
var tokenAlgorithms = []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"}

const (
	claimPrefix         = "https://aws.amazon.com/"
	tagsClaim           = claimPrefix + "tags"
	sourceIdentityClaim = claimPrefix + "source_identity"
)

// A webIdentity is what a verified token says.
type webIdentity struct {
	provider       OIDCProvider
	subject        string
	audience       string   // azp where there is one
	original       []string // aud, where audience is azp
	methods        []string // amr
	email          string
	tags           map[string]string
	transitive     []string
	sourceIdentity string
}

func invalidToken(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, "InvalidIdentityToken", format, args...)
}

// verifyToken checks a token against the provider that its issuer names. The
// signature comes before the claims, but for those that find the key.
func (c *Cloud) verifyToken(ctx context.Context, raw string, now time.Time) (*webIdentity, error) {
	malformed := invalidToken("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	t, err := sandbox.ParseJWT(raw)
	if err != nil {
		return nil, malformed.because("%v", err)
	}
	if !slices.Contains(tokenAlgorithms, t.Algorithm) {
		return nil, malformed.because("algorithm %q", t.Algorithm)
	}
	issuer, err := claimText(t, "iss")
	if err != nil {
		return nil, err
	}
	p, ok := get(c, c.providers, issuer)
	if !ok {
		return nil, invalidToken("No OpenIDConnect provider found in your account for %s", issuer)
	}
	if err := c.verifySignature(ctx, t, p.URL); err != nil {
		return nil, err
	}
	id := &webIdentity{provider: p}
	if err := id.readTimes(t, now, c.cfg.JWTLeeway); err != nil {
		return nil, err
	}
	for _, read := range []func(*sandbox.JWT) error{id.readSubject, id.readAudience, id.readExtras, id.readSession} {
		if err := read(t); err != nil {
			return nil, err
		}
	}
	return id, nil
}

func (c *Cloud) verifySignature(ctx context.Context, t *sandbox.JWT, issuer string) error {
	k, err := c.issuers.Key(ctx, issuer, t.KeyID)
	if errors.Is(err, sandbox.ErrThumbprint) {
		return invalidToken("OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint").because("%v", err)
	}
	if err != nil {
		return invalidToken("Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements").because("%v", err)
	}
	if err = k.Fits(t.Algorithm); err == nil {
		err = t.Verify(k.Public, t.Algorithm)
	}
	if err != nil {
		return invalidToken("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)").because("%v", err)
	}
	return nil
}

// claimText reads a required text.
func claimText(t *sandbox.JWT, claim string) (string, error) {
	s, err := t.Text(claim)
	if errors.Is(err, sandbox.ErrNoClaim) {
		return "", invalidToken("Missing a required claim: %s.", claim)
	}
	if err != nil {
		return "", invalidToken("The claim %s is not a text.", claim)
	}
	return s, nil
}

// claimTime reads a required integer time.
func claimTime(t *sandbox.JWT, claim string) (time.Time, error) {
	v, err := t.Time(claim)
	if errors.Is(err, sandbox.ErrNoClaim) {
		return v, invalidToken("Missing a required claim: %s.", claim)
	}
	if err != nil {
		return v, invalidToken("The claim %s is not an integer.", claim)
	}
	return v, nil
}

func (id *webIdentity) readTimes(t *sandbox.JWT, now time.Time, leeway time.Duration) error {
	iat, err := claimTime(t, "iat")
	if err != nil {
		return err
	}
	exp, err := claimTime(t, "exp")
	if err != nil {
		return err
	}
	if _, ok := t.Claims["nbf"]; ok {
		nbf, err := claimTime(t, "nbf")
		if err != nil {
			return err
		}
		if nbf.After(now.Add(leeway)) {
			return invalidToken("The ID Token is not valid yet: nbf is in the future.")
		}
	}
	switch {
	case iat.After(now.Add(leeway)):
		return invalidToken("The ID Token is not valid yet: iat is in the future.")
	case !now.Before(exp.Add(leeway)):
		return refuse(http.StatusBadRequest, "ExpiredTokenException",
			"Token expired: current date/time %d must be before the expiration date/time %d", now.Unix(), exp.Unix())
	}
	return nil
}

func (id *webIdentity) readSubject(t *sandbox.JWT) error {
	var err error
	if id.subject, err = claimText(t, "sub"); err != nil {
		return err
	}
	if n := len([]rune(id.subject)); n < 6 || n > 255 {
		return invalidToken("The claim sub has %d characters, not 6 to 255.", n)
	}
	return nil
}

// readAudience takes one audience, or azp where the token has it; then aud is
// the original audience.
func (id *webIdentity) readAudience(t *sandbox.JWT) error {
	aud, err := t.Audiences()
	if err != nil {
		return invalidToken("Missing a required claim: aud.").because("%v", err)
	}
	if _, ok := t.Claims["azp"]; ok {
		if id.audience, err = claimText(t, "azp"); err != nil {
			return err
		}
		id.original = aud
	} else if len(aud) > 1 {
		return invalidToken("The ID Token has several audiences and no azp.")
	} else {
		id.audience = aud[0]
	}
	if !slices.Contains(id.provider.ClientIDs, id.audience) {
		return invalidToken("Incorrect token audience")
	}
	return nil
}

// readExtras reads the other claims that conditions know.
func (id *webIdentity) readExtras(t *sandbox.JWT) error {
	var err error
	if _, ok := t.Claims["email"]; ok {
		if id.email, err = claimText(t, "email"); err != nil {
			return err
		}
	}
	if v, ok := t.Claims["amr"]; ok {
		if id.methods, err = texts(v); err != nil {
			return invalidToken("The claim amr is not a list of texts.")
		}
	}
	return nil
}

// readSession reads tags and source identity. A claim of AWS in any other form
// would be dropped in silence, so it refuses.
func (id *webIdentity) readSession(t *sandbox.JWT) error {
	for name := range t.Claims {
		if strings.HasPrefix(name, claimPrefix) && name != tagsClaim && name != sourceIdentityClaim {
			return invalidToken("The claim %s is not supported.", name)
		}
	}
	if _, ok := t.Claims[sourceIdentityClaim]; ok {
		s, err := claimText(t, sourceIdentityClaim)
		if err != nil {
			return err
		}
		if !sourceForm.MatchString(s) {
			return invalidToken(`The source identity must match [\w+=,.@-]{2,64}.`)
		}
		id.sourceIdentity = s
	}
	v, ok := t.Claims[tagsClaim]
	if !ok {
		return nil
	}
	if err := id.readTags(v); err != nil {
		return invalidToken("The claim %s is malformed: %v.", tagsClaim, err)
	}
	return nil
}

var errTags = errors.New("principal_tags maps at most 50 keys to one text each, transitive_tag_keys lists some of them")

func (id *webIdentity) readTags(v any) error {
	o, ok := v.(map[string]any)
	if !ok {
		return errTags
	}
	if err := only(o, "principal_tags", "transitive_tag_keys"); err != nil {
		return errTags
	}
	pairs, ok := o["principal_tags"].(map[string]any)
	if !ok || len(pairs) == 0 || len(pairs) > maxTags {
		return errTags
	}
	id.tags = map[string]string{}
	for k, v := range pairs {
		values, err := texts(v)
		if err != nil || len(values) != 1 || !isTag(k, values[0]) ||
			strings.HasPrefix(strings.ToLower(k), "aws:") {
			return fmt.Errorf("%w: key %q", errTags, k)
		}
		id.tags[k] = values[0]
	}
	if _, ok := o["transitive_tag_keys"]; !ok {
		return nil
	}
	var err error
	id.transitive, err = texts(o["transitive_tag_keys"])
	for _, k := range id.transitive {
		if _, ok := id.tags[k]; !ok {
			err = errTags
		}
	}
	return err
}

// texts reads a list of texts.
func texts(v any) ([]string, error) {
	list, ok := v.([]any)
	out := make([]string, 0, len(list))
	for _, e := range list {
		s, isText := e.(string)
		ok = ok && isText
		out = append(out, s)
	}
	if !ok {
		return nil, errTags
	}
	return out, nil
}
