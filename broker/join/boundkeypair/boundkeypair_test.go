package boundkeypair_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/boundkeypair"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/boundkeypair"
)

const domain = "example.org"

// A memory key signs.
type memory struct{ crypto.Signer }

func (k memory) Public() (crypto.PublicKey, error) { return k.Signer.Public(), nil }

func (k memory) Sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Signer.Sign(rand.Reader, digest, opts)
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var rsaOnce = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func rsa2048(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsaOnce()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func spki(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func text(t testing.TB, key crypto.Signer) string {
	return base64.StdEncoding.EncodeToString(spki(t, key.Public()))
}

func limit(n int) boundkeypair.Recovery { return boundkeypair.Recovery{Limit: &n} }

// A broker holds one rule, and what the store does.
type broker struct {
	t        testing.TB
	settings *boundkeypair.Settings
	states   map[string]join.State
	svid     crypto.Signer // that each join is for
	lost     bool          // answers
	tamper   func(svid, challenge, answer []byte) []byte
}

func newBroker(t testing.TB, key crypto.Signer, r boundkeypair.Recovery) *broker {
	return &broker{t: t, settings: &boundkeypair.Settings{Keys: map[string]string{"build-7": text(t, key)}, Recovery: r},
		states: map[string]join.State{}, svid: p256(t)}
}

// join does what package broker does: it saves the step unless another came first.
func (b *broker) join(p *evidence.Prover) (join.Proof, error) {
	b.t.Helper()
	m, err := boundkeypair.New(boundkeypair.Config{Settings: b.settings, TrustDomain: domain, State: func(_ context.Context, key string) (join.State, error) {
		return b.states[key], nil
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	shown, err := p.Evidence(b.t.Context())
	if err != nil {
		return join.Proof{}, err
	}
	svid := spki(b.t, b.svid.Public())
	proof, err := m.Join(join.WithKey(b.t.Context(), sha256.Sum256(svid)), shown, func(ctx context.Context, challenge []byte) ([]byte, error) {
		answer, err := p.AnswerFor(ctx, challenge, svid)
		if b.tamper != nil {
			answer = b.tamper(svid, challenge, answer)
		}
		if b.lost {
			return nil, errors.New("the connection ended")
		}
		return answer, err
	})
	if err != nil {
		return proof, err
	}
	if b.states[proof.DurableKey] != proof.Step.From {
		return proof, errors.New("another join came in between")
	}
	b.states[proof.DurableKey] = proof.Step.To
	return proof, nil
}

func (b *broker) joins(p *evidence.Prover) join.Proof {
	b.t.Helper()
	proof, err := b.join(p)
	if err != nil {
		b.t.Fatalf("not joined: %v", err)
	}
	return proof
}

func (b *broker) refuses(p *evidence.Prover, want error) {
	b.t.Helper()
	before := b.states[keyOf(b)]
	if proof, err := b.join(p); !errors.Is(err, want) {
		b.t.Fatalf("the error is %v, want %v", err, want)
	} else if want != join.ErrEvidence && (proof.Name != "build-7" || proof.DurableKey != keyOf(b) || proof.Step != nil) {
		b.t.Errorf("a refusal of %+v", proof)
	}
	if b.states[keyOf(b)] != before {
		b.t.Error("a refused join counts")
	}
}

func (b *broker) state() join.State { return b.states[keyOf(b)] }

// allow is what AllowNode does.
func (b *broker) allow() { b.states[keyOf(b)] = join.State{Joins: b.state().Joins} }

func keyOf(b *broker) string {
	der, err := base64.StdEncoding.DecodeString(b.settings.Keys["build-7"])
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		b.t.Fatal(err)
	}
	digest, err := evidence.Digest(key)
	if err != nil {
		b.t.Fatal(err)
	}
	return digest
}

// A node is one machine.
type node struct {
	*evidence.Prover
	t   testing.TB
	key crypto.Signer
	dir string
}

func newNode(t testing.TB, key crypto.Signer) *node {
	n := &node{t: t, key: key, dir: t.TempDir()}
	n.Prover = evidence.New(evidence.Config{TrustDomain: domain, Key: memory{key}, StateFile: n.file()})
	return n
}

func (n *node) file() string { return filepath.Join(n.dir, "state") }

// clone copies key and state to another machine.
func (n *node) clone() *node {
	n.t.Helper()
	c := newNode(n.t, n.key)
	n.restore(c.file())
	return c
}

// restore copies the state to a file.
func (n *node) restore(to string) {
	n.t.Helper()
	state, err := os.ReadFile(n.file())
	if err == nil {
		err = os.WriteFile(to, state, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func TestEveryKindOfKeyJoins(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for kind, key := range map[string]crypto.Signer{"ecdsa-p-256": p256(t), "ecdsa-p-384": p384, "ed25519": ed, "rsa-2048": rsa2048(t)} {
		t.Run(kind, func(t *testing.T) {
			b, n := newBroker(t, key, limit(0)), newNode(t, key)
			for range 3 {
				proof := b.joins(n.Prover)
				want := map[string][]string{"node.bound_keypair.name": {"build-7"}, "node.bound_keypair.key_digest": {keyOf(b)}, "node.bound_keypair.key_type": {kind}}
				if diff := cmp.Diff(want, proof.Facts.Map()); diff != "" || proof.Name != "build-7" || proof.DurableKey != keyOf(b) {
					t.Errorf("proof %+v\n%s", proof, diff)
				}
			}
			if got := b.state(); got.Joins != 3 || got.Recoveries != 0 {
				t.Errorf("state %+v", got)
			}
		})
	}
}

// TestAClone holds that of two machines with one key and state the second to join
// is found out, whichever it is.
func TestAClone(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name        string
		before      int // joins before the copy is made
		first, then func(n, clone *node) *node
	}{
		{"the node is first", 3, (*node).itself, (*node).other},
		{"the clone is first", 3, (*node).other, (*node).itself},
		{"after the first join, the clone first", 1, (*node).other, (*node).itself},
		{"after the first join, the node first", 1, (*node).itself, (*node).other},
	} {
		for _, mode := range []boundkeypair.Recovery{limit(5), {Mode: "relaxed"}} { // neither is a way round
			t.Run(row.name+" "+mode.Mode, func(t *testing.T) {
				key := p256(t)
				b, n := newBroker(t, key, mode), newNode(t, key)
				for range row.before {
					b.joins(n.Prover)
				}
				clone := n.clone()
				b.joins(row.first(n, clone).Prover)
				b.refuses(row.then(n, clone).Prover, join.ErrCloned)
				b.refuses(row.then(n, clone).Prover, join.ErrCloned) // asking again is no way in
				b.joins(row.first(n, clone).Prover)                  // who was shut out is package broker's to know

				b.allow()
				b.joins(row.then(n, clone).Prover) // whoever is first
				b.refuses(row.first(n, clone).Prover, join.ErrCloned)
			})
		}
	}
}

func (n *node) itself(*node) *node      { return n }
func (n *node) other(clone *node) *node { return clone }

// TestAKeyAlone holds that whoever copied the key without the state is found out
// when the node joins next.
func TestAKeyAlone(t *testing.T) {
	t.Parallel()
	key := p256(t)
	for _, before := range []int{1, 4} {
		b, n, thief := newBroker(t, key, limit(1)), newNode(t, key), newNode(t, key)
		for range before {
			b.joins(n.Prover)
		}
		b.joins(thief.Prover) // its recovery
		b.refuses(n.Prover, join.ErrCloned)
		another := newNode(t, key)
		b.refuses(another.Prover, join.ErrRecovery)
	}
}

// TestARestoredDisk is a clone too: nothing tells it from one.
func TestARestoredDisk(t *testing.T) {
	t.Parallel()
	key := p256(t)
	b, n := newBroker(t, key, limit(1)), newNode(t, key)
	b.joins(n.Prover)
	b.joins(n.Prover)
	backup := filepath.Join(t.TempDir(), "backup")
	n.restore(backup)
	b.joins(n.Prover)
	b.joins(n.Prover)
	if err := os.Rename(backup, n.file()); err != nil {
		t.Fatal(err)
	}
	b.refuses(n.Prover, join.ErrCloned)
	b.allow()
	b.joins(n.Prover)
	b.joins(n.Prover)
	if got := b.state(); got.Joins != 6 || got.Recoveries != 0 {
		t.Errorf("state %+v", got)
	}
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	key := p256(t)
	lose := func(n *node) {
		t.Helper()
		if err := os.Remove(n.file()); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name string
		mode boundkeypair.Recovery
		most int
	}{
		{"the default", boundkeypair.Recovery{}, 1}, {"none", limit(0), 0}, {"three", limit(3), 3},
		{"standard", boundkeypair.Recovery{Mode: "standard"}, 1}, {"relaxed", boundkeypair.Recovery{Mode: "relaxed"}, 5},
	} {
		t.Run(row.name, func(t *testing.T) {
			b, n := newBroker(t, key, row.mode), newNode(t, key)
			b.joins(n.Prover) // the first is none
			for i := range row.most {
				lose(n)
				b.joins(n.Prover)
				b.joins(n.Prover) // and what it was left by it, it shows
				if got := b.state().Recoveries; got != uint64(i)+1 {
					t.Errorf("%d recoveries after %d", got, i+1)
				}
			}
			if row.mode.Mode == "relaxed" {
				return
			}
			lose(n)
			b.refuses(n.Prover, join.ErrRecovery)
			b.refuses(n.Prover, join.ErrRecovery) // not a clone: it waits for an operator
			if row.most == 0 {
				b.settings.Recovery = limit(1) // a higher limit does it
			} else {
				b.allow() // or an operator
			}
			b.joins(n.Prover)
			b.joins(n.Prover)
		})
	}
}

// TestLostAnswers holds that a join of which the node knows no end, done or not,
// costs nothing: no recovery, and no suspicion.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	key := p256(t)
	for _, before := range []int{0, 1, 3} {
		b, n := newBroker(t, key, limit(0)), newNode(t, key)
		for range before {
			b.joins(n.Prover)
		}
		b.lost = true // on the way there
		for range 3 {
			if _, err := b.join(n.Prover); err == nil {
				t.Fatal("joined without an answer")
			}
		}
		b.lost = false
		for range 3 { // on the way back: the node is told nothing of any join here
			b.joins(n.Prover)
		}
		if got := b.state(); got.Recoveries != 0 || got.Joins != uint64(before)+3 {
			t.Errorf("state %+v", got)
		}
	}
}

// TestTwoAtOnce is a node that asks again before its first question is done: one of
// both counts, and it goes on.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	key := p256(t)
	b, n := newBroker(t, key, limit(0)), newNode(t, key)
	b.joins(n.Prover)
	b.tamper = func(_, _, answer []byte) []byte {
		b.tamper = nil
		b.joins(n.Prover) // in between
		return answer
	}
	if _, err := b.join(n.Prover); err == nil || errors.Is(err, join.ErrCloned) {
		t.Fatalf("the error is %v", err)
	}
	b.joins(n.Prover)
	b.joins(n.Prover)
}

// TestABrokerFromABackup knows less than its nodes: that is a recovery.
func TestABrokerFromABackup(t *testing.T) {
	t.Parallel()
	key := p256(t)
	for _, back := range []int{1, 2, 3} { // how many joins it has forgotten
		b, n := newBroker(t, key, limit(1)), newNode(t, key)
		b.joins(n.Prover)
		b.joins(n.Prover)
		backup := b.state()
		for range back {
			b.joins(n.Prover)
		}
		b.states[keyOf(b)] = backup
		b.joins(n.Prover)
		if got := b.state().Recoveries; got > 1 || back > 1 && got != 1 {
			t.Errorf("%d forgotten: %d recoveries", back, got)
		}
		b.joins(n.Prover)
		b.joins(n.Prover)
	}
}

// TestANewKey has nothing to do with the old one's state.
func TestANewKey(t *testing.T) {
	t.Parallel()
	old, key := p256(t), p256(t)
	b, n := newBroker(t, old, limit(0)), newNode(t, old)
	b.joins(n.Prover)
	b.joins(n.Prover)
	b.settings.Keys["build-7"] = text(t, key)
	b.refuses(n.Prover, join.ErrEvidence)
	n.Prover = evidence.New(evidence.Config{TrustDomain: domain, Key: memory{key}, StateFile: n.file()})
	b.joins(n.Prover)
	b.joins(n.Prover)
}

// TestHostileAnswers holds that nothing but the key's signature of this challenge,
// for this SVID, of what is said beside it, counts, and nothing else is believed.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	key, stranger, weak := p256(t), p256(t), rsa2048(t)
	signs := func(k crypto.Signer, parts ...[]byte) []byte {
		sum := sha256.Sum256(slices.Concat(parts...))
		signature, err := k.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	prefix, td, zero := []byte("credence join bound_keypair 1\x00"), []byte(domain), []byte{0}
	var recorded []byte
	for _, row := range []struct {
		name   string
		tamper func(svid, challenge, answer []byte) []byte
		good   bool
	}{
		{"as it is", func(_, _, a []byte) []byte { return a }, true},
		{"made by hand", func(svid, c, a []byte) []byte {
			return append(a[:72:72], signs(key, prefix, td, zero, c, digest(svid), a[:72])...)
		}, true},
		{"for another SVID", func(_, c, a []byte) []byte {
			return append(a[:72:72], signs(key, prefix, td, zero, c, digest(spki(t, stranger.Public())), a[:72])...)
		}, false},
		{"for no SVID", func(_, c, a []byte) []byte { return append(a[:72:72], signs(key, prefix, td, zero, c, a[:72])...) }, false},
		{"of another trust domain", func(svid, c, a []byte) []byte {
			return append(a[:72:72], signs(key, prefix, []byte("example.com"), zero, c, digest(svid), a[:72])...)
		}, false},
		{"of another method", func(svid, c, a []byte) []byte {
			return append(a[:72:72], signs(key, []byte("credence join x509 1\x00"), td, zero, c, digest(svid), a[:72])...)
		}, false},
		{"of the bare challenge", func(_, c, a []byte) []byte { return append(a[:72:72], signs(key, c)...) }, false},
		{"by another key", func(svid, c, a []byte) []byte {
			return append(a[:72:72], signs(stranger, prefix, td, zero, c, digest(svid), a[:72])...)
		}, false},
		{"by a key of another kind", func(svid, c, a []byte) []byte {
			return append(a[:72:72], signs(weak, prefix, td, zero, c, digest(svid), a[:72])...)
		}, false},
		{"recorded", func(_, _, a []byte) []byte { recorded = a; return append(a[:72:72], a[72]) }, false},
		{"replayed", func(_, _, _ []byte) []byte { return recorded }, false},
		{"another count", func(_, _, a []byte) []byte { a = bytes.Clone(a); a[7]++; return a }, false},
		{"another state", func(_, _, a []byte) []byte { a = bytes.Clone(a); a[8]++; return a }, false},
		{"another next", func(_, _, a []byte) []byte { a = bytes.Clone(a); a[71]++; return a }, false},
		{"no next, signed", func(svid, c, a []byte) []byte {
			a = append(a[:40:40], make([]byte, 32)...)
			return append(a, signs(key, prefix, td, zero, c, digest(svid), a)...)
		}, false},
		{"an empty next, signed", func(svid, c, a []byte) []byte {
			a = append(a[:40:40], digest(make([]byte, 32))...)
			return append(a, signs(key, prefix, td, zero, c, digest(svid), a)...)
		}, false},
		{"no signature", func(_, _, a []byte) []byte { return a[:72] }, false},
		{"truncated", func(_, _, a []byte) []byte { return a[:len(a)-1] }, false},
		{"with more after it", func(_, _, a []byte) []byte { return append(a, 0) }, false},
		{"one byte", func(_, _, a []byte) []byte { return a[:1] }, false},
		{"nothing", func(_, _, a []byte) []byte { return nil }, false},
		{"oversized", func(_, _, a []byte) []byte { return append(a, make([]byte, 16<<10)...) }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			b, n := newBroker(t, key, limit(1)), newNode(t, key)
			b.joins(n.Prover)
			b.tamper = row.tamper
			if row.good {
				b.joins(n.Prover)
				return
			}
			b.refuses(n.Prover, join.ErrEvidence)
			b.tamper = nil
			b.joins(n.Prover)
		})
	}
}

func digest(b []byte) []byte { sum := sha256.Sum256(b); return sum[:] }

// TestClaims holds that who has the key, but not the state, gets no further than a
// recovery by what it says.
func TestClaims(t *testing.T) {
	t.Parallel()
	key := p256(t)
	b, n := newBroker(t, key, limit(0)), newNode(t, key)
	for range 5 {
		b.joins(n.Prover)
	}
	for _, row := range []struct {
		name  string
		joins uint64
		state []byte
		want  error
	}{
		{"nothing, never", 0, make([]byte, 32), join.ErrRecovery},
		{"nothing, lately", 5, make([]byte, 32), join.ErrRecovery},
		{"a guess", 5, bytes.Repeat([]byte{1}, 32), join.ErrCloned},
		{"a guess at the first", 0, bytes.Repeat([]byte{1}, 32), join.ErrCloned},
		{"the digest that the challenge told", 5, nil, join.ErrCloned},
		{"one from later", 6, bytes.Repeat([]byte{1}, 32), join.ErrRecovery},
		{"one from the end of time", 1<<64 - 1, bytes.Repeat([]byte{1}, 32), join.ErrRecovery},
	} {
		t.Run(row.name, func(t *testing.T) {
			b.tamper = func(svid, challenge, answer []byte) []byte {
				state := row.state
				if state == nil {
					state = challenge[40:]
				}
				said := slices.Concat(binary.BigEndian.AppendUint64(nil, row.joins), state, answer[40:72])
				sum := sha256.Sum256(slices.Concat([]byte("credence join bound_keypair 1\x00"+domain+"\x00"), challenge, digest(svid), said))
				signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				return append(said, signature...)
			}
			b.refuses(n.Prover, row.want)
		})
	}
}

func TestWithoutAStoreOrAKey(t *testing.T) {
	t.Parallel()
	key := p256(t)
	b, n := newBroker(t, key, limit(1)), newNode(t, key)
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	away := errors.New("the store is away")
	m, err := boundkeypair.New(boundkeypair.Config{Settings: b.settings, TrustDomain: domain, State: func(context.Context, string) (join.State, error) { return join.State{}, away }})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(context.Context, []byte) ([]byte, error) {
		t.Error("a challenge was put")
		return nil, errors.New("none")
	}
	if _, err := m.Join(join.WithKey(t.Context(), identity.KeyDigest{1}), shown, ask); !errors.Is(err, away) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("without the store: %v", err)
	}
	if _, err := m.Join(t.Context(), shown, ask); err == nil {
		t.Error("joined for no key")
	}
	for _, shown := range []string{"", "sha256:", string(shown) + " ", string(bytes.ToUpper(shown)), string(shown[:len(shown)-1]), "build-7"} {
		if _, err := m.Join(join.WithKey(t.Context(), identity.KeyDigest{1}), []byte(shown), ask); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("evidence %q: %v", shown, err)
		}
	}
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestSettings(t *testing.T) {
	t.Parallel()
	key, other := p256(t), p256(t)
	good := text(t, key)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// A key of a size that nobody makes here: what its numbers are is the same to us.
	huge := &rsa.PublicKey{N: rsa2048(t).N, E: 65537}
	huge.N = new(big.Int).SetBit(new(big.Int).Lsh(huge.N, 16384-2048), 0, 1)
	long := &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Rsh(huge.N, 16384-8192), 0, 1), E: 65537}
	small := &rsa.PublicKey{N: rsa2048(t).N, E: 3}
	der := spki(t, key.Public())
	one := func(text string) map[string]string { return map[string]string{"a": text} }
	for _, row := range []struct {
		name     string
		keys     map[string]string
		recovery boundkeypair.Recovery
		want     string // empty: taken
	}{
		{"base64", one(good), boundkeypair.Recovery{}, ""},
		{"base64 with a line's end", one(good + "\n"), boundkeypair.Recovery{}, ""},
		{"PEM", one(pemOf("PUBLIC KEY", der)), boundkeypair.Recovery{}, ""},
		{"two", map[string]string{"a": good, "b": text(t, other)}, limit(1000), ""},
		{"none", nil, boundkeypair.Recovery{}, "keys: are required"},
		{"no text", one(""), boundkeypair.Recovery{}, "keys: a: a public key in base64 or PEM is wanted"},
		{"no name", map[string]string{"": good}, boundkeypair.Recovery{}, "keys: \"\": a name has"},
		{"a name with a slash", map[string]string{"a/b": good}, boundkeypair.Recovery{}, "keys: \"a/b\": a name has"},
		{"one key twice", map[string]string{"a": good, "b": pemOf("PUBLIC KEY", der)}, boundkeypair.Recovery{}, "keys: b: it is the key of a too"},
		{"a private key", one(pemOf("PRIVATE KEY", private)), boundkeypair.Recovery{}, "keys: a: this is a private key"},
		{"a private key in base64", one(base64.StdEncoding.EncodeToString(private)), boundkeypair.Recovery{}, "keys: a: it is no public key"},
		{"a certificate", one(pemOf("CERTIFICATE", der)), boundkeypair.Recovery{}, "keys: a: a PEM block PUBLIC KEY"},
		{"two in one", one(pemOf("PUBLIC KEY", der) + pemOf("PUBLIC KEY", der)), boundkeypair.Recovery{}, "keys: a: one public key in PEM"},
		{"more than a key", one(base64.StdEncoding.EncodeToString(append(bytes.Clone(der), 0))), boundkeypair.Recovery{}, "keys: a: it is no public key"},
		{"a long text", one(good + string(bytes.Repeat([]byte("A"), 4<<10))), boundkeypair.Recovery{}, "keys: a: 4220 bytes"},
		{"another curve", one(text(t, p224)), boundkeypair.Recovery{}, "keys: a: keys on P-256 and P-384"},
		{"RSA of 1024 bits", one(base64.StdEncoding.EncodeToString(spki(t, &rsa.PublicKey{N: shorter(rsa2048(t)), E: 65537}))), boundkeypair.Recovery{}, "keys: a: keys on"},
		{"RSA of 16384 bits", one(base64.StdEncoding.EncodeToString(spki(t, huge))), boundkeypair.Recovery{}, "keys: a: 2784 bytes"},
		{"RSA of 8192 bits", one(base64.StdEncoding.EncodeToString(spki(t, long))), boundkeypair.Recovery{}, "keys: a: keys on"},
		{"RSA with a small exponent", one(base64.StdEncoding.EncodeToString(spki(t, small))), boundkeypair.Recovery{}, "keys: a: keys on"},
		{"less than no recovery", one(good), limit(-1), "recovery.limit: -1"},
		{"too many", one(good), limit(1001), "recovery.limit: 1001"},
		{"a limit that is none", one(good), boundkeypair.Recovery{Limit: limit(1).Limit, Mode: "relaxed"}, "recovery.limit: mode relaxed"},
		{"another mode", one(good), boundkeypair.Recovery{Mode: "insecure"}, "recovery.mode: \"insecure\""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := &boundkeypair.Settings{Keys: row.keys, Recovery: row.recovery}
			err := s.Validate()
			if got := said(err); got[:min(len(got), len(row.want))] != row.want || row.want == "" && err != nil {
				t.Errorf("the error is %v, want %q", err, row.want)
			}
			if _, made := boundkeypair.New(boundkeypair.Config{Settings: s}); (made == nil) != (err == nil) {
				t.Errorf("New: %v", made)
			}
		})
	}
}

