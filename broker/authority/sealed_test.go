package authority_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/keys/kek"
	"github.com/credence-id/credence/broker/keys/sealed"
)

func newKEK(t *testing.T) string {
	t.Helper()
	file, key := filepath.Join(t.TempDir(), "kek"), make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func sealedUnder(t *testing.T, file string, old ...string) authority.SealedKeys {
	t.Helper()
	k, err := sealed.New(sealed.Config{Settings: kek.Settings{KEKFile: file, OldKEKFiles: old}, Data: t.TempDir(), TrustDomain: td.Name(), Purpose: "authority"})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealing is the configuration of a broker whose shared keys are in the records.
func (e *env) sealing(name string, keys authority.SealedKeys) authority.Config {
	cfg := e.replica(name)
	cfg.Keys, cfg.RootKeys, cfg.JWTKeys = &memoryKeys{}, keys, keys // its own keys are on its own disk
	return cfg
}

// Brokers share keys that lie in the store, whatever becomes of them; what is
// revoked is there no more.
func TestSealedKeys(t *testing.T) {
	e := newEnv(t)
	file := newKEK(t)
	var all []*authority.Authority
	for _, name := range []string{"b1", "b2"} {
		all = append(all, openReplica(t, e.sealing(name, sealedUnder(t, file))))
		e.tick(all[len(all)-1])
	}
	a, b := all[0], all[1]
	agree(t, e, all...)
	for i := range 12 { // the JWT keys rotate, by either
		e.clock.set(start.Add(time.Duration(i+1) * day))
		e.tick(all[i%2])
		e.reload(all...)
		e.tick(all[1-i%2])
	}
	agree(t, e, all...)
	if _, err := a.ReplaceJWT(t.Context(), "RS256", "stolen"); err != nil {
		t.Fatal(err)
	}
	e.need(b.PublishRoot(t.Context()))
	e.need(a.ActivateRoot(t.Context(), of(b, authority.Root, authority.Published).ID))
	e.reload(all...)
	e.tick(b)
	agree(t, e, all...)
	for _, r := range e.records.rows {
		if want := r.Use != authority.Issuing && r.State != authority.Revoked; want != (len(r.Sealed) > 0) {
			t.Errorf("%s %s %s: %d bytes sealed", r.Use, r.Alg, r.State, len(r.Sealed))
		}
	}
}

// Who writes the store makes no standby key active, brings no revoked one back and
// swaps none.
func TestStoreIsTamperedWith(t *testing.T) {
	e := newEnv(t)
	file := newKEK(t)
	a := openReplica(t, e.sealing("b1", sealedUnder(t, file)))
	e.tick(a)
	find := func(state authority.State) authority.Record {
		return e.records.rows[states(a, "ES256")[state]]
	}
	active, standby := find(authority.Active), find(authority.Published)
	for name, change := range map[string]func(rows map[string]authority.Record){
		"the standby made active": func(rows map[string]authority.Record) {
			one, two := active, standby
			one.State, two.State = authority.Old, authority.Active
			rows[one.ID], rows[two.ID] = one, two
		},
		"both keys' places": func(rows map[string]authority.Record) {
			one, two := active, standby
			one.Sealed, two.Sealed = two.Sealed, one.Sealed
			rows[one.ID], rows[two.ID] = one, two
		},
		"another's key": func(rows map[string]authority.Record) {
			one := active
			one.Sealed = rows[states(a, "RS256")[authority.Active]].Sealed
			rows[one.ID] = one
		},
		"an old algorithm": func(rows map[string]authority.Record) {
			one := active
			one.Alg = "RS256"
			delete(rows, states(a, "RS256")[authority.Active])
			rows[one.ID] = one
		},
	} {
		sound := e.records.rows
		e.records.rows = maps.Clone(sound)
		change(e.records.rows)
		b := openReplica(t, e.sealing("b2", sealedUnder(t, file)))
		alg := "ES256"
		if name == "an old algorithm" {
			alg = "RS256"
		}
		if _, err := b.SignJWT(t.Context(), jwtGrant(t, alg, e.clock.now(), "a")); err == nil || !strings.Contains(err.Error(), "tampered") {
			t.Errorf("%s: %v", name, err)
		}
		e.records.rows = sound
	}
}

// A broker that runs has the standby key open, and has it sign no sooner than one
// that starts would.
func TestStoreIsTamperedWithWhileBrokersRun(t *testing.T) {
	e := newEnv(t)
	a := openReplica(t, e.sealing("b1", sealedUnder(t, newKEK(t))))
	e.tick(a)
	active, standby := e.records.rows[states(a, "ES256")[authority.Active]], e.records.rows[states(a, "ES256")[authority.Published]]
	sound := e.records.rows
	for name, change := range map[string]func(one, two *authority.Record){
		"made active": func(one, two *authority.Record) { one.State, two.State = authority.Old, authority.Active },
		"made active, not sealed": func(one, two *authority.Record) {
			one.State, two.State, two.Sealed = authority.Old, authority.Active, nil
		},
		"made old, for want of one": func(one, two *authority.Record) { one.Sealed, two.State = nil, authority.Old },
	} {
		one, two := active, standby
		change(&one, &two)
		e.records.rows = maps.Clone(sound)
		e.records.rows[one.ID], e.records.rows[two.ID] = one, two
		e.reload(a)
		token, err := a.SignJWT(t.Context(), jwtGrant(t, "ES256", e.clock.now(), "a"))
		if err != nil {
			continue
		}
		if header, _ := parts(t, token); header["kid"] == standby.ID {
			t.Errorf("%s: the standby key signs", name)
		}
	}
	e.records.rows = sound
	e.reload(a)
	signedBy(t, e, a, "ES256", active.ID)
}

// The key-encryption key changes while brokers run: no key is made anew, and one
// broker that lacks it goes on.
func TestRewrap(t *testing.T) {
	e := newEnv(t)
	first, second := newKEK(t), newKEK(t)
	a := openReplica(t, e.sealing("b1", sealedUnder(t, first)))
	e.tick(a)
	before := kids(a, "ES256")
	changing := e.sealing("b2", sealedUnder(t, second, first))
	b := openReplica(t, changing)
	n, err := authority.Rewrap(t.Context(), changing)
	if err != nil || n != 5 { // a root, and two keys of two algorithms
		t.Fatalf("%d keys: %v", n, err)
	}
	if n, err := authority.Rewrap(t.Context(), changing); err != nil || n != 0 {
		t.Errorf("again: %d keys: %v", n, err)
	}
	agree(t, e, a, b)
	if !slices.Equal(before, kids(b, "ES256")) {
		t.Error("other keys")
	}
	e.need(b.RotateIssuing(t.Context()))
	if _, err := authority.Rewrap(t.Context(), e.sealing("b3", sealedUnder(t, newKEK(t)))); err == nil || strings.Count(err.Error(), "old_kek_files") != 5 {
		t.Errorf("without the key: %v", err)
	}
	openReplica(t, e.sealing("b4", sealedUnder(t, second))) // the old one is needed no more
}

// A broker that lacks the key-encryption key takes the root from no other that has
// it.
func TestForgetBesideOthers(t *testing.T) {
	e := newEnv(t)
	a := openReplica(t, e.sealing("b1", sealedUnder(t, newKEK(t))))
	root := of(a, authority.Root, authority.Active).ID
	stranger := e.sealing("b2", sealedUnder(t, newKEK(t)))
	err := authority.ForgetKeys(t.Context(), stranger, []string{root})
	if !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "of broker b1 works") {
		t.Errorf("forgotten while b1 signs: %v", err)
	}
	if len(e.records.rows[root].Sealed) == 0 {
		t.Error("the root's key is gone")
	}
}

// A JWT key that leaves the bundle to make room for a lost one leaves nothing that a
// rewrap stumbles over.
func TestForgetThenRewrap(t *testing.T) {
	e := newEnv(t)
	kek := newKEK(t)
	cfg := e.sealing("b1", sealedUnder(t, kek))
	a := openReplica(t, cfg)
	e.tick(a)
	e.clock.set(start.Add(7*day + hour))
	e.tick(a)
	e.clock.set(e.clock.now().Add(5 * hour)) // no token of the old key lives
	active, old := states(a, "ES256")[authority.Active], states(a, "ES256")[authority.Old]
	lost := e.records.rows[active]
	lost.Sealed = nil
	e.records.rows[active] = lost
	if err := authority.ForgetKeys(t.Context(), cfg, []string{active}); err != nil {
		t.Fatal(err)
	}
	if r := e.records.rows[old]; r.State != authority.Revoked || len(r.Sealed) > 0 {
		t.Errorf("the old key is %s with %d bytes sealed", r.State, len(r.Sealed))
	}
	if _, err := authority.Rewrap(t.Context(), e.sealing("b1", sealedUnder(t, newKEK(t), kek))); err != nil {
		t.Error(err)
	}
}

// A root that is taken offline leaves the store.
func TestRemoveSealedRoot(t *testing.T) {
	e := newEnv(t)
	a := openReplica(t, e.sealing("b1", sealedUnder(t, newKEK(t))))
	done, err := a.ExportRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(done.Key)
	if err != nil {
		t.Fatal(err)
	}
	offline := &pki{t: t, key: key.(*ecdsa.PrivateKey), cert: a.Bundle().X509Authorities[0]}
	if _, err := a.Install(t.Context(), offline.grant(csrOf(t, a, false), 1000*day, start, nil)); err != nil {
		t.Fatal(err)
	}
	if len(e.records.rows[done.Root.ID].Sealed) == 0 {
		t.Fatal("the root's key is not in the store: the test is not one")
	}
	e.need(a.RemoveRootKey(t.Context(), done.Root.ID))
	if len(e.records.rows[done.Root.ID].Sealed) > 0 {
		t.Error("the key is still there")
	}
	e.need(a.RotateIssuing(t.Context()))
	e.tick(a)
	signs(t, e, a)
}
