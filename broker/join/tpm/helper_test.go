package tpm_test

import (
	stdcontext "context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/join"
)

type context = stdcontext.Context

func refused(t testing.TB, what string, err error, why string) {
	t.Helper()
	if !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: it is taken, or refused for another reason than %q: %v", what, why, err)
	}
}

// other is a key that is in no TPM.
func other(t testing.TB) crypto.PublicKey {
	t.Helper()
	return newKey(t).Public()
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
