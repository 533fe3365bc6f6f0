package local

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// directory holds files for one user. All is done relative to the directory
// that was opened, so that nobody can put a link in its way; a file is
// replaced whole, so that a reader never finds half of one.
type directory struct {
	path     string
	root     *os.Root
	uid, gid int
	made     bool
	keep     bool

	mu    sync.Mutex // guards files
	files map[string][sha256.Size]byte
}

const (
	temporary = ".new-"
	marker    = ".credence" // in a directory that is kept
)

// openDirectory opens a directory that only we can write to, or makes it.
func openDirectory(path string, uid, gid int, keep bool) (_ *directory, err error) {
	if err := mayOwn(uid); err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	d := &directory{path: path, uid: uid, gid: gid, keep: keep, files: map[string][sha256.Size]byte{}}
	switch err := os.Mkdir(path, 0o700); {
	case err == nil:
		d.made = true
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	if d.root, err = os.OpenRoot(path); err != nil {
		return nil, err
	}
	if err := d.adopt(); err != nil {
		return nil, errors.Join(err, d.root.Close())
	}
	return d, nil
}

func mayOwn(uid int) error {
	if uid < 0 || uid != os.Geteuid() && os.Geteuid() != 0 {
		return fmt.Errorf("files for the user %d: only root can make another's", uid)
	}
	return nil
}

// CheckKept says whether Surfaces with Keep could have a directory, which need
// not be there. It changes nothing.
func CheckKept(path string, uid int) error {
	if err := mayOwn(uid); err != nil {
		return err
	}
	d, err := kept(path)
	if d == nil {
		return err
	}
	return d.root.Close()
}

// Erase removes what Surfaces with Keep left in a directory. Where there is none
// it has nothing to do.
func Erase(path string) error {
	d, err := kept(path)
	if d == nil {
		return err
	}
	return errors.Join(d.removeOthers(), d.root.Close())
}

// kept opens a directory of Surfaces with Keep as it stands; nil where there is
// none.
func kept(path string) (*directory, error) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := &directory{path: path, root: root, keep: true}
	if err = d.ours(); err == nil {
		_, err = d.marked()
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return d, nil
}

// marked says whether a directory that is kept has its mark. One without it
// must be empty.
func (d *directory) marked() (bool, error) {
	info, err := d.root.Lstat(marker)
	if err == nil && info.Mode().IsRegular() {
		return true, nil
	}
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s: it has files that are none of ours: name a directory of its own, which need not be there", d.path)
	}
	return false, err
}

// mark makes an empty directory one that is kept.
func (d *directory) mark() error {
	there, err := d.marked()
	if there || err != nil {
		return err
	}
	f, err := d.root.OpenFile(marker, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// removeOthers removes, from a directory that is kept, what was not written
// since it was opened.
func (d *directory) removeOthers() error {
	if !d.keep {
		return nil
	}
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range entries {
		if _, written := d.files[e.Name()]; !written && e.Name() != marker && !e.IsDir() {
			err = errors.Join(err, d.gone(e.Name()))
		}
	}
	return err
}

// ours holds what was opened to be what stands at the path, and ours alone.
func (d *directory) ours() error {
	named, err := os.Lstat(d.path)
	if err != nil {
		return err
	}
	opened, err := d.root.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := named.Sys().(*syscall.Stat_t)
	if !named.IsDir() || !os.SameFile(named, opened) || !ok || int(owner.Uid) != os.Geteuid() || named.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: a directory of the user %d is wanted, which nobody else can write to, and no link", d.path, os.Geteuid())
	}
	return nil
}

// adopt takes what was opened.
func (d *directory) adopt() error {
	if err := d.ours(); err != nil {
		return err
	}
	if d.keep {
		if err := d.mark(); err != nil {
			return err
		}
	}
	if d.uid != os.Geteuid() { // to pass through, not to list
		if err := d.root.Chmod(".", 0o711); err != nil {
			return err
		}
	}
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) { // of one that was killed
			if err := d.root.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// file is the path of a file.
func (d *directory) file(name string) string { return filepath.Join(d.path, name) }

// write replaces a file, unless it is there as it should be.
func (d *directory) write(name string, text []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := sha256.Sum256(text)
	if old, ok := d.files[name]; ok && old == sum && d.whole(name, len(text)) {
		return nil
	}
	temp := temporary + rand.Text()
	if err := d.writeNew(temp, text); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", d.file(name), err), d.gone(temp))
	}
	if err := d.root.Rename(temp, name); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", d.file(name), err), d.gone(temp))
	}
	d.files[name] = sum
	return nil
}

// whole says whether what stands there is ours, by all that can be seen.
func (d *directory) whole(name string, size int) bool {
	info, err := d.root.Lstat(name)
	if err != nil {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode() == 0o600 && int(owner.Uid) == d.uid && info.Size() == int64(size)
}

func (d *directory) writeNew(name string, text []byte) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(0o600); err != nil { // whatever the umask took
		return err
	}
	if d.uid != os.Geteuid() {
		if err := f.Chown(d.uid, d.gid); err != nil {
			return err
		}
	}
	if _, err := io.Copy(f, bytes.NewReader(text)); err != nil {
		return err
	}
	return f.Sync()
}

// remove removes a file of ours; it is no error if it has gone.
func (d *directory) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ours := d.files[name]; !ours {
		return nil
	}
	delete(d.files, name)
	return d.gone(name)
}

func (d *directory) gone(name string) error {
	if err := d.root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// close removes what was made: files that others put there stay, and keep the
// directory.
func (d *directory) close() error {
	if d.keep {
		return d.root.Close()
	}
	var all []error
	for _, name := range d.names() {
		all = append(all, d.remove(name))
	}
	all = append(all, d.root.Close())
	if d.made {
		if err := os.Remove(d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

func (d *directory) sum(name string) [sha256.Size]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[name]
}

func (d *directory) names() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.files {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
