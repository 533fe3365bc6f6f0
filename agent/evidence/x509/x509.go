// Package x509 proves a node by a certificate of the owner's PKI: it shows the
// chain, and signs the broker's challenge with its key.
//
// The files are read anew for each join, so that a renewed certificate counts. What
// is signed names the trust domain and this use, so that no other service's
// challenge can be passed off as the broker's.
package x509

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Config says where the certificate is. All fields are required.
type Config struct {
	TrustDomain string
	Cert, Key   string // PEM files: the chain, leaf first; the leaf's key
}

// Evidence is the chain.
func (c Config) Evidence(context.Context) ([]byte, error) {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("reading join.cert and join.key: %w", err)
	}
	return json.Marshal(map[string][][]byte{"chain": pair.Certificate})
}

// Answer signs a challenge.
func (c Config) Answer(_ context.Context, challenge []byte) ([]byte, error) {
	if len(challenge) != 32 {
		return nil, fmt.Errorf("a challenge of %d bytes: 32 are signed", len(challenge))
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("reading join.cert and join.key: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("join.key: a key that cannot sign")
	}
	message := slices.Concat([]byte("credence join x509 1\x00"), []byte(c.TrustDomain), []byte{0}, challenge)
	sum := sha256.Sum256(message)
	switch key.Public().(type) {
	case *rsa.PublicKey:
		return key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	return key.Sign(rand.Reader, sum[:], crypto.SHA256)
}
