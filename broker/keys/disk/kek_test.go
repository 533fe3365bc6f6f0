package disk_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/keys/keystest"
)

func TestContract(t *testing.T) {
	for name, kek := range map[string]string{"plain": "", "encrypted": newKEK(t)} {
		t.Run(name, func(t *testing.T) {
			cfg := config(filepath.Join(t.TempDir(), "keys"), kek)
			algs := keystest.Algorithms()
			if kek != "" {
				algs = []string{"RS256", "P256", "P384"} // the others are made alike
			}
			keystest.Suite{
				Algs:    algs,
				Source:  func(t *testing.T, _ time.Duration) keystest.Source { return mustNew(t, cfg) },
				Missing: "p256-00000000000000000000000000000000",
			}.Run(t)
		})
	}
}

func mustNew(t *testing.T, cfg disk.Config) *disk.Keys {
	t.Helper()
	k, err := disk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func config(dir, kek string, old ...string) disk.Config {
	return disk.Config{
		Dir: dir, TrustDomain: "example.org", Purpose: "issuing",
		Settings: disk.Settings{KEKFile: kek, OldKEKFiles: old},
	}
}

// newKEK makes a key-encryption key outside of any key directory.
func newKEK(t *testing.T) string {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	return writeKEK(t, key, 0o600)
}

func writeKEK(t *testing.T, data []byte, mode fs.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKEKForms(t *testing.T) {
	key := make([]byte, 32)
	rand.Read(key)
	dir := filepath.Join(t.TempDir(), "keys")
	ref, _ := create(t, mustNew(t, config(dir, writeKEK(t, key, 0o600))), "P256")
	for name, text := range map[string]string{
		"base64":          base64.StdEncoding.EncodeToString(key),
		"base64 and line": base64.StdEncoding.EncodeToString(key) + "\n",
		"base64url":       base64.RawURLEncoding.EncodeToString(key),
	} {
		k := mustNew(t, config(dir, writeKEK(t, []byte(text), 0o400)))
		if _, err := k.Open(t.Context(), ref); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	link := filepath.Join(t.TempDir(), "link") // as orchestrators mount secrets
	if err := os.Symlink(writeKEK(t, key, 0o600), link); err != nil {
		t.Fatal(err)
	}
	if _, err := mustNew(t, config(dir, link)).Open(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

func TestKEKRefused(t *testing.T) {
	data := t.TempDir()
	inData := filepath.Join(data, "kek")
	dir := filepath.Join(data, "keys")
	mustNew(t, disk.Config{Dir: dir})
	inDir := filepath.Join(dir, "kek")
	key := []byte("0123456789abcdef0123456789abcdef")
	for _, file := range []string{inData, inDir} {
		if err := os.WriteFile(file, key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	linked := filepath.Join(t.TempDir(), "kek")
	if err := os.Symlink(inData, linked); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ file, want string }{
		"missing":         {filepath.Join(t.TempDir(), "kek"), "credence broker keys"},
		"others read it":  {writeKEK(t, key, 0o640), "chmod"},
		"short":           {writeKEK(t, key[:31], 0o600), "openssl rand"},
		"and a line":      {writeKEK(t, append(bytes.Clone(key), '\n'), 0o600), "openssl rand"},
		"empty":           {writeKEK(t, nil, 0o600), "openssl rand"},
		"short base64":    {writeKEK(t, []byte(base64.StdEncoding.EncodeToString(key[:24])+"\n"), 0o600), "openssl rand"},
		"large":           {writeKEK(t, bytes.Repeat(key, 40), 0o600), "openssl rand"},
		"zero":            {writeKEK(t, make([]byte, 32), 0o600), "openssl rand"},
		"directory":       {t.TempDir(), "plain file"},
		"in data":         {inData, "elsewhere"},
		"in keys":         {inDir, "elsewhere"},
		"link into data":  {linked, "elsewhere"},
		"relative":        {"kek", "absolute"},
		"no trust domain": {writeKEK(t, key, 0o600), "trust domain"},
	} {
		cfg := config(dir, test.file)
		cfg.Data = data
		if name == "no trust domain" {
			cfg.TrustDomain = ""
		}
		_, err := disk.New(cfg)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, test.want)
		} else if strings.Contains(err.Error(), string(key[:8])) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

// A file is bound to its name, its purpose and its trust domain, and each bit
// of it counts.
func TestSealedIsBound(t *testing.T) {
	kek := newKEK(t)
	dir := filepath.Join(t.TempDir(), "keys")
	k := mustNew(t, config(dir, kek))
	ref, _ := create(t, k, "P256")
	other, _ := create(t, k, "P256")
	file, err := os.ReadFile(filepath.Join(dir, ref+".pem"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(file, []byte("BEGIN PRIVATE KEY")) {
		t.Fatal("the key is not encrypted")
	}
	purpose, domain := config(dir, kek), config(dir, kek)
	purpose.Purpose, domain.TrustDomain = "root", "example.com"
	for name, cfg := range map[string]disk.Config{"purpose": purpose, "trust domain": domain, "another key": config(dir, newKEK(t)), "no key": config(dir, "")} {
		if _, err := mustNew(t, cfg).Open(t.Context(), ref); err == nil {
			t.Errorf("opened under another %s", name)
		}
	}
	block, _ := pem.Decode(file)
	for i := range block.Bytes {
		block.Bytes[i] ^= 1
		put(t, dir, ref, pem.EncodeToMemory(block))
		block.Bytes[i] ^= 1
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	for n := range block.Bytes {
		put(t, dir, ref, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes[:n]}))
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Fatalf("opened %d bytes of it", n)
		}
	}
	put(t, dir, other, file)
	if _, err := k.Open(t.Context(), other); err == nil {
		t.Error("opened another key's file")
	}
}

func put(t *testing.T, dir, ref string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, ref+".pem"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWayOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first, second := newKEK(t), newKEK(t)
	plain, _ := create(t, mustNew(t, config(dir, "")), "P256")
	ref, _ := create(t, mustNew(t, config(dir, first)), "P256")
	for name, test := range map[string]struct{ kek, ref, want string }{
		"none":          {"", ref, "kek_file"},
		"another":       {second, ref, "old_kek_files"},
		"not encrypted": {first, plain, "rewrap"},
	} {
		_, err := mustNew(t, config(dir, test.kek)).Open(t.Context(), test.ref)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want one line with %q", name, err, test.want)
		}
	}
}

func TestRewrap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first, second := newKEK(t), newKEK(t)
	plain, a := create(t, mustNew(t, config(dir, "")), "P256")
	sealed, b := create(t, mustNew(t, config(dir, first)), "P256")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := mustNew(t, config(dir, second, first))
	if n, err := k.Rewrap(ctx); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller left: %d, %v", n, err)
	}
	if !keystest.Equal(keystest.Open(t, k, sealed).Public(), b.Public()) {
		t.Error("a key under the old one is another")
	}
	for _, want := range []int{2, 0} {
		if n, err := k.Rewrap(t.Context()); n != want || err != nil {
			t.Errorf("%d, %v; want %d replaced", n, err, want)
		}
	}
	k = mustNew(t, config(dir, second))
	if !keystest.Equal(keystest.Open(t, k, plain).Public(), a.Public()) || !keystest.Equal(keystest.Open(t, k, sealed).Public(), b.Public()) {
		t.Error("the keys are others now")
	}
	lost := mustNew(t, config(dir, newKEK(t)))
	if n, err := lost.Rewrap(t.Context()); n != 0 || err == nil {
		t.Errorf("without the old key: %d, %v", n, err)
	}
	if _, err := mustNew(t, config(dir, "")).Rewrap(t.Context()); err == nil {
		t.Error("rewrapped under no key")
	}
}

func TestSettings(t *testing.T) {
	var s disk.Settings
	text := "kek_file: /a\nold_kek_files: [/b]\n"
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(disk.Settings{KEKFile: "/a", OldKEKFiles: []string{"/b"}}, s); diff != "" || s.Validate() != nil {
		t.Error(diff, s.Validate())
	}
	for _, bad := range []disk.Settings{{OldKEKFiles: []string{"/b"}}, {KEKFile: "a"}, {KEKFile: "/a", OldKEKFiles: []string{""}}} {
		if bad.Validate() == nil {
			t.Errorf("%+v: accepted", bad)
		}
	}
}

func FuzzOpen(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "keys")
	kek := filepath.Join(f.TempDir(), "kek")
	if err := os.WriteFile(kek, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		f.Fatal(err)
	}
	k, err := disk.New(config(dir, kek))
	if err != nil {
		f.Fatal(err)
	}
	ref, _, err := k.Create(f.Context(), "P256")
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, ref+".pem"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	block, _ := pem.Decode(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, ref+".pem"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Open(t.Context(), ref); err == nil {
			if again, _ := pem.Decode(data); again == nil || !bytes.Equal(again.Bytes, block.Bytes) {
				t.Error("opened what was not sealed")
			}
		}
	})
}
