package authority_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

const issuer = "https://id.example.org/td"

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)
)

// A clock is set by the test.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

var errSave = errors.New("the disk is gone")

// records are a store in memory that holds what the schema does: one active
// authority of a kind. It fails on command, before or after it has kept.
type records struct {
	mu          sync.Mutex
	rows        map[string]authority.Record
	publication authority.Publication
	history     []authority.Publication
	saves       int
	failAt      int // the n-th save fails; 0: none
	keptFirst   bool
	away        bool // it takes nothing
	revision    uint64
	lease       authority.Lease
	leases      int
	now         func() time.Time
	check       func(map[string]authority.Record) error
	step        func(before, after map[string]authority.Record) error

	revoked    []authority.Revocation
	lists      map[string]authority.CRL
	listSaves  int
	failListAt int // as failAt, of SaveRevocations
}

func (r *records) Revocations(context.Context) ([]authority.Revocation, []authority.CRL, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.revoked), slices.Collect(maps.Values(r.lists)), nil
}

func (r *records) SaveRevocations(_ context.Context, added []authority.Revocation, lists []authority.CRL) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listSaves++
	if r.listSaves == r.failListAt && !r.keptFirst {
		return errSave
	}
	for _, l := range lists {
		if last, ok := r.lists[l.Issuer]; ok && last.Number.Cmp(l.Number) >= 0 {
			return fmt.Errorf("CRL %s after %s", l.Number, last.Number)
		}
	}
	for _, n := range added {
		if !slices.ContainsFunc(r.revoked, func(o authority.Revocation) bool { return o.Issuer == n.Issuer && o.Serial.Cmp(n.Serial) == 0 }) {
			r.revoked = append(r.revoked, n)
		}
	}
	for _, l := range lists {
		if r.lists == nil {
			r.lists = map[string]authority.CRL{}
		}
		last := r.lists[l.Issuer].ThisUpdate
		r.revoked = slices.DeleteFunc(r.revoked, func(o authority.Revocation) bool { return o.Issuer == l.Issuer && o.NotAfter.Before(last) })
		r.lists[l.Issuer] = l
	}
	if r.listSaves == r.failListAt {
		return errSave
	}
	return nil
}

func (r *records) Authorities(context.Context) ([]authority.Record, authority.Publication, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(maps.Values(r.rows))
	return all, r.publication, nil
}

func (r *records) SaveAuthorities(_ context.Context, c authority.Change) (saved authority.Saved, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saves++
	if r.saves == r.failAt && !r.keptFirst || r.away {
		return saved, errSave
	}
	more := len(c.Records) > 0 || c.Publication.Sequence > 0
	if saved.Before = r.publication.Version; more {
		seen := c.Seen.Shared == saved.Before.Shared && (!c.All || c.Seen.All == saved.Before.All)
		switch {
		case !seen:
			return saved, authority.ErrConflict
		case c.Shared() && r.lease.Fence > c.Fence:
			return saved, authority.ErrFenced
		}
	}
	rows := maps.Clone(r.rows)
	if rows == nil {
		rows = map[string]authority.Record{}
	}
	for _, c := range c.Records {
		if last := rows[c.ID].LastExpiry; last.After(c.LastExpiry) {
			c.LastExpiry = last
		}
		rows[c.ID] = c
	}
	for id, end := range c.LastExpiry {
		row, ok := rows[id]
		if !ok || row.State == authority.Revoked {
			return saved, authority.ErrConflict
		}
		if end.After(row.LastExpiry) {
			row.LastExpiry = end
		}
		rows[id] = row
	}
	active := map[[3]string]bool{}
	for _, c := range rows {
		key := [3]string{string(c.Use), c.Alg, c.Broker}
		if c.State == authority.Active && active[key] {
			return saved, errors.New("UNIQUE constraint failed: two active authorities")
		}
		active[key] = active[key] || c.State == authority.Active
	}
	if r.check != nil {
		if err := r.check(rows); err != nil {
			return saved, err
		}
	}
	if r.step != nil {
		if err := r.step(r.rows, rows); err != nil {
			return saved, err
		}
	}
	r.rows, saved.After = rows, saved.Before
	if more {
		r.revision++
		if saved.After.All = r.revision; c.Shared() {
			saved.After.Shared = r.revision
		}
	}
	if c.Publication.Sequence > 0 {
		r.publication = c.Publication
		r.history = append(r.history, r.publication)
	}
	r.publication.Version = saved.After
	if r.saves == r.failAt {
		return saved, errSave
	}
	if !more {
		return authority.Saved{}, nil
	}
	return saved, nil
}

