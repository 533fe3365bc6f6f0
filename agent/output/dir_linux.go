package output

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Dir is an open directory, reached through none that others than root,
// ourselves and the owners named could change. A symbolic link on the way is
// followed where it is root's or ours and stands where nobody else could put
// one (/var/run, say), and nowhere else. Close it.
type Dir struct {
	f    *os.File
	path string // without links
}

const (
	dirFlags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	maxLinks = 8
)

// OpenDir opens a directory that stands. Besides root and the agent's own uid,
// owners may own it and what stands above it.
func OpenDir(path string, owners ...uint32) (*Dir, error) {
	return openDir(path, false, maxLinks, owners)
}

// makeAndOpen makes the directory too, and what is missing above it, as our own
// with mode 0755. Nobody else but root may own any of them.
func makeAndOpen(path string) (*Dir, error) { return openDir(path, true, maxLinks, nil) }

func openDir(path string, missing bool, links int, owners []uint32) (*Dir, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	here, err := os.OpenFile("/", unix.O_PATH|dirFlags, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = here.Close() }()
	at, names := "/", strings.Split(path[1:], "/")
	for n, name := range names {
		flags, last := unix.O_PATH|dirFlags, n == len(names)-1
		if last {
			flags = unix.O_RDONLY | dirFlags
		}
		next, err := step(here, at, name, flags, missing)
		if errors.Is(err, errLink) && links > 0 {
			to, err := follow(here, at, name)
			if err != nil {
				return nil, err
			}
			return openDir(filepath.Join(append([]string{to}, names[n+1:]...)...), missing, links-1, owners)
		}
		if err != nil {
			return nil, err
		}
		at = filepath.Join(at, name)
		here.Close()
		here = next
		if err := trusted(here, at, owners, last); err != nil {
			return nil, err
		}
	}
	d := &Dir{here, path}
	here = nil // Close of nil does nothing
	return d, nil
}

var errLink = errors.New("it is a symbolic link")

// step opens one directory in another.
func step(in *os.File, at, name string, flags int, missing bool) (*os.File, error) {
	dir, path := int(in.Fd()), filepath.Join(at, name)
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.ENOENT) && missing {
		if err := makeDir(dir, name, 0o755); err != nil {
			return nil, fmt.Errorf("making the directory %s: %w", path, err)
		}
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		if st, err := statAt(dir, name); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil, fmt.Errorf("%s: %w", path, errLink)
		}
		return nil, fmt.Errorf("%s is no directory", path)
	case err != nil:
		return nil, fmt.Errorf("opening the directory %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func statAt(dir int, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// follow is where a symbolic link in an open directory leads, if nobody but
// root and ourselves could have put it there.
func follow(in *os.File, at, name string) (string, error) {
	link, err := statAt(int(in.Fd()), name)
	if err != nil {
		return "", err
	}
	var dir unix.Stat_t
	if err := unix.Fstat(int(in.Fd()), &dir); err != nil {
		return "", err
	}
	for _, st := range []unix.Stat_t{link, dir} {
		if st.Uid != 0 && st.Uid != uint32(os.Geteuid()) || st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o022 != 0 {
			return "", fmt.Errorf("%s is a symbolic link that others than root could have made: name the directory that is meant", filepath.Join(at, name))
		}
	}
	to, err := readlinkAt(int(in.Fd()), name)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(at, to)
	}
	return filepath.Clean(to), nil
}

func readlinkAt(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// makeDir makes a directory with exactly this mode: other uids must get
// through, whatever the umask. It is only called where nobody but root and
// ourselves could put another in its place.
func makeDir(in int, name string, mode uint32) error {
	if err := unix.Mkdirat(in, name, mode); err != nil {
		return err
	}
	fd, err := unix.Openat(in, name, unix.O_RDONLY|dirFlags, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchmod(fd, mode), unix.Close(fd))
}

// trusted refuses a directory that others could change. One with the sticky bit
// lets nobody touch what isn't theirs: it will do above, not as the place
// itself.
func trusted(f *os.File, at string, owners []uint32, last bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("reading the owner of %s: %w", at, err)
	}
	if st.Uid != 0 && st.Uid != uint32(os.Geteuid()) && !slices.Contains(owners, st.Uid) {
		return fmt.Errorf("%s belongs to uid %d, who could put something else in its place: chown it to the agent's uid %d", at, st.Uid, os.Geteuid())
	}
	others := st.Mode&unix.S_IWOTH != 0 || st.Mode&unix.S_IWGRP != 0 && st.Gid != 0
	if others && (last || st.Mode&unix.S_ISVTX == 0) {
		return fmt.Errorf("%s can be written by others (its mode is %04o): chmod go-w it, or name a directory of its own", at, st.Mode&0o7777)
	}
	return nil
}

