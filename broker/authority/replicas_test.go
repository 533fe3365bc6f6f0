package authority_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/postgrestest"
)

// replica is the configuration of one of several brokers over e's records.
func (e *env) replica(name string) authority.Config {
	cfg := e.config()
	cfg.Broker, cfg.Leases = name, e.records
	return cfg
}

func openReplica(t testing.TB, cfg authority.Config) *authority.Authority {
	t.Helper()
	a, err := authority.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// replicas are three brokers with all of their first keys.
func (e *env) replicas() (all []*authority.Authority) {
	e.t.Helper()
	for i := range 3 {
		all = append(all, openReplica(e.t, e.replica(fmt.Sprintf("b%d", i+1))))
		e.tick(all[i])
	}
	e.reload(all...)
	return all
}

func (e *env) reload(all ...*authority.Authority) {
	e.t.Helper()
	for _, a := range all {
		if err := a.Reload(e.t.Context()); err != nil {
			e.t.Fatal(err)
		}
	}
}

// shown is what an authority says of itself, without what one broker alone has.
func shown(a *authority.Authority) []authority.Status {
	list := a.List()
	for i := range list {
		list[i].KeySource, list[i].Problem = "", ""
	}
	return list
}

// agree has each of them say the same, and sign what the bundle of each other
// verifies.
func agree(t *testing.T, e *env, all ...*authority.Authority) {
	t.Helper()
	e.reload(all...)
	for _, a := range all {
		if d := cmp.Diff(shown(all[0]), shown(a)); d != "" {
			t.Errorf("they say (-one, +another):\n%s", d)
		}
		if string(a.Bundle().Document) != string(all[0].Bundle().Document) {
			t.Errorf("bundles: %s and %s", a.Bundle().Document, all[0].Bundle().Document)
		}
	}
	for _, a := range all {
		signs(t, e, a)
	}
}

// Brokers that start at one moment over an empty database make one root and one
// set of JWT keys, and each an issuing CA.
func TestFirstStartTogether(t *testing.T) {
	t.Parallel()
	server := postgrestest.Start(t)
	for range 3 {
		e := newEnv(t)
		url := server.Database(t)
		all := make([]*authority.Authority, 3)
		var starting errgroup.Group
		for i := range all {
			starting.Go(func() (err error) {
				s, err := store.Open(t.Context(), store.Config{URL: url, Now: e.clock.now, Clock: e.clock.now})
				if err != nil {
					return err
				}
				t.Cleanup(func() { s.Close() })
				cfg := e.config()
				cfg.Broker, cfg.Records, cfg.Leases = fmt.Sprint("b", i), s, s
				if all[i], err = authority.Open(t.Context(), cfg); err != nil {
					return err
				}
				_, err = all[i].Tick(t.Context())
				return err
			})
		}
		if err := starting.Wait(); err != nil {
			t.Fatal(err)
		}
		agree(t, e, all...)
		counts := map[string]int{}
		for _, s := range all[0].List() {
			counts[fmt.Sprint(s.Use, s.Alg, s.State)]++
		}
		want := map[string]int{"rootP256active": 1, "x509P256active": 3, "jwtES256active": 1, "jwtES256published": 1, "jwtRS256active": 1, "jwtRS256published": 1}
		if d := cmp.Diff(want, counts); d != "" {
			t.Fatal(d)
		}
	}
}

// What one broker did the others obey after Reload, and say it alike.
func TestReload(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	a, b, c := all[0], all[1], all[2]
	changed, before := b.Changed(), b.Bundle().Sequence
	one, two := states(a, "ES256")[authority.Active], states(a, "ES256")[authority.Published]
	if _, err := a.ReplaceJWT(t.Context(), "ES256", "stolen"); err != nil {
		t.Fatal(err)
	}
	signedBy(t, e, b, "ES256", one) // it cannot know yet
	e.reload(b, c)
	select {
	case <-changed:
	default:
		t.Error("Changed did not move")
	}
	if b.Bundle().Sequence <= before || slices.Contains(kids(b, "ES256"), one) {
		t.Errorf("the revoked key is published under %d", b.Bundle().Sequence)
	}
	signedBy(t, e, b, "ES256", two)
	agree(t, e, all...)

	e.need(b.PublishRoot(t.Context()))
	e.need(c.ActivateRoot(t.Context(), of(b, authority.Root, authority.Published).ID)) // acts read first
	e.reload(all...)
	for _, x := range all {
		e.tick(x)
	}
	agree(t, e, all...)
	root := of(a, authority.Root, authority.Active).ID
	for _, s := range a.List() {
		if s.Use == authority.Issuing && s.State == authority.Active && s.Root != root {
			t.Errorf("the CA of %s stands under the old root", s.Broker)
		}
	}
}

// aged answers with what it read before.
type aged struct {
	authority.Records
	old func() ([]authority.Record, authority.Publication)
}

func (r *aged) Authorities(ctx context.Context) ([]authority.Record, authority.Publication, error) {
	if r.old == nil {
		return r.Records.Authorities(ctx)
	}
	all, p := r.old()
	return all, p, nil
}

// A copy of the database that lags behind takes nothing back.
func TestReloadOlder(t *testing.T) {
	e := newEnv(t)
	cfg := e.replica("b1")
	records := &aged{Records: e.records}
	cfg.Records = records
	a := openReplica(t, cfg)
	e.tick(a)
	all, p, err := e.records.Authorities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ReplaceJWT(t.Context(), "ES256", "stolen"); err != nil {
		t.Fatal(err)
	}
	list, document := shown(a), string(a.Bundle().Document)
	for name, version := range map[string]authority.Version{"as it was": p.Version, "under a new revision": {All: 1000, Shared: 1000}} {
		records.old = func() ([]authority.Record, authority.Publication) {
			p := p
			p.Version = version
			return slices.Clone(all), p
		}
		if err := a.Reload(t.Context()); !errors.Is(err, authority.ErrOlder) {
			t.Errorf("%s: %v", name, err)
		}
	}
	records.old = func() ([]authority.Record, authority.Publication) { // who writes the database has the key active again
		return slices.Clone(all), authority.Publication{Sequence: 1 << 62, Version: authority.Version{All: 1000, Shared: 1000}}
	}
	if err := a.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "was revoked") {
		t.Errorf("a revoked key came back: %v", err)
	}
	if d := cmp.Diff(list, shown(a)); d != "" || document != string(a.Bundle().Document) {
		t.Errorf("taken over:\n%s", d)
	}
}

