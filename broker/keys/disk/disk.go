// Package disk keeps private keys as files, one PEM block each: PKCS#8, or
// that encrypted under a key-encryption key which a file elsewhere holds.
//
// It trusts the directory that it is given: nobody but our own user may be
// able to enter it, which is checked at every use, not only at the start. A
// key is on the disk, whole, before Create returns it. Where no key-encryption
// key is named, encryption at rest is left to the file system; which key means
// what is left to broker/authority. What encryption keeps a thief of the disk
// or of a backup from, it does not keep from who reads our memory.
package disk

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/credence-id/credence/broker/keys"
	"github.com/credence-id/credence/broker/keys/kek"
)

// maxFile bounds a key file: an RSA-4096 key takes 3.3 KiB.
const maxFile = 16 << 10

const suffix = ".pem"

// Settings are what broker.yaml may say of keys on disk.
type Settings = kek.Settings

// Config says where the keys are, and what they are encrypted under.
type Config struct {
	Settings
	Dir string // made with mode 0700 where it does not exist; its parent must
	// Data is the broker's data directory, which no key-encryption key may be
	// in. Empty means Dir.
	Data string
	// TrustDomain and Purpose are bound into what is encrypted, so that no file
	// passes for another's. Required with a KEKFile, not used without.
	TrustDomain, Purpose string
}

// Keys is a directory of private keys. Its methods may be called
// concurrently.
type Keys struct {
	dir  string
	seal *sealer    // nil: not encrypted
	mu   sync.Mutex // held while a file is replaced or removed
}

// New returns the keys in cfg.Dir. It refuses a directory that is a link,
// belongs to another user, or lets group or others in, and reads the
// key-encryption keys: files that are ours or root's, and nobody else's to read.
func New(cfg Config) (*Keys, error) {
	if cfg.Dir == "" {
		return nil, errors.New("opening a key directory: no directory is named")
	}
	seal, err := newSealer(cfg)
	if err != nil {
		return nil, err
	}
	k := &Keys{dir: filepath.Clean(cfg.Dir), seal: seal}
	err = os.Mkdir(k.dir, 0o700)
	if err == nil {
		err = syncDir(filepath.Dir(k.dir)) // else a power cut could take it, keys and all
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("making the key directory: %w", err)
	}
	if err := checkDir(k.dir); err != nil {
		return nil, err
	}
	return k, nil
}

// Create makes a key of alg: RS256, RSA2048, RSA3072, RSA4096, ES256, P256 or
// P384. It returns once the key would survive a power cut; ref finds it again.
func (k *Keys) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	if err := checkDir(k.dir); err != nil {
		return "", nil, err
	}
	key, err = keys.Generate(alg)
	if err != nil {
		return "", nil, err
	}
	// A caller that stopped waiting meanwhile will never use this key.
	if err := ctx.Err(); err != nil {
		return "", nil, fmt.Errorf("making a key of %s: %w", alg, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", nil, fmt.Errorf("encoding a key of %s: %w", alg, err)
	}
	name := make([]byte, 16)
	rand.Read(name) // never fails: it ends the program instead
	ref = strings.ToLower(alg) + "-" + hex.EncodeToString(name)
	if err := write(k.dir, ref+suffix, k.seal.encode(ref, der)); err != nil {
		return "", nil, fmt.Errorf("keeping key %s: %w", ref, err)
	}
	return ref, key, nil
}

// write puts data under name, durably and whole or not at all. What a crash
// leaves behind has a name that checkRef refuses.
func write(dir, name string, data []byte) (err error) {
	f, err := os.CreateTemp(dir, ".new-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Open finds the key that Create named ref. It refuses a file that is a link
// or not a plain file, belongs to another user, or that group or others may
// touch; and where key-encryption keys are named, one that is not encrypted
// under one of them: Rewrap does that. The error of a key that is not there is
// os.ErrNotExist.
func (k *Keys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if err := k.check(ctx, "opening", ref); err != nil {
		return nil, err
	}
	data, err := k.read(ref)
	if err != nil {
		return nil, err
	}
	der, err := k.seal.decode(ref, data)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", ref, err)
	}
	key, err := keys.Parse(der)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", ref, err)
	}
	return key, nil
}

// Remove deletes the key ref, durably. The file system may keep its blocks
// until it needs them.
func (k *Keys) Remove(ctx context.Context, ref string) error {
	if err := k.check(ctx, "removing", ref); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	err := os.Remove(filepath.Join(k.dir, ref+suffix))
	if err == nil {
		err = syncDir(k.dir)
	}
	if err != nil {
		return fmt.Errorf("removing key %s: %w", ref, err)
	}
	return nil
}

func (k *Keys) check(ctx context.Context, act, ref string) error {
	if err := checkRef(ref); err != nil {
		return fmt.Errorf("%s a key: %w", act, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s key %s: %w", act, ref, err)
	}
	return checkDir(k.dir)
}

func (k *Keys) read(ref string) ([]byte, error) {
	f, err := keys.OpenPrivate(filepath.Join(k.dir, ref+suffix), os.Geteuid())
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", ref, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", ref, err)
	}
	return data, nil
}

// checkRef takes the names that Create makes and no path.
func checkRef(ref string) error {
	bad := strings.Trim(ref, "abcdefghijklmnopqrstuvwxyz0123456789-") != ""
	if ref == "" || len(ref) > 128 || bad {
		return fmt.Errorf("%.128q is not the name of one", ref)
	}
	return nil
}
