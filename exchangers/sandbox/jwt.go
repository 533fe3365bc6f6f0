package sandbox

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxJWT is the longest token that ParseJWT reads.
const MaxJWT = 64 << 10

// Errors of tokens. Clouds map each to a code of their own.
var (
	ErrMalformed  = errors.New("malformed JWT")
	ErrHeader     = errors.New("JWT header that no issuer may send") // crit, or a key of its own choice
	ErrNoClaim    = errors.New("claim is missing")
	ErrClaimType  = errors.New("claim has the wrong type")
	ErrSignature  = errors.New("signature does not verify")
	ErrUnusable   = errors.New("key is not usable with this algorithm")
	ErrAlgorithm  = errors.New("algorithm is not supported")
	errNotBase64  = fmt.Errorf("%w: segment is not unpadded base64url", ErrMalformed)
	refusedHeader = []string{"crit", "jwk", "jku", "x5u", "x5c", "b64", "zip"}
)

// A JWT is a parsed token that nothing has verified yet.
type JWT struct {
	Algorithm string // alg, never empty
	KeyID     string // kid, empty if absent
	Type      string // typ, empty if absent
	Header    map[string]any
	Claims    map[string]any // numbers are json.Number

	signed    string
	signature []byte
	hash      string
}

// ParseJWT parses a token in compact serialization (RFC 7515 §7.1): exactly
// three segments of unpadded base64url, the first two strict JSON objects (see
// [ParseObject]). An error wraps ErrMalformed, or ErrHeader for a header that
// names its own key or wants to be understood (crit).
func ParseJWT(raw string) (*JWT, error) {
	if len(raw) > MaxJWT {
		return nil, fmt.Errorf("%w: longer than %d", ErrMalformed, MaxJWT)
	}
	part := strings.Split(raw, ".")
	if len(part) != 3 {
		return nil, fmt.Errorf("%w: %d segments", ErrMalformed, len(part))
	}
	t := &JWT{signed: part[0] + "." + part[1], hash: HashToken(raw)}
	var err error
	if t.Header, err = segment(part[0]); err != nil {
		return nil, err
	}
	if t.Claims, err = segment(part[1]); err != nil {
		return nil, err
	}
	if t.signature, err = decode(part[2]); err != nil {
		return nil, err
	}
	return t, t.readHeader()
}

// HashToken returns the hex SHA-256 of a token, the only form in which the
// emulators record one.
func HashToken(raw string) string {
	sum := sha256.Sum256([]byte(raw))
	return hex.EncodeToString(sum[:])
}

func segment(s string) (map[string]any, error) {
	b, err := decode(s)
	if err != nil {
		return nil, err
	}
	o, err := ParseObject(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return o, nil
}

// decode refuses line breaks itself: encoding/base64 skips them.
func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errNotBase64
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errNotBase64
	}
	return b, nil
}

func (t *JWT) readHeader() error {
	for _, name := range refusedHeader {
		if _, ok := t.Header[name]; ok {
			return fmt.Errorf("%w: %s", ErrHeader, name)
		}
	}
	for name, into := range map[string]*string{"alg": &t.Algorithm, "kid": &t.KeyID, "typ": &t.Type} {
		v, ok := t.Header[name]
		if !ok {
			continue
		}
		if *into, ok = v.(string); !ok {
			return fmt.Errorf("%w: %s is not a string", ErrMalformed, name)
		}
	}
	if t.Algorithm == "" {
		return fmt.Errorf("%w: no alg", ErrMalformed)
	}
	return nil
}

// Hash returns the token's [HashToken].
func (t *JWT) Hash() string { return t.hash }

// Text returns a claim that must be a string. The error wraps ErrNoClaim (also
// for null) or ErrClaimType.
func (t *JWT) Text(claim string) (string, error) {
	v := t.Claims[claim]
	if v == nil {
		return "", fmt.Errorf("%w: %s", ErrNoClaim, claim)
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%w: %s is not a string", ErrClaimType, claim)
	}
	return s, nil
}

// Time returns a NumericDate claim. Only decimal integers are times here: a
// fraction or an exponent is ErrClaimType, as is a date outside the years 1970
// to 9999.
func (t *JWT) Time(claim string) (time.Time, error) {
	v := t.Claims[claim]
	if v == nil {
		return time.Time{}, fmt.Errorf("%w: %s", ErrNoClaim, claim)
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, fmt.Errorf("%w: %s is not a number", ErrClaimType, claim)
	}
	sec, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil || sec < 0 || sec > 253402300799 {
		return time.Time{}, fmt.Errorf("%w: %s is not an integer time", ErrClaimType, claim)
	}
	return time.Unix(sec, 0), nil
}

// Audiences returns the values of aud, which is a string or an array of them
// (RFC 7519 §4.1.3). An empty array is ErrNoClaim.
func (t *JWT) Audiences() ([]string, error) {
	switch v := t.Claims["aud"].(type) {
	case nil:
		return nil, fmt.Errorf("%w: aud", ErrNoClaim)
	case string:
		return []string{v}, nil
	case []any:
		return texts(v)
	}
	return nil, fmt.Errorf("%w: aud", ErrClaimType)
}

func texts(v []any) ([]string, error) {
	if len(v) == 0 {
		return nil, fmt.Errorf("%w: aud", ErrNoClaim)
	}
	var out []string
	for _, e := range v {
		s, ok := e.(string)
		if !ok {
			return nil, fmt.Errorf("%w: aud", ErrClaimType)
		}
		out = append(out, s)
	}
	return out, nil
}
