package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A file is what the spool writes through.
type file interface {
	Write([]byte) (int, error)
	Sync() error
	Truncate(size int64) error
	Close() error
}

// A disk opens files and makes their names durable. Tests have one that fails.
type disk interface {
	open(path string) (file, error) // to append, made if absent
	place(path string, text []byte, sync bool) error
	syncDir(dir string) error
}

type osDisk struct{}

func (osDisk) open(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// place writes over the beginning of a file: on most file systems that needs
// no room on a full disk.
func (osDisk) place(path string, text []byte, sync bool) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err = f.WriteAt(text, 0); err != nil || !sync {
		return err
	}
	return f.Sync()
}

func (osDisk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

const suffix = ".seg"

func segmentName(first uint64) string { return fmt.Sprintf("%012d%s", first, suffix) }

// list returns the first numbers of the segments in dir, in order. Other names
// are none of the spool's business.
func list(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []uint64
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || first == 0 || segmentName(first) != e.Name() || !e.Type().IsRegular() {
			return nil, fmt.Errorf("%s is no file of the spool's", filepath.Join(dir, e.Name()))
		}
		all = append(all, first)
	}
	slices.Sort(all)
	return all, nil
}

// A tape is the segment that is written to. One goroutine owns it.
type tape struct {
	dir   string
	disk  disk
	file  file // nil after trouble
	fresh bool // go on in a new segment
}

// begin begins a segment, its name durable.
func (t *tape) begin(first uint64) error {
	path := filepath.Join(t.dir, segmentName(first))
	f, err := t.disk.open(path)
	if err != nil {
		return err
	}
	// One that failed before may lie there, with nothing that was confirmed.
	if err = f.Truncate(0); err == nil {
		err = t.disk.syncDir(t.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	t.drop()
	t.file, t.fresh = f, false
	return nil
}

// append makes data durable behind size. On an error nothing of it stays, now
// or before anything else is written.
func (t *tape) append(s segment, data []byte) error {
	if t.file == nil {
		if err := t.mend(s); err != nil {
			return err
		}
	}
	_, err := t.file.Write(data)
	if err == nil {
		if err = t.file.Sync(); err != nil {
			// The kernel may now hold pages for clean that never reached the
			// disk: what comes next shares no page with them.
			t.fresh = true
		}
	}
	if err != nil {
		t.drop()
		_ = t.mend(s) // or it is done before the next one
	}
	return err
}

// mend opens a segment and cuts off what is not confirmed.
func (t *tape) mend(s segment) error {
	f, err := t.disk.open(filepath.Join(t.dir, segmentName(s.first)))
	if err != nil {
		return err
	}
	if err = f.Truncate(s.size); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	t.file = f
	return nil
}

// cut mends a segment that is not written to yet.
func (t *tape) cut(s segment) error {
	if err := t.mend(s); err != nil {
		return err
	}
	t.drop()
	return nil
}

func (t *tape) drop() {
	if t.file != nil {
		_ = t.file.Close() // what it held is synced, or was never confirmed
	}
	t.file = nil
}

// readSmall reads a file of at most most bytes; one that is absent is empty.
func readSmall(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
