package audit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultHMACFacts are the facts that hold what is secret or a person's, unless
// broker.yaml says otherwise: what else a fact may be is a name, a number or a
// label, which an operator has to read.
func DefaultHMACFacts() []string { return []string{"user.email", "workload.docker.env.*"} }

// CheckFactPattern refuses what names no facts: a fact's full name is wanted, or
// the beginning of names, which ends in ".*".
func CheckFactPattern(p string) error {
	name := strings.TrimSuffix(p, ".*")
	if name == "" || strings.Contains(name, "*") || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%q: a fact's name, or its beginning and .*, is wanted", p)
	}
	return nil
}

// keyName is the file of the key under which secret facts are recorded. Whoever
// has it and the record can try values; whoever has the record alone cannot.
const keyName = "facts.key"

const hmacPrefix = "hmac:"

// secrets are the facts whose values the record does not tell: equal ones are
// equal in it, and who knows one can find it.
type secrets struct {
	patterns []string
	key      []byte
}

// openSecrets reads the directory's key, or makes one.
func openSecrets(d disk, dir string, patterns []string) (*secrets, error) {
	for _, p := range patterns {
		if err := CheckFactPattern(p); err != nil {
			return nil, fmt.Errorf("secret facts: %w", err)
		}
	}
	if len(patterns) == 0 {
		return nil, nil
	}
	key, err := readKey(dir)
	if errors.Is(err, os.ErrNotExist) {
		key = make([]byte, sha256.Size)
		_, _ = rand.Read(key) // it does not fail
		err = keepKey(d, dir, key)
	}
	if err != nil {
		return nil, err
	}
	return &secrets{slices.Clone(patterns), key}, nil
}

func readKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, keyName)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the key of secret facts: %w", err)
	}
	defer f.Close()
	text := make([]byte, 128)
	n, err := f.Read(text)
	if err != nil {
		return nil, fmt.Errorf("the key of secret facts: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSuffix(string(text[:n]), "\n"))
	if err != nil || len(key) != sha256.Size {
		return nil, fmt.Errorf("the key of secret facts in %s is not whole: put it back from a backup; or take it away, and a new one is made, by which earlier values are not found", path)
	}
	return key, nil
}

// FactsKey is the key of the record in dir, for a backup; it has none if that is
// os.ErrNotExist.
func FactsKey(dir string) ([]byte, error) { return readKey(dir) }

// RestoreFactsKey has the record in dir, which no broker has open, go on with a key
// that FactsKey gave, and says whether it did: one that stands there stays.
func RestoreFactsKey(dir string, key []byte) (restored bool, err error) {
	if len(key) != sha256.Size {
		return false, fmt.Errorf("the key of secret facts has %d bytes, want %d", len(key), sha256.Size)
	}
	if _, err := os.Lstat(filepath.Join(dir, keyName)); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err := makeDir(osDisk{}, dir); err != nil {
		return false, err
	}
	err = keepKey(osDisk{}, dir, key)
	return err == nil, err
}

// keepKey makes the key durable before anything is recorded under it.
func keepKey(d disk, dir string, key []byte) error {
	path := filepath.Join(dir, keyName)
	made := path + ".new" // what a crash leaves of it is made anew
	f, err := os.OpenFile(made, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("making the key of secret facts: %w", err)
	}
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(made, path)
	}
	if err == nil {
		err = d.syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("making the key of secret facts: %w", err)
	}
	return nil
}

// secret says whether a fact's values are not told.
func (s *secrets) secret(name string) bool {
	return s != nil && slices.ContainsFunc(s.patterns, func(p string) bool {
		prefix, whole := strings.CutSuffix(p, "*")
		return p == name || whole && strings.HasPrefix(name, prefix)
	})
}

// hash is what the record has of a value.
func (s *secrets) hash(name, value string) string {
	m := hmac.New(sha256.New, s.key)
	m.Write(binary.BigEndian.AppendUint64(nil, uint64(len(name))))
	m.Write([]byte(name))
	m.Write([]byte(value))
	return hmacPrefix + hex.EncodeToString(m.Sum(nil)[:16])
}

// hide returns e as the record may have it.
func (s *secrets) hide(e Event) Event {
	if s == nil {
		return e
	}
	var facts map[string][]string
	for name, values := range e.Facts {
		if !s.secret(name) {
			continue
		}
		if facts == nil {
			facts = maps.Clone(e.Facts)
		}
		hidden := make([]string, len(values))
		for i, value := range values {
			hidden[i] = s.hash(name, value)
		}
		facts[name] = hidden
	}
	if facts != nil {
		e.Facts = facts
	}
	return e
}

// RecordedFact is a fact's value as this record has it: by its HMAC, if it is
// secret.
func (l *Log) RecordedFact(name, value string) string {
	if l.secrets.secret(name) {
		return l.secrets.hash(name, value)
	}
	return value
}

// HashFact is a secret fact's value as the record in dir has it.
func HashFact(dir, name, value string) (string, error) {
	key, err := readKey(dir)
	if err != nil {
		return "", err
	}
	return (&secrets{key: key}).hash(name, value), nil
}