// A holder of the lease that froze amid a rotation changes nothing when it wakes
// up, and obeys what others did.
func TestFrozenHolder(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	keys := &interfering{Keys: e.keys}
	cfg := e.replica("frozen")
	cfg.Keys = keys
	a, b := openReplica(t, cfg), all[1]
	e.clock.set(start.Add(7*day + hour)) // a rotation is due
	var after map[string]authority.Record
	keys.during = func(alg string) {
		if alg != "ES256" || after != nil {
			return
		}
		after = map[string]authority.Record{}
		e.clock.set(e.clock.now().Add(hour)) // it is frozen, and its lease ends
		e.tick(b)
		if _, err := b.ReplaceJWT(t.Context(), "ES256", "stolen"); err != nil {
			t.Error(err)
		}
		after = maps.Clone(e.records.rows)
	}
	e.tick(a)
	if len(after) == 0 {
		t.Fatal("it made no key: the test is not one")
	}
	for id, r := range after {
		now := e.records.rows[id]
		now.LastExpiry = r.LastExpiry
		if d := cmp.Diff(r, now); d != "" && r.Broker != "frozen" {
			t.Errorf("the frozen holder changed %s %s:\n%s", r.Use, id, d)
		}
	}
	all = append(all, a)
	for _, x := range all {
		e.tick(x)
	}
	agree(t, e, all...)
}

// slowLeases do something before a lease is given.
type slowLeases struct {
	authority.Leases
	before func()
}

