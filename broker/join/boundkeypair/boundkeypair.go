// Package boundkeypair is the join method of machines that nobody else vouches
// for: each has a key pair of its own for long, whose public half an operator put
// into the JoinRule under the node's name.
//
// A node names its key, and signs our fresh challenge with it. What is signed has
// our trust domain, the challenge and the digest of the public key that the SVID is
// for in it, so that neither a recording, somebody's in between, nor another
// service's signature does for us, and ours does for nobody else. The key is looked
// up among the registered ones: a stranger's costs a look-up.
//
// A key can be copied. So each join leaves the node with a secret of its own making,
// its state, whose digest it hands in; the next join shows the secret, and hands in
// the digest of the next one. Of two machines that have a key one shows a state that
// is not the last: it, or the other, is a clone. Both are shut out (join.ErrCloned)
// until an operator says which is good. A copy of a disk that is put back is told
// from a clone by nobody. Whoever shows no state, because its disk was lost, joins
// all the same, but only as often as recovery says (join.ErrRecovery); so does one
// whose state is later than any that we know: we came back from a backup.
//
// A node writes its next state before it hands the digest in, and the challenge says
// which digest we hold, so that an answer that got lost costs nothing. That digest
// is no secret: it tells what a state is, not the state.
//
// The durable key is the key's digest. A node rejoins by itself.
package boundkeypair

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/possession"
)

// Config is the wiring of a method. All fields are required.
type Config struct {
	Settings    *Settings
	TrustDomain string
	State       func(ctx context.Context, durableKey string) (join.State, error) // as the last join left it; zero: none did
}

type method struct {
	cfg  Config
	keys map[string]registered
}

// New returns the method of a rule.
func New(cfg Config) (join.Method, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	keys, err := cfg.Settings.keys()
	return method{cfg, keys}, err
}

// Join has the key that evidence names sign a challenge, and holds the state that
// comes with the signature against the last one.
func (m method) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	key, ok := m.keys[string(evidence)]
	if !ok {
		return join.Proof{}, fmt.Errorf("%w: it is none of the rule's keys", join.ErrEvidence)
	}
	svid, ok := join.Key(ctx)
	if !ok {
		return join.Proof{}, errors.New("the join has no key to bind what is signed to")
	}
	last, err := m.cfg.State(ctx, key.digest)
	if err != nil {
		return join.Proof{}, fmt.Errorf("reading the state of node %s: %w", key.name, err)
	}
	challenge := challengeOf(last)
	text, err := ask(ctx, challenge)
	if err != nil {
		return join.Proof{}, err
	}
	answer, signature, err := parseAnswer(text)
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	if !possession.Signed(key.key, message(m.cfg.TrustDomain, challenge, svid[:], text[:answerSize]), signature) {
		return join.Proof{}, fmt.Errorf("%w: the answer is no signature of our challenge by the key of %s", join.ErrEvidence, key.name)
	}
	proof, err := key.proof()
	if err != nil {
		return join.Proof{}, err
	}
	next, err := m.step(last, answer)
	if err != nil {
		return proof, fmt.Errorf("node %s: %w", key.name, err)
	}
	proof.Step = &join.Step{From: last, To: next}
	return proof, nil
}

// step is the state after a join that shows what answer does.
func (m method) step(last join.State, a answer) (join.State, error) {
	next := join.State{Joins: last.Joins + 1, Digest: a.next, Recoveries: last.Recoveries}
	switch {
	case last.Digest == [32]byte{}: // it never joined, or may join as if so
		return next, nil
	case a.shown == [32]byte{}, a.joins > last.Joins:
	case sha256.Sum256(a.shown[:]) == last.Digest:
		return next, nil
	default:
		return next, fmt.Errorf("%w: it shows its state after join %d, which is not what join %d left; if the key may be stolen register another one, then credence node allow", join.ErrCloned, a.joins, last.Joins)
	}
	if !m.cfg.Settings.Recovery.lets(last.Recoveries) {
		return next, fmt.Errorf("%w, which is %d times: a higher recovery.limit or credence node allow lets it in", join.ErrRecovery, last.Recoveries)
	}
	next.Recoveries++
	return next, nil
}

func (k registered) proof() (join.Proof, error) {
	facts, err := identity.NewFacts("node."+Method, map[string][]string{
		"node.bound_keypair.name": {k.name}, "node.bound_keypair.key_digest": {k.digest}, "node.bound_keypair.key_type": {k.kind},
	})
	return join.Proof{Name: k.name, Facts: facts, DurableKey: k.digest}, err
}

// challengeOf is 32 random bytes, how many joins there were, and the digest that the
// last one left.
func challengeOf(last join.State) []byte {
	c := make([]byte, 32, challengeSize)
	_, _ = rand.Read(c) // never fails (crypto/rand.Read)
	return append(binary.BigEndian.AppendUint64(c, last.Joins), last.Digest[:]...)
}

const (
	challengeSize = 32 + 8 + 32
	answerSize    = 8 + 32 + 32
	maxSignature  = maxRSA / 8
)

// An answer is what a node says besides its signature.
type answer struct {
	joins uint64   // after how many the state was made that it shows
	shown [32]byte // its state; zero: it has none
	next  [32]byte // the digest of its next
}

func parseAnswer(text []byte) (a answer, signature []byte, err error) {
	if len(text) <= answerSize || len(text) > answerSize+maxSignature {
		return answer{}, nil, fmt.Errorf("an answer of %d bytes: a state, the digest of the next, and a signature are wanted", len(text))
	}
	a.joins = binary.BigEndian.Uint64(text)
	copy(a.shown[:], text[8:])
	copy(a.next[:], text[40:])
	if a.next == [32]byte{} || a.next == sha256.Sum256(make([]byte, 32)) {
		return answer{}, nil, errors.New("it hands in no next state")
	}
	return a, text[answerSize:], nil
}

// message is what a node signs: ours alone, once.
func message(trustDomain string, challenge, svid, answer []byte) []byte {
	return slices.Concat([]byte("credence join "+Method+" 1\x00"), []byte(trustDomain), []byte{0}, challenge, svid, answer)
}
