package output

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	current     = "..data"  // the link to the version that holds
	versions    = "..v"     // what versions' directories begin with
	temporary   = "..next-" // what links begin with until they are renamed
	maxInDir    = 4096      // names: more is not a directory of ours
	generations = len("18446744073709551615\n")
)

// Replace makes these files what the directory holds, all at once, and returns
// the number of this version; without files it holds nothing but that number
// afterwards, and no earlier version is left. On an error what was there still
// stands. Mode and owner are asserted each time; a file of another kind that
// stands in the way is replaced, a directory is not.
func (s *Set) Replace(files []File) (uint64, error) {
	for _, f := range files {
		if err := CheckName(f.Name); err != nil {
			return 0, err
		}
	}
	d, err := makeAndOpen(s.path)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := d.Lock(); err != nil {
		return 0, fmt.Errorf("locking %s: %w", s.path, err)
	}
	last, old := d.generation()
	if len(files) == 0 && last > 0 && d.empty(old) {
		return last, d.clean(old) // erased already
	}
	next := last + 1
	name, err := s.version(d, next, files)
	if err != nil {
		return 0, err
	}
	if err := d.link(current, name); err != nil {
		return 0, errors.Join(err, d.removeVersion(name))
	}
	if len(files) == 0 {
		old = ""
	}
	return next, errors.Join(d.links(files), d.clean(name, old), d.f.Sync())
}

// Remove takes away every version, and the links that lead there; what else is in
// the directory stays, and so does the directory. Where there is no Set it has
// nothing to do. The error is fs.ErrNotExist where there is no directory.
func (s *Set) Remove() error {
	d, err := OpenDir(s.path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Lock(); err != nil {
		return fmt.Errorf("locking %s: %w", s.path, err)
	}
	if !isVersion(d.readlink(current)) {
		return nil // another made it
	}
	if err := unix.Unlinkat(d.fd(), current, 0); err != nil {
		return fmt.Errorf("removing %s in %s: %w", current, s.path, err)
	}
	return errors.Join(d.clean(), d.f.Sync())
}

// Check says whether Replace would find the directory, or make it.
func (s *Set) Check() error {
	d, err := makeAndOpen(s.path)
	if err != nil {
		return err
	}
	d.Close()
	return nil
}

// generation is the number of the version that stands, and its directory; 0 and
// empty: there is none.
func (d *Dir) generation() (n uint64, version string) {
	to := d.readlink(current)
	if !isVersion(to) {
		return 0, ""
	}
	fd, err := unix.Openat(d.fd(), to+"/"+Generation, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, to
	}
	f := os.NewFile(uintptr(fd), Generation)
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, int64(generations)))
	if err != nil {
		return 0, to
	}
	n, _ = strconv.ParseUint(strings.TrimSuffix(string(text), "\n"), 10, 63) // 0: we count anew
	return n, to
}

func isVersion(name string) bool {
	return strings.HasPrefix(name, versions) && !strings.Contains(name, "/")
}

// version writes a directory with all files, and returns its name.
func (s *Set) version(d *Dir, number uint64, files []File) (name string, err error) {
	name = versions + strconv.FormatUint(number, 10) + "." + random()
	if err := makeDir(d.fd(), name, 0o755); err != nil {
		return "", fmt.Errorf("making %s in %s: %w", name, s.path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.removeVersion(name))
		}
	}()
	fd, err := unix.Openat(d.fd(), name, unix.O_RDONLY|dirFlags, 0)
	if err != nil {
		return "", fmt.Errorf("opening %s in %s: %w", name, s.path, err)
	}
	v := &Dir{os.NewFile(uintptr(fd), name), filepath.Join(s.path, name)}
	defer v.Close()
	for _, f := range files {
		if err := v.create(f, s.owner); err != nil {
			return "", err
		}
	}
	count := File{Generation, strconv.AppendUint(nil, number, 10), 0o644}
	count.Data = append(count.Data, '\n')
	if err := v.create(count, s.owner); err != nil {
		return "", err
	}
	return name, v.f.Sync()
}

// link makes a symbolic link in one step, in place of what stands there.
func (d *Dir) link(name, to string) error {
	temp := temporary + random()
	if err := unix.Symlinkat(to, d.fd(), temp); err != nil {
		return fmt.Errorf("linking %s in %s: %w", name, d.path, err)
	}
	if err := unix.Renameat(d.fd(), temp, d.fd(), name); err != nil {
		return errors.Join(fmt.Errorf("linking %s in %s: %w", name, d.path, err), unix.Unlinkat(d.fd(), temp, 0))
	}
	return nil
}

// readlink is where a link leads; empty: it is none.
func (d *Dir) readlink(name string) string {
	to, err := readlinkAt(d.fd(), name)
	if err != nil {
		return ""
	}
	return to
}

// links makes the names by which readers find the files.
func (d *Dir) links(files []File) error {
	var errs []error
	for _, f := range append(slices.Clone(files), File{Name: Generation}) {
		if to := current + "/" + f.Name; d.readlink(f.Name) != to {
			errs = append(errs, d.link(f.Name, to))
		}
	}
	return errors.Join(errs...)
}

// clean removes what no version needs any more: versions but for two, links to
// files that are gone, and what an agent that was killed left.
func (d *Dir) clean(keep ...string) error {
	// A descriptor of its own: the position in a directory goes with it.
	fd, err := unix.Openat(d.fd(), ".", unix.O_RDONLY|dirFlags, 0)
	if err != nil {
		return err
	}
	list := os.NewFile(uintptr(fd), d.path)
	defer list.Close()
	names, err := list.Readdirnames(maxInDir)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("listing %s: %w", d.path, err)
	}
	var errs []error
	for _, name := range names {
		switch to := d.readlink(name); {
		case isVersion(name) && !slices.Contains(keep, name):
			errs = append(errs, d.removeVersion(name))
		case strings.HasPrefix(name, temporary) && to != "":
			errs = append(errs, unix.Unlinkat(d.fd(), name, 0))
		case to == current+"/"+name && !d.holds(name):
			errs = append(errs, unix.Unlinkat(d.fd(), name, 0))
		}
	}
	return errors.Join(errs...)
}

// holds says whether the current version has a file.
func (d *Dir) holds(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(d.fd(), current+"/"+name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// empty says whether a version has no file but its number.
func (d *Dir) empty(version string) bool {
	names, err := os.ReadDir(filepath.Join(d.path, version))
	return err == nil && len(names) == 1
}

// removeVersion removes a directory of files.
func (d *Dir) removeVersion(name string) error {
	fd, err := unix.Openat(d.fd(), name, unix.O_RDONLY|dirFlags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening %s in %s: %w", name, d.path, err)
	}
	v := os.NewFile(uintptr(fd), name)
	defer v.Close()
	names, err := v.Readdirnames(maxInDir)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("listing %s in %s: %w", name, d.path, err)
	}
	var errs []error
	for _, file := range names {
		errs = append(errs, unix.Unlinkat(fd, file, 0))
	}
	return errors.Join(append(errs, unix.Unlinkat(d.fd(), name, unix.AT_REMOVEDIR))...)
}
