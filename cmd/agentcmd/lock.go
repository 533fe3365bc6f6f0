package agentcmd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockData keeps a second agent from a data directory in use: the two would take
// each other's node, and what is kept, for their own. The lock goes with the
// process, however that ends.
func lockData(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("data: another agent uses %s: stop that one, or name another directory", dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
