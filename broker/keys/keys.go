// Package keys holds what is the same for sources of private keys: of those that
// sign elsewhere, in a service or on a token, which signatures may be asked of
// them, and that what comes back is one; of those that keep keys themselves, how
// these are made, read, and kept from other users of this machine.
//
// It trusts no source: a signature counts once it verifies. How a source is
// reached, and what it calls things, is left to the drivers below.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
)

// A Signature is what a caller of crypto.Signer asks for. ECDSA is ASN.1; PSS
// has a salt as long as the hash.
type Signature struct {
	Hash crypto.Hash // SHA-256, SHA-384 or SHA-512
	PSS  bool        // of an RSA key: else PKCS #1 v1.5
}

// Asked reads what is asked for and refuses, by name, what no source signs: a
// message, another hash, a digest of another length, with a curve another hash
// than that of its size (RFC 7518 §3.4), and salts of other lengths.
func Asked(pub crypto.PublicKey, digest []byte, opts crypto.SignerOpts) (Signature, error) {
	if opts == nil || opts.HashFunc() == 0 {
		return Signature{}, errors.New("a digest is wanted, not a message")
	}
	s := Signature{Hash: opts.HashFunc()}
	if s.Hash != crypto.SHA256 && s.Hash != crypto.SHA384 && s.Hash != crypto.SHA512 {
		return Signature{}, fmt.Errorf("%v: SHA-256, SHA-384 and SHA-512 are what is signed", s.Hash)
	}
	if len(digest) != s.Hash.Size() {
		return Signature{}, fmt.Errorf("a digest of %d bytes: %v has %d", len(digest), s.Hash, s.Hash.Size())
	}
	if pub, ok := pub.(*ecdsa.PublicKey); ok {
		if size := pub.Curve.Params().BitSize; size != s.Bits() {
			return Signature{}, fmt.Errorf("%v: with a key of %d bits it is SHA-%d alone", s.Hash, size, size)
		}
		return s, nil
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		if n := pss.SaltLength; n != rsa.PSSSaltLengthAuto && n != rsa.PSSSaltLengthEqualsHash && n != s.Hash.Size() {
			return Signature{}, fmt.Errorf("a salt of %d bytes: it is as long as the hash", n)
		}
		s.PSS = true
	}
	return s, nil
}

// Bits is the length of the hash.
func (s Signature) Bits() int { return 8 * s.Hash.Size() }

// Verifies says whether sig is such a signature of the digest by pub.
func (s Signature) Verifies(pub crypto.PublicKey, digest, sig []byte) bool {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, sig)
	case *rsa.PublicKey:
		if s.PSS {
			return rsa.VerifyPSS(pub, s.Hash, digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(pub, s.Hash, digest, sig) == nil
	}
	return false
}
