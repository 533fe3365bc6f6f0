package tpm_test

import (
	stdcontext "context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	evidence "github.com/credence-id/credence/agent/evidence/tpm"
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

func digest(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// attestationKey is the one that a machine shows.
func attestationKey(t testing.TB, n *evidence.Node) []byte {
	t.Helper()
	shown, err := n.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ AK []byte }
	if err := json.Unmarshal(shown, &e); err != nil {
		t.Fatal(err)
	}
	return e.AK
}

// activate is TPM2_ActivateCredential for a key that is loaded, without and with an empty
// policy.
func activate(t testing.TB, dev transport.TPM, handle tpm2.TPMHandle, name tpm2.TPM2BName, challenge []byte) error {
	t.Helper()
	var c struct{ Credential, Secret []byte }
	if err := json.Unmarshal(challenge, &c); err != nil {
		t.Fatal(err)
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	var all []error
	for _, auth := range []tpm2.Session{tpm2.PasswordAuth(nil), tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(transport.TPM, tpm2.TPMISHPolicy, tpm2.TPM2BNonce) error { return nil }), tpm2.HMAC(tpm2.TPMAlgSHA256, 16)} {
		_, err := tpm2.ActivateCredential{
			ActivateHandle: tpm2.AuthHandle{Handle: handle, Name: name, Auth: auth},
			KeyHandle: tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(dev transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: session, NonceTPM: nonce}.Execute(dev)
				return err
			})},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
		}.Execute(dev)
		if err == nil {
			return nil
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}