// shorter is half of a key's modulus: only its length is looked at.
func shorter(key *rsa.PrivateKey) *big.Int {
	n := new(big.Int).Rsh(key.N, 1024)
	return n.SetBit(n, 0, 1)
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// FuzzAnswer holds that what is not the key's signature is refused as evidence, and
// nothing but that.
func FuzzAnswer(f *testing.F) {
	key := p256(f)
	b := newBroker(f, key, limit(0))
	m, err := boundkeypair.New(boundkeypair.Config{Settings: b.settings, TrustDomain: domain, State: func(context.Context, string) (join.State, error) {
		return join.State{Joins: 7, Digest: [32]byte{1}}, nil
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(keyOf(b), make([]byte, 72))
	f.Add(keyOf(b), bytes.Repeat([]byte{1}, 144))
	f.Add("sha256:00", []byte{0})
	f.Fuzz(func(t *testing.T, evidence string, answer []byte) {
		_, err := m.Join(join.WithKey(t.Context(), identity.KeyDigest{1}), []byte(evidence), func(context.Context, []byte) ([]byte, error) { return answer, nil })
		if !errors.Is(err, join.ErrEvidence) {
			t.Errorf("the error is %v", err)
		}
	})
}

// FuzzSettings holds that a key that is taken has one text in base64, which is taken
// as the same.
func FuzzSettings(f *testing.F) {
	f.Add(text(f, p256(f)))
	f.Add(pemOf("PUBLIC KEY", spki(f, p256(f).Public())))
	f.Add(base64.StdEncoding.EncodeToString(spki(f, &rsa2048(f).PublicKey)))
	f.Fuzz(func(t *testing.T, written string) {
		s := &boundkeypair.Settings{Keys: map[string]string{"a": written}}
		if s.Validate() != nil {
			return
		}
		block, _ := pem.Decode([]byte(written))
		der, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace([]byte(written))))
		if block != nil {
			der, err = block.Bytes, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x509.ParsePKIXPublicKey(der); err != nil {
			t.Fatalf("a key that is none: %v", err)
		}
		again := &boundkeypair.Settings{Keys: map[string]string{"a": base64.StdEncoding.EncodeToString(der)}}
		if err := again.Validate(); err != nil {
			t.Error(err)
		}
	})
}
