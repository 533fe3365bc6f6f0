package x509_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/evidence/x509"
)

// A certificate that is renewed while the node joins by it: the key of the one that
// was shown answers; and the next join shows the new one.
func TestRenewedMeanwhile(t *testing.T) {
	var keys []*ecdsa.PrivateKey
	n := x509.New(x509.Config{Method: "spiffe", TrustDomain: "example.org", Pair: func(context.Context) (tls.Certificate, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		keys = append(keys, key)
		return tls.Certificate{Certificate: [][]byte{{byte(len(keys))}}, PrivateKey: key}, err
	}})
	challenge := make([]byte, 32)
	if _, err := n.Answer(t.Context(), challenge, []byte("key")); err == nil {
		t.Error("it answers before it has shown anything")
	}
	for i, want := range []string{`{"chain":["AQ=="]}`, `{"chain":["Ag=="]}`} {
		shown, err := n.Evidence(t.Context())
		if err != nil || string(shown) != want {
			t.Fatalf("%s: %v", shown, err)
		}
		answer, err := n.Answer(t.Context(), challenge, []byte("key"))
		if err != nil {
			t.Fatal(err)
		}
		joining := sha256.Sum256([]byte("key"))
		sum := sha256.Sum256(slices.Concat([]byte("credence join spiffe 1\x00example.org\x00"), challenge, joining[:]))
		if len(keys) != i+1 || !ecdsa.VerifyASN1(&keys[i].PublicKey, sum[:], answer) {
			t.Errorf("join %d: of %d keys another answered", i, len(keys))
		}
	}
	if _, err := n.Answer(t.Context(), []byte("POST /transfer"), nil); err == nil {
		t.Error("it signs whatever it is sent")
	}
}

func TestNothingToShow(t *testing.T) {
	away := errors.New("away")
	n := x509.New(x509.Config{Pair: func(context.Context) (tls.Certificate, error) { return tls.Certificate{}, away }})
	if _, err := n.Evidence(t.Context()); !errors.Is(err, away) {
		t.Error(err)
	}
	missing := filepath.Join(t.TempDir(), "none.pem")
	if _, err := x509.Files(missing, missing)(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "reading join.cert and join.key: ") {
		t.Error(err)
	}
}
