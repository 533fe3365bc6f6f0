package broker_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/keys/keystest"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/storetest"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)
)

// recorder is a real record that fails on command.
type recorder struct {
	*audit.Log
	mu      sync.Mutex // guards what follows
	events  []audit.Event
	refs    []audit.Ref
	failing bool
}

func (r *recorder) Append(ctx context.Context, events ...audit.Event) ([]audit.Ref, error) {
	r.mu.Lock()
	failing := r.failing
	r.mu.Unlock()
	if failing {
		return nil, audit.ErrUnavailable
	}
	refs, err := r.Log.Append(ctx, events...)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events, r.refs = append(r.events, events...), append(r.refs, refs...)
	}
	return refs, err
}

func (r *recorder) fail(failing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = failing
}

// of returns the records of a kind.
func (r *recorder) of(kind string) (found []audit.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// issuer is a real authority that counts, and can be looked in the hands of.
type issuer struct {
	*authority.Authority
	mu     sync.Mutex // guards what follows
	signed int
	hook   func() // called after a signature was made
}

func (i *issuer) count() {
	i.mu.Lock()
	i.signed++
	hook := i.hook
	i.mu.Unlock()
	if hook != nil {
		hook()
	}
}

func (i *issuer) SignX509(ctx context.Context, g identity.Grant, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	defer i.count()
	return i.Authority.SignX509(ctx, g, pub)
}

func (i *issuer) SignJWT(ctx context.Context, g identity.Grant) (string, error) {
	defer i.count()
	return i.Authority.SignJWT(ctx, g)
}

// signatures returns how many were made since the last call.
func (i *issuer) signatures() (n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n, i.signed = i.signed, 0
	return n
}

// nodes is a real store; saved is called before SaveNode returns. While it is
// away it neither takes nor tells cut-offs, evictions and what was issued.
type nodes struct {
	*store.Store
	saved    func()
	evicting func() error
	away     atomic.Bool
}

var errAway = errors.New("the store is away")

func (s *nodes) SaveCutoff(ctx context.Context, c broker.Cutoff) error {
	if s.away.Load() {
		return errAway
	}
	return s.Store.SaveCutoff(ctx, c)
}

func (s *nodes) Cutoffs(ctx context.Context, after uint64) ([]broker.Cutoff, uint64, error) {
	if s.away.Load() {
		return nil, 0, errAway
	}
	return s.Store.Cutoffs(ctx, after)
}

func (s *nodes) EvictNode(ctx context.Context, id string, at time.Time) (broker.Node, error) {
	if s.away.Load() {
		return broker.Node{}, errAway
	}
	if s.evicting != nil {
		if err := s.evicting(); err != nil {
			return broker.Node{}, err
		}
	}
	return s.Store.EvictNode(ctx, id, at)
}

func (s *nodes) AddIssued(ctx context.Context, origin string, upTo audit.Ref, rows []broker.Issued) error {
	if s.away.Load() {
		return errAway
	}
	return s.Store.AddIssued(ctx, origin, upTo, rows)
}

func (s *nodes) Mark(ctx context.Context, node string) (broker.Mark, error) {
	if s.away.Load() {
		return broker.Mark{}, errAway
	}
	return s.Store.Mark(ctx, node)
}

func (s *nodes) Issued(ctx context.Context, q broker.IssuedQuery) ([]broker.Issued, int, error) {
	if s.away.Load() {
		return nil, 0, errAway
	}
	return s.Store.Issued(ctx, q)
}

func (s *nodes) SaveNode(ctx context.Context, n broker.Node) (broker.Node, error) {
	n, err := s.Store.SaveNode(ctx, n)
	if s.saved != nil && err == nil {
		s.saved()
	}
	return n, err
}

// env is a broker over a real store, authority and record.
type env struct {
	testing.TB
	*broker.Broker
	dir        string
	store      *nodes
	issuer     *issuer
	record     *recorder
	policy     *broker.Policy
	method     join.Method // of join rules whose method is fake
	lists      broker.Lister
	unwritable error  // why the store takes no writes; nil: it does
	site       string // label of the tokens that are made

	mu   sync.Mutex // guards what follows
	time time.Time
	hook func() // called when the broker looks at its clock, once
}

func (e *env) now() time.Time {
	e.mu.Lock()
	hook := e.hook
	e.hook = nil
	e.mu.Unlock()
	if hook != nil {
		hook()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.time
}

func (e *env) pass(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.time = e.time.Add(d)
}

func newEnv(t testing.TB) *env {
	t.Helper()
	e := &env{TB: t, dir: t.TempDir(), time: start, site: "a"}
	data := filepath.Join(e.dir, "data")
	storetest.Prepare(t, data)
	s, err := store.Open(t.Context(), store.Config{Dir: data, Now: e.now})
	e.must(err)
	t.Cleanup(func() { s.Close() })
	e.store = &nodes{Store: s}
	log, err := audit.Open(audit.Config{Dir: filepath.Join(e.dir, "audit"), Now: e.now})
	e.must(err)
	t.Cleanup(func() { log.Close() })
	e.record = &recorder{Log: log}
	dir := filepath.Join(e.dir, "keys")
	keys, err := disk.New(disk.Config{Dir: dir})
	e.must(err)
	a, err := authority.Open(t.Context(), authority.Config{
		TrustDomain: td, Issuer: "https://id.example.org", Broker: "b1", Records: s, Keys: keystest.Ready(t, dir, keys), Now: e.now,
	})
	e.must(err)
	e.issuer = &issuer{Authority: a}
	e.lists = server.Lists{Authority: a}
	e.policy = e.newPolicy(1, identity.Resources{Identities: []identity.Identity{web("web")}})
	e.start()
	return e
}

// start begins a broker over what there is, in place of the one before.
func (e *env) start() {
	e.Helper()
	b, err := broker.New(e.Context(), e.config())
	e.must(err)
	e.Broker = b
	e.Cleanup(func() { _ = b.Close() })
}

func (e *env) config() broker.Config {
	return broker.Config{
		TrustDomain: td, Issuer: e.issuer, Store: e.store, Audit: e.record, Policy: e.policy, Now: e.now, Away: func() error { return e.unwritable },
		Record: e.record.Log, Index: e.store, CRLs: e.lists, Origin: "b1", DenyFile: filepath.Join(e.dir, "revoked.jsonl"),
		Method: func(r join.Rule) (join.Method, error) {
			if r.Method == "fake" {
				return e.method, nil
			}
			return token.NewMethod(token.Config{
				Spend: e.store.SpendToken, Now: e.now,
				Refused: func(err error) bool { return errors.Is(err, broker.ErrSpent) || errors.Is(err, broker.ErrNotFound) },
			}), nil
		},
	}
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) refused(err, kind error) {
	e.Helper()
	if !errors.Is(err, kind) {
		e.Fatalf("the error is %v, want one that is %v", err, kind)
	}
}

func (e *env) equal(got, want any) {
	e.Helper()
	if d := cmp.Diff(want, got, cmp.Transformer("facts", identity.Facts.Map)); d != "" {
		e.Fatalf("want -, got +:\n%s", d)
	}
}

// web is an identity of the processes of uid 33 on node n1.
func web(name string) identity.Identity {
	return identity.Identity{
		Name: name, Revision: 1, SPIFFEID: "/" + name,
		Match: []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}, {Name: "workload.unix.uid", Pattern: "33"}}}},
		JWT:   &identity.JWT{Audiences: identity.Plain("spiffe://example.org/db")},
	}
}

