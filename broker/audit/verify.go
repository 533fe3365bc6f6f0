package audit

import (
	"errors"
	"fmt"
)

// A Report is what Verify saw, up to the error if there was one.
type Report struct {
	Records uint64
	Files   int
	Head    Ref   // the last good record
	Torn    int64 // bytes of an incomplete write at the end: a crash's, or one in progress
}

// Verify reads the record in dir from the first to the last line. It returns a
// BrokenError at the first that was changed, moved, taken out or put in, and
// at a file that is missing. That records were cut off the end, or that all
// was written anew, it can tell only from heads that were known before:
// each must stand in the record. Verify may run beside a writer.
func Verify(dir string, known ...Ref) (Report, error) {
	var r Report
	firsts, err := list(dir)
	if err != nil {
		return r, err
	}
	if len(firsts) == 0 {
		return r, fmt.Errorf("verifying the audit record: %s holds none", dir)
	}
	want := make(map[uint64][]Ref)
	for _, ref := range known {
		if ref != (Ref{}) {
			want[ref.Sequence] = append(want[ref.Sequence], ref)
		}
	}
	var c chain
	for i, first := range firsts {
		last := i == len(firsts)-1
		s, err := verifyFile(dir, first, last, &c, want)
		r.Records += uint64(s.lines)
		r.Head, r.Torn = c.head, s.torn
		if err != nil {
			return r, err
		}
		r.Files++
	}
	for seq := range want {
		return r, &BrokenError{File: fileName(dir, firsts[len(firsts)-1]), Err: fmt.Errorf("it ends with record %d, but record %d was seen before: the end was cut off", r.Head.Sequence, seq)}
	}
	return r, nil
}

// verifyFile follows c through one file and strikes off want what it finds.
func verifyFile(dir string, first uint64, last bool, c *chain, want map[uint64][]Ref) (scanned, error) {
	path := fileName(dir, first)
	if next := c.head.Sequence + 1; first != next {
		return scanned{}, &BrokenError{File: path, Err: fmt.Errorf("it begins with record %d where record %d should be: a file is missing, or the one before was cut", first, next)}
	}
	size, err := sizeOf(path)
	if err != nil {
		return scanned{}, err
	}
	if size == 0 && !last {
		return scanned{}, &BrokenError{File: path, Err: errors.New("it is empty")}
	}
	return scan(path, size, last, c, func(line []byte) error {
		if _, err := decode(line); err != nil {
			return &badLine{err}
		}
		for _, ref := range want[c.head.Sequence] {
			if ref != c.head {
				return &badLine{fmt.Errorf("record %d is not the one that was seen before: the record was written anew", ref.Sequence)}
			}
		}
		delete(want, c.head.Sequence)
		return nil
	})
}
