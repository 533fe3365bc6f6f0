package agent

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/agent/tpm"
	"github.com/credence-id/credence/agent/tpmseal"
)

// A seal keeps what it closes from who has the disk but not the key.
type seal struct {
	where string // "tpm", "keyring" or "plain": in a file beside what it seals
	aead  cipher.AEAD
}

const (
	sealKey   = tpmseal.KeySize
	plainFile = "svids.key"
	tpmFile   = "svids.tpm"
)

// Seals are what can keep the key, the best first: the TPM, for this machine;
// the kernel's keyring, where that keeps it over a restart of the agent, until
// the machine's; a file that its owner alone can read.
const (
	SealTPM     = "tpm"
	SealKeyring = "keyring"
	SealPlain   = "plain"
)

// CheckSeal refuses what names no seal; empty and "auto" leave it to what the
// machine has.
func CheckSeal(kind string) error {
	switch kind {
	case "", sealAuto, SealTPM, SealKeyring, SealPlain:
		return nil
	}
	return fmt.Errorf("seal: %.40q: auto, tpm, keyring or plain are wanted", kind)
}

const sealAuto = "auto"

// openSeal takes up the key of a data directory, or makes one, by the kind that
// is named, or by the best that this machine has.
func openSeal(cfg Config) (seal, error) {
	if err := CheckSeal(cfg.Seal); err != nil {
		return seal{}, err
	}
	named := cfg.Seal != "" && cfg.Seal != sealAuto
	for _, kind := range []string{SealTPM, SealKeyring} {
		if named && kind != cfg.Seal {
			continue
		}
		key, err := sealedKey(kind, cfg)
		if err == nil {
			return newSeal(kind, key)
		}
		if named {
			return seal{}, fmt.Errorf("seal: %s is named, but is not to be had: %w", kind, err)
		}
		if kind == SealTPM && !errors.Is(err, tpm.ErrAbsent) {
			cfg.Log.Warn("the TPM keeps no key for us", "error", err)
		}
	}
	key, err := plainKey(filepath.Join(cfg.Data, plainFile))
	if err != nil {
		return seal{}, err
	}
	return newSeal(SealPlain, key)
}

func sealedKey(kind string, cfg Config) ([]byte, error) {
	if kind == SealKeyring {
		return keyringKey(cfg.Data)
	}
	device := cfg.TPM
	if device == "" {
		device = tpm.Device
	}
	return tpmseal.Key(device, filepath.Join(cfg.Data, tpmFile))
}

func newSeal(where string, key []byte) (seal, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return seal{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return seal{where, aead}, err
}

func plainKey(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := newSealKey()
		return key, renameio.WriteFile(path, key, 0o600, renameio.WithTempDir(filepath.Dir(path)))
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() != sealKey {
		return nil, fmt.Errorf("%s: mode %s, %d bytes: it is not as we made it; remove it, and what it seals is lost", path, info.Mode(), info.Size())
	}
	return os.ReadFile(path)
}

func newSealKey() []byte {
	key := make([]byte, sealKey)
	_, _ = rand.Read(key) // never fails (crypto/rand.Read)
	return key
}

// sealedAs says what it is that is sealed: the key seals nothing else.
const sealedAs = "credence agent svids 1"

func (s seal) close(text []byte) []byte {
	return s.aead.Seal(nil, nil, text, []byte(sealedAs))
}

func (s seal) open(sealed []byte) ([]byte, error) {
	text, err := s.aead.Open(nil, nil, sealed, []byte(sealedAs))
	if err != nil {
		return nil, errors.New("it was not sealed with this key, or was changed")
	}
	return text, nil
}