// deny withholds everything from processes with a fact.
func deny(name, value string) identity.Deny {
	return identity.Deny{Name: "deny", Revision: 2, Match: []identity.Item{{Terms: []identity.Term{{Name: name, Pattern: value}}}}, Reason: "a secret reason"}
}

func (e *env) newPolicy(revision uint64, r identity.Resources) *broker.Policy {
	e.Helper()
	set, err := identity.NewSet(identity.Config{TrustDomain: td, JWT: true}, r)
	e.must(err)
	p := &broker.Policy{Revision: revision, Set: set, Targets: map[string]broker.Target{}}
	for _, t := range r.Targets {
		p.Targets[t.Name] = broker.Target{Name: t.Name, Revision: t.Revision, Flow: "cloud", Settings: []byte("{}")}
	}
	return p
}

func workload(t testing.TB, facts ...string) broker.Workload {
	t.Helper()
	m := map[string][]string{}
	for i := 0; i < len(facts); i += 2 {
		m[facts[i]] = append(m[facts[i]], facts[i+1])
	}
	f, err := identity.NewFacts("workload", m)
	if err != nil {
		t.Fatal(err)
	}
	return broker.Workload{Facts: f}
}

func set(n int) [sha256.Size]byte { return sha256.Sum256([]byte{byte(n), byte(n >> 8)}) }

