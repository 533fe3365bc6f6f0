//go:build unix

package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// checkDir refuses a directory that somebody else could have put keys into.
func checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("checking the key directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("checking the key directory: %s is not a directory (links are not followed)", dir)
	}
	if err := checkOwner(info); err != nil {
		return fmt.Errorf("checking the key directory %s: %w", dir, err)
	}
	return nil
}

// openFile opens a private plain file. The link is refused by the open
// itself and the checks are made on the open file, so that nothing can be
// swapped in between.
func openFile(path string) (*os.File, error) { return openOwned(path, checkOwner) }

// openKEK opens a key-encryption key's file, which root may own too: service
// managers hand secrets out like that.
func openKEK(path string) (*os.File, error) {
	return openOwned(path, func(info fs.FileInfo) error { return checkOwners(info, 0, os.Geteuid()) })
}

func openOwned(path string, check func(fs.FileInfo) error) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, errors.New("it is a link, which is not followed")
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a plain file")
	}
	if err == nil {
		err = check(info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkOwner(info fs.FileInfo) error { return checkOwners(info, os.Geteuid()) }

func checkOwners(info fs.FileInfo, uids ...int) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("mode %04o lets group or others in: chmod go= it", mode)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("its owner cannot be told")
	}
	if !slices.Contains(uids, int(stat.Uid)) {
		return fmt.Errorf("it belongs to uid %d, we run as uid %d", stat.Uid, os.Geteuid())
	}
	return nil
}
