// Package disk keeps private keys as files, one PKCS#8 PEM block each.
//
// It trusts the directory that it is given: nobody but our own user may be
// able to enter it, which is checked at every use, not only at the start. A
// key is on the disk, whole, before Create returns it. Encryption at rest is
// left to the file system, and which key means what to broker/authority.
package disk

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxFile bounds a key file: an RSA-4096 key takes 3.3 KiB.
const maxFile = 16 << 10

const suffix = ".pem"

// Config says where the keys are.
type Config struct {
	Dir string // made with mode 0700 where it does not exist; its parent must
}

// Keys is a directory of private keys. Its methods may be called
// concurrently.
type Keys struct{ dir string }

// New returns the keys in cfg.Dir. It refuses a directory that is a link,
// belongs to another user, or lets group or others in.
func New(cfg Config) (*Keys, error) {
	if cfg.Dir == "" {
		return nil, errors.New("opening a key directory: no directory is named")
	}
	k := &Keys{dir: filepath.Clean(cfg.Dir)}
	err := os.Mkdir(k.dir, 0o700)
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
	key, err = generate(alg)
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
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := write(k.dir, ref+suffix, block); err != nil {
		return "", nil, fmt.Errorf("keeping key %s: %w", ref, err)
	}
	return ref, key, nil
}

func generate(alg string) (crypto.Signer, error) {
	switch alg {
	case "ES256", "P256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "RS256", "RSA2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("making a key of %q: this source makes RS256, ES256, P256, P384, RSA2048, RSA3072 and RSA4096", alg)
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
// touch. The error of a key that is not there is os.ErrNotExist.
func (k *Keys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("opening key %s: %w", ref, err)
	}
	if err := checkDir(k.dir); err != nil {
		return nil, err
	}
	f, err := openFile(filepath.Join(k.dir, ref+suffix))
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", ref, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", ref, err)
	}
	key, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", ref, err)
	}
	return key, nil
}

// checkRef takes the names that Create makes and no path.
func checkRef(ref string) error {
	bad := strings.Trim(ref, "abcdefghijklmnopqrstuvwxyz0123456789-") != ""
	if ref == "" || len(ref) > 128 || bad {
		return fmt.Errorf("opening a key: %q is not the name of one", ref)
	}
	return nil
}

// parse reads one PKCS#8 PEM block and nothing else. Its errors hold no byte
// of the file.
func parse(data []byte) (crypto.Signer, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(block.Headers) != 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("not one PEM block of type PRIVATE KEY")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS#8 key")
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, nil
	case *ecdsa.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("a key of type %T, which this source never makes", key)
}
