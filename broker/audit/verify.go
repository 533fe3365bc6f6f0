package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// A Report is what Verify saw, up to the error if there was one.
type Report struct {
	Records   uint64
	Files     int
	Head      Ref         // the last good record
	Torn      int64       // bytes of an incomplete write at the end: a crash's, or one in progress
	Confirmed int         // places that were known before and stand in the record
	Removed   *Truncation // what was removed before the first record there is; nil: nothing
	Gone      int         // places that were known before, of records that were removed
}

// Known is a place in the record that somebody knew before.
type Known struct {
	Ref
	Time time.Time // zero: not known
	By   string    // who keeps it; empty: not said
}

func (k Known) String() string {
	s := fmt.Sprintf("record %d", k.Sequence)
	if !k.Time.IsZero() {
		s += " of " + k.Time.UTC().Format(time.RFC3339)
	}
	if k.By != "" {
		s += ", whose head " + k.By + " keeps"
	}
	return s
}

// A RewrittenError says that the record is not the one of a head that was kept.
// What comes after the last place that such a head confirms cannot be trusted.
type RewrittenError struct {
	Kept  Known
	After Known  // the last one that stands; zero: none does
	End   uint64 // with which the record ends, where it is cut off; else 0
}

func (e *RewrittenError) Error() string {
	what := fmt.Sprintf("%s, is not the one that stands here: the record was written anew", e.Kept)
	if e.End != 0 {
		what = fmt.Sprintf("it ends with record %d, and %s, was seen before: the end was cut off", e.End, e.Kept)
	}
	if e.After.Ref == (Ref{}) {
		return what + "; no head that was kept confirms anything before it: trust none of it"
	}
	return fmt.Sprintf("%s; the last that a head which was kept confirms is record %d: trust nothing from record %d on", what, e.After.Sequence, e.After.Sequence+1)
}

// Verify reads the record in dir from the first to the last line. It returns a
// BrokenError at the first that was changed, moved, taken out or put in, and
// at a file that is missing. That records were cut off the end, or that all
// was written anew, it can tell only from heads that were known before:
// each must stand in the record, if it isn't older than what is there. Where
// the beginning is missing, a record must say that it was removed for its age
// and name the hash from which the chain goes on. Verify may run beside a
// writer.
func Verify(dir string, known ...Ref) (Report, error) {
	all := make([]Known, 0, len(known))
	for _, ref := range known {
		all = append(all, Known{Ref: ref})
	}
	return VerifyKnown(context.Background(), dir, all)
}

// VerifyKnown is Verify with who knew what. A BrokenError at the first place that
// doesn't stand wraps a RewrittenError, which says from where on the record cannot
// be trusted.
//
// Files are read side by side, each as a chain of its own; then the chains are
// held against each other, in order.
func VerifyKnown(ctx context.Context, dir string, known []Known) (Report, error) {
	var r Report
	firsts, err := list(dir)
	if err != nil {
		return r, err
	}
	if len(firsts) == 0 {
		return r, fmt.Errorf("verifying the audit record: %s holds none", dir)
	}
	known = slices.DeleteFunc(slices.Clone(known), func(k Known) bool { return k.Ref == Ref{} })
	slices.SortStableFunc(known, func(x, y Known) int { return cmp.Compare(x.Sequence, y.Sequence) })
	ctx, cancel := context.WithCancel(ctx)
	begin := beginning{last: Ref{Sequence: firsts[0] - 1}}
	head := begin.last
	var confirmed Known
	next, wait := verifyFiles(ctx, dir, firsts, known)
	defer wait()
	defer cancel()
	for i, first := range firsts {
		f, err := next()
		if err == nil && i == 0 {
			head, err = begin.at(f, known)
		}
		if err == nil {
			err = f.follows(head)
		}
		if err != nil {
			return r, err
		}
		r.Records += uint64(f.lines)
		r.Torn = f.torn
		if f.lines > 0 {
			head = f.head
		}
		r.Head = head
		begin.take(f.cuts...)
		if n := len(f.stand); n > 0 {
			confirmed, r.Confirmed = f.stand[n-1], r.Confirmed+n
		}
		if f.err != nil {
			if rewritten, ok := errors.AsType[*RewrittenError](f.err); ok {
				rewritten.After = confirmed
			}
			return r, f.err
		}
		if f.size == 0 && i < len(firsts)-1 {
			return r, &BrokenError{File: fileName(dir, first), Err: errors.New("it is empty")}
		}
		r.Files++
	}
	if err := begin.check(dir); err != nil {
		return r, err
	}
	r.Removed = begin.by
	if r.Gone, err = begin.contradicts(dir, known); err != nil {
		return r, err
	}
	if n, _ := slices.BinarySearchFunc(known, head.Sequence+1, func(k Known, seq uint64) int { return cmp.Compare(k.Sequence, seq) }); n < len(known) {
		return r, &BrokenError{File: fileName(dir, firsts[len(firsts)-1]), Err: &RewrittenError{Kept: known[n], After: confirmed, End: head.Sequence}}
	}
	return r, nil
}

