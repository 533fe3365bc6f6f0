//go:build pkcs11 && cgo

package pkcs11_test

import (
	"crypto"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/credence-id/credence/broker/keys/keystest"
	"github.com/credence-id/credence/broker/keys/pkcs11"
)

const missing = "pkcs11:object=credence-root-0000000000000000;type=private"

func TestContract(t *testing.T) {
	k := newToken(t)
	keystest.Suite{
		Source:  func(t *testing.T, timeout time.Duration) keystest.Source { return k.keys(t, timeout) },
		Missing: missing,
		BadRefs: []string{strings.TrimSuffix(missing, ";type=private"), missing + ";", "pkcs11:object=other;type=private", strings.Replace(missing, "root", "r;t", 1)},
		Deny: func(t *testing.T, act string) ([]string, func()) {
			return []string{"does not permit it", "as its policy says"}, k.set(t, "denied."+act)
		},
		Hang: func(act, ref string) (<-chan struct{}, func()) { return k.hang(t, act, ref) },
	}.Run(t)
}

// A private key can sign, and nothing else; and it never leaves.
func TestAttributes(t *testing.T) {
	k := newToken(t)
	keys := k.keys(t, 0)
	for _, alg := range []string{"P256", "RS256"} {
		ref, _ := keystest.Create(t, keys, alg)
		module := p11.New(k.Module)
		defer module.Destroy()
		slots, err := module.GetSlotList(true)
		if err != nil {
			t.Fatal(err)
		}
		session, err := module.OpenSession(slots[0], p11.CKF_SERIAL_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		defer module.CloseSession(session)
		if err := module.FindObjectsInit(session, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, labelOf(ref)), p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY)}); err != nil {
			t.Fatal(err)
		}
		found, _, err := module.FindObjects(session, 2)
		if err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		if err := module.FindObjectsFinal(session); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[uint]bool{
			p11.CKA_TOKEN: true, p11.CKA_PRIVATE: true, p11.CKA_SENSITIVE: true, p11.CKA_SIGN: true, p11.CKA_EXTRACTABLE: false, p11.CKA_DECRYPT: false,
		} {
			got, err := module.GetAttributeValue(session, found[0], []*p11.Attribute{p11.NewAttribute(name, nil)})
			if err != nil || (got[0].Value[0] != 0) != want {
				t.Errorf("%s: attribute 0x%x is %v, want %v: %v", alg, name, got, want, err)
			}
		}
	}
}

// A wrong PIN is tried once, as each try counts; and again once the file has
// another.
func TestWrongPIN(t *testing.T) {
	k := newToken(t)
	write(t, k.PINFile, "another-pin\n")
	keys := k.keys(t, 0)
	for range 3 {
		_, _, err := keys.Create(t.Context(), "P256")
		if err == nil || !strings.Contains(err.Error(), "another PIN than "+k.PINFile) || !strings.Contains(err.Error(), "CKR_PIN_INCORRECT") || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "another-pin") {
			t.Fatalf("a wrong PIN: %v", err)
		}
	}
	if n := k.logins(t); n != 1 {
		t.Errorf("the PIN was tried %d times, want once", n)
	}
	write(t, k.PINFile, pin)
	keystest.Create(t, keys, "P256")
}

// The token's last try is nobody's but a person's.
func TestFinalTry(t *testing.T) {
	k := newToken(t)
	restore := k.set(t, "final")
	keys := k.keys(t, 0)
	if _, _, err := keys.Create(t.Context(), "P256"); err == nil || !strings.Contains(err.Error(), "would lock it") || k.logins(t) != 0 {
		t.Errorf("with one try left: %v, %d tries", err, k.logins(t))
	}
	restore()
	keystest.Create(t, keys, "P256")
}

// A token that was unplugged is named; once it is back, the same signer signs.
func TestUnplugged(t *testing.T) {
	k := newToken(t)
	keys := k.keys(t, 0)
	ref, key := keystest.Create(t, keys, "P256")
	sign := func() error { _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); return err }
	for range 2 {
		restore := k.set(t, "gone")
		for range 2 {
			if err := sign(); err == nil || !strings.Contains(err.Error(), "no token labelled "+label+" is there: plug it in") || strings.Contains(err.Error(), "\n") {
				t.Errorf("signing with what was unplugged: %v", err)
			}
			if _, err := keys.Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "plug it in") || strings.Contains(err.Error(), "file does not exist") {
				t.Errorf("opening what was unplugged: %v", err)
			}
		}
		restore()
		if err := sign(); err != nil {
			t.Fatalf("after it was plugged in again: %v", err)
		}
	}
	if n := k.logins(t); n != 3 {
		t.Errorf("%d logins, want one for each time that it was plugged in", n)
	}
}

func TestDamagedSignature(t *testing.T) {
	k := newToken(t)
	keys := k.keys(t, 0)
	for _, alg := range []string{"P256", "RS256"} {
		_, key := keystest.Create(t, keys, alg)
		restore := k.set(t, "damage")
		if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "not used") {
			t.Errorf("%s: %v", alg, err)
		}
		restore()
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*testing.T, *token)
		want   string
	}{
		"no module":     {func(_ *testing.T, k *token) { k.Module = "/nonexistent/p11.so" }, "module: stat /nonexistent/p11.so"},
		"no library":    {func(_ *testing.T, k *token) { k.Module = k.PINFile }, "is not a PKCS#11 library"},
		"another label": {func(_ *testing.T, k *token) { k.TokenLabel = "other" }, "no token labelled other is there"},
		"a label twice": {func(t *testing.T, k *token) {
			command(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "12345678")
		}, "2 tokens have that label"},
	} {
		k := newToken(t)
		test.change(t, k)
		if _, err := k.keys(t, 0).Open(t.Context(), missing); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if k.logins(t) != 0 {
			t.Errorf("%s: a PIN was tried", name)
		}
	}
}

func TestPINFile(t *testing.T) {
	k := newToken(t)
	for name, test := range map[string]struct {
		change func() error
		want   string
	}{
		"others read it": {func() error { return os.Chmod(k.PINFile, 0o640) }, "mode 0640"},
		"empty":          {func() error { return os.WriteFile(k.PINFile, []byte("\n"), 0o600) }, "holds no PIN"},
		"two lines":      {func() error { return os.WriteFile(k.PINFile, []byte("1\n2\n"), 0o600) }, "holds no PIN"},
		"long":           {func() error { return os.WriteFile(k.PINFile, make([]byte, 4096), 0o600) }, "holds no PIN"},
		"missing":        {func() error { return nil }, "no such file"},
		"a directory":    {func() error { return os.Mkdir(k.PINFile, 0o700) }, "not a plain file"},
	} {
		if err := os.RemoveAll(k.PINFile); err != nil {
			t.Fatal(err)
		}
		if name == "others read it" {
			write(t, k.PINFile, pin)
		}
		if err := test.change(); err != nil {
			t.Fatal(err)
		}
		if _, err := pkcs11.New(pkcs11.Config{Settings: k.Settings, Purpose: "root"}); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), k.PINFile) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// A digest that a token can't sign is refused here, by name.
func TestSignRefuses(t *testing.T) {
	keys := newToken(t).keys(t, 0)
	_, ec := keystest.Create(t, keys, "P256")
	_, rs := keystest.Create(t, keys, "RS256")
	keystest.Refuses(t, ec, rs, nil)
	keystest.Hashes(t, rs)
}
