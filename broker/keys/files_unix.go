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
	return open(path, func(info fs.FileInfo) error { return CheckPrivate(info, uids...) })
}

// OpenSecret opens a secret that is ours, or that a service manager or an
// orchestrator hands out as root's: see CheckSecret.
func OpenSecret(path string) (*os.File, error) {
	groups, err := os.Getgroups()
	if err != nil {
		return nil, err
	}
	return open(path, func(info fs.FileInfo) error { return CheckSecret(info, append(groups, os.Getegid())...) })
}

func open(path string, check func(fs.FileInfo) error) (*os.File, error) {
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

// CheckSecret is CheckPrivate for a file of ours or of root's. Root's may be one
// that one of groups can read and nobody write (0440), as Kubernetes makes a
// Secret's files where the pod has an fsGroup: whom that lets in root says.
func CheckSecret(info fs.FileInfo, groups ...int) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if mode := info.Mode().Perm(); ok && mode == 0o440 && stat.Uid == 0 {
		if !slices.Contains(groups, int(stat.Gid)) {
			return fmt.Errorf("mode %04o lets group %d in, which is none of ours: chmod go= it", mode, stat.Gid)
		}
		return nil
	}
	return CheckPrivate(info, 0, os.Geteuid())
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
