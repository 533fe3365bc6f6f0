// Package bearer checks tokens that an OpenID issuer signed (RFC 7519, OpenID
// Connect Core §2), for the join methods whose evidence is one: it is what they
// share, and no method itself.
//
// It trusts the keys that an issuer publishes, or that its operator was given,
// for tokens of exactly that issuer and nothing else. Whoever holds a token is
// taken for the one it was made for: that is why a token has to be young, for us
// alone, and why most methods take it once. What a claim means is left to them.
package bearer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/credence-id/credence/broker/join"
)

// Bounds of a token.
const (
	MaxToken  = 16 << 10
	maxDepth  = 8
	maxClaims = 512 // members and elements, of all depths together
	maxText   = 1 << 10

	// Skew is by how much the issuer's clock may be off ours, in either
	// direction.
	Skew = time.Minute
	// DefaultMaxAge is how old a token may be unless a rule says otherwise.
	DefaultMaxAge = time.Hour
)

// Algorithms are those that a token may be signed by: none that need a shared
// secret, and not "none" (RFC 8725 §3.1).
var Algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// Config is the wiring of a Verifier. Fields are required unless noted.
type Config struct {
	Issuer     string           // compared byte by byte, never normalised
	AnyIssuer  bool             // instead: whatever the keys verify, which are of one issuer alone
	Audience   string           // the one audience of a token, compared so too
	Party      bool             // Audience is a client's: azp names no other, and must name it where there are several audiences
	Keys       oidc.KeySet      // of that issuer
	Algorithms []string         // none: all of Algorithms
	MaxAge     time.Duration    // since a token was issued; 0: DefaultMaxAge
	Now        func() time.Time // nil means time.Now
}

// A Verifier checks tokens of one issuer. It may be used concurrently.
type Verifier struct{ cfg Config }

// A Token is one that was checked.
type Token struct {
	Subject string
	Claims  map[string]any // numbers are json.Number
	Issued  time.Time
	Expires time.Time
	// Digest is what two spellings of one token have in common: of what was
	// signed, not of the signature, which can be altered for some algorithms.
	Digest [sha256.Size]byte
}

// New makes a Verifier. It refuses an issuer or an audience that is empty, and
// an algorithm that is not among Algorithms.
func New(cfg Config) (*Verifier, error) {
	if (cfg.Issuer == "") != cfg.AnyIssuer || cfg.Audience == "" || cfg.Keys == nil {
		return nil, errors.New("checking tokens: issuer, audience and keys are required")
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = Algorithms
	}
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(Algorithms, alg) {
			return nil, fmt.Errorf("checking tokens: algorithm %q: some of %s are taken", alg, strings.Join(Algorithms, ", "))
		}
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{cfg: cfg}, nil
}

// Issuer is the one whose tokens are taken.
func (v *Verifier) Issuer() string { return v.cfg.Issuer }

// payload is a key set that has verified one token.
type payload []byte

// VerifySignature implements oidc.KeySet.
func (p payload) VerifySignature(context.Context, string) ([]byte, error) { return p, nil }