func (l *slowLeases) Acquire(ctx context.Context, name, holder string, life time.Duration, take bool) (authority.Lease, bool, error) {
	if l.before != nil {
		l.before()
	}
	return l.Leases.Acquire(ctx, name, holder, life, take)
}

// What another broker did while one decided is not undone because it was read
// just before the lease was had.
func TestReloadAmidDecision(t *testing.T) {
	e := newEnv(t)
	cfg := e.replica("b1")
	leases := &slowLeases{Leases: e.records}
	cfg.Leases = leases
	a, b := openReplica(t, cfg), openReplica(t, e.replica("b2"))
	e.tick(a)
	e.reload(a, b)
	stolen := states(a, "ES256")[authority.Active]
	e.clock.set(start.Add(7*day + hour)) // a rotation is due
	leases.before = func() {
		leases.before = nil
		if _, err := b.ReplaceJWT(t.Context(), "ES256", "stolen"); err != nil {
			t.Error(err)
		}
		e.reload(a)
	}
	e.tick(a)
	if leases.before != nil || e.records.rows[stolen].State != authority.Revoked {
		t.Errorf("the stolen key is %s", e.records.rows[stolen].State)
	}
	if err := threeAtMost(e.records.rows); err != nil {
		t.Error(err)
	}
	e.tick(b)
	agree(t, e, a, b)
}

// A fence refuses a holder that the others overtook, also where they wrote
// nothing.
func TestFence(t *testing.T) {
	e := newEnv(t)
	cfg := e.replica("b1")
	keys := &interfering{Keys: e.keys}
	cfg.Keys = keys
	a := openReplica(t, cfg)
	e.tick(a)
	saved, overtaken := e.records.publication, 0
	keys.during = func(string) {
		if overtaken++; overtaken == 1 {
			if _, _, err := e.records.Acquire(t.Context(), authority.LeaseName, "b2", time.Minute, true); err != nil {
				t.Error(err)
			}
		}
	}
	e.clock.set(start.Add(7*day + hour))
	e.records.step = func(before, after map[string]authority.Record) error {
		for id, r := range after {
			if r.Use == authority.JWTKey && r.State != before[id].State {
				return errors.New("b2 has the lease")
			}
		}
		return nil
	}
	if _, err := a.Tick(t.Context()); err != nil { // b2 does it
		t.Error(err)
	}
	if overtaken == 0 || e.records.publication.Sequence != saved.Sequence {
		t.Errorf("overtaken %d times, sequence %d after %d", overtaken, e.records.publication.Sequence, saved.Sequence)
	}
	e.records.step = nil
	e.clock.set(e.clock.now().Add(2 * time.Minute)) // b2 never did
	e.tick(a)
	if e.records.publication.Sequence == saved.Sequence {
		t.Error("nobody rotates any more")
	}
}

// frozenLeases don't answer when a lease is released.
type frozenLeases struct{ authority.Leases }

func (frozenLeases) Release(ctx context.Context, _ string, _ uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

// A store that does not answer holds up no end.
func TestResignWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnv(t)
		cfg := e.replica("b1")
		cfg.Leases = frozenLeases{e.records}
		began := time.Now()
		openReplica(t, cfg)
		if waited := time.Since(began); waited > 10*time.Second {
			t.Errorf("it waited for %s", waited)
		}
	})
}

// In the steady state nobody asks for the lease.
func TestLeaseCostsNothing(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	leases := e.records.leases
	for h := range 11 {
		e.clock.set(start.Add(time.Duration(h) * hour))
		for _, a := range all {
			e.tick(a)
		}
	}
	if e.records.leases != leases {
		t.Errorf("%d leases in ten hours", e.records.leases-leases)
	}
}

// Each broker's own issuing CA is its own matter: one that is renewed is no
// conflict for another that is renewed on what was read before.
func TestOwnChangesDoNotConflict(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	e.clock.set(start.Add(40 * hour))
	saves := e.records.saves
	for _, a := range all {
		e.need(a.RotateIssuing(t.Context()))
	}
	if n := e.records.saves - saves; n != len(all) {
		t.Errorf("%d writes for %d renewals", n, len(all))
	}
	agree(t, e, all...)
}

