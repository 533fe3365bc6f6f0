package authority_test

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// lose takes keys away by use, or all, and returns the IDs of what is lost.
func lose(t *testing.T, e *env, uses ...authority.Use) (ids []string) {
	t.Helper()
	before, err := authority.CheckKeys(t.Context(), e.config())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range before {
		if k.Err != nil {
			t.Fatalf("key %s: %v", k.ID, k.Err)
		}
		if len(uses) == 0 || slices.Contains(uses, k.Use) {
			delete(e.keys.(*memoryKeys).keys, k.KeyRef)
		}
	}
	after, err := authority.CheckKeys(t.Context(), e.config())
	if err != nil || len(after) != len(before) {
		t.Fatalf("%d keys, then %d: %v", len(before), len(after), err)
	}
	for _, k := range after {
		if (k.Err != nil) != (len(uses) == 0 || slices.Contains(uses, k.Use)) {
			t.Errorf("the %s key %s: %v", k.Use, k.ID, k.Err)
		}
		if k.Err != nil {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// With every key lost the domain goes on: what the keys signed is believed as
// long as it lives, and another root signs beside the one that can't.
func TestForgetAll(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	key := newKey(t)
	chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	old := a.Bundle()
	ids := lose(t, e)
	if len(ids) != 6 {
		t.Fatalf("%d keys are lost, want 6", len(ids))
	}
	if _, err := authority.Open(t.Context(), e.config()); err == nil {
		t.Fatal("opened without a key")
	}
	if err := authority.ForgetKeys(t.Context(), e.config(), ids); err != nil {
		t.Fatal(err)
	}
	a = e.openReady()
	signs(t, e, a)
	b := a.Bundle()
	if len(b.X509Authorities) != 2 || !slices.ContainsFunc(b.X509Authorities, old.X509Authorities[0].Equal) || b.Sequence <= old.Sequence {
		t.Errorf("%d roots, sequence %d after %d", len(b.X509Authorities), b.Sequence, old.Sequence)
	}
	verifyChain(t, chain, b.X509Authorities)
	for _, alg := range []string{"ES256", "RS256"} {
		n := 0
		for _, k := range b.JWTKeys {
			if k.Alg == alg {
				n++
			}
		}
		if n != 3 {
			t.Errorf("%d keys of %s are published, want the old one and two", n, alg)
		}
	}
	e.clock.set(start.Add(30 * day)) // the CRL of the lost root keeps nothing up, then or later
	e.tick(a)
	e.open()
	if again := lose(t, e, "none"); len(again) != 0 {
		t.Errorf("%v are lost again", again)
	}
}

func verifyChain(t *testing.T, chain, roots []*x509.Certificate) {
	t.Helper()
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("an SVID from before: %v", err)
	}
}

// An issuing CA or JWT keys that are lost are replaced under the same root.
func TestForgetSome(t *testing.T) {
	for _, use := range []authority.Use{authority.Issuing, authority.JWTKey} {
		e := newEnv(t)
		pin := e.openReady().Pin()
		ids := lose(t, e, use)
		if err := authority.ForgetKeys(t.Context(), e.config(), ids); err != nil {
			t.Fatal(err)
		}
		a := e.openReady()
		signs(t, e, a)
		if a.Pin() != pin {
			t.Errorf("%s: another root", use)
		}
	}
}

func TestForgetRefuses(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	root := statusOf(t, a, authority.Root).ID
	forget := func(id string) error { return authority.ForgetKeys(t.Context(), e.config(), []string{id}) }
	if err := forget(root); !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "it is not lost") {
		t.Errorf("a key that opens: %v", err)
	}
	if err := forget("00"); !errors.Is(err, authority.ErrNothing) {
		t.Errorf("no key: %v", err)
	}
	lose(t, e, authority.Root)
	saves := e.records.saves
	if err := forget(root); !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "credence ca rotate root") {
		t.Errorf("a root while its issuing CA works: %v", err)
	}
	if e.records.saves != saves {
		t.Error("something was kept")
	}
	// That way is open: another root is published, and takes over.
	a = e.open()
	st, err := a.PublishRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ActivateRoot(t.Context(), st.ID); err != nil {
		t.Fatal(err)
	}
	signs(t, e, a)
}

// Under a corporate root a CA that is lost with the issuing CA below it is
// requested anew.
func TestForgetDomain(t *testing.T) {
	for _, anchor := range []string{"root", "ours"} {
		t.Run(anchor, func(t *testing.T) {
			e, a := byHand(t, func(c *authority.Config) { c.Anchor = anchor })
			e.records.step = nil // it is ForgetKeys that takes what signs away
			corporate := newPKI(t, "Corporate Root", nil, nil)
			install := func() {
				t.Helper()
				if _, err := a.Install(t.Context(), corporate.grant(csrOf(t, a, false), 1000*day, e.clock.now(), nil)); err != nil {
					t.Fatal(err)
				}
			}
			signs := func() error {
				key := newKey(t)
				_, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), e.clock.now(), time.Hour), key.Public())
				return err
			}
			install()
			if err := authority.ForgetKeys(t.Context(), e.config(), lose(t, e)); err != nil {
				t.Fatal(err)
			}
			a = e.open()
			if err := signs(); err == nil {
				t.Error("signed without a key")
			}
			install()
			if err := signs(); err != nil {
				t.Error(err)
			}
		})
	}
}
