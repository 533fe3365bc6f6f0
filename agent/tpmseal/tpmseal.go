// Package tpmseal keeps a key that only one machine's TPM gives back: whoever
// has the disk, or a copy of it in another machine, has nothing.
//
// The key lies in a file, sealed under the storage primary key of the TPM's
// owner hierarchy (TCG TPM 2.0 Library, part 1 §23; ECC P-256, made anew from
// the TPM's seed each time). No PCR binds it: an update of the machine's
// firmware or kernel must not take its key, and who may read the file on the
// running machine may ask its TPM. What passes between here and the TPM is
// encrypted, salted by that primary key. It trusts the device that it is pointed
// at to be this machine's TPM.
package tpmseal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/agent/tpm"
)

// KeySize is that of a key, in bytes.
const KeySize = 32

const (
	magic   = "credence tpm 1\n"
	maxFile = 4 << 10
)

// Key gives back the key of a file, or makes one where there is none, or none
// that this TPM sealed. device is a TPM's, or the socket of one in software.
func Key(device, file string) ([]byte, error) {
	opened, err := tpm.Open(device)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	storage, err := tpm.OpenStorage(opened, tpm.Guidance)
	if err != nil {
		return nil, err
	}
	defer storage.Close()
	s := session{storage, opened}
	sealed, err := readFile(file)
	if err == nil {
		key, err := s.unseal(sealed)
		if !tpm.Foreign(err) {
			return key, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails (crypto/rand.Read)
	if sealed, err = s.seal(key); err != nil {
		return nil, err
	}
	if err := renameio.WriteFile(file, sealed.marshal(), 0o600, renameio.WithTempDir(filepath.Dir(file))); err != nil {
		return nil, fmt.Errorf("keeping a key that the TPM sealed: %w", err)
	}
	return key, nil
}

// sealed is a key as the TPM alone reads it.
type sealed struct {
	public  tpm2.TPM2BPublic
	private tpm2.TPM2BPrivate
}

func (s sealed) marshal() []byte {
	out := []byte(magic)
	for _, part := range [][]byte{tpm2.Marshal(s.public), tpm2.Marshal(s.private)} {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(part))), part...)
	}
	return out
}

func unmarshal(text []byte) (s sealed, err error) {
	if len(text) < len(magic) || string(text[:len(magic)]) != magic {
		return s, errNotOurs
	}
	text = text[len(magic):]
	var parts [2][]byte
	for i := range parts {
		if len(text) < 2 || len(text)-2 < int(binary.BigEndian.Uint16(text)) {
			return s, errNotOurs
		}
		n := 2 + int(binary.BigEndian.Uint16(text))
		parts[i], text = text[2:n], text[n:]
	}
	if len(text) > 0 {
		return s, errNotOurs
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](parts[0])
	if err != nil {
		return s, errNotOurs
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](parts[1])
	if err != nil {
		return s, errNotOurs
	}
	return sealed{*public, *private}, nil
}

var errNotOurs = errors.New("it is not as we made it; remove it, and what its key sealed is lost")

// readFile refuses what somebody else could have written or read.
func readFile(path string) (sealed, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return sealed{}, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() > maxFile {
		return sealed{}, fmt.Errorf("%s: mode %s, %d bytes: %w", path, info.Mode(), info.Size(), errNotOurs)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return sealed{}, err
	}
	s, err := unmarshal(text)
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