// some keys, made once.
var keyring struct {
	sync.Mutex
	keys []crypto.PublicKey
}

// keys returns n keys, the same each time.
func keys(t testing.TB, n int) []crypto.PublicKey {
	t.Helper()
	keyring.Lock()
	defer keyring.Unlock()
	for len(keyring.keys) < n {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keyring.keys = append(keyring.keys, k.Public())
	}
	return slices.Clone(keyring.keys[:n])
}

// token makes a join token for a node.
func (e *env) token(node string) []byte {
	e.Helper()
	text, hash := token.New()
	e.must(e.store.CreateToken(e.Context(), store.Token{
		Hash: hash, Node: node, Labels: map[string]string{"site": e.site}, ExpiresAt: e.now().Add(token.DefaultTTL), CreatedBy: "uid:0",
	}))
	return []byte(text)
}

func (e *env) joinRequest(node string) broker.JoinRequest {
	e.Helper()
	return broker.JoinRequest{Method: "token", Evidence: e.token(node), PublicKey: keys(e, 1)[0], Version: "1.2.3"}
}

func (e *env) join(node string) broker.Joined {
	e.Helper()
	joined, err := e.Join(e.Context(), e.joinRequest(node))
	e.must(err)
	return joined
}

// as returns the node that calls under a certificate.
func (e *env) as(j broker.Joined) (broker.Node, error) {
	return e.Node(e.Context(), spiffeid.RequireFromString(j.Node.ID), j.Chain[0].SerialNumber, keyOf(e, j))
}

// keyOf is the digest of the key in a node's SVID.
func keyOf(t testing.TB, j broker.Joined) identity.KeyDigest {
	t.Helper()
	key, err := identity.DigestKey(j.Chain[0].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// caller joins a node and returns it as it calls.
func (e *env) caller(node string) broker.Node {
	e.Helper()
	n, err := e.as(e.join(node))
	e.must(err)
	e.issuer.signatures()
	return n
}

// verify checks a chain against the authority's bundle.
func (e *env) verify(chain []*x509.Certificate) spiffeid.ID {
	e.Helper()
	id, _, err := x509svid.Verify(chain, e.issuer.Authority, x509svid.WithTime(e.now()))
	e.must(err)
	return id
}

func digestOf(der []byte) [sha256.Size]byte { return sha256.Sum256(der) }

// active is the ID of the authority that signs now.
func (e *env) active(use authority.Use, alg string) string {
	e.Helper()
	for _, s := range e.issuer.List() {
		if s.Use == use && s.State == authority.Active && (alg == "" || s.Alg == alg) {
			return s.ID
		}
	}
	e.Fatalf("no active authority for %s %s", use, alg)
	return ""
}

// header is a token's.
func header(t testing.TB, token string) (m map[string]any) {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}