// What a broker that is gone leaves behind is shown, and ends by itself.
func TestGoneBroker(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	a := all[0]
	named := func(name string) (states []authority.State) {
		for _, s := range a.List() {
			if s.Broker == name {
				states = append(states, s.State)
			}
		}
		return states
	}
	if got := named("b3"); !slices.Equal(got, []authority.State{authority.Active}) {
		t.Errorf("b3's: %v", got)
	}
	for h := time.Duration(0); h < 90; h += 8 {
		e.clock.set(start.Add(h * hour))
		e.tick(all[1])
		e.tick(a)
	}
	if got := named("b3"); !slices.Equal(got, []authority.State{authority.Revoked}) {
		t.Errorf("b3's after its end: %v", got)
	}
	b := openReplica(t, e.replica("b3")) // and it may come back
	agree(t, e, a, all[1], b)
}

// lossy keys lose some.
type lossy struct {
	authority.Keys
	err  error
	lost func(ref string) bool
}

func (k *lossy) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if k.lost != nil && k.lost(ref) {
		return nil, fmt.Errorf("key %s: %w", ref, k.err)
	}
	return k.Keys.Open(ctx, ref)
}

// A broker whose issuing key is lost makes another CA.
func TestIssuingKeyIsLost(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	lost := of(all[0], authority.Issuing, authority.Active)
	for _, s := range all[0].List() {
		if s.Broker == "b2" {
			lost = s
		}
	}
	keys := &lossy{Keys: e.keys, err: fs.ErrNotExist, lost: func(ref string) bool { return ref == e.records.rows[lost.ID].KeyRef }}
	cfg := e.replica("b2")
	cfg.Keys, cfg.JWTKeys, cfg.RootKeys = keys, e.keys, e.keys
	b := openReplica(t, cfg)
	e.tick(b)
	agree(t, e, all[0], b, all[2])
	if s := e.records.rows[lost.ID].State; s != authority.Old {
		t.Errorf("the lost one is %s", s)
	}
}

// A broker that cannot open a JWT key that others made signs on with what it
// has, and says what is missing.
func TestJWTKeyOfAnotherKEK(t *testing.T) {
	e := newEnv(t)
	missing := errors.New("encrypted under key-encryption key 0123")
	keys := &lossy{Keys: e.keys, err: missing}
	cfg := e.replica("b2")
	cfg.JWTKeys = keys
	all := e.replicas()
	a, b := all[0], openReplica(t, cfg)
	known := map[string]bool{}
	for _, r := range e.records.rows {
		known[r.KeyRef] = true
	}
	e.clock.set(start.Add(7*day + hour))
	e.tick(a)
	e.clock.set(start.Add(14*day + 3*hour))
	e.tick(a) // the active key is one that b never had
	keys.lost = func(ref string) bool { return !known[ref] }
	before := kids(b, "ES256")
	e.reload(b)
	if slices.Equal(before, kids(b, "ES256")) {
		t.Error("the bundle is the old one")
	}
	signedBy(t, e, b, "ES256", states(a, "ES256")[authority.Old])
	e.clock.set(e.clock.now().Add(2 * day))
	e.tick(a) // it leaves the bundle
	e.reload(b)
	_, err := b.SignJWT(t.Context(), jwtGrant(t, "ES256", e.clock.now(), "a"))
	if err == nil || !strings.Contains(err.Error(), missing.Error()) {
		t.Errorf("%v, want %v", err, missing)
	}
	said := 0
	for _, s := range b.List() {
		if strings.Contains(s.Problem, missing.Error()) {
			said++
		}
	}
	if said == 0 {
		t.Error("List does not say so")
	}
	key := newKey(t)
	e.tick(b)
	if _, err := b.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), hour), key.Public()); err != nil {
		t.Error(err)
	}
	keys.lost = nil
	e.reload(b)
	agree(t, e, a, b)
}

