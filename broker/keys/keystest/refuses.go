package keystest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"
)

// Refuses holds a source to refusing, by name and without asking where its keys
// are, what cannot be signed. calls says how often that was asked to sign;
// nil: it can't be told.
func Refuses(t *testing.T, ec, rs crypto.Signer, calls func() int) {
	t.Helper()
	if calls == nil {
		calls = func() int { return 0 }
	}
	before := calls()
	for name, test := range map[string]struct {
		key  crypto.Signer
		size int
		opts crypto.SignerOpts
		want string
	}{
		"message":     {ec, 10, crypto.Hash(0), "digest"},
		"no options":  {ec, 32, nil, "digest"},
		"SHA-1":       {rs, 20, crypto.SHA1, "SHA-1"},
		"short":       {ec, 31, crypto.SHA256, "31 bytes"},
		"other curve": {ec, 48, crypto.SHA384, "SHA-256 alone"},
		"salt":        {rs, 32, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}, "20 bytes"},
	} {
		if _, err := test.key.Sign(rand.Reader, make([]byte, test.size), test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if n := calls() - before; n != 0 {
		t.Errorf("it was asked %d times", n)
	}
}

// Hashes holds an RSA key to signing what asks for more than SHA-256.
func Hashes(t *testing.T, rs crypto.Signer) {
	t.Helper()
	for _, hash := range []crypto.Hash{crypto.SHA384, crypto.SHA512} {
		digest := make([]byte, hash.Size())
		if sig, err := rs.Sign(rand.Reader, digest, hash); err != nil || rsa.VerifyPKCS1v15(rs.Public().(*rsa.PublicKey), hash, digest, sig) != nil {
			t.Errorf("%v: %v", hash, err)
		}
	}
}
