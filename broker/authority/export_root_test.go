package authority_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/credence-id/credence/broker/authority"
)

// kms keeps keys as a service does: they sign, and never leave.
type kms map[string]crypto.Signer

type remote struct{ crypto.Signer }

func (k kms) Create(context.Context, string) (string, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	ref := "kms:" + rand.Text()
	k[ref] = remote{key}
	return ref, remote{key}, nil
}

func (k kms) Open(_ context.Context, ref string) (crypto.Signer, error) {
	if key, ok := k[ref]; ok {
		return key, nil
	}
	return nil, errors.New("no such key")
}

// An exported root is the whole of it; where the key stays, it says so.
func TestExportRoot(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	done, err := a.ExportRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(done.Certificate)
	if err != nil || !cert.Equal(a.Bundle().X509Authorities[0]) {
		t.Errorf("certificate %v (%v)", cert, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(done.Key)
	if err != nil || !key.(*ecdsa.PrivateKey).PublicKey.Equal(cert.PublicKey) {
		t.Errorf("it is not the root's key: %v", err)
	}
	if _, err := a.RemoveRootKey(t.Context(), done.Root.ID); !errors.Is(err, authority.ErrRefused) {
		t.Errorf("the key that signs issuing CAs is removed: %v", err)
	}

	e = newEnv(t)
	e.change = func(c *authority.Config) { c.RootKeys = kms{} }
	a = e.open()
	if done, err := a.ExportRoot(t.Context()); !errors.Is(err, authority.ErrRefused) || len(done.Key) > 0 {
		t.Errorf("from a service: %v", err)
	}
}

// Under our own root a CA of ours signs as under a corporate one, and the bundle
// stays as it was.
func TestInstallUnderOurOwnRoot(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	before := a.Bundle().Document
	done, err := a.ExportRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(done.Key)
	if err != nil {
		t.Fatal(err)
	}
	offline := &pki{t: t, key: key.(*ecdsa.PrivateKey), cert: a.Bundle().X509Authorities[0]}
	got, err := a.Install(t.Context(), offline.grant(csrOf(t, a, false), 1000*day, start, nil))
	if err != nil || got.CA.State != authority.Active || got.Anchor.ID != done.Root.ID {
		t.Fatal(got, err)
	}
	if !bytes.Equal(before, a.Bundle().Document) {
		t.Error("the bundle has changed")
	}
	for _, st := range a.List() {
		if st.Use == authority.Issuing && st.State == authority.Active && st.Root != done.Root.ID {
			t.Errorf("the issuing CA stands under %s", st.Root)
		}
	}
	if _, err := a.RemoveRootKey(t.Context(), "another"); !errors.Is(err, authority.ErrRefused) {
		t.Errorf("with a copy of another root: %v", err)
	}
}