// While the store takes nothing, signing goes on for an hour at least, whenever
// that begins: no signature waits for it.
func TestStoreAway(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	i := identity.Identity{JWT: &identity.JWT{Audiences: identity.Plain("a"), Alg: "ES256", TTL: hour}}
	sign := func(a *authority.Authority, at time.Time) {
		t.Helper()
		key := newKey(t)
		chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), at, 4*hour), key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if left := chain[0].NotAfter.Sub(at); left < 2*hour {
			t.Fatalf("an SVID of %s", left)
		}
		if _, err := a.SignJWT(t.Context(), grant(t, i, identity.Request{Audiences: []string{"a"}, Time: at})); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 { // at every time of the hour
		at := start.Add(time.Duration(i) * 25 * time.Minute)
		e.clock.set(at)
		for _, a := range all {
			sign(a, at)
			e.tick(a)
		}
		saves := e.records.saves
		e.records.away = true
		for away := time.Duration(0); away <= hour; away += 20 * time.Minute {
			e.clock.set(at.Add(away))
			sign(all[i%3], at.Add(away))
		}
		e.records.away = false
		if e.records.saves != saves {
			t.Fatalf("after %s a signature asked for a write", at.Sub(start))
		}
	}
}

// An SVID that outlives what is promised is cut short while the store is away;
// when nothing is left of the promise the error says what is missing.
func TestPromiseIsSpent(t *testing.T) {
	e := newEnv(t)
	a := openReplica(t, e.replica("b1"))
	e.records.away = true
	key := newKey(t)
	chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, 3*hour), key.Public())
	if err != nil || !chain[0].NotAfter.Equal(of(a, authority.Issuing, authority.Active).LastExpiry) {
		t.Fatalf("%v", err)
	}
	if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, 9*hour), key.Public()); !errors.Is(err, errSave) {
		t.Errorf("%v", err)
	}
	e.clock.set(start.Add(4 * hour))
	if _, err := a.SignJWT(t.Context(), jwtGrant(t, "ES256", e.clock.now(), "a")); !errors.Is(err, errSave) || !strings.Contains(err.Error(), "promised") {
		t.Errorf("%v", err)
	}
	e.records.away = false
	if _, err := a.SignJWT(t.Context(), jwtGrant(t, "ES256", e.clock.now(), "a")); err != nil {
		t.Error(err)
	}
}

// A broker starts on records that can only be read, and signs as before.
func TestOpenWithoutWrites(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	for _, at := range []time.Duration{10 * time.Minute, 37 * hour} { // and when its issuing CA is to be replaced
		e.clock.set(start.Add(at))
		e.tick(all[0])
		e.tick(all[1])
		e.records.away = true
		a := openReplica(t, e.replica("b1"))
		signs(t, e, a)
		e.records.away = false
		agree(t, e, a, all[1])
	}
}

// Three brokers act at random, each on what it knows: what is durable is sound
// at each step, and they agree once each has read it.
func TestReplicasAtRandom(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue { // each opens three brokers
		if err := f.Value.Set("30"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		e := newEnv(t)
		e.lives = authority.Lives{Issuing: 12 * hour, JWTKey: 30 * hour, Lead: 10 * hour, Keep: hour}
		sequence := uint64(0)
		e.records.step = func(_, after map[string]authority.Record) error {
			if p := e.records.publication; p.Sequence < sequence {
				return fmt.Errorf("sequence %d after %d", p.Sequence, sequence)
			}
			sequence = e.records.publication.Sequence
			roots := 0
			for _, row := range after {
				if row.Use == authority.Root && row.State == authority.Active {
					roots++
				}
			}
			if roots > 1 {
				return errors.New("two active roots")
			}
			return threeAtMost(after)
		}
		var all []*authority.Authority
		for i := range 3 {
			all = append(all, openReplica(t, e.replica(fmt.Sprint("b", i))))
		}
		for range rapid.IntRange(4, 12).Draw(r, "acts") {
			e.clock.set(e.clock.now().Add(time.Duration(rapid.IntRange(0, 8).Draw(r, "half hours")) * 30 * time.Minute))
			a := rapid.SampledFrom(all).Draw(r, "broker")
			act := rapid.SampledFrom(append([]string{"tick", "reload", "sign", "all at once"}, actNames...)).Draw(r, "act")
			err := e.actOf(a, act, all)
			if err != nil && !errors.Is(err, authority.ErrNotYet) && !errors.Is(err, authority.ErrNothing) && !errors.Is(err, authority.ErrRefused) {
				r.Fatalf("%s: %v", act, err)
			}
		}
		e.reload(all...)
		for _, a := range all {
			e.tick(a)
		}
		agree(t, e, all...)
	})
}

