package tpmseal_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/credence-id/credence/agent/tpm"
	"github.com/credence-id/credence/agent/tpmseal"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
)

func TestKeyStays(t *testing.T) {
	device := tpmtest.Start(t)
	file := filepath.Join(t.TempDir(), "key")
	first, err := tpmseal.Key(device, file)
	if err != nil || len(first) != tpmseal.KeySize || bytes.Equal(first, make([]byte, tpmseal.KeySize)) {
		t.Fatalf("%x %v", first, err)
	}
	text, err := os.ReadFile(file)
	if err != nil || bytes.Contains(text, first) {
		t.Fatalf("the file holds the key: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	for range 8 { // nothing stays loaded: a TPM has room for three
		again, err := tpmseal.Key(device, file)
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("later: %x %v", again, err)
		}
	}
	other, err := tpmseal.Key(device, file+".other")
	if err != nil || bytes.Equal(first, other) {
		t.Errorf("another file's: %x %v", other, err)
	}
}

// A copy of the disk opens in no other machine, and that machine gets a key of
// its own.
func TestAnotherTPM(t *testing.T) {
	here, there := tpmtest.Start(t), tpmtest.Start(t)
	file := filepath.Join(t.TempDir(), "key")
	first, err := tpmseal.Key(here, file)
	if err != nil {
		t.Fatal(err)
	}
	other, err := tpmseal.Key(there, file)
	if err != nil || bytes.Equal(first, other) {
		t.Fatalf("%x %v", other, err)
	}
	if again, err := tpmseal.Key(there, file); err != nil || !bytes.Equal(other, again) {
		t.Errorf("later: %x %v", again, err)
	}
}

func TestRefusals(t *testing.T) {
	if _, err := tpmseal.Key(filepath.Join(t.TempDir(), "none"), "x"); !errors.Is(err, tpm.ErrAbsent) {
		t.Errorf("no device: %v", err)
	}
	if _, err := tpmseal.Key(os.DevNull, filepath.Join(t.TempDir(), "x")); err == nil || errors.Is(err, tpm.ErrAbsent) {
		t.Errorf("a device that is none: %v", err)
	}
	device := tpmtest.Start(t)
	file := filepath.Join(t.TempDir(), "key")
	if _, err := tpmseal.Key(device, file); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"others may read it": func() error { return os.Chmod(file, 0o644) },
		"half of it":         func() error { return os.WriteFile(file, good[:len(good)/2], 0o600) },
		"something follows":  func() error { return os.WriteFile(file, append(bytes.Clone(good), 0), 0o600) },
		"another's":          func() error { return os.WriteFile(file, []byte("-----BEGIN"), 0o600) },
		"long":               func() error { return os.WriteFile(file, append(bytes.Clone(good), make([]byte, 8<<10)...), 0o600) },
		"a link":             func() error { return errors.Join(os.Rename(file, file+".1"), os.Symlink(file+".1", file)) },
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(file) // a link
			if err := errors.Join(os.WriteFile(file, good, 0o600), os.Chmod(file, 0o600), spoil()); err != nil {
				t.Fatal(err)
			}
			if key, err := tpmseal.Key(device, file); err == nil {
				t.Errorf("it gives %x", key)
			}
		})
	}
}

// FuzzFile looks for a file that is read as something else than what was written.
func FuzzFile(f *testing.F) {
	f.Add([]byte("credence tpm 1\n\x00\x02\x00\x00\x00\x02\x00\x00"))
	f.Add([]byte("credence tpm 1\n\xff\xff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if again, err := tpmseal.Again(text); err == nil && !bytes.Equal(text, again) {
			t.Errorf("%x became %x", text, again)
		}
	})
}
