//go:build unix

package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// OpenPrivate opens a plain file that one of uids owns and nobody else may touch.
// The link is refused by the open itself and the checks are made on the open file,
// so that nothing can be swapped in between.
func OpenPrivate(path string, uids ...int) (*os.File, error) {
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
		err = CheckPrivate(info, uids...)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// CheckPrivate refuses what group or others may touch, or somebody else than
// uids owns.
func CheckPrivate(info fs.FileInfo, uids ...int) error {
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
