// Package boundkeypair proves a node by a key of its own, which an operator
// registered, and by the state that its last join left.
//
// The key never leaves the machine: CreateKey makes it, once, when it is asked to, or
// CreateTPMKey, and then not even the machine can read it: its TPM signs, below whose
// storage key it is wrapped. Whoever may read the file and use the TPM may sign. The
// TPM is spoken to when it is to sign, and nothing stays in it.
//
// The state is a secret that the node makes anew for each join and hands its digest
// to the broker; at the next join it shows the secret. Whoever copied key and state
// is found out as soon as both have joined: one shows what the other has replaced.
//
// A state is on disk before its digest leaves, and the broker's challenge says which
// digest it holds: an answer that got lost, or a crash at any point, costs nothing.
// What is signed names the trust domain, this use and the key that the SVID is for,
// so that no other service's challenge can be passed off as the broker's.
package boundkeypair

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// Config says what proves the node. All fields are required.
type Config struct {
	TrustDomain string
	Key         Key
	StateFile   string // in a directory that is there
}

// A Key signs, wherever it is kept: an error says that it is not to be had.
type Key interface {
	Public() (crypto.PublicKey, error)
	Sign(digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// A Prover proves one node. Its methods may be called concurrently.
type Prover struct {
	cfg Config
	mu  sync.Mutex // held while the state is read and replaced
}

// New returns a node's Prover.
func New(cfg Config) *Prover { return &Prover{cfg: cfg} }

// Evidence names the key. It says too what would keep AnswerFor from answering.
func (p *Prover) Evidence(context.Context) ([]byte, error) {
	key, err := p.cfg.Key.Public()
	if err != nil {
		return nil, err
	}
	name, err := Digest(key)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.load(name); err != nil {
		return nil, err
	}
	return []byte(name), nil
}

const challengeSize = 32 + 8 + 32

// AnswerFor shows the state that the broker asks for, hands in the next, and signs,
// for a join that gets an SVID for a public key (DER).
func (p *Prover) AnswerFor(_ context.Context, challenge, publicKey []byte) ([]byte, error) {
	if len(challenge) != challengeSize {
		return nil, fmt.Errorf("a challenge of %d bytes: %d are signed", len(challenge), challengeSize)
	}
	key, err := p.cfg.Key.Public()
	if err != nil {
		return nil, err
	}
	name, err := Digest(key)
	if err != nil {
		return nil, err
	}
	shown, err := p.turn(name, binary.BigEndian.Uint64(challenge[32:]), [32]byte(challenge[40:]))
	if err != nil {
		return nil, err
	}
	answer := binary.BigEndian.AppendUint64(nil, shown.joins)
	answer = slices.Concat(answer, shown.secret[:], shown.next[:])
	svid := sha256.Sum256(publicKey)
	message := slices.Concat([]byte("credence join bound_keypair 1\x00"), []byte(p.cfg.TrustDomain), []byte{0}, challenge, svid[:], answer)
	sum := sha256.Sum256(message)
	var signature []byte
	switch key.(type) {
	case *rsa.PublicKey:
		signature, err = p.cfg.Key.Sign(sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case ed25519.PublicKey:
		signature, err = p.cfg.Key.Sign(message, crypto.Hash(0))
	case *ecdsa.PublicKey:
		signature, err = p.cfg.Key.Sign(sum[:], crypto.SHA256)
	default:
		err = fmt.Errorf("a key of an unknown kind, %T", key)
	}
	if err != nil {
		return nil, fmt.Errorf("signing by the node's key: %w", err)
	}
	return append(answer, signature...), nil
}

// showing is what an answer says of states.
type showing struct {
	joins  uint64
	secret [32]byte // zero: none
	next   [32]byte // a digest
}

// turn takes the state on: the broker has counted joins, and holds the digest of
// what the last one left. What it returns is on disk.
func (p *Prover) turn(key string, joins uint64, held [32]byte) (showing, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was, err := p.load(key)
	if err != nil {
		return showing{}, err
	}
	now, shown := was.turn(joins, held)
	if now.Next == nil {
		now.Next = make([]byte, 32)
		_, _ = rand.Read(now.Next) // never fails (crypto/rand.Read)
	}
	shown.next = sha256.Sum256(now.Next)
	now.Key = key
	return shown, p.save(now)
}
