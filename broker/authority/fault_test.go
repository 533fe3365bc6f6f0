package authority_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"io"
	"maps"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
)

// forge sets a field of a grant as no constructor would: the authority does
// not rest on broker/identity alone.
func forge(t *testing.T, g identity.Grant, field string, value any) identity.Grant {
	t.Helper()
	f := reflect.ValueOf(&g).Elem().FieldByName(field)
	if !f.IsValid() {
		t.Fatalf("a grant has no %s", field)
	}
	reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(reflect.ValueOf(value))
	return g
}

func TestForgedGrants(t *testing.T) {
	a := newEnv(t).openReady()
	key := newKey(t)
	node := nodeGrant(t, key.Public(), start, time.Hour)
	jwt := jwtGrant(t, "ES256", start, "a")
	for _, tt := range []struct {
		name  string
		grant identity.Grant
		want  string
	}{
		{"the trust domain's own ID", forge(t, node, "id", td.ID()), "no path"},
		{"audiences besides a key", forge(t, node, "audiences", []string{"a"}), "grant is for"},
		{"an algorithm besides a key", forge(t, node, "alg", "ES256"), "grant is for"},
		{"no audience", forge(t, jwt, "audiences", []string{}), "no audience"},
		{"an empty audience", forge(t, jwt, "audiences", []string{"a", ""}), "empty"},
		{"no algorithm", forge(t, jwt, "alg", ""), "algorithm"},
		{"none", forge(t, jwt, "alg", "none"), "algorithm"},
		{"a registered claim", forge(t, jwt, "claims", map[string]any{"sub": "spiffe://example.org/other"}), "ours to set"},
		{"a subject that is none", forge(t, node, "subject", "CN"), "subject"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, errX509 := a.SignX509(t.Context(), tt.grant, key.Public())
			_, errJWT := a.SignJWT(t.Context(), tt.grant)
			if errX509 == nil || errJWT == nil {
				t.Fatalf("signed: %v, %v", errX509, errJWT)
			}
			if !strings.Contains(errX509.Error()+errJWT.Error(), tt.want) {
				t.Errorf("errors %v, %v, want %q", errX509, errJWT, tt.want)
			}
		})
	}
}

// faulty are keys whose signatures are wrong once bad is set.
type faulty struct {
	authority.Keys
	bad bool
}

type faultySigner struct {
	crypto.Signer
	keys *faulty
}

func (k *faulty) Create(ctx context.Context, alg string) (string, crypto.Signer, error) {
	ref, s, err := k.Keys.Create(ctx, alg)
	return ref, faultySigner{s, k}, err
}

func (k *faulty) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	s, err := k.Keys.Open(ctx, ref)
	return faultySigner{s, k}, err
}

func (s faultySigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.keys.bad {
		digest = append([]byte{digest[0] ^ 1}, digest[1:]...)
	}
	return s.Signer.Sign(r, digest, opts)
}

// What a faulty signer returns never leaves.
func TestFaultySigner(t *testing.T) {
	e := newEnv(t)
	keys := &faulty{Keys: e.keys}
	e.keys = keys
	a := e.openReady()
	key := newKey(t)
	keys.bad = true
	if _, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public()); err == nil {
		t.Error("a certificate left")
	}
	for _, alg := range []string{"ES256", "RS256"} {
		if _, err := a.SignJWT(t.Context(), jwtGrant(t, alg, start, "a")); err == nil {
			t.Errorf("a token of %s left", alg)
		}
	}
}

