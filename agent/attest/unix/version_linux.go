package unix

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// versionOf refuses FUSE: a file system in user space, which any user may run,
// can show us other bytes than it lets the process run.
func versionOf(f *os.File) (version, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return version{}, fmt.Errorf("reading the file system of an executable: %w", err)
	}
	if fs.Type == unix.FUSE_SUPER_MAGIC {
		return version{}, errors.New("hashing an executable: it lies on a user's own file system (FUSE)")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return version{}, fmt.Errorf("reading the state of an executable: %w", err)
	}
	return version{st.Dev, st.Ino, st.Size, time.Unix(st.Mtim.Unix()), time.Unix(st.Ctim.Unix())}, nil
}