// Acquire and Release are as strict as the store's.
func (r *records) Acquire(_ context.Context, _, holder string, life time.Duration, take bool) (authority.Lease, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return authority.Lease{}, false, errSave
	}
	now := r.now()
	if r.lease.Fence > 0 && !take && r.lease.Holder != holder && now.Before(r.lease.Until) {
		return r.lease, false, nil
	}
	r.leases++
	r.lease = authority.Lease{Holder: holder, Fence: r.lease.Fence + 1, Until: now.Add(life)}
	return r.lease, true, nil
}

func (r *records) Release(_ context.Context, _ string, fence uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return errSave
	}
	if r.lease.Fence == fence {
		r.lease.Until = time.Time{}
	}
	return nil
}

// env is a trust domain whose store and keys outlive the authority.
type env struct {
	t       testing.TB
	clock   *clock
	records *records
	keys    authority.Keys
	lives   authority.Lives
	issuer  string
	change  func(*authority.Config) // nil: of nothing
	chain   []*x509.Certificate     // what a PKI granted
}

func newEnv(t testing.TB) *env {
	t.Helper()
	e := &env{t: t, clock: &clock{t: start}, keys: &memoryKeys{}, issuer: issuer}
	e.records = &records{now: e.clock.now}
	return e
}

func (e *env) config() authority.Config {
	cfg := authority.Config{
		TrustDomain: td, Issuer: e.issuer, Broker: "b1", Records: e.records, Keys: e.keys,
		Lives: e.lives, Now: e.clock.now,
	}
	if e.change != nil {
		e.change(&cfg)
	}
	return cfg
}

func (e *env) open() *authority.Authority {
	e.t.Helper()
	a, err := authority.Open(e.t.Context(), e.config())
	if err != nil {
		e.t.Fatal(err)
	}
	return a
}

// openReady returns an authority with all of its first keys.
func (e *env) openReady() *authority.Authority {
	e.t.Helper()
	a := e.open()
	e.tick(a)
	return a
}

func (e *env) tick(a *authority.Authority) time.Time {
	e.t.Helper()
	next, err := a.Tick(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	return next
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func digestOf(t testing.TB, pub crypto.PublicKey) identity.KeyDigest {
	t.Helper()
	d, err := identity.DigestKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// nodeGrant is a grant for an X509-SVID that lives for ttl.
func nodeGrant(t testing.TB, pub crypto.PublicKey, now time.Time, ttl time.Duration) identity.Grant {
	t.Helper()
	g, err := identity.ForNode(td, "n1", digestOf(t, pub), now, now.Add(ttl))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// grant decides on an identity of the test's making.
func grant(t testing.TB, i identity.Identity, r identity.Request) identity.Grant {
	t.Helper()
	i.Name, i.SPIFFEID = "checkout", "/shop/checkout"
	i.Match = []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}}}}
	set, err := identity.NewSet(identity.Config{
		TrustDomain: td, JWT: true, DNSSuffixes: []string{"svc"}, Subjects: []string{"O=Acme*", "OU=*"},
	}, identity.Resources{Identities: []identity.Identity{i}})
	if err != nil {
		t.Fatal(err)
	}
	r.Node, err = identity.NewFacts("node", map[string][]string{"node.name": {"n1"}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := set.Decide(r)
	if err != nil {
		t.Fatal(err)
	}
	return d[0].Grant
}

func jwtGrant(t testing.TB, alg string, now time.Time, audiences ...string) identity.Grant {
	t.Helper()
	i := identity.Identity{JWT: &identity.JWT{Audiences: identity.Plain("**"), Alg: alg, Claims: map[string]any{"team": "payments"}}}
	return grant(t, i, identity.Request{Audiences: audiences, Time: now})
}

// memoryKeys keep keys in memory. RSA keys, slow to make, are made once and
// lent to each trust domain.
type memoryKeys struct {
	rsa  int
	keys map[string]crypto.Signer
}

var lending struct {
	sync.Mutex // guards every memoryKeys too
	rsa        []crypto.Signer
}

func (k *memoryKeys) Create(_ context.Context, alg string) (ref string, key crypto.Signer, err error) {
	lending.Lock()
	defer lending.Unlock()
	if alg != "RS256" {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		if k.rsa == len(lending.rsa) {
			key, err = rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				return "", nil, err
			}
			lending.rsa = append(lending.rsa, key)
		}
		key = lending.rsa[k.rsa]
		k.rsa++
	}
	if k.keys == nil {
		k.keys = map[string]crypto.Signer{}
	}
	ref = strconv.Itoa(len(k.keys))
	k.keys[ref] = key
	return ref, key, err
}

func (k *memoryKeys) Open(_ context.Context, ref string) (crypto.Signer, error) {
	lending.Lock()
	defer lending.Unlock()
	key, ok := k.keys[ref]
	if !ok {
		return nil, fmt.Errorf("key %s: %w", ref, os.ErrNotExist)
	}
	return key, nil
}