func TestCheckLeaf(t *testing.T) {
	e := newEnv(t)
	key, caKey := newKey(t), newKey(t)
	a := e.open()
	chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	good, ca := chain[0], chain[1]
	other, err := url.Parse("spiffe://example.org/other")
	if err != nil {
		t.Fatal(err)
	}
	template := func() *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: good.SerialNumber, RawSubject: good.RawSubject, URIs: good.URIs,
			NotBefore: good.NotBefore, NotAfter: good.NotAfter, KeyUsage: good.KeyUsage, ExtKeyUsage: good.ExtKeyUsage,
			BasicConstraintsValid: true,
		}
	}
	parent := &x509.Certificate{RawSubject: ca.RawSubject, SubjectKeyId: ca.SubjectKeyId, PublicKey: caKey.Public()}
	for name, fault := range map[string]func(leaf, parent *x509.Certificate){
		"":                  func(_, _ *x509.Certificate) {},
		"another ID":        func(l, _ *x509.Certificate) { l.URIs = []*url.URL{other} },
		"two IDs":           func(l, _ *x509.Certificate) { l.URIs = []*url.URL{l.URIs[0], other} },
		"a CA":              func(l, _ *x509.Certificate) { l.IsCA = true },
		"more usage":        func(l, _ *x509.Certificate) { l.KeyUsage |= x509.KeyUsageCertSign },
		"one usage less":    func(l, _ *x509.Certificate) { l.ExtKeyUsage = l.ExtKeyUsage[:1] },
		"no constraints":    func(l, _ *x509.Certificate) { l.BasicConstraintsValid = false },
		"a DNS name":        func(l, _ *x509.Certificate) { l.DNSNames = []string{"a.svc"} },
		"an address":        func(l, _ *x509.Certificate) { l.IPAddresses = []net.IP{net.IPv4(1, 2, 3, 4)} },
		"a longer life":     func(l, _ *x509.Certificate) { l.NotAfter = l.NotAfter.Add(time.Second) },
		"a start before":    func(l, _ *x509.Certificate) { l.NotBefore = l.NotBefore.Add(-time.Hour) },
		"another subject":   func(l, _ *x509.Certificate) { l.RawSubject = ca.RawSubject },
		"another issuer":    func(_, p *x509.Certificate) { p.RawSubject = good.RawSubject },
		"another serial":    func(l, _ *x509.Certificate) { l.SerialNumber = big.NewInt(5) },
		"unknown extension": func(l, _ *x509.Certificate) { l.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} },
	} {
		t.Run(name, func(t *testing.T) {
			l, p := template(), *parent
			fault(l, &p)
			der, err := x509.CreateCertificate(rand.Reader, l, &p, key.Public(), caKey)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := authority.CheckLeaf(leaf, template(), ca); (err == nil) != (name == "") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A record that the bundle no longer vouches for signs nothing: here the root
// was replaced.
func TestIssuingCAOfAnotherRoot(t *testing.T) {
	e, other := newEnv(t), newEnv(t)
	e.issuer, other.issuer = "", ""
	before := e.open().Bundle()
	other.open()
	for id, r := range e.records.rows {
		if r.Use == authority.Root {
			delete(e.records.rows, id)
		}
	}
	for id, r := range other.records.rows {
		if r.Use == authority.Root {
			e.records.rows[id] = r
		}
	}
	cfg := e.config()
	cfg.RootKeys = other.keys
	a, err := authority.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := chain[1].CheckSignatureFrom(a.Bundle().X509Authorities[0]); err != nil {
		t.Error(err)
	}
	if a.Bundle().Sequence <= before.Sequence {
		t.Error("another root under the old sequence number")
	}
}

// An issuing CA whose chain does not verify yet is not made.
func TestIssuingCABeforeTheRoot(t *testing.T) {
	e := newEnv(t)
	e.issuer = ""
	e.open()
	e.clock.set(start.Add(-time.Hour)) // a broker whose clock is wrong
	cfg := e.config()
	cfg.Broker = "b2"
	saves := e.records.saves
	if _, err := authority.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "against the bundle") {
		t.Errorf("error %v", err)
	}
	if e.records.saves != saves {
		t.Error("it was kept")
	}
}

// A broker whose clock was put back by years makes nothing.
func TestClockBeforeItsCA(t *testing.T) {
	e := newEnv(t)
	e.open()
	e.clock.set(start.AddDate(-2, 0, 0))
	saves := e.records.saves
	if _, err := authority.Open(t.Context(), e.config()); err == nil || !strings.Contains(err.Error(), "clock says 2024-05-04") {
		t.Errorf("error %v", err)
	}
	if e.records.saves != saves {
		t.Error("something was kept")
	}
}

// interfering keys do something while a key is made.
type interfering struct {
	authority.Keys
	during func(alg string)
}

func (k *interfering) Create(ctx context.Context, alg string) (string, crypto.Signer, error) {
	if k.during != nil {
		k.during(alg)
	}
	return k.Keys.Create(ctx, alg)
}

// A token signed while the next key is made still counts: its key stays for it.
func TestTokenSignedDuringRotation(t *testing.T) {
	e := newEnv(t)
	keys := &interfering{Keys: e.keys}
	e.keys = keys
	a := e.openReady()
	one := states(a, "ES256")[authority.Active]
	e.clock.set(start.Add(7 * day))
	i := identity.Identity{JWT: &identity.JWT{Audiences: identity.Plain("a"), Alg: "ES256", TTL: time.Hour}}
	g := grant(t, i, identity.Request{Audiences: []string{"a"}, Time: e.clock.now()})
	keys.during = func(alg string) {
		if alg != "ES256" {
			return
		}
		if _, err := a.SignJWT(t.Context(), g); err != nil {
			t.Error(err)
		}
	}
	e.tick(a)
	for _, s := range a.List() {
		if s.ID == one && (s.State != authority.Old || s.LastExpiry.Before(g.Expires().Add(-time.Minute))) {
			t.Errorf("%s until %s, a token lives until %s", s.State, s.LastExpiry, g.Expires())
		}
	}
}

// However short the lives, never more than three keys of a kind are published.
func TestThreeKeysAtMost(t *testing.T) {
	e := newEnv(t)
	e.lives.JWTKey, e.lives.Lead, e.lives.Keep = 2*time.Hour, time.Hour, 10*time.Hour
	e.records.check = threeAtMost
	a := e.open()
	seen := map[string]bool{}
	for at := time.Duration(0); at < 48*time.Hour; at += 30 * time.Minute {
		e.clock.set(start.Add(at))
		e.tick(a)
		maps.Copy(seen, map[string]bool{states(a, "ES256")[authority.Active]: true})
	}
	if len(seen) < 4 {
		t.Errorf("only %d keys were active in two days", len(seen))
	}
}
