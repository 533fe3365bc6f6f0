package disk

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
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

const (
	plainType  = "PRIVATE KEY"
	sealedType = "CREDENCE ENCRYPTED KEY"
)

// A sealed block is version, key-encryption key's ID, nonce, ciphertext.
const (
	version   = 1
	idSize    = 8
	nonceSize = 12
	headSize  = 1 + idSize
)

// lost is the way out where a key-encryption key is.
const lost = "if it is lost, so is every key under it: restore it from where you keep it, else put another there (openssl rand -base64 32), and credence broker keys says how to go on"

// A kek is a key-encryption key, ready for use.
type kek struct {
	id       [idSize]byte
	aead     cipher.AEAD
	snapshot []byte // see SnapshotKeys
}

// A sealer encrypts keys under the first of its key-encryption keys; Rewrap
// decrypts under any. The nil sealer leaves keys as they are.
type sealer struct {
	keks  []kek
	bound []byte // trust domain and purpose
}

func newSealer(cfg Config) (*sealer, error) {
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	if cfg.KEKFile == "" {
		return nil, nil
	}
	if cfg.TrustDomain == "" || cfg.Purpose == "" {
		return nil, errors.New("encrypting keys: trust domain and purpose are wanted")
	}
	s := &sealer{bound: field(field([]byte("credence key on disk"), cfg.TrustDomain), cfg.Purpose)}
	for _, file := range append([]string{cfg.KEKFile}, cfg.OldKEKFiles...) {
		k, err := readKEK(file, cfg)
		if err != nil {
			return nil, fmt.Errorf("reading the key-encryption key %s: %w", file, err)
		}
		s.keks = append(s.keks, k)
	}
	return s, nil
}

// field appends a value and its length, so that no two lists of fields are
// the same bytes.
func field(to []byte, value string) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(value))), value...)
}

// readKEK reads one key-encryption key. Links are followed, as secrets that an
// orchestrator mounts are links; what they lead to is checked.
func readKEK(file string, cfg Config) (kek, error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return kek{}, fmt.Errorf("%w; %s", err, lost)
	}
	for _, dir := range []string{cfg.Dir, cfg.Data} {
		if dir != "" && within(real, dir) {
			return kek{}, fmt.Errorf("it lies in %s, with what it locks: keep it elsewhere", dir)
		}
	}
	f, err := openKEK(real)
	if err != nil {
		return kek{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 129))
	if err != nil {
		return kek{}, err
	}
	return newKEK(data)
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

// newKEK takes 32 bytes, or their base64 on a line. Its errors hold no byte of
// them.
func newKEK(data []byte) (kek, error) {
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

// encode makes the file of a key.
func (s *sealer) encode(ref string, der []byte) []byte {
	if s == nil {
		return pem.EncodeToMemory(&pem.Block{Type: plainType, Bytes: der})
	}
	k := s.keks[0]
	head := append([]byte{version}, k.id[:]...)
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails: it ends the program instead
	sealed := k.aead.Seal(nonce, nonce, der, s.data(head, ref))
	return pem.EncodeToMemory(&pem.Block{Type: sealedType, Bytes: append(head, sealed...)})
}

// data is what is authenticated beside the key: the header, whose it is, and
// its name.
func (s *sealer) data(head []byte, ref string) []byte {
	return field(append(bytes.Clone(s.bound), head...), ref)
}

// decode reads the file of a key: one block, of the kind that encode makes.
func (s *sealer) decode(ref string, file []byte) ([]byte, error) {
	block, err := oneBlock(file)
	if err != nil {
		return nil, err
	}
	if block.Type == plainType {
		if s != nil {
			return nil, errors.New("it is not encrypted, and kek_file says that keys are: rewrap the keys first")
		}
		return block.Bytes, nil
	}
	if s == nil {
		return nil, fmt.Errorf("it is encrypted under key-encryption key %s, and none is named: name its file as kek_file; %s", idOf(block.Bytes), lost)
	}
	return s.open(ref, block.Bytes, s.keks[:1])
}

func oneBlock(file []byte) (*pem.Block, error) {
	block, rest := pem.Decode(file)
	if block == nil || block.Type != plainType && block.Type != sealedType || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("not one PEM block of type " + plainType + " or " + sealedType)
	}
	return block, nil
}

// open decrypts a sealed block under the one of keks that its header names.
func (s *sealer) open(ref string, sealed []byte, keks []kek) ([]byte, error) {
	if len(sealed) < headSize+nonceSize || sealed[0] != version {
		return nil, errors.New("it is encrypted in a form that this version does not know, or damaged")
	}
	head, nonce, text := sealed[:headSize], sealed[headSize:headSize+nonceSize], sealed[headSize+nonceSize:]
	for _, k := range keks {
		if !bytes.Equal(k.id[:], head[1:]) {
			continue
		}
		der, err := k.aead.Open(nil, nonce, text, s.data(head, ref))
		if err != nil {
			return nil, errors.New("it does not decrypt: damaged, or the file of another key, purpose or trust domain: restore it from a backup")
		}
		return der, nil
	}
	return nil, fmt.Errorf("it is encrypted under key-encryption key %s, kek_file holds %s: name the file of the first in old_kek_files and rewrap; %s",
		idOf(sealed), hex.EncodeToString(s.keks[0].id[:]), lost)
}

func idOf(sealed []byte) string {
	if len(sealed) < headSize {
		return "unknown"
	}
	return hex.EncodeToString(sealed[1:headSize])
}
