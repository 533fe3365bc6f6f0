package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// keyringLife is how many seconds a key stays that no agent takes up: what it
// seals has ended by then.
const keyringLife = 8 * 24 * 3600

// keyringKey is the key of a data directory in root's user keyring, which lives
// as long as the machine runs. Another user's is gone with their last process:
// an agent of theirs that dies would lose it.
func keyringKey(dir string) ([]byte, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("only root's keyring outlives its processes")
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(path))
	name := "credence:" + hex.EncodeToString(sum[:16])
	ring, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true)
	if err != nil {
		return nil, err
	}
	id, err := unix.KeyctlSearch(ring, "user", name, 0)
	if errors.Is(err, unix.ENOKEY) || errors.Is(err, unix.EKEYEXPIRED) || errors.Is(err, unix.EKEYREVOKED) {
		// For who holds the user keyring of root: possession isn't needed.
		if id, err = unix.AddKey("user", name, newSealKey(), ring); err == nil {
			err = unix.KeyctlSetperm(id, 0x3f3f0000)
		}
	}
	if err != nil {
		return nil, err
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, keyringLife, 0, 0); err != nil {
		return nil, err
	}
	key := make([]byte, sealKey+1)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, key, 0)
	if err != nil || n != sealKey {
		return nil, errors.Join(errors.New("the key in the keyring is not ours"), err)
	}
	return key[:sealKey], nil
}
