package workloadapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/federation"
)

const (
	maxToken = 16 << 10
	leeway   = 60 * time.Second
)

// algs are all that a JWT-SVID may be signed with (SPIFFE JWT-SVID §2.1), and
// for each which keys fit.
var algs = map[jose.SignatureAlgorithm]func(crypto.PublicKey) bool{
	jose.RS256: isRSA, jose.RS384: isRSA, jose.RS512: isRSA,
	jose.PS256: isRSA, jose.PS384: isRSA, jose.PS512: isRSA,
	jose.ES256: on(elliptic.P256()), jose.ES384: on(elliptic.P384()), jose.ES512: on(elliptic.P521()),
}

func isRSA(k crypto.PublicKey) bool {
	key, ok := k.(*rsa.PublicKey)
	return ok && key.N.BitLen() >= 2048
}

func on(curve elliptic.Curve) func(crypto.PublicKey) bool {
	return func(k crypto.PublicKey) bool {
		key, ok := k.(*ecdsa.PublicKey)
		return ok && key.Curve == curve
	}
}

// validate holds a token against all rules of SPIFFE JWT-SVID for a validator,
// with keys of the trust domain of its subject alone, and against what is
// revoked. But for that, iat limits nothing.
func validate(token, audience string, bundles map[spiffeid.TrustDomain]*agent.Bundle, revoked *agent.Cutoffs, now time.Time) (spiffeid.ID, map[string]any, error) {
	var none spiffeid.ID
	if audience == "" { // then no token is for us (SPIFFE JWT-SVID §3.2)
		return none, nil, errors.New("no audience to validate it for")
	}
	if len(token) > maxToken {
		return none, nil, fmt.Errorf("it has %d bytes, at most %d are taken", len(token), maxToken)
	}
	alg, kid, err := header(token)
	if err != nil {
		return none, nil, err
	}
	unsafe, err := payload(token)
	if err != nil {
		return none, nil, err
	}
	id, err := subject(unsafe)
	if err != nil {
		return none, nil, err
	}
	bundle, ok := bundles[id.TrustDomain()]
	if !ok {
		return none, nil, fmt.Errorf("no bundle of trust domain %s", id.TrustDomain())
	}
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return none, nil, err
	}
	key, err := verify(parsed, alg, kid, bundle)
	if err != nil {
		return none, nil, err
	}
	if err := checkTimes(unsafe, now); err != nil {
		return none, nil, err
	}
	audiences, err := audiencesOf(unsafe)
	if err != nil {
		return none, nil, err
	}
	if !slices.Contains(audiences, audience) {
		return none, nil, fmt.Errorf("it is not for audience %q", audience)
	}
	if err := revoked.Check(id, key, claimTime(unsafe, "iat"), claimTime(unsafe, "exp")); err != nil {
		return none, nil, err
	}
	return id, unsafe, nil
}

// header checks what must hold before anything else is looked at.
func header(token string) (jose.SignatureAlgorithm, string, error) {
	parts := strings.Split(token, ".")
	// encoding/base64 skips line ends.
	if len(parts) != 3 || strings.ContainsAny(token, "\r\n") {
		return "", "", errors.New("it is not a JWS in compact form")
	}
	fields, err := object(parts[0])
	if err != nil {
		return "", "", fmt.Errorf("its header: %w", err)
	}
	alg, _ := fields["alg"].(string)
	if algs[jose.SignatureAlgorithm(alg)] == nil {
		return "", "", fmt.Errorf("algorithm %q is not allowed", alg)
	}
	if typ, there := fields["typ"]; there && typ != "JWT" && typ != "JOSE" {
		return "", "", fmt.Errorf("typ %v is neither JWT nor JOSE", typ)
	}
	if _, there := fields["crit"]; there {
		return "", "", errors.New("its header names critical parameters")
	}
	kid, there := fields["kid"]
	text, ok := kid.(string)
	if there && (!ok || text == "") {
		return "", "", errors.New("its kid is not a key ID")
	}
	return jose.SignatureAlgorithm(alg), text, nil
}

