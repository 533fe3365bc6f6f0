//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// makeDir makes the directory, or judges the one that is there: whoever may
// write it can put another database in place of ours.
func makeDir(dir string) error {
	fi, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		return syncDir(filepath.Dir(filepath.Clean(dir)))
	}
	if err != nil {
		return err
	}
	if fi.Mode()&0o022 != 0 {
		return fmt.Errorf("others may write the directory: run chmod go-w %s", dir)
	}
	if s, ok := fi.Sys().(*syscall.Stat_t); !ok || s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("the directory belongs to another user: run chown %d %s", os.Geteuid(), dir)
	}
	return nil
}
