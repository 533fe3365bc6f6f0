// Package possession checks that a node has the key of the certificates that it
// shows, for join methods whose evidence is a chain, and for all what a signature by
// a node's key is. Who signed the chain, and what it says of the node, is left to the
// method.
//
// What a node signs names the method and our trust domain, and holds a fresh
// challenge and the digest of the public key that the node joins with: neither a
// recording nor what was signed for somebody else does for us, ours does for nobody
// else, and whoever passes it on gets nothing for a key of its own.
package possession

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/credence-id/credence/broker/join"
)

// Bounds of what a stranger may show.
const (
	maxChain = 5
	maxNames = 64 // of all kinds
	maxRSA   = 8192
)

// evidence is what a node shows.
type evidence struct {
	Chain [][]byte `json:"chain"` // DER, leaf first, without the root
}

// Parse reads a chain that is worth verifying: nothing in it costs more than its
// bytes. It has one certificate at least. Its errors wrap join.ErrEvidence.
func Parse(shown []byte) ([]*x509.Certificate, error) {
	var e evidence
	if err := json.Unmarshal(shown, &e); err != nil {
		return nil, refuse("it is no chain of certificates")
	}
	if len(e.Chain) == 0 || len(e.Chain) > maxChain {
		return nil, refuse("a chain of %d certificates: 1 to %d are taken", len(e.Chain), maxChain)
	}
	var chain []*x509.Certificate
	for n, der := range e.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse("certificate %d of the chain: %w", n, err)
		}
		if err := cheap(c); err != nil {
			return nil, refuse("certificate %d of the chain: %w", n, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", join.ErrEvidence, fmt.Errorf(format, args...))
}

// cheap refuses what would be dear to verify, or weak.
func cheap(c *x509.Certificate) error {
	if n := len(c.DNSNames) + len(c.URIs) + len(c.EmailAddresses) + len(c.IPAddresses); n > maxNames {
		return fmt.Errorf("%d names, at most %d are taken", n, maxNames)
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > maxRSA {
			return fmt.Errorf("an RSA key of %d bits: 2048 to %d are taken", n, maxRSA)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return fmt.Errorf("a key of an unknown kind, %T", k)
	}
	return nil
}

// Prove asks the node to sign a fresh challenge with a certificate's key. An error
// that wraps join.ErrEvidence says that it did not.
func Prove(ctx context.Context, ask join.Challenge, method, trustDomain string, pub crypto.PublicKey) error {
	key, ok := join.Key(ctx)
	if !ok {
		return errors.New("a join without a public key, for which a node could answer")
	}
	challenge := make([]byte, 32)
	_, _ = rand.Read(challenge) // never fails (crypto/rand.Read)
	answer, err := ask(ctx, challenge)
	if err != nil {
		return err
	}
	message := slices.Concat([]byte("credence join "+method+" 1\x00"), []byte(trustDomain), []byte{0}, challenge, key[:])
	if !Signed(pub, message, answer) {
		return fmt.Errorf("%w: the answer is no signature of our challenge by the certificate's key", join.ErrEvidence)
	}
	return nil
}

// Signed says whether a key made a signature: over SHA-256, with PSS for RSA, as in
// TLS 1.3 (RFC 8446 §4.2.3).
func Signed(pub crypto.PublicKey, message, signature []byte) bool {
	sum := sha256.Sum256(message)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, sum[:], signature)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(k, crypto.SHA256, sum[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	}
	return false
}
