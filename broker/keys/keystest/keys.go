package keystest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"testing"
)

// Algorithms returns the names that every source's Create takes.
func Algorithms() []string {
	return []string{"RS256", "RSA2048", "RSA3072", "RSA4096", "ES256", "P256", "P384"}
}

// Create makes a key of alg.
func Create(t *testing.T, src Source, alg string) (string, crypto.Signer) {
	t.Helper()
	ref, key, err := src.Create(t.Context(), alg)
	if err != nil {
		t.Fatal(err)
	}
	return ref, key
}

// Open opens the key ref.
func Open(t *testing.T, src Source, ref string) crypto.Signer {
	t.Helper()
	key, err := src.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Equal says whether two public keys are one.
func Equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// CheckKind holds pub against what alg promises.
func CheckKind(t *testing.T, alg string, pub crypto.PublicKey) {
	t.Helper()
	want := map[string]string{
		"RS256": "RSA 2048", "RSA2048": "RSA 2048", "RSA3072": "RSA 3072", "RSA4096": "RSA 4096",
		"ES256": "EC P-256", "P256": "EC P-256", "P384": "EC P-384",
	}[alg]
	got := fmt.Sprintf("%T", pub)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		got = "EC " + k.Curve.Params().Name
	case *rsa.PublicKey:
		got = fmt.Sprint("RSA ", k.N.BitLen())
	}
	if got != want {
		t.Errorf("%s made a key of %s, want %s", alg, got, want)
	}
}

func (s Suite) signs(t *testing.T, key crypto.Signer) {
	t.Helper()
	if err := signs(key); err != nil {
		t.Fatal(err)
	}
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		return
	}
	err := signsPSS(key)
	if s.NoPSS {
		if err == nil || errors.Is(err, rsa.ErrVerification) {
			t.Errorf("a PSS signature was not refused: %v", err)
		}
	} else if err != nil {
		t.Error(err)
	}
	if _, err := key.Sign(rand.Reader, make([]byte, 31), crypto.SHA256); err == nil {
		t.Error("signed a digest of another length")
	}
}

// signs signs once, as a certificate would be, and verifies.
func signs(key crypto.Signer) error {
	text := make([]byte, 64)
	rand.Read(text)
	sum := sha256.Sum256(text)
	digest, hash := sum[:], crypto.SHA256
	if k, ok := key.Public().(*ecdsa.PublicKey); ok && k.Curve.Params().BitSize == 384 {
		sum := sha512.Sum384(text)
		digest, hash = sum[:], crypto.SHA384
	}
	sig, err := key.Sign(rand.Reader, digest, hash)
	if err != nil {
		return err
	}
	switch k := key.Public().(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, digest, sig) {
			return errors.New("the signature does not verify")
		}
		return nil
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, hash, digest, sig)
	}
	return fmt.Errorf("a public key of type %T", key.Public())
}

func signsPSS(key crypto.Signer) error {
	digest := sha256.Sum256([]byte("pss"))
	opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	sig, err := key.Sign(rand.Reader, digest[:], opts)
	if err != nil {
		return err
	}
	return rsa.VerifyPSS(key.Public().(*rsa.PublicKey), crypto.SHA256, digest[:], sig, opts)
}
