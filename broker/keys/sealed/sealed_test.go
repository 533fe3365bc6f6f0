package sealed_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/keys/kek"
	"github.com/credence-id/credence/broker/keys/keystest"
	"github.com/credence-id/credence/broker/keys/sealed"
)

func newKEK(t *testing.T) string {
	t.Helper()
	file, key := filepath.Join(t.TempDir(), "kek"), make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func config(t *testing.T, file string, old ...string) sealed.Config {
	return sealed.Config{Settings: kek.Settings{KEKFile: file, OldKEKFiles: old}, Data: t.TempDir(), TrustDomain: "example.org", Purpose: "authority"}
}

func mustNew(t *testing.T, cfg sealed.Config) *sealed.Keys {
	t.Helper()
	k, err := sealed.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A sealed key opens for what it was sealed for, and for nothing else: each word,
// where one ends, their order, the trust domain and each bit count.
func TestBound(t *testing.T) {
	file := newKEK(t)
	cfg := config(t, file)
	k := mustNew(t, cfg)
	for _, alg := range []string{"ES256", "RS256", "P384"} {
		_, key, err := k.Create(t.Context(), alg)
		if err != nil {
			t.Fatal(err)
		}
		bound := []string{"id", "jwt", alg, "active"}
		data, err := k.Seal(key, bound...)
		if err != nil {
			t.Fatal(err)
		}
		again, err := mustNew(t, cfg).Unseal(data, bound...)
		if err != nil || !keystest.Equal(again.Public(), key.Public()) {
			t.Fatalf("%s: %v", alg, err)
		}
		for name, words := range map[string][]string{
			"state": {"id", "jwt", alg, "published"}, "key": {"other", "jwt", alg, "active"}, "use": {"id", "root", alg, "active"},
			"border": {"idj", "wt", alg, "active"}, "order": {"jwt", "id", alg, "active"}, "fewer": bound[:3], "none": nil,
		} {
			if _, err := k.Unseal(data, words...); err == nil {
				t.Errorf("%s: opened for another %s", alg, name)
			}
		}
		for i := range data {
			bad := slices.Clone(data)
			bad[i] ^= 1
			if _, err := k.Unseal(bad, bound...); err == nil {
				t.Fatalf("%s: opened with byte %d changed", alg, i)
			}
		}
		domain, purpose := cfg, cfg
		domain.TrustDomain, purpose.Purpose = "example.com", "root"
		for _, other := range []sealed.Config{domain, purpose, config(t, newKEK(t))} {
			if _, err := mustNew(t, other).Unseal(data, bound...); err == nil {
				t.Errorf("%s: opened by %+v", alg, other)
			}
		}
	}
}

// Under a new key-encryption key the old ones open, and it says which is missing.
func TestOldKEK(t *testing.T) {
	first, second := newKEK(t), newKEK(t)
	k := mustNew(t, config(t, first))
	_, key, err := k.Create(t.Context(), "ES256")
	if err != nil {
		t.Fatal(err)
	}
	data, err := k.Seal(key, "id")
	if err != nil {
		t.Fatal(err)
	}
	for want, k := range map[bool]*sealed.Keys{true: k, false: mustNew(t, config(t, second, first))} {
		if current, err := k.Current(data, "id"); err != nil || current != want {
			t.Errorf("current %t, want %t: %v", current, want, err)
		}
	}
	if _, err := mustNew(t, config(t, second)).Unseal(data, "id"); err == nil || !strings.Contains(err.Error(), kek.ID(data)) || !strings.Contains(err.Error(), "old_kek_files") {
		t.Errorf("without the old one: %v", err)
	}
}

func TestRefused(t *testing.T) {
	file := newKEK(t)
	for name, change := range map[string]func(*sealed.Config){
		"no file":          func(c *sealed.Config) { c.KEKFile = "" },
		"in the data":      func(c *sealed.Config) { c.Data = filepath.Dir(file) },
		"no data":          func(c *sealed.Config) { c.Data = "" },
		"no trust domain":  func(c *sealed.Config) { c.TrustDomain = "" },
		"no purpose":       func(c *sealed.Config) { c.Purpose = "" },
		"a file that isnt": func(c *sealed.Config) { c.KEKFile += "2" },
	} {
		cfg := config(t, file)
		change(&cfg)
		if _, err := sealed.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	k := mustNew(t, config(t, file))
	if _, err := k.Open(t.Context(), "sealed:p256-00"); err == nil {
		t.Error("opened by a name")
	}
	if _, _, err := k.Create(t.Context(), "P521"); err == nil {
		t.Error("made a key of P521")
	}
}
