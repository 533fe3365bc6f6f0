package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A BrokenError says where the record is not what was written.
type BrokenError struct {
	File string
	Line int // from 1; 0 is the file as a whole
	Err  error
}

func (e *BrokenError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("the audit record is broken at %s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("the audit record is broken at %s line %d: %v", e.File, e.Line, e.Err)
}

func (e *BrokenError) Unwrap() error { return e.Err }

const suffix = ".jsonl"

func fileName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%012d%s", first, suffix))
}

// firstOf returns the sequence number in a file's name.
func firstOf(name string) (uint64, bool) {
	first, err := strconv.ParseUint(strings.TrimSuffix(name, suffix), 10, 64)
	return first, err == nil && first > 0 && fileName("", first) == name
}

// list returns the sequence numbers with which the files of dir begin, in
// order. Names of other kinds are none of the record's business.
func list(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the audit record: %w", err)
	}
	var firsts []uint64
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		first, ok := firstOf(e.Name())
		if !ok || !e.Type().IsRegular() {
			return nil, &BrokenError{File: path, Err: errors.New("it is no file that the record made")}
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	return firsts, nil
}

// A chain is followed line by line. Its head is the last line's place.
type chain struct {
	head Ref
	// open means that the hash before is not known yet and is taken from the
	// next line; head then has the sequence number only.
	open bool
}

// next takes the line if it comes after the head.
func (c *chain) next(line []byte) (link, error) {
	l, err := linkOf(line)
	switch want := c.head.Sequence + 1; {
	case err != nil:
		return l, err
	case l.ref.Sequence < want:
		return l, fmt.Errorf("record %d stands where record %d should: it was moved or repeated", l.ref.Sequence, want)
	case l.ref.Sequence > want:
		return l, fmt.Errorf("record %d stands where record %d should: what was between is missing", l.ref.Sequence, want)
	case !c.open && l.prev != c.head.Hash:
		return l, fmt.Errorf("record %d does not follow from the one before: one of them was replaced", want)
	}
	c.head, c.open = l.ref, false
	return l, nil
}

// A scanned file: where its good lines end, how many they are, and how many
// bytes of an incomplete write come after. The hash before the first line is
// prev.
type scanned struct {
	end, torn int64
	lines     int
	prev      [32]byte
}

// scan follows c through the first size bytes of a file and hands each line,
// without its newline, to fn. In the last file of a record it lets an
// incomplete write at the end pass; see isTorn.
func scan(path string, size int64, last bool, c *chain, fn func([]byte) error) (scanned, error) {
	f, err := os.Open(path)
	if err != nil {
		return scanned{}, fmt.Errorf("reading the audit record: %w", err)
	}
	defer f.Close()
	var s scanned
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, size), MaxLine)
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return s, nil
		}
		whole := err == nil
		if err != nil && err != io.EOF && !errors.Is(err, bufio.ErrBufferFull) {
			return s, fmt.Errorf("reading the audit record %s: %w", path, err)
		}
		if last && isTorn(line, err) && size-s.end <= maxBatch {
			s.torn = size - s.end
			return s, nil
		}
		broken := func(err error) error { return &BrokenError{File: path, Line: s.lines + 1, Err: err} }
		if !whole {
			return s, broken(errors.New("its end is missing: it was cut off, or is too long"))
		}
		line = line[:len(line)-1]
		l, err := c.next(line)
		if err != nil {
			return s, broken(err)
		}
		if s.lines == 0 {
			s.prev = l.prev
		}
		if err := fn(line); err != nil {
			if _, ok := errors.AsType[*badLine](err); ok {
				return s, broken(err)
			}
			return s, err
		}
		s.lines++
		s.end += int64(len(line)) + 1
	}
}

// badLine is an error of scan's fn that is the line's fault.
type badLine struct{ error }

func (b *badLine) Unwrap() error { return b.error }

// isTorn tells a write that a crash or a power cut left incomplete from a
// line that somebody changed: it has no newline, or it has zero bytes, which
// the record never writes and file systems put where a page did not reach the
// disk. All that follows was then of the same group commit, since the next one
// is written only when this one is durable; none of it was confirmed. A
// forger gains nothing here that cutting the file wouldn't give.
func isTorn(line []byte, err error) bool {
	return err == io.EOF || bytes.IndexByte(line, 0) >= 0
}

// sizeOf returns a file's size.
func sizeOf(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("reading the audit record: %w", err)
	}
	return info.Size(), nil
}

// lastRef returns the place of the last whole line within the first size bytes
// of a file; its hash is checked, what comes before it isn't.
func lastRef(path string, size int64) (Ref, error) {
	f, err := os.Open(path)
	if err != nil {
		return Ref{}, err
	}
	defer f.Close()
	tail := make([]byte, min(size, MaxLine+1))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return Ref{}, err
	}
	body, ok := bytes.CutSuffix(tail, []byte("\n"))
	if !ok {
		return Ref{}, &BrokenError{File: path, Err: errors.New("its end is missing: it was cut off")}
	}
	line := body[bytes.LastIndexByte(body, '\n')+1:]
	l, err := linkOf(line)
	if err != nil {
		return Ref{}, &BrokenError{File: path, Err: fmt.Errorf("last line: %w", err)}
	}
	return l.ref, nil
}
