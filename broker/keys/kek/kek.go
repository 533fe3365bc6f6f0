// Package kek encrypts private keys under key-encryption keys, which files hold
// that lie elsewhere than what they lock. One is for all that is encrypted from now
// on; old ones open what is not encrypted anew yet.
//
// It trusts the files' owner: us, or root. What a sealed key is bound to, and
// where it is kept, is left to its callers. What encryption keeps a thief of the
// disk, of the database or of a backup from, it does not keep from who reads our
// memory.
package kek

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/credence-id/credence/broker/keys"
)

// Settings are what broker.yaml may say of key-encryption keys.
type Settings struct {
	// KEKFile holds the key-encryption key: 32 random bytes, or these in base64.
	// Mode 0600 (root's: 0440 for a group of ours, too), and not in the broker's data directory, whose backup would
	// carry the lock and its key. Empty: keys are not encrypted.
	KEKFile string `yaml:"kek_file"`
	// OldKEKFiles hold those under which keys may still be: a rewrap encrypts them
	// under KEKFile.
	OldKEKFiles []string `yaml:"old_kek_files"`
}

// Validate refuses settings that contradict each other. It reads no file.
func (s Settings) Validate() error {
	if s.KEKFile == "" && len(s.OldKEKFiles) > 0 {
		return errors.New("old_kek_files: kek_file is wanted beside it: the key to encrypt under from now on")
	}
	for i, file := range append([]string{s.KEKFile}, s.OldKEKFiles...) {
		if i > 0 && file == "" {
			return errors.New("old_kek_files: one of them has no name")
		}
		if file != "" && !filepath.IsAbs(file) {
			return fmt.Errorf("kek_file: %q: an absolute path is wanted", file)
		}
	}
	return nil
}

// A sealed key is version, key-encryption key's ID, nonce, ciphertext.
const (
	version   = 1
	idSize    = 8
	nonceSize = 12
	headSize  = 1 + idSize
)

// Lost is the way out where a key-encryption key is.
const Lost = "if it is lost, so is every key under it: restore it from where you keep it, else put another there (openssl rand -base64 32), and credence broker keys says how to go on"

// A kek is a key-encryption key, ready for use.
type kek struct {
	id       [idSize]byte
	aead     cipher.AEAD
	snapshot []byte // see Snapshots
}

// A Ring holds the key-encryption keys: the first is the one to encrypt under.
type Ring struct{ keks []kek }

// New reads the key-encryption keys: files that are ours or root's, nobody else's
// to read (but see keys.CheckSecret), and in none of the directories outside.
func New(s Settings, outside ...string) (*Ring, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.KEKFile == "" {
		return nil, errors.New("kek_file: the file of a key-encryption key is wanted")
	}
	r := &Ring{}
	for _, file := range append([]string{s.KEKFile}, s.OldKEKFiles...) {
		k, err := read(file, outside)
		if err != nil {
			return nil, fmt.Errorf("reading the key-encryption key %s: %w", file, err)
		}
		r.keks = append(r.keks, k)
	}
	return r, nil
}

// Bound are words as they are bound to a key: no two lists of words are the same
// bytes. The first says what it is for.
func Bound(first string, words ...string) []byte {
	to := []byte(first)
	for _, w := range words {
		to = append(binary.BigEndian.AppendUint32(to, uint32(len(w))), w...)
	}
	return to
}

// read reads one key-encryption key. Links are followed, as secrets that an
// orchestrator mounts are links; what they lead to is checked.
func read(file string, outside []string) (kek, error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return kek{}, fmt.Errorf("%w; %s", err, Lost)
	}
	for _, dir := range outside {
		if dir != "" && within(real, dir) {
			return kek{}, fmt.Errorf("it lies in %s, with what it locks: keep it elsewhere", dir)
		}
	}
	f, err := keys.OpenSecret(real)
	if err != nil {
		return kek{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 129))
	if err != nil {
		return kek{}, err
	}
	return parse(data)
}

