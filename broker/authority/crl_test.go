package authority_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// crlOf is the current list of an issuer, held against its certificate.
func crlOf(t *testing.T, a *authority.Authority, issuer string) (authority.CRL, *x509.RevocationList) {
	t.Helper()
	for _, l := range a.CRLs() {
		if l.Issuer != issuer {
			continue
		}
		list, err := x509.ParseRevocationList(l.DER)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := x509.ParseCertificate(l.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(ca); err != nil {
			t.Fatal(err)
		}
		return l, list
	}
	t.Fatalf("%s has no list", issuer)
	return authority.CRL{}, nil
}

func serialsOn(list *x509.RevocationList) (all []int64) {
	for _, e := range list.RevokedCertificateEntries {
		all = append(all, e.SerialNumber.Int64())
	}
	return all
}

// The list is one that OpenSSL and Go verify, and a leaf on it is one that
// OpenSSL refuses.
func TestCRLVerifies(t *testing.T) {
	e := newEnv(t)
	e.change = func(c *authority.Config) { c.CRLURLs = []string{"http://crl.example.org/%s.crl"} }
	a := e.open()
	key := newKey(t)
	chain, err := a.SignX509(t.Context(), nodeGrant(t, key.Public(), start, time.Hour), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	issuing := of(a, authority.Issuing, authority.Active).ID
	if want := "http://crl.example.org/" + issuing + ".crl"; len(chain[0].CRLDistributionPoints) != 1 || chain[0].CRLDistributionPoints[0] != want {
		t.Errorf("distribution points %v, want %s", chain[0].CRLDistributionPoints, want)
	}
	changed := a.CRLsChanged()
	err = a.Revoke(t.Context(), []authority.Revocation{{Serial: chain[0].SerialNumber, Issuer: issuing, NotAfter: chain[0].NotAfter, Reason: "lost"}})
	if err != nil {
		t.Fatal(err)
	}
	if !closed(changed) || closed(a.CRLsChanged()) {
		t.Error("nobody is told of it, or it is told without end")
	}
	l, list := crlOf(t, a, issuing)
	if len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(chain[0].SerialNumber) != 0 {
		t.Errorf("it holds %v", list.RevokedCertificateEntries)
	}
	if list.NextUpdate.Sub(start) != 24*hour || list.Number.Cmp(l.Number) != 0 {
		t.Errorf("next update %s, number %s", list.NextUpdate, list.Number)
	}
	root := of(a, authority.Root, authority.Active).ID
	rootList, _ := crlOf(t, a, root)
	dir := t.TempDir()
	crl, rootCRL := filepath.Join(dir, "issuing.der"), filepath.Join(dir, "root.der")
	writeDER(t, crl, l.DER)
	writeDER(t, rootCRL, rootList.DER)
	anchor, ca, leaf := certFile(t, "root.pem", a.Bundle().X509Authorities[0]), certFile(t, "ca.pem", chain[1]), certFile(t, "leaf.pem", chain[0])
	if out, ok := openssl(t, "crl", "-inform", "DER", "-in", crl, "-noout", "-verify", "-CAfile", ca); !ok || !bytes.Contains([]byte(out), []byte("verify OK")) {
		t.Errorf("openssl crl: %s", out)
	}
	verify := []string{"verify", "-x509_strict", "-attime", "1777890100", "-CAfile", anchor, "-untrusted", ca}
	if out, ok := openssl(t, append(verify, leaf)...); !ok {
		t.Errorf("without CRLs: %s", out)
	}
	if out, ok := openssl(t, append(append(verify, "-crl_check_all", "-CRLfile", crl, "-CRLfile", rootCRL), leaf)...); ok || !bytes.Contains([]byte(out), []byte("certificate revoked")) {
		t.Errorf("with CRLs: %s", out)
	}
}

func TestRevokeOnce(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	issuing := of(a, authority.Issuing, authority.Active).ID
	revoke := func(serial int64, life time.Duration) {
		t.Helper()
		err := a.Revoke(t.Context(), []authority.Revocation{{Serial: big.NewInt(serial), Issuer: issuing, NotAfter: e.clock.now().Add(life)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	revoke(7, hour)
	first, _ := crlOf(t, a, issuing)
	saves := e.records.listSaves
	revoke(7, 2*hour)
	revoke(8, 0) // it has ended
	again, list := crlOf(t, a, issuing)
	if e.records.listSaves != saves || again.Number.Cmp(first.Number) != 0 || len(serialsOn(list)) != 1 {
		t.Errorf("%d saves, number %s after %s, %v", e.records.listSaves-saves, again.Number, first.Number, serialsOn(list))
	}
	// What has ended leaves the list after it was on one made later, and the store.
	e.clock.set(start.Add(2 * hour))
	revoke(9, 3*hour)
	if _, list = crlOf(t, a, issuing); len(serialsOn(list)) != 2 {
		t.Errorf("after its end: %v", serialsOn(list))
	}
	e.clock.set(start.Add(3 * hour))
	revoke(10, 3*hour)
	if _, list = crlOf(t, a, issuing); len(serialsOn(list)) != 2 || serialsOn(list)[0] != 9 {
		t.Errorf("later: %v", serialsOn(list))
	}
	if len(e.records.revoked) != 2 {
		t.Errorf("kept: %v", e.records.revoked)
	}
}

// A CA that is revoked itself needs no list, and what would be on it is not kept.
func TestRevokeUnderARevokedCA(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	bad := of(a, authority.Issuing, authority.Active).ID
	if _, err := a.ReplaceIssuing(t.Context(), "lost"); err != nil {
		t.Fatal(err)
	}
	if err := a.Revoke(t.Context(), []authority.Revocation{{Serial: big.NewInt(7), Issuer: bad, NotAfter: start.Add(hour)}}); err != nil {
		t.Fatal(err)
	}
	if len(e.records.revoked) > 0 {
		t.Errorf("kept: %v", e.records.revoked)
	}
}

func TestRevokeFull(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	issuing := of(a, authority.Issuing, authority.Active).ID
	var all []authority.Revocation
	for n := range int64(authority.MaxRevoked + 5) {
		all = append(all, authority.Revocation{Serial: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 126), big.NewInt(n)), Issuer: issuing, At: start, NotAfter: start.Add(hour)})
	}
	e.records.revoked = all[:authority.MaxRevoked-1] // the fake is slow with many
	if err := a.Revoke(t.Context(), all); !errors.Is(err, authority.ErrFull) {
		t.Fatalf("error %v, want that it is full", err)
	}
	l, list := crlOf(t, a, issuing)
	if n := len(list.RevokedCertificateEntries); n != authority.MaxRevoked || len(e.records.revoked) != n {
		t.Errorf("%d entries, %d kept", n, len(e.records.revoked))
	}
	if len(l.DER) > 1<<20 {
		t.Errorf("a full list of %d bytes is more than readers take", len(l.DER))
	}
	if err := a.Revoke(t.Context(), all[:1]); err != nil {
		t.Errorf("one that is on it: %v", err)
	}
}

// Lists are made anew at half of their life, and no number comes twice.
func TestCRLRepublished(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	root := of(a, authority.Root, authority.Active).ID
	last, _ := crlOf(t, a, root)
	changed := a.CRLsChanged()
	e.clock.set(start.Add(12*hour - time.Second))
	e.tick(a)
	if l, _ := crlOf(t, a, root); l.Number.Cmp(last.Number) != 0 {
		t.Error("made anew before half of its life")
	}
	for n := 1; n <= 3; n++ {
		e.clock.set(start.Add(time.Duration(n) * 12 * hour))
		e.tick(a)
		l, list := crlOf(t, a, root)
		if l.Number.Cmp(last.Number) <= 0 || !list.NextUpdate.Equal(e.clock.now().Add(24*hour)) || !closed(changed) {
			t.Fatalf("after %d halves: number %s after %s, until %s", n, l.Number, last.Number, list.NextUpdate)
		}
		last, changed = l, a.CRLsChanged()
	}
	e.clock.set(start.Add(10 * day)) // nothing ran
	if lists := a.CRLs(); len(lists) > 0 {
		t.Errorf("%d lists are past their next update", len(lists))
	}
}
