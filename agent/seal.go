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
)

// A seal keeps what it closes from who has the disk but not the key.
type seal struct {
	where string // "keyring" or "plain": in a file beside what it seals
	aead  cipher.AEAD
}

const (
	sealKey   = 32
	plainFile = "svids.key"
)

// openSeal takes up the key of a data directory, or makes one. It is in the
// kernel's keyring where that keeps it over a restart of the agent, and is gone
// with the machine's; else in a file that its owner alone can read.
func openSeal(dir string) (seal, error) {
	if key, err := keyringKey(dir); err == nil {
		return newSeal("keyring", key)
	}
	key, err := plainKey(filepath.Join(dir, plainFile))
	if err != nil {
		return seal{}, err
	}
	return newSeal("plain", key)
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
