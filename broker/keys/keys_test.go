package keys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"io"
	"testing"

	"github.com/credence-id/credence/broker/keys"
	"github.com/credence-id/credence/broker/keys/keystest"
)

// checked asks as a source does.
type checked struct {
	crypto.Signer
	calls int
}

func (c *checked) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, err := keys.Asked(c.Public(), digest, opts); err != nil {
		return nil, err
	}
	c.calls++
	return c.Signer.Sign(r, digest, opts)
}

func TestVerifies(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, 32)
	for name, test := range map[string]struct {
		key   crypto.Signer
		opts  crypto.SignerOpts
		other crypto.SignerOpts // a signature that counts as none; nil: a flipped bit alone
	}{
		"ECDSA":       {ec, crypto.SHA256, nil},
		"PKCS #1":     {rs, crypto.SHA256, &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}},
		"PSS":         {rs, &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}, crypto.SHA256},
		"PSS by hash": {rs, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}, crypto.SHA256},
	} {
		t.Run(name, func(t *testing.T) {
			asked, err := keys.Asked(test.key.Public(), digest, test.opts)
			if err != nil {
				t.Fatal(err)
			}
			sig, err := test.key.Sign(rand.Reader, digest, test.opts)
			if err != nil || !asked.Verifies(test.key.Public(), digest, sig) {
				t.Fatalf("its own signature: %v", err)
			}
			sig[len(sig)-1] ^= 1
			if asked.Verifies(test.key.Public(), digest, sig) {
				t.Error("a flipped bit passes")
			}
			if test.other == nil {
				return
			}
			if sig, err = test.key.Sign(rand.Reader, digest, test.other); err != nil || asked.Verifies(test.key.Public(), digest, sig) {
				t.Errorf("another padding passes: %v", err)
			}
		})
	}
	if (keys.Signature{Hash: crypto.SHA256}).Verifies(nil, digest, nil) {
		t.Error("no key verifies")
	}
}

func TestAsked(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, r := &checked{Signer: ec}, &checked{Signer: rs}
	keystest.Refuses(t, e, r, func() int { return e.calls + r.calls })
	keystest.Hashes(t, r)
}
