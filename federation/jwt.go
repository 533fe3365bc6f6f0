package federation

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
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxToken      = 16 << 10
	maxTokenDepth = 16
	tokenLeeway   = 60 * time.Second
)

// A JWT is a JWT-SVID as it was shown. Nothing of it may be believed before
// Verify.
type JWT struct {
	ID        spiffeid.ID // its subject
	KeyID     string      // kid of its header; empty: it names none
	Audiences []string
	IssuedAt  time.Time // zero: it has no iat, or none that is a time
	Expires   time.Time
	Claims    map[string]any
	Header    map[string]any
	Signed    string // what the signature is over

	notBefore time.Time
	alg       jose.SignatureAlgorithm
	jws       *jose.JSONWebSignature
}

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

// ParseJWT reads a token and holds its form against the rules of SPIFFE
// JWT-SVID for a validator: compact form, at most 16 KiB, no name twice, an
// algorithm of the list, a subject that is a workload's SPIFFE ID, an expiry
// and audiences.
func ParseJWT(token string) (*JWT, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("it has %d bytes, at most %d are taken", len(token), maxToken)
	}
	parts := strings.Split(token, ".")
	// encoding/base64 skips line ends.
	if len(parts) != 3 || strings.ContainsAny(token, "\r\n") {
		return nil, errors.New("it is not a JWS in compact form")
	}
	j := &JWT{Signed: token[:len(parts[0])+1+len(parts[1])]}
	var err error
	if j.Header, err = tokenObject(parts[0]); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	if err := j.readHeader(); err != nil {
		return nil, err
	}
	if j.Claims, err = tokenObject(parts[1]); err != nil {
		return nil, fmt.Errorf("its payload: %w", err)
	}
	if err := j.readClaims(); err != nil {
		return nil, err
	}
	j.jws, err = jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{j.alg})
	return j, err
}

func (j *JWT) readHeader() error {
	alg, _ := j.Header["alg"].(string)
	j.alg = jose.SignatureAlgorithm(alg)
	if algs[j.alg] == nil {
		return fmt.Errorf("algorithm %.40q is not allowed", alg)
	}
	if typ, there := j.Header["typ"]; there && typ != "JWT" && typ != "JOSE" {
		return fmt.Errorf("typ %.40v is neither JWT nor JOSE", typ)
	}
	if _, there := j.Header["crit"]; there {
		return errors.New("its header names critical parameters")
	}
	kid, there := j.Header["kid"]
	text, ok := kid.(string)
	if there && (!ok || text == "") {
		return errors.New("its kid is not a key ID")
	}
	j.KeyID = text
	return nil
}

func (j *JWT) readClaims() (err error) {
	sub, ok := j.Claims["sub"].(string)
	if !ok {
		return errors.New("it has no subject")
	}
	if j.ID, err = ParseID(sub); err != nil {
		return fmt.Errorf("its subject: %w", err)
	}
	if j.ID.Path() == "" {
		return errors.New("its subject is a trust domain, not a workload")
	}
	if j.Audiences, err = audiencesOf(j.Claims); err != nil {
		return err
	}
	if j.Expires = claimTime(j.Claims, "exp"); j.Expires.IsZero() {
		return errors.New("it has no expiry")
	}
	j.IssuedAt = claimTime(j.Claims, "iat")
	if raw, there := j.Claims["nbf"]; there {
		nbf, ok := raw.(float64)
		if !ok || nbf >= 1<<53 || nbf < 0 {
			return errors.New("its nbf is not a time")
		}
		j.notBefore = time.Unix(int64(nbf), 0)
	}
	return nil
}

// CheckTimes holds exp and nbf against now, with 60 s for clocks that differ.
func (j *JWT) CheckTimes(now time.Time) error {
	if !now.Before(j.Expires.Add(tokenLeeway)) {
		return errors.New("it has expired")
	}
	if !j.notBefore.IsZero() && now.Add(tokenLeeway).Before(j.notBefore) {
		return errors.New("it is not valid yet")
	}
	return nil
}

// Verify checks the signature with keys of the trust domain of the subject
// alone: with the one that kid names or, without one, with each that fits. It
// returns the ID of the key. The error is an *UnknownKeyError where there is no
// such key.
func (j *JWT) Verify(bundles jwtbundle.Source) (keyID string, err error) {
	td := j.ID.TrustDomain()
	bundle, err := bundles.GetJWTBundleForTrustDomain(td)
	if err != nil {
		return "", fmt.Errorf("no bundle of trust domain %s", td)
	}
	tried := 0
	for id, key := range bundle.JWTAuthorities() {
		if (j.KeyID != "" && id != j.KeyID) || !algs[j.alg](key) {
			continue
		}
		tried++
		if _, err := j.jws.Verify(key); err == nil {
			return id, nil
		}
	}
	if tried == 0 {
		return "", &UnknownKeyError{KeyID: j.KeyID, TrustDomain: td, alg: j.alg}
	}
	return "", errors.New("its signature does not verify")
}

// An UnknownKeyError: the trust domain may have published the key since its
// bundle came.
type UnknownKeyError struct {
	KeyID       string
	TrustDomain spiffeid.TrustDomain
	alg         jose.SignatureAlgorithm
}

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf("no JWT authority %.100q for %s in the bundle of %s", e.KeyID, e.alg, e.TrustDomain)
}

// tokenObject decodes one JSON object of a token, refusing names that stand
// twice: two parsers would not agree on what it says.
func tokenObject(part string) (map[string]any, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	if err := uniqueNames(d, 0); err != nil {
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

func uniqueNames(d *json.Decoder, depth int) error {
	if depth > maxTokenDepth {
		return fmt.Errorf("nested deeper than %d", maxTokenDepth)
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
				return fmt.Errorf("the name %.100q stands twice", text)
			}
			names[text] = true
		}
		if err := uniqueNames(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// claimTime reads a time; one whose absence or nonsense is the zero time.
func claimTime(claims map[string]any, name string) time.Time {
	n, ok := claims[name].(float64)
	if !ok || math.IsNaN(n) || n <= 0 || n >= 1<<53 {
		return time.Time{}
	}
	return time.Unix(int64(n), 0)
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