func (e *env) actOf(a *authority.Authority, act string, all []*authority.Authority) error {
	switch act {
	case "tick":
		_, err := a.Tick(e.t.Context())
		return err
	case "reload":
		return a.Reload(e.t.Context())
	case "sign":
		_, err := a.SignJWT(e.t.Context(), jwtGrant(e.t, "ES256", e.clock.now(), "a"))
		return err
	case "install", "revoke": // of one broker's house
		return nil
	case "all at once":
		var acting sync.WaitGroup
		errs := make([]error, len(all))
		for i, a := range all {
			acting.Go(func() { _, errs[i] = a.Tick(e.t.Context()) })
		}
		acting.Wait()
		return errors.Join(errs...)
	}
	return (&house{env: e}).act(a, act)
}

// aheadLeases are of a database whose clock this broker's differs from.
type aheadLeases struct {
	authority.Leases
	by time.Duration
}

func (l *aheadLeases) Acquire(ctx context.Context, name, holder string, life time.Duration, take bool) (authority.Lease, bool, error) {
	lease, ok, err := l.Leases.Acquire(ctx, name, holder, life, take)
	lease.Ahead = l.by
	return lease, ok, err
}

// A broker whose clock is wrong ends nothing of the others', rotates nothing, and
// says so; its own CA it may renew. With its clock put right it does what is due.
func TestWrongClock(t *testing.T) {
	for name, by := range map[string]time.Duration{"days ahead": 8 * day, "ten minutes behind": -10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			others := e.replicas()[:2]
			cfg := e.replica("b3")
			leases := &aheadLeases{e.records, by}
			cfg.Leases = leases
			cfg.Now = func() time.Time { return e.clock.now().Add(by) }
			if by < 0 { // what is due is so long since
				e.clock.set(start.Add(8 * day))
				for _, o := range others {
					e.tick(o)
				}
				e.clock.set(start.Add(16 * day))
			}
			shared := func() map[string]authority.Record {
				all := maps.Clone(e.records.rows)
				maps.DeleteFunc(all, func(_ string, r authority.Record) bool { return r.Broker == "b3" })
				for id, r := range all {
					r.LastExpiry = time.Time{} // what it signs has to be promised
					all[id] = r
				}
				return all
			}
			before := shared()
			a := openReplica(t, cfg)
			if _, err := a.Tick(t.Context()); err == nil || !strings.Contains(err.Error(), "clock") {
				t.Errorf("it changes what is shared: %v", err)
			}
			if d := cmp.Diff(before, shared()); d != "" {
				t.Errorf("it changed what is not its own:\n%s", d)
			}
			if !slices.ContainsFunc(a.List(), func(s authority.Status) bool { return strings.Contains(s.Problem, "NTP") }) {
				t.Error("its status does not say so")
			}
			if e.records.lease.Until.After(e.clock.now()) {
				t.Error("it keeps the lease")
			}
			if _, err := authority.Rewrap(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "clock") {
				t.Errorf("Rewrap: %v", err)
			}
			if by > 0 { // nothing is due by the right time
				by, leases.by = 0, 0
				e.tick(a)
				if slices.ContainsFunc(a.List(), func(s authority.Status) bool { return strings.Contains(s.Problem, "NTP") }) {
					t.Error("its clock is right, and its status does not know")
				}
			}
		})
	}
}

