package sandbox

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"sync"
)

// A Signer signs the tokens that an emulator issues, with RS256.
type Signer struct {
	key func() (*rsa.PrivateKey, error)
}

// NewSigner returns a Signer with that key, or if it is nil with a 2048-bit one
// that is made at first use: making it takes longer than starting should.
func NewSigner(key *rsa.PrivateKey) *Signer {
	if key != nil {
		return &Signer{func() (*rsa.PrivateKey, error) { return key, nil }}
	}
	return &Signer{sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })}
}

// Sign returns a JWT of these claims, with typ JWT and the key's kid.
func (s *Signer) Sign(claims map[string]any) (string, error) {
	k, err := s.key()
	if err != nil {
		return "", fmt.Errorf("making the signing key: %w", err)
	}
	header, _ := json.Marshal(map[string]string{"alg": "RS256", "typ": "JWT", "kid": keyID(&k.PublicKey)})
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	signed := encode(header) + "." + encode(body)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return signed + "." + encode(sig), nil
}

// KeySet returns the JWK Set with which the tokens verify.
func (s *Signer) KeySet() ([]byte, error) {
	k, err := s.key()
	if err != nil {
		return nil, fmt.Errorf("making the signing key: %w", err)
	}
	return json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": keyID(&k.PublicKey),
		"n": encode(k.N.Bytes()), "e": encode(big.NewInt(int64(k.E)).Bytes()),
	}}})
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func keyID(k *rsa.PublicKey) string {
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(k))
	return hex.EncodeToString(sum[:10])
}
