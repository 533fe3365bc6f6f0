package keystest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Keys are a source of keys in a directory: broker/keys/disk's.
type Keys interface {
	Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error)
	Open(ctx context.Context, ref string) (crypto.Signer, error)
	Remove(ctx context.Context, ref string) error
}

// Ready returns keys, which are in dir and not encrypted, as a source that puts a
// ready key there for each of RS256: to make one takes longer than most tests. A
// test never gets the same twice, whatever it opens; the tests of a process share
// them.
func Ready(t testing.TB, dir string, keys Keys) Keys {
	test, _, _ := strings.Cut(t.Name(), "/")
	return ready{keys, dir, test}
}

type ready struct {
	Keys
	dir, test string
}

func (r ready) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	if alg != "RS256" {
		return r.Keys.Create(ctx, alg)
	}
	block, err := made.next(r.test)
	if err != nil {
		return "", nil, err
	}
	name := make([]byte, 16)
	_, _ = rand.Read(name) // never fails (crypto/rand.Read)
	ref = "rs256-" + hex.EncodeToString(name)
	if err := os.WriteFile(filepath.Join(r.dir, ref+".pem"), block, 0o600); err != nil {
		return "", nil, err
	}
	key, err = r.Open(ctx, ref)
	return ref, key, err
}

// made are the keys of this process's tests.
var made pool

type pool struct {
	mu    sync.Mutex
	files [][]byte
	taken map[string]int // by test
}

// next is one that the test has not had.
func (p *pool) next(test string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.taken[test]
	if n == len(p.files) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if p.taken == nil {
		p.taken = map[string]int{}
	}
	p.taken[test]++
	return p.files[n], nil
}
