package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/go-jose/go-jose/v4"
)

// The values of use that are understood; they are case-sensitive (SPIFFE Trust
// Domain and Bundle §4.2.2).
const (
	useX509 = "x509-svid"
	useJWT  = "jwt-svid"
	useWIT  = "wit-svid"
)

const (
	minRSA = 2048 // RFC 7518 §3.3
	maxRSA = 4096 // a larger one only makes verifying slow
	maxX5C = 100
)

// secretMembers are those of private and symmetric keys. A publisher that shows
// one has given its key away, so what it signs proves nothing.
var secretMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

// publicMembers are all that a key is made from.
var publicMembers = []string{"kty", "crv", "x", "y", "n", "e"}

// addEntry adds what the entry of keys says may be trusted. Its error is the
// reason why the entry, or a part of it, was ignored.
func (b *Bundle) addEntry(raw json.RawMessage) error {
	m, err := members(raw)
	if err != nil {
		return err
	}
	for _, name := range secretMembers {
		if _, ok := m[name]; ok {
			return fmt.Errorf("holds private or symmetric key material (member %q)", name)
		}
	}
	use, ok := text(m, "use")
	if !ok {
		return errors.New("no use")
	}
	switch use {
	case useX509:
		return b.addX509(m)
	case useJWT, useWIT:
		return b.addJWT(use, m)
	}
	return fmt.Errorf("unknown use %q", clip(use))
}

// addX509 takes the first x5c value and no other (X509-SVID §6.2).
func (b *Bundle) addX509(m map[string]json.RawMessage) error {
	key, err := publicKey(m)
	if err != nil {
		return err
	}
	x5c, err := elements(m["x5c"], maxX5C)
	if err != nil || len(x5c) == 0 {
		return errors.New("no x5c")
	}
	cert, err := parseX5C(x5c[0])
	if err != nil {
		return err
	}
	if !sameKey(cert.PublicKey, key) {
		return errors.New("the key is not that of its certificate") // RFC 7517 §4.7
	}
	b.AddX509Authority(cert)
	if len(x5c) > 1 {
		return errors.New("x5c values after the first")
	}
	return nil
}

func parseX5C(raw json.RawMessage) (*x509.Certificate, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, errors.New("x5c value is not a string")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("x5c value is not standard base64")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("x5c value is not a certificate")
	}
	return cert, checkAuthority(cert)
}

// checkAuthority refuses what may not sign certificates: crypto/x509 would let
// an end-entity certificate among the roots vouch for itself.
func checkAuthority(cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return errors.New("certificate is not of a CA")
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("certificate may not sign certificates (no keyCertSign)")
	}
	return nil
}

// addJWT keeps the first of two keys under one kid: JWT-SVID does not say which
// counts, and the later must not displace the earlier.
func (b *Bundle) addJWT(use string, m map[string]json.RawMessage) error {
	kid, ok := text(m, "kid")
	if !ok || kid == "" {
		return fmt.Errorf("%s key without kid", use) // JWT-SVID §6.1
	}
	key, err := publicKey(m)
	if err != nil {
		return err
	}
	find, add := b.FindJWTAuthority, b.AddJWTAuthority
	if use == useWIT {
		find, add = b.FindWITAuthority, b.AddWITAuthority
	}
	if old, taken := find(kid); taken && !sameKey(old, key) {
		return fmt.Errorf("another key with kid %q", clip(kid))
	}
	return add(kid, key)
}

// publicKey makes the key from its public members alone.
func publicKey(m map[string]json.RawMessage) (crypto.PublicKey, error) {
	switch kty, _ := text(m, "kty"); kty {
	case "RSA", "EC", "OKP":
	default:
		return nil, fmt.Errorf("unknown kty %q", clip(kty))
	}
	public := make(map[string]json.RawMessage)
	for _, name := range publicMembers {
		if v, ok := m[name]; ok {
			public[name] = v
		}
	}
	data, err := json.Marshal(public)
	if err != nil {
		return nil, err
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(data); err != nil {
		return nil, errors.New("key or curve is not understood")
	}
	return jwk.Key, checkKey(jwk.Key)
}

func checkKey(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("RSA key of %d bits", n)
		}
		if key.E < 3 || key.E > math.MaxInt32 || key.E%2 == 0 {
			return errors.New("RSA key with a wrong exponent")
		}
		return nil
	case *ecdsa.PublicKey:
		if _, err := key.ECDH(); err != nil {
			return errors.New("EC key is not a point of its curve")
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return errors.New("not a public key")
}

func sameKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