// issuingOf is a broker's issuing CA as another tells of it.
func issuingOf(t *testing.T, a *authority.Authority, name string) authority.Status {
	t.Helper()
	list := a.List()
	i := slices.IndexFunc(list, func(s authority.Status) bool { return s.Broker == name && s.State == authority.Active })
	if i < 0 {
		t.Fatalf("%s has no active CA", name)
	}
	return list[i]
}

// A list that has ended is handed out by nobody: what is on it is on none.
func TestUnlistedByAnOldList(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	a, gone := all[0], all[2]
	revoked := authority.Revocation{Serial: big.NewInt(7), Issuer: issuingOf(t, a, "b3").ID, NotAfter: start.Add(48 * hour)}
	if err := a.Revoke(t.Context(), []authority.Revocation{revoked}); err != nil {
		t.Fatal(err)
	}
	e.reload(gone)
	e.tick(gone)
	for _, at := range []time.Duration{hour, 25 * hour} {
		e.clock.set(start.Add(at))
		e.reload(a)
		if problem := issuingOf(t, a, "b3").Problem; strings.Contains(problem, "revocations under it (1)") != (at > day) {
			t.Errorf("after %s: %q", at, problem)
		}
	}
}

// What is revoked under the CA of a broker that is gone, nobody can put on its CRL:
// the others say so, and one of them ends the CA itself.
func TestEndIssuing(t *testing.T) {
	e := newEnv(t)
	all := e.replicas()
	a, b := all[0], all[1] // b3 is gone
	of := func(name string) authority.Status {
		t.Helper()
		return issuingOf(t, a, name)
	}
	gone, living := of("b3"), of("b2")
	for _, issuer := range []string{gone.ID, living.ID} {
		if err := a.Revoke(t.Context(), []authority.Revocation{{Serial: big.NewInt(7), Issuer: issuer, NotAfter: start.Add(12 * hour)}}); err != nil {
			t.Fatal(err)
		}
	}
	problems := func() []string {
		e.reload(a, b)
		e.tick(b)
		e.reload(a)
		return []string{of("b2").Problem, of("b3").Problem}
	}
	if d := cmp.Diff([]string{"", ""}, problems()); d != "" {
		t.Errorf("at first:\n%s", d)
	}
	e.clock.set(start.Add(hour))
	if now := problems(); now[0] != "" || !strings.Contains(now[1], "revocations under it (1)") || !strings.Contains(now[1], "--of b3") {
		t.Errorf("after an hour: %q", now)
	}
	for name, want := range map[string]error{"b1": authority.ErrRefused, "b4": authority.ErrNothing, "": authority.ErrNothing} {
		if _, err := a.EndIssuing(t.Context(), name, "drill"); !errors.Is(err, want) {
			t.Errorf("of %q: %v", name, err)
		}
	}
	for _, name := range []string{"b3", "b2"} {
		ended, err := a.EndIssuing(t.Context(), name, "drill")
		if err != nil || len(ended) != 1 || ended[0].Old.State != authority.Revoked || ended[0].Old.Broker != name || len(ended[0].Believed) == 0 {
			t.Fatalf("%s: %+v, %v", name, ended, err)
		}
	}
	i := slices.IndexFunc(a.CRLs(), func(l authority.CRL) bool { return l.Issuer == gone.Root })
	list, err := x509.ParseRevocationList(a.CRLs()[i].DER)
	if err != nil || len(list.RevokedCertificateEntries) != 2 {
		t.Errorf("the root's CRL holds %v (%v)", list.RevokedCertificateEntries, err)
	}
	// Who died before it could tell agents is asked again.
	again, err := a.EndIssuing(t.Context(), "b3", "again")
	if err != nil || len(again) != 1 || again[0].Old.ID != gone.ID || again[0].Old.Reason != "drill" {
		t.Errorf("again: %+v, %v", again, err)
	}
	e.reload(b) // it lives, and makes another
	e.tick(b)
	e.reload(a)
	if of("b2").ID == living.ID {
		t.Error("b2 goes on with what was ended")
	}
	signs(t, e, b)
}
