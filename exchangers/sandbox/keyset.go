package sandbox

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
)

// A Key is one member of a key set. A member that cannot be used stands in the
// set with Public nil, so that a cloud can tell "unknown kid" from "bad key".
type Key struct {
	ID, Type, Curve, Algorithm, Use string
	Public                          crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or nil
	Err                             error            // why Public is nil, wrapping ErrUnusable
}

// Fits says whether the key may verify alg: it is usable, meant for signatures,
// and its own alg, where it has one, is alg. Type and curve are checked by
// [JWT.Verify].
func (k Key) Fits(alg string) error {
	switch {
	case k.Err != nil:
		return k.Err
	case k.Use != "" && k.Use != "sig":
		return fmt.Errorf("%w: use %q", ErrUnusable, k.Use)
	case k.Algorithm != "" && k.Algorithm != alg:
		return fmt.Errorf("%w: key is for %s, token says %s", ErrUnusable, k.Algorithm, alg)
	}
	return nil
}

// ParseKeySet parses a JWK Set (RFC 7517 §5). A set with no keys, with private
// members or with a kid used twice is refused whole.
func ParseKeySet(b []byte) ([]Key, error) {
	o, err := ParseObject(b)
	if err != nil {
		return nil, fmt.Errorf("parsing key set: %w", err)
	}
	list, _ := o["keys"].([]any)
	if len(list) == 0 {
		return nil, errors.New("parsing key set: no keys")
	}
	seen := map[string]bool{}
	var keys []Key
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, errors.New("parsing key set: a key is not an object")
		}
		if m["d"] != nil || m["k"] != nil {
			return nil, errors.New("parsing key set: private key material")
		}
		k := parseKey(m)
		if k.ID != "" && seen[k.ID] {
			return nil, fmt.Errorf("parsing key set: kid %q stands twice", k.ID)
		}
		seen[k.ID] = true
		keys = append(keys, k)
	}
	return keys, nil
}

func parseKey(m map[string]any) Key {
	text := func(name string) string { s, _ := m[name].(string); return s }
	k := Key{ID: text("kid"), Type: text("kty"), Curve: text("crv"), Algorithm: text("alg"), Use: text("use")}
	switch k.Type {
	case "RSA":
		k.Public, k.Err = rsaKey(text("n"), text("e"))
	case "EC":
		k.Public, k.Err = ecKey(k.Curve, text("x"), text("y"))
	default:
		k.Err = fmt.Errorf("%w: kty %q", ErrUnusable, k.Type)
	}
	if k.Err != nil {
		k.Public = nil
	}
	return k
}

func rsaKey(n, e string) (crypto.PublicKey, error) {
	nb, err1 := decode(n)
	eb, err2 := decode(e)
	if errors.Join(err1, err2) != nil || len(eb) == 0 || len(eb) > 4 || len(nb) < 256 || len(nb) > 1024 {
		return nil, fmt.Errorf("%w: RSA modulus of %d bytes, exponent of %d", ErrUnusable, len(nb), len(eb))
	}
	k := &rsa.PublicKey{N: new(big.Int).SetBytes(nb), E: int(new(big.Int).SetBytes(eb).Int64())}
	if k.N.BitLen() < 2048 || k.E < 3 || k.E%2 == 0 || k.E > 1<<31-1 {
		return nil, fmt.Errorf("%w: RSA key of %d bits", ErrUnusable, k.N.BitLen())
	}
	return k, nil
}

func ecKey(curve, x, y string) (crypto.PublicKey, error) {
	c, ok := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[curve]
	if !ok {
		return nil, fmt.Errorf("%w: curve %q", ErrUnusable, curve)
	}
	xb, err1 := decode(x)
	yb, err2 := decode(y)
	size := (c.Params().BitSize + 7) / 8
	if errors.Join(err1, err2) != nil || len(xb) != size || len(yb) != size {
		return nil, fmt.Errorf("%w: coordinates on %s", ErrUnusable, curve)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(c, append(append([]byte{4}, xb...), yb...))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	return k, nil
}
