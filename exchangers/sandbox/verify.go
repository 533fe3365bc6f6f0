package sandbox

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the algorithms below
	_ "crypto/sha512"
	"fmt"
	"math/big"
)

type algorithm struct {
	kind  string // RSA, PSS or EC
	hash  crypto.Hash
	curve elliptic.Curve
}

var algorithms = map[string]algorithm{
	"RS256": {kind: "RSA", hash: crypto.SHA256},
	"RS384": {kind: "RSA", hash: crypto.SHA384},
	"RS512": {kind: "RSA", hash: crypto.SHA512},
	"PS256": {kind: "PSS", hash: crypto.SHA256},
	"PS384": {kind: "PSS", hash: crypto.SHA384},
	"PS512": {kind: "PSS", hash: crypto.SHA512},
	"ES256": {kind: "EC", hash: crypto.SHA256, curve: elliptic.P256()},
	"ES384": {kind: "EC", hash: crypto.SHA384, curve: elliptic.P384()},
	"ES512": {kind: "EC", hash: crypto.SHA512, curve: elliptic.P521()},
}

// Verify checks the token's signature with key, an *rsa.PublicKey or
// *ecdsa.PublicKey, under alg, which must be the token's own and one of
// RFC 7518 §3.3 to §3.5. The error wraps ErrAlgorithm, ErrUnusable (type, curve
// or size of the key do not fit) or ErrSignature.
func (t *JWT) Verify(key any, alg string) error {
	a, ok := algorithms[alg]
	if !ok || alg != t.Algorithm {
		return fmt.Errorf("%w: %q", ErrAlgorithm, t.Algorithm)
	}
	h := a.hash.New()
	h.Write([]byte(t.signed))
	sum := h.Sum(nil)
	switch k := key.(type) {
	case *rsa.PublicKey:
		return t.verifyRSA(k, a, sum)
	case *ecdsa.PublicKey:
		return t.verifyEC(k, a, sum)
	}
	return fmt.Errorf("%w: %T with %s", ErrUnusable, key, alg)
}

func (t *JWT) verifyRSA(k *rsa.PublicKey, a algorithm, sum []byte) error {
	if a.kind == "EC" || k.N.BitLen() < 2048 {
		return fmt.Errorf("%w: %d-bit RSA key with %s", ErrUnusable, k.N.BitLen(), t.Algorithm)
	}
	var err error
	if a.kind == "PSS" {
		err = rsa.VerifyPSS(k, a.hash, sum, t.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	} else {
		err = rsa.VerifyPKCS1v15(k, a.hash, sum, t.signature)
	}
	if err != nil {
		return ErrSignature
	}
	return nil
}

func (t *JWT) verifyEC(k *ecdsa.PublicKey, a algorithm, sum []byte) error {
	if a.kind != "EC" || k.Curve != a.curve {
		return fmt.Errorf("%w: %s key with %s", ErrUnusable, k.Curve.Params().Name, t.Algorithm)
	}
	size := (a.curve.Params().BitSize + 7) / 8
	if len(t.signature) != 2*size {
		return ErrSignature
	}
	r, s := new(big.Int).SetBytes(t.signature[:size]), new(big.Int).SetBytes(t.signature[size:])
	if !ecdsa.Verify(k, sum, r, s) {
		return ErrSignature
	}
	return nil
}