// Verify checks a token: form, algorithm and signature first, then issuer,
// audience and times. An error that wraps join.ErrEvidence means that the token
// will never do; any other, that the issuer's keys could not be had.
func (v *Verifier) Verify(ctx context.Context, token []byte) (Token, error) {
	signed, err := v.form(token)
	if err != nil {
		return Token{}, errors.Join(join.ErrEvidence, err)
	}
	text, err := v.cfg.Keys.VerifySignature(ctx, string(token))
	if err != nil {
		if away := (*unavailable)(nil); errors.As(err, &away) { // go-oidc would not tell it from a bad signature
			return Token{}, away
		}
		return Token{}, fmt.Errorf("%w: its signature: %w", join.ErrEvidence, err)
	}
	checked, err := oidc.NewVerifier(v.cfg.Issuer, payload(text), &oidc.Config{
		ClientID: v.cfg.Audience, SupportedSigningAlgs: v.cfg.Algorithms, SkipIssuerCheck: v.cfg.AnyIssuer,
		Now: func() time.Time { return v.cfg.Now().Add(-Skew) },
	}).Verify(ctx, string(token))
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	claims, err := Object(text)
	if err != nil {
		return Token{}, fmt.Errorf("%w: its claims: %w", join.ErrEvidence, err)
	}
	t := Token{Subject: checked.Subject, Claims: claims, Expires: checked.Expiry, Digest: sha256.Sum256(signed)}
	if t.Issued, err = v.registered(claims); err != nil {
		return Token{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return t, nil
}

// form refuses what is not worth a look at keys, and returns what is signed.
func (v *Verifier) form(token []byte) ([]byte, error) {
	if len(token) > MaxToken {
		return nil, fmt.Errorf("a token of %d bytes: at most %d are taken", len(token), MaxToken)
	}
	parts := bytes.Split(token, []byte{'.'})
	if len(parts) != 3 || len(parts[1]) == 0 || len(parts[2]) == 0 || bytes.ContainsAny(token, "\r\n") { // which base64 would skip
		return nil, errors.New("it is not a signed token: three parts between dots are wanted, and nothing else")
	}
	text, err := base64.RawURLEncoding.Strict().AppendDecode(nil, parts[0])
	if err != nil {
		return nil, errors.New("its header is not in base64url")
	}
	header, err := Object(text)
	if err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	for _, name := range []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"} {
		if _, ok := header[name]; ok { // RFC 8725 §3.5, §3.10: keys come from the issuer alone
			return nil, fmt.Errorf("its header has %q", name)
		}
	}
	if alg, _ := header["alg"].(string); !slices.Contains(v.cfg.Algorithms, alg) {
		return nil, fmt.Errorf("it is signed by %.20q: %s is taken", fmt.Sprint(header["alg"]), strings.Join(v.cfg.Algorithms, ", "))
	}
	if kid, _ := header["kid"].(string); kid == "" || len(kid) > maxText {
		return nil, errors.New("its header has no key ID, or one that is too long")
	}
	return token[:len(parts[0])+1+len(parts[1])], nil
}

// Issuer is what a token that nobody has verified says of its issuer, for a method
// that has several to choose which shall verify it; empty where it says nothing.
func Issuer(token []byte) string {
	if len(token) > MaxToken {
		return ""
	}
	_, rest, _ := bytes.Cut(token, []byte{'.'})
	payload, _, ok := bytes.Cut(rest, []byte{'.'})
	if !ok {
		return ""
	}
	text, err := base64.RawURLEncoding.Strict().AppendDecode(nil, payload)
	if err != nil {
		return ""
	}
	claims, err := Object(text)
	if err != nil {
		return ""
	}
	issuer, _ := claims["iss"].(string)
	return issuer
}

// registered holds the registered claims (RFC 7519 §4.1) to what go-oidc leaves
// open: that each stands there once, in its spelling; one audience; an age.
func (v *Verifier) registered(claims map[string]any) (issued time.Time, err error) {
	for name := range claims {
		for _, known := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"} {
			if name != known && strings.EqualFold(name, known) { // encoding/json would take it for the known one
				return issued, fmt.Errorf("it has a claim %q beside %s", name, known)
			}
		}
	}
	iss, _ := claims["iss"].(string)
	switch {
	case v.cfg.AnyIssuer && (iss == "" || len(iss) > maxText):
		return issued, errors.New("it has no issuer, or one that is too long")
	case !v.cfg.AnyIssuer && iss != v.cfg.Issuer: // go-oidc lets Google's two spellings pass for each other
		return issued, fmt.Errorf("it is of issuer %.200q, want %q", iss, v.cfg.Issuer)
	}
	if sub, _ := claims["sub"].(string); sub == "" || len(sub) > maxText {
		return issued, errors.New("it has no subject, or one that is too long")
	}
	if err := v.audience(claims); err != nil {
		return issued, err
	}
	now := v.cfg.Now()
	issued, err = date(claims, "iat", true)
	if err != nil {
		return issued, err
	}
	expires, err := date(claims, "exp", true)
	if err != nil {
		return issued, err
	}
	begins, err := date(claims, "nbf", false)
	if err != nil {
		return issued, err
	}
	switch {
	case issued.After(now.Add(Skew)), begins.After(now.Add(Skew)):
		return issued, fmt.Errorf("it is not yet valid: it was issued at %s, and it is %s here", issued.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.Sub(issued) > v.cfg.MaxAge+Skew:
		return issued, fmt.Errorf("it was issued at %s: at most %s ago is taken (max_age)", issued.UTC().Format(time.RFC3339), v.cfg.MaxAge)
	case !expires.After(issued):
		return issued, errors.New("it ends before it was issued")
	}
	return issued, nil
}

// audience holds whom a token is for.
func (v *Verifier) audience(claims map[string]any) error {
	azp, named := claims["azp"]
	if v.cfg.Party && named && azp != v.cfg.Audience { // OpenID Connect Core §3.1.3.7, 4 and 5
		return fmt.Errorf("it was made for client %.200q (azp), want %q", fmt.Sprint(azp), v.cfg.Audience)
	}
	if list, ok := claims["aud"].([]any); ok && v.cfg.Party && named && slices.Contains(list, any(v.cfg.Audience)) {
		return nil
	}
	return only(claims["aud"], v.cfg.Audience)
}

// only holds that an audience is one, and the one: a token for us and for
// somebody else could be played to us by them.
func only(aud any, want string) error {
	if list, ok := aud.([]any); ok && len(list) == 1 {
		aud = list[0]
	}
	if got, ok := aud.(string); !ok || got != want {
		text, _ := json.Marshal(aud)
		return fmt.Errorf("it is for audience %.300s, want %q and no other", text, want)
	}
	return nil
}

// date reads a NumericDate (RFC 7519 §2): seconds, perhaps with a fraction.
func date(claims map[string]any, name string, required bool) (time.Time, error) {
	value, ok := claims[name]
	if !ok && !required {
		return time.Time{}, nil
	}
	number, ok := value.(json.Number)
	if !ok {
		return time.Time{}, fmt.Errorf("its claim %s is no time", name)
	}
	seconds, err := number.Float64()
	if err != nil || seconds < 0 || seconds > 1<<38 {
		return time.Time{}, fmt.Errorf("its claim %s is no time: %.40s", name, number)
	}
	return time.UnixMilli(int64(seconds * 1000)), nil
}