// Close lets the directory go.
func (d *Dir) Close() { _ = d.f.Close() } // nothing is written through it

func (d *Dir) fd() int { return int(d.f.Fd()) }

// Lock waits until no other who does the same holds the directory. Close ends
// it.
func (d *Dir) Lock() error {
	for {
		err := unix.Flock(d.fd(), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// create makes a new file with exactly these bytes, mode and owner, and has it
// on disk.
func (d *Dir) create(file File, owner Owner) error {
	fd, err := unix.Openat(d.fd(), file.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("making %s in %s: %w", file.Name, d.path, err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(d.path, file.Name))
	err = own(f, owner, file.Mode)
	if err == nil {
		_, err = f.Write(file.Data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %s in %s: %w", file.Name, d.path, err), unix.Unlinkat(d.fd(), file.Name, 0))
	}
	return nil
}

// own gives a file away, the mode last: a change of owner takes bits from it.
func own(f *os.File, owner Owner, mode os.FileMode) error {
	if err := f.Chown(int(owner.UID), int(owner.GID)); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("the agent runs as uid %d and cannot give files to uid %d, gid %d: run it as root or with CAP_CHOWN, or give the output the agent's own uid: %w", os.Geteuid(), owner.UID, owner.GID, err)
		}
		return err
	}
	return f.Chmod(mode.Perm())
}

// ErrChanged says that a file is not the one any more that was read.
var ErrChanged = errors.New("the file changed while it was rewritten")

// Read reads a regular file of at most limit bytes, and says which it was, for
// Write and Remove. It refuses a symbolic link, a file with a second name, and
// one that is not owner's: what it holds would come into a file of the owner's.
// The error is fs.ErrNotExist where there is none.
func (d *Dir) Read(name string, owner uint32, limit int) ([]byte, os.FileInfo, error) {
	path := filepath.Join(d.path, name)
	fd, err := unix.Openat(d.fd(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, nil, fmt.Errorf("%s is a symbolic link, and none is followed: name the file that it leads to", path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, fmt.Errorf("reading the owner of %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, nil, fmt.Errorf("%s is no regular file", path)
	case st.Nlink != 1:
		return nil, nil, fmt.Errorf("%s has %d names: it may be somebody else's file", path, st.Nlink)
	case st.Uid != owner:
		return nil, nil, fmt.Errorf("%s belongs to uid %d, not to uid %d: chown it, or name another file", path, st.Uid, owner)
	case st.Size > int64(limit):
		return nil, nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, st.Size, limit)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	return text, info, err
}

// Write puts a file in the place of the one that Read told of, or of none, in
// one step, or leaves all as it was. The error is ErrChanged where another
// stands there by now.
func (d *Dir) Write(file File, owner Owner, was os.FileInfo) error {
	temp := File{"." + file.Name + "." + random(), file.Data, file.Mode}
	if err := d.create(temp, owner); err != nil {
		return err
	}
	err := d.unchanged(file.Name, was)
	if err == nil {
		err = unix.Renameat(d.fd(), temp.Name, d.fd(), file.Name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replacing %s in %s: %w", file.Name, d.path, err), unix.Unlinkat(d.fd(), temp.Name, 0))
	}
	return d.f.Sync()
}

// Remove removes the file that Read told of. The error is ErrChanged where
// another stands there by now.
func (d *Dir) Remove(name string, was os.FileInfo) error {
	err := d.unchanged(name, was)
	if err == nil {
		err = unix.Unlinkat(d.fd(), name, 0)
	}
	if err != nil {
		return fmt.Errorf("removing %s in %s: %w", name, d.path, err)
	}
	return d.f.Sync()
}

func (d *Dir) unchanged(name string, was os.FileInfo) error {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) && was == nil {
		return nil
	}
	if err != nil || was == nil {
		return errors.Join(ErrChanged, err)
	}
	old, ok := was.Sys().(*syscall.Stat_t)
	if !ok || st.Ino != old.Ino || st.Dev != old.Dev || st.Size != old.Size || st.Mtim != unix.Timespec(old.Mtim) {
		return ErrChanged
	}
	return nil
}

func random() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails (crypto/rand.Read)
	return hex.EncodeToString(b)
}