// within says whether file lies in dir, by its real path.
func within(file, dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return true
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	rel, err := filepath.Rel(dir, file)
	return err != nil || rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// parse takes 32 bytes, or their base64 on a line. Its errors hold no byte of
// them.
func parse(data []byte) (kek, error) {
	secret := data
	if len(data) != 32 {
		text := strings.TrimRight(string(bytes.TrimSpace(data)), "=")
		text = strings.NewReplacer("-", "+", "_", "/").Replace(text)
		decoded, err := base64.RawStdEncoding.Strict().DecodeString(text)
		if err != nil || len(decoded) != 32 {
			return kek{}, errors.New("neither 32 bytes nor the base64 of 32 bytes: openssl rand -base64 32 makes one")
		}
		secret = decoded
	}
	if bytes.Count(secret, secret[:1]) == len(secret) {
		return kek{}, errors.New("all its bytes are the same: openssl rand -base64 32 makes one")
	}
	var k kek
	id, err := hkdf.Key(sha256.New, secret, nil, "credence key-encryption key: id", idSize)
	if err != nil {
		return kek{}, err
	}
	copy(k.id[:], id)
	key, err := hkdf.Key(sha256.New, secret, nil, "credence key-encryption key: aes-256-gcm", 32)
	if err != nil {
		return kek{}, err
	}
	if k.snapshot, err = hkdf.Key(sha256.New, secret, nil, "credence key-encryption key: snapshot of the database", 32); err != nil {
		return kek{}, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return kek{}, err
	}
	k.aead, err = cipher.NewGCM(block)
	return k, err
}

// Seal encrypts a key under the first key-encryption key. It opens with the same
// bound and name alone.
func (r *Ring) Seal(key, bound []byte, name string) []byte {
	k := r.keks[0]
	head := append([]byte{version}, k.id[:]...)
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails: it ends the program instead
	return append(head, k.aead.Seal(nonce, nonce, key, data(bound, head, name))...)
}

// data is what is authenticated beside the key: the header, whose it is, and
// its name.
func data(bound, head []byte, name string) []byte {
	to := append(bytes.Clone(bound), head...)
	return append(binary.BigEndian.AppendUint32(to, uint32(len(name))), name...)
}

// Open decrypts a sealed key, and says whether it is under the first
// key-encryption key. An error names the one that is missing.
func (r *Ring) Open(sealed, bound []byte, name string) (key []byte, current bool, err error) {
	if len(sealed) < headSize+nonceSize || sealed[0] != version {
		return nil, false, errors.New("it is encrypted in a form that this version does not know, or damaged")
	}
	head, nonce, text := sealed[:headSize], sealed[headSize:headSize+nonceSize], sealed[headSize+nonceSize:]
	for i, k := range r.keks {
		if !bytes.Equal(k.id[:], head[1:]) {
			continue
		}
		key, err := k.aead.Open(nil, nonce, text, data(bound, head, name))
		if err != nil {
			return nil, false, errors.New("it does not decrypt: damaged or tampered with, or another key's, purpose's or trust domain's: restore it from a backup")
		}
		return key, i == 0, nil
	}
	return nil, false, fmt.Errorf("it is encrypted under key-encryption key %s, kek_file holds %s: name the file of the first in old_kek_files, or in kek_file if it is the newer one, and rewrap; %s",
		ID(sealed), hex.EncodeToString(r.keks[0].id[:]), Lost)
}

// Snapshots are secrets for copies of the database on the broker's own disk, one
// of each key-encryption key, the one in use first.
func (r *Ring) Snapshots() (all [][]byte) {
	for _, k := range r.keks {
		all = append(all, k.snapshot)
	}
	return all
}

// ID names the key-encryption key that a sealed key is under.
func ID(sealed []byte) string {
	if len(sealed) < headSize {
		return "unknown"
	}
	return hex.EncodeToString(sealed[1:headSize])
}
