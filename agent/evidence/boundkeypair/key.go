package boundkeypair

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	maxKeyFile = 16 << 10
	pkcs8Type  = "PRIVATE KEY"      // RFC 7468 §10
	tpmType    = "TSS2 PRIVATE KEY" // draft-bottomley-tpm2-keys
)

// File is a Key in a file, read anew each time: PKCS #8 in PEM, or what CreateTPMKey
// writes, by which a TPM alone signs.
type File struct {
	Path   string
	Device string // where a TPM's key is: its device, or the socket of one in software; default tpm.Device
}

// Public implements Key.
func (f File) Public() (crypto.PublicKey, error) {
	key, err := f.read()
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

// Sign implements Key.
func (f File) Sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	key, err := f.read()
	if err != nil {
		return nil, err
	}
	return key.Sign(rand.Reader, digest, opts)
}

// read refuses a file that anybody may read, or the group write.
func (f File) read() (crypto.Signer, error) {
	file, err := os.Open(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("join.key: there is no file %s; credence agent key create makes it", f.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("join.key: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("join.key: %w", err)
	}
	if info.Mode().Perm()&0o027 != 0 {
		return nil, fmt.Errorf("join.key: others may use the file %s: chmod 600 it, and if they did make another key", f.Path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("join.key: %w", err)
	}
	key, err := f.parse(text)
	if err != nil {
		return nil, fmt.Errorf("join.key: %s: %w", f.Path, err)
	}
	return key, nil
}

func (f File) parse(text []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(text)
	if len(text) > maxKeyFile || block == nil || block.Type != pkcs8Type && block.Type != tpmType {
		return nil, errors.New("one private key is wanted, PKCS #8 or a TPM's, in PEM")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("it holds more than one private key")
	}
	if block.Type == tpmType {
		key, err := parseTPMKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		return tpmSigner{key, f.device()}, nil
	}
	if f.Device != "" {
		return nil, errors.New("it holds the key itself, and none of the TPM of join.device: credence agent key create --tpm makes one, in another file")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("it holds no private key that signs")
	}
	return signer, nil
}

// CreateKey makes a key, on P-256, in a file that must not be there yet, and returns
// its public half.
func CreateKey(path string) (crypto.PublicKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key.Public(), writeNew(path, pem.EncodeToMemory(&pem.Block{Type: pkcs8Type, Bytes: der}))
}

// writeNew writes a file that nobody else reads, and that outlives a power cut.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a key: there is a file %s already: a node's key is made once", path)
	}
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("making a key: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// Digest names a public key.
func Digest(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("the node's key: %w", err)
	}
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}
