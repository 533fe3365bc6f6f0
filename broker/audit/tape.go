package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// A tape is the newest file of the record. One goroutine owns it. Only what
// lies before size is durable, and only that has been confirmed to anyone.
type tape struct {
	dir  string
	max  int64
	disk disk
	log  *slog.Logger

	file  file // nil after trouble: mend opens it anew
	path  string
	first uint64
	size  int64
	info  os.FileInfo // of path when it was opened
	fresh bool        // go on in a new file

	reserve reserve
}

// A failure is what kept a record from being durable.
type failure struct {
	path string
	err  error
}

func (f *failure) Error() string {
	way := "it is tried anew with the next record"
	if noRoom(f.err) {
		way = "make room there or raise the limit, then it goes on by itself"
	}
	return fmt.Sprintf("recording in %s: %v; nothing is released that is not recorded: %s", f.path, f.err, way)
}

func (f *failure) Unwrap() error { return f.err }

func (f *failure) Is(target error) bool {
	return target == ErrUnavailable || target == ErrFull && noRoom(f.err)
}

// append makes data durable after head. On error nothing of it stays, now or,
// if the disk does not even let go of it, before anything else is written.
func (t *tape) append(data []byte, head Ref) error {
	if err := t.prepare(head); err != nil {
		return t.failed(err)
	}
	if _, err := t.file.Write(data); err != nil {
		t.drop()
		return t.undo(head, err)
	}
	if err := t.file.Sync(); err != nil {
		// The kernel may now hold pages for clean that never reached the
		// disk, and a second fsync would say that all is well. So the bytes
		// are cut off, and what comes next shares no page with them.
		t.drop()
		t.fresh = true
		return t.undo(head, err)
	}
	t.size += int64(len(data))
	return nil
}

// prepare makes the tape ready to write after head.
func (t *tape) prepare(head Ref) error {
	if err := t.mend(head); err != nil {
		return err
	}
	if t.path == "" || t.size > 0 && (t.fresh || t.size >= t.max) {
		if err := t.rotate(head); err != nil {
			return err
		}
	}
	t.fresh = false
	return t.unchanged()
}

// undo takes back an incomplete write at once, if it can: a crash before the
// next record would else leave lines of which the caller was told that they
// are not recorded. It returns cause as a failure.
func (t *tape) undo(head Ref, cause error) error {
	f := t.failed(cause)
	if err := t.mend(head); err != nil {
		t.log.Warn("audit record: an incomplete write stays until it can be cut off", "file", t.path, "error", err)
	}
	return f
}

// drop closes the file: its descriptor has reported its error and would
// report no more.
func (t *tape) drop() {
	if t.file != nil {
		_ = t.file.Close() // what it held was never confirmed
	}
	t.file = nil
}

// mend opens the file if trouble closed it, cuts off what is not durable and
// looks whether its last line is still the head.
func (t *tape) mend(head Ref) error {
	if t.file != nil || t.path == "" {
		return nil
	}
	size, err := sizeOf(t.path)
	if err != nil {
		return err
	}
	if size < t.size {
		return fmt.Errorf("it has %d bytes where %d were durable: somebody cut it", size, t.size)
	}
	if t.file, err = t.disk.open(t.path); err != nil {
		t.file = nil
		return err
	}
	if size > t.size { // else it would give away room that is kept beyond its end
		if err = t.file.Truncate(t.size); err == nil {
			err = t.file.Sync()
		}
	}
	if err == nil && t.size > 0 {
		err = t.endsWith(head)
	}
	if err == nil {
		t.info, err = os.Stat(t.path)
	}
	if err != nil {
		t.drop()
	}
	return err
}

func (t *tape) endsWith(head Ref) error {
	last, err := lastRef(t.path, t.size)
	if err == nil && last != head {
		err = fmt.Errorf("it ends with record %d where record %d was durable: somebody changed it", last.Sequence, head.Sequence)
	}
	return err
}

// rotate begins the file of the record after head. Until its name is durable
// the old file stays in use; an empty one that a failure left is taken again.
func (t *tape) rotate(head Ref) error {
	first := head.Sequence + 1
	path := fileName(t.dir, first)
	f, err := t.disk.open(path)
	if err != nil {
		return fmt.Errorf("beginning %s: %w", path, err)
	}
	info, err := os.Stat(path)
	if err == nil && info.Size() != 0 {
		err = errors.New("it is not empty: somebody else wrote it")
	}
	if err == nil {
		err = t.disk.syncDir(t.dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("beginning %s: %w", path, err), f.Close())
	}
	t.drop()
	t.file, t.path, t.first, t.size, t.info = f, path, first, 0, info
	return nil
}

// unchanged refuses to write when the file was taken away, replaced, cut or
// lengthened by another hand: the record would be lost with the descriptor,
// or follow lines that are not ours.
func (t *tape) unchanged() error {
	info, err := os.Lstat(t.path)
	switch {
	case err != nil:
		return fmt.Errorf("it was taken away, put it back: %w", err)
	case !os.SameFile(info, t.info):
		return errors.New("another file stands in its place: put it back")
	case info.Size() != t.size:
		return fmt.Errorf("it has %d bytes where %d were durable: somebody changed it", info.Size(), t.size)
	}
	return nil
}

func (t *tape) failed(err error) error {
	path := t.path
	if path == "" {
		path = t.dir
	}
	if pe, ok := errors.AsType[*os.PathError](err); ok && pe.Path == path {
		err = pe.Err
	}
	return &failure{path: path, err: err}
}

func (t *tape) close(head Ref) error {
	err := t.mend(head)
	if t.file != nil {
		err = errors.Join(err, t.file.Close())
	}
	t.file = nil
	return err
}