// A verified file is one chain, up to the error if there was one.
type verified struct {
	scanned
	path  string
	first uint64 // by its name
	size  int64
	head  Ref
	stand []Known      // of those known before, the ones that it holds
	cuts  []Truncation // that it speaks of
	err   error
}

// follows says whether the file goes on where the one before ended.
func (f *verified) follows(head Ref) error {
	if next := head.Sequence + 1; f.first != next {
		return &BrokenError{File: f.path, Err: fmt.Errorf("it begins with record %d where record %d should be: a file is missing, or the one before was cut", f.first, next)}
	}
	if f.lines > 0 && f.prev != head.Hash {
		f.scanned, f.stand = scanned{}, nil
		return &BrokenError{File: f.path, Line: 1, Err: fmt.Errorf("record %d does not follow from the one before: one of them was replaced", f.first)}
	}
	return nil
}

// verifyFiles reads the files side by side. next returns what was seen of each,
// in order; wait returns when nothing is read any more, once ctx has ended.
func verifyFiles(ctx context.Context, dir string, firsts []uint64, known []Known) (next func() (*verified, error), wait func()) {
	workers := min(runtime.GOMAXPROCS(0), len(firsts))
	results := make([]chan *verified, len(firsts))
	for i := range results {
		results[i] = make(chan *verified, 1)
	}
	ahead := make(chan int, 2*workers) // bounds how far reading runs ahead
	done := make(chan struct{}, workers)
	go func() {
		defer close(ahead)
		for i := range firsts {
			select {
			case ahead <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	for range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range ahead {
				results[i] <- verifyFile(ctx, dir, firsts[i], i == len(firsts)-1, known)
			}
		}()
	}
	at := 0
	next = func() (*verified, error) {
		select {
		case f := <-results[at]:
			at++
			return f, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("verifying the audit record: %w", context.Cause(ctx))
		}
	}
	return next, func() {
		for range workers {
			<-done
		}
	}
}

// verifyFile follows one file's chain, and looks for what of it was known.
func verifyFile(ctx context.Context, dir string, first uint64, last bool, known []Known) *verified {
	f := &verified{path: fileName(dir, first), first: first}
	if f.size, f.err = sizeOf(f.path); f.err != nil {
		return f
	}
	i, _ := slices.BinarySearchFunc(known, first, func(k Known, seq uint64) int { return cmp.Compare(k.Sequence, seq) })
	c := chain{head: Ref{Sequence: first - 1}, open: true}
	f.scanned, f.err = scan(f.path, f.size, last, &c, func(line []byte) error {
		if c.head.Sequence%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !isPlain(line) {
			if _, err := decode(line); err != nil {
				return &badLine{err}
			}
		}
		if t, ok := truncationIn(line); ok {
			f.cuts = append(f.cuts, t)
		}
		for ; i < len(known) && known[i].Sequence == c.head.Sequence; i++ {
			if known[i].Ref != c.head {
				return &badLine{&RewrittenError{Kept: known[i]}}
			}
			f.stand = append(f.stand, known[i])
		}
		return nil
	})
	f.head = c.head
	return f
}
