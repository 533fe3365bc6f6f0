package api

import (
	"crypto/sha256"
	"encoding/base64"
)

// LoginNonce is the nonce (OpenID Connect Core §2) that the ID token of a person
// must have who logs in with a key: so that the token is good for this key, at
// this trust domain, and for nothing else. It is unpadded base64url of the
// SHA-256 of "credence login v1", the trust domain's name and the key's
// SubjectPublicKeyInfo in DER, each after its length in eight bytes, the highest
// first.
func LoginNonce(trustDomain string, key []byte) string {
	b := appendText(nil, "credence login v1")
	b = appendText(b, trustDomain)
	b = appendText(b, string(key))
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
