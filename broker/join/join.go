// Package join lets a node prove itself: a Method per kind of evidence, each
// in a package of its own below this one.
//
// A Method trusts what its kind of evidence is rooted in (a token that the
// broker made, a cloud's signature, a TPM's maker) and nothing that the node
// says of itself. Whether a proven node may join is left to the JoinRule's
// allow terms, checked by package broker.
package join

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// ErrEvidence says that evidence is bad: the same evidence will never do.
var ErrEvidence = errors.New("evidence refused")

// Of a node that proved to have its key, but not to be the one that joined by it
// last. Both come with the Proof of whose key it is.
var (
	ErrCloned   = errors.New("two machines have this node's key, or one came back from a copy of its disk")
	ErrRecovery = errors.New("it shows nothing of its last join, more often than its join rule lets it")
)

// Settings are what a JoinRule says of its method.
type Settings interface {
	// Validate returns what is wrong with them, the field's name first.
	Validate() error
}

// An Ending is a certificate that nodes join by, and when it ends: from then on they
// don't. Settings that have such say so by a method Endings() []Ending.
type Ending struct {
	What string // whose it is
	At   time.Time
}

// EndingsOf are those of certificates.
func EndingsOf(certificates ...*x509.Certificate) (all []Ending) {
	for _, c := range certificates {
		all = append(all, Ending{What: c.Subject.String(), At: c.NotAfter})
	}
	return all
}

// A Rule is a JoinRule: who may become a node, by one method.
type Rule struct {
	Name     string
	Revision uint64
	Method   string          // the method's name, such as "github"
	Settings Settings        // the method's, decoded; nil for token
	Allow    []identity.Item // any of them, over node.* facts; empty refuses
}

// A Challenge puts a fresh challenge to the node and returns its answer. It
// blocks until the answer comes, the join's time is up or its rounds are
// spent.
type Challenge func(ctx context.Context, challenge []byte) (answer []byte, err error)

// Durable makes a durable key of all that it takes to name a node: no two lists of
// parts, which are UTF-8, give one.
func Durable(parts ...string) string {
	text, err := json.Marshal(parts)
	if err != nil {
		panic("marshalling strings: " + err.Error())
	}
	return string(text)
}

type keyOf struct{}

// WithKey tells a Method which public key the node joins with.
func WithKey(ctx context.Context, key identity.KeyDigest) context.Context {
	return context.WithValue(ctx, keyOf{}, key)
}

// Key is what WithKey told, for methods that bind what they take to it: a proof for
// one key is none for another. Without it there is nothing to bind to.
func Key(ctx context.Context) (identity.KeyDigest, bool) {
	key, ok := ctx.Value(keyOf{}).(identity.KeyDigest)
	return key, ok && !key.IsZero()
}

// A Method checks one kind of evidence. An error wrapping ErrEvidence means
// that the evidence is bad; any other, that it could not be judged and may be
// retried, unless it wraps ErrCloned or ErrRecovery.
type Method interface {
	Join(ctx context.Context, evidence []byte, ask Challenge) (Proof, error)
}

// A Proof is what a Method proved.
type Proof struct {
	Name       string         // node.name; for most methods chosen from the facts
	Facts      identity.Facts // node.<method>.*
	DurableKey string         // by which this node is banned; it outlives its SVIDs
	// Instance tells nodes apart that have one durable key, such as the jobs of a
	// repository: one that is banned bans all. Empty: there is one.
	Instance string
	// Step is from the join before to this one, where the method tells them apart;
	// nil: it doesn't. The join counts if nothing else came in between.
	Step *Step
}

// A Step is from one join of a durable key to the next.
type Step struct{ From, To State }

// A State is what is known of the joins of a durable key. The zero State is that
// of one that never joined.
type State struct {
	Joins      uint64
	Digest     [32]byte  // of what whoever joined last shows at the next; zero: anything is taken
	Recoveries uint64    // joins that showed nothing, since an operator allowed them last
	RefusedAt  time.Time // when one more was refused, the first since the last join
}

// NodeName is what people call a node: some text of its proof, as far as a name
// can hold it (SPIFFE-ID §2.2: one segment of a path), and at most 63 bytes.
func NodeName(text string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
			return r
		}
		return '-'
	}, text)
	return name[:min(len(name), 63)]
}
