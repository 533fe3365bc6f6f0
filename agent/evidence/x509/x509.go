// Package x509 proves a node by a certificate that it has: it shows the chain, and
// signs the broker's challenge with its key.
//
// The certificate is read anew for each join, so that a renewed one counts. What is
// signed names the method, the trust domain and the public key that the node joins
// with, so that no other service's challenge can be passed off as the broker's, and
// the answer is worth nothing to who joins with another key.
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
	"sync"
)

// A Pair returns the certificates that the node has at present, leaf first, and the
// leaf's key.
type Pair func(context.Context) (tls.Certificate, error)

// Files reads a Pair from PEM files.
func Files(cert, key string) Pair {
	return func(context.Context) (tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return pair, fmt.Errorf("reading join.cert and join.key: %w", err)
		}
		return pair, nil
	}
}

// Config says what to show. All fields are required.
type Config struct {
	Method      string // the join method, "x509" or "spiffe"
	TrustDomain string
	Pair        Pair
}

// A Node shows certificates. It is made by New, and joins once at a time.
type Node struct {
	cfg Config

	mu    sync.Mutex      // guards shown
	shown tls.Certificate // last: its key answers, whatever there is by then
}

// New returns a node that shows what cfg says.
func New(cfg Config) *Node { return &Node{cfg: cfg} }

// Evidence is the chain.
func (n *Node) Evidence(ctx context.Context) ([]byte, error) {
	pair, err := n.cfg.Pair(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.shown = pair
	n.mu.Unlock()
	return json.Marshal(map[string][][]byte{"chain": pair.Certificate})
}

// Answer signs a challenge, for the public key (DER) that the node joins with, by the
// key of what Evidence showed last.
func (n *Node) Answer(_ context.Context, challenge, publicKey []byte) ([]byte, error) {
	if len(challenge) != 32 {
		return nil, fmt.Errorf("a challenge of %d bytes: 32 are signed", len(challenge))
	}
	n.mu.Lock()
	pair := n.shown
	n.mu.Unlock()
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("a challenge before a certificate was shown, or a key that cannot sign")
	}
	joining := sha256.Sum256(publicKey)
	message := slices.Concat([]byte("credence join "+n.cfg.Method+" 1\x00"), []byte(n.cfg.TrustDomain), []byte{0}, challenge, joining[:])
	sum := sha256.Sum256(message)
	switch key.Public().(type) {
	case *rsa.PublicKey:
		return key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	return key.Sign(rand.Reader, sum[:], crypto.SHA256)
}
