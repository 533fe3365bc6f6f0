// Package token is the join method of single-use tokens that an operator hands
// to a machine.
//
// It trusts whoever holds a token to be the machine that it was made for, and
// therefore keeps it short-lived, single-use and only as a hash. A token fixes
// the node's name and labels: the node says nothing of itself.
package token

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// Method is the name of this join method.
const Method = "token"

// Prefix starts every token, so that a person and a secret scanner recognise
// one.
const Prefix = "cjt_"

// The lives of a token.
const (
	DefaultTTL = 10 * time.Minute
	MaxTTL     = time.Hour
)

const entropy = 32 // bytes

// New makes a token and the hash by which it is kept.
func New() (text string, hash []byte) {
	b := make([]byte, entropy)
	_, _ = rand.Read(b) // never fails (crypto/rand.Read)
	text = Prefix + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(text))
	return text, sum[:]
}

// Spend spends the token of a hash, once, and returns what it fixes. An error
// for which Refused holds means that the token will never do.
type Spend func(ctx context.Context, hash []byte, by string, now time.Time) (node string, labels map[string]string, err error)

// Config is the wiring of the method. All fields are required.
type Config struct {
	Spend   Spend
	Refused func(error) bool // tells a token that will never do from a store that failed
	Now     func() time.Time
}

type method struct{ cfg Config }

// NewMethod returns the method.
func NewMethod(cfg Config) join.Method { return method{cfg} }

// Join spends the token that evidence is.
func (m method) Join(ctx context.Context, evidence []byte, _ join.Challenge) (join.Proof, error) {
	if !wellFormed(evidence) {
		return join.Proof{}, fmt.Errorf("%w: it is not a join token", join.ErrEvidence)
	}
	hash := sha256.Sum256(evidence)
	name, labels, err := m.cfg.Spend(ctx, hash[:], Method, m.cfg.Now())
	if err != nil {
		if m.cfg.Refused(err) {
			err = errors.Join(join.ErrEvidence, err)
		}
		return join.Proof{}, err
	}
	facts := make(map[string][]string, len(labels))
	for label, value := range labels {
		facts["node.token."+label] = []string{value}
	}
	f, err := identity.NewFacts("node.token", facts)
	if err != nil {
		return join.Proof{}, err
	}
	return join.Proof{Name: name, Facts: f, DurableKey: name}, nil
}

// wellFormed says whether evidence has the form of New's tokens: only such are
// worth a look at the store.
func wellFormed(evidence []byte) bool {
	secret, ok := strings.CutPrefix(string(evidence), Prefix)
	if !ok || len(secret) != base64.RawURLEncoding.EncodedLen(entropy) {
		return false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(secret)
	return err == nil && len(raw) == entropy
}

// CheckName refuses a node name that cannot be one segment of a SPIFFE ID's
// path (SPIFFE-ID §2.2) of at most 63 bytes.
func CheckName(name string) error {
	if name == "" || len(name) > 63 || name == "." || name == ".." || strings.IndexFunc(name, notSegment) >= 0 {
		return fmt.Errorf("node name %.80q: 1 to 63 of a-z A-Z 0-9 . - _ are taken", name)
	}
	return nil
}

// CheckLabels refuses labels that cannot be facts, or not survive being kept.
func CheckLabels(labels map[string]string) error {
	if len(labels) > 16 {
		return fmt.Errorf("%d labels: at most 16 are taken", len(labels))
	}
	for label, value := range labels {
		if err := identity.CheckFactName("node.token." + label); err != nil || strings.IndexFunc(label, notSegment) >= 0 {
			return fmt.Errorf("label %.80q: letters, digits, . - _ are taken", label)
		}
		if value == "" || len(value) > 256 || !utf8.ValidString(value) {
			return fmt.Errorf("label %s: a value has 1 to 256 bytes of UTF-8", label)
		}
	}
	return nil
}

func notSegment(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
		return false
	}
	return true
}