func payload(token string) (map[string]any, error) {
	claims, err := object(strings.Split(token, ".")[1])
	if err != nil {
		return nil, fmt.Errorf("its payload: %w", err)
	}
	return claims, nil
}

// object decodes one JSON object of a token, refusing names that stand twice:
// two parsers would not agree on what it says.
func object(part string) (map[string]any, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	if err := unique(d, 0); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("more than one JSON value")
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, errors.New("not a JSON object")
	}
	return m, nil
}

const maxDepth = 16

func unique(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	names := make(map[string]bool)
	for d.More() {
		if delim == '{' {
			name, err := d.Token()
			if err != nil {
				return err
			}
			text, _ := name.(string)
			if names[text] {
				return fmt.Errorf("the name %q stands twice", text)
			}
			names[text] = true
		}
		if err := unique(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

func subject(claims map[string]any) (spiffeid.ID, error) {
	sub, ok := claims["sub"].(string)
	if !ok {
		return spiffeid.ID{}, errors.New("it has no subject")
	}
	id, err := federation.ParseID(sub)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("its subject: %w", err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, errors.New("its subject is a trust domain, not a workload")
	}
	return id, nil
}

// claimTime reads a time that has been checked, or one whose absence or
// nonsense is the zero time.
func claimTime(claims map[string]any, name string) time.Time {
	n, ok := claims[name].(float64)
	if !ok || math.IsNaN(n) || n <= 0 || n > 1<<53 {
		return time.Time{}
	}
	return time.Unix(int64(n), 0)
}

// verify checks the signature with the key that kid names, or, without one,
// with each that fits, and returns the ID of the key.
func verify(parsed *jose.JSONWebSignature, alg jose.SignatureAlgorithm, kid string, bundle *agent.Bundle) (string, error) {
	tried := 0
	for id, key := range bundle.JWTAuthorities {
		if (kid != "" && id != kid) || !algs[alg](key) {
			continue
		}
		tried++
		if _, err := parsed.Verify(key); err == nil {
			return id, nil
		}
	}
	if tried == 0 {
		return "", &unknownKeyError{kid, alg, bundle.TrustDomain}
	}
	return "", errors.New("its signature does not verify")
}

// unknownKeyError: the peer may have published the key since its bundle came.
type unknownKeyError struct {
	kid string
	alg jose.SignatureAlgorithm
	td  spiffeid.TrustDomain
}

func (e *unknownKeyError) Error() string {
	return fmt.Sprintf("no JWT authority %q for %s in the bundle of %s", e.kid, e.alg, e.td)
}

func checkTimes(claims map[string]any, now time.Time) error {
	exp, ok := claims["exp"].(float64)
	if !ok || math.IsNaN(exp) || exp <= 0 || exp >= 1<<53 {
		return errors.New("it has no expiry")
	}
	if !now.Before(time.Unix(int64(exp), 0).Add(leeway)) {
		return errors.New("it has expired")
	}
	if raw, there := claims["nbf"]; there {
		nbf, ok := raw.(float64)
		if !ok || nbf >= 1<<53 || nbf < 0 {
			return errors.New("its nbf is not a time")
		}
		if now.Add(leeway).Before(time.Unix(int64(nbf), 0)) {
			return errors.New("it is not valid yet")
		}
	}
	return nil
}

func audiencesOf(claims map[string]any) ([]string, error) {
	switch aud := claims["aud"].(type) {
	case string:
		return []string{aud}, nil
	case []any:
		var all []string
		for _, a := range aud {
			text, ok := a.(string)
			if !ok {
				return nil, errors.New("its audience is not a list of strings")
			}
			all = append(all, text)
		}
		return all, nil
	}
	return nil, errors.New("it has no audience")
}
