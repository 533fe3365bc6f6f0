package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sort"
)

// Read returns the records of dir after the given sequence number, in order,
// until the end that the record has now. It checks each record and the chain
// between those that it reads. After an error, which may be a BrokenError or
// the context's, there is nothing more. Read needs no Log and may run beside
// one; it may then see records a moment before they are confirmed.
func Read(ctx context.Context, dir string, after uint64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if err := read(ctx, dir, after, func(r Record) bool { return yield(r, nil) }); err != nil {
			yield(Record{}, err)
		}
	}
}

// errEnough ends a read whose consumer wants no more.
var errEnough = errors.New("enough")

func read(ctx context.Context, dir string, after uint64, yield func(Record) bool) error {
	firsts, err := list(dir)
	if err != nil {
		return err
	}
	// The first file that may hold a record wanted: the last one that begins
	// no later.
	i := sort.Search(len(firsts), func(i int) bool { return firsts[i] > after+1 }) - 1
	if len(firsts) == 0 || i < 0 {
		return fmt.Errorf("reading the audit record: %s does not hold record %d", dir, after+1)
	}
	c := chain{head: Ref{Sequence: firsts[i] - 1}, open: firsts[i] > 1}
	for ; i < len(firsts); i++ {
		path, last := fileName(dir, firsts[i]), i == len(firsts)-1
		if firsts[i] != c.head.Sequence+1 {
			return &BrokenError{File: path, Err: fmt.Errorf("it begins with record %d where record %d should be", firsts[i], c.head.Sequence+1)}
		}
		size, err := sizeOf(path)
		if err != nil {
			return err
		}
		_, err = scan(path, size, last, &c, func(line []byte) error {
			if err := context.Cause(ctx); err != nil {
				return fmt.Errorf("reading the audit record: %w", err)
			}
			if c.head.Sequence <= after {
				return nil
			}
			r, err := decode(line)
			if err != nil {
				return &badLine{err}
			}
			if !yield(r) {
				return errEnough
			}
			return nil
		})
		if err == errEnough {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Tail returns the last n records of dir, oldest first, as Read does.
func Tail(ctx context.Context, dir string, n int) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		after, err := tailStart(dir, n)
		if err != nil {
			yield(Record{}, err)
			return
		}
		Read(ctx, dir, after)(yield)
	}
}

// tailStart returns the sequence number after which n records are left.
func tailStart(dir string, n int) (uint64, error) {
	firsts, err := list(dir)
	if err != nil {
		return 0, err
	}
	if len(firsts) == 0 {
		return 0, fmt.Errorf("reading the audit record: %s holds none", dir)
	}
	first := firsts[len(firsts)-1]
	c := chain{head: Ref{Sequence: first - 1}, open: first > 1}
	size, err := sizeOf(fileName(dir, first))
	if err != nil {
		return 0, err
	}
	if _, err := scan(fileName(dir, first), size, true, &c, func([]byte) error { return nil }); err != nil {
		return 0, err
	}
	return max(c.head.Sequence-min(c.head.Sequence, uint64(max(n, 0))), firsts[0]-1), nil
}

// Follow hands the last records, as many as asked for, and then each new one
// to fn once it is durable, in order, without gaps and without polling. It
// returns fn's error, the context's, or ErrClosed after the last record of a
// Log that was closed. It reads from the files, so a slow fn delays nobody
// and costs no memory.
func (l *Log) Follow(ctx context.Context, last int, fn func(Record) error) error {
	at, _ := l.state()
	oldest, err := l.Oldest()
	if err != nil {
		return err
	}
	return l.follow(ctx, Ref{Sequence: max(at.head.Sequence-min(at.head.Sequence, uint64(max(last, 0))), oldest.Sequence)}, fn)
}

// FollowAfter is Follow from a place on: for who keeps the last one that it has
// dealt with, and misses and repeats none. The error wraps ErrReplaced if that
// place is not in the record.
func (l *Log) FollowAfter(ctx context.Context, after Ref, fn func(Record) error) error {
	if at, _ := l.state(); after.Sequence > at.head.Sequence {
		return fmt.Errorf("following the audit record: %w: it ends with record %d, and record %d was read before", ErrReplaced, at.head.Sequence, after.Sequence)
	}
	return l.follow(ctx, after, fn)
}

// Oldest is the place before the oldest record that is still there, for
// FollowAfter. It has no hash.
func (l *Log) Oldest() (Ref, error) { return OldestIn(l.lock.Name()) }

// OldestIn is Oldest without a Log.
func OldestIn(dir string) (Ref, error) {
	firsts, err := list(dir)
	if err != nil || len(firsts) == 0 {
		return Ref{}, err
	}
	return Ref{Sequence: firsts[0] - 1}, nil
}

// follow goes on after a place, whose hash is checked unless it is zero.
func (l *Log) follow(ctx context.Context, after Ref, fn func(Record) error) error {
	cur, err := l.cursor(after)
	if err != nil {
		return err
	}
	for {
		at, changed := l.state()
		if err := cur.drain(ctx, at, fn); err != nil {
			return err
		}
		if at.closed {
			return ErrClosed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("following the audit record: %w", context.Cause(ctx))
		case <-changed:
		}
	}
}

// A cursor is a place in the files of a record that is being written.
type cursor struct {
	dir    string
	first  uint64 // of the file
	offset int64
	chain  chain
	after  Ref // records up to this one are passed over
}

func (l *Log) cursor(after Ref) (*cursor, error) {
	dir := l.lock.Name()
	firsts, err := list(dir)
	if err != nil {
		return nil, err
	}
	// The last file that begins no later than the place itself, or than the
	// record after it where there is no place to check.
	want := after.Sequence
	if after.Hash == ([32]byte{}) {
		want++
	}
	i := sort.Search(len(firsts), func(i int) bool { return firsts[i] > want }) - 1
	if i < 0 && len(firsts) > 0 && firsts[0] == after.Sequence+1 {
		// All up to the place was removed for its age; the next record says
		// whether it follows from there.
		return &cursor{dir: dir, first: firsts[0], chain: chain{head: after}, after: after}, nil
	}
	if i < 0 {
		return nil, fmt.Errorf("reading the audit record: %w: %s does not hold record %d", ErrReplaced, dir, want)
	}
	c := chain{head: Ref{Sequence: firsts[i] - 1}, open: firsts[i] > 1}
	return &cursor{dir: dir, first: firsts[i], chain: c, after: after}, nil
}

// drain reads up to at and no byte further: what lies beyond is not durable
// and may be cut off again.
func (c *cursor) drain(ctx context.Context, at state, fn func(Record) error) error {
	for c.chain.head.Sequence < at.head.Sequence {
		limit := at.size
		if c.first != at.first {
			var err error
			if limit, err = sizeOf(fileName(c.dir, c.first)); err != nil {
				return err
			}
		}
		if err := c.drainFile(ctx, limit, fn); err != nil {
			return err
		}
		if c.first == at.first {
			break
		}
		c.first, c.offset = c.chain.head.Sequence+1, 0
	}
	return nil
}

func (c *cursor) drainFile(ctx context.Context, limit int64, fn func(Record) error) error {
	path := fileName(c.dir, c.first)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading the audit record: %w", err)
	}
	defer f.Close()
	lines := bufio.NewReaderSize(io.NewSectionReader(f, c.offset, limit-c.offset), MaxLine)
	for c.offset < limit {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("following the audit record: %w", err)
		}
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("reading record %d in %s: %w", c.chain.head.Sequence+1, path, err)
		}
		c.offset += int64(len(line))
		if err := c.take(line[:len(line)-1], fn); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	return nil
}

func (c *cursor) take(line []byte, fn func(Record) error) error {
	at := c.chain.head
	if _, err := c.chain.next(line); err != nil {
		if at == c.after && c.first == at.Sequence+1 && at.Sequence > 0 {
			err = fmt.Errorf("%w: %w", ErrReplaced, err)
		}
		return err
	}
	switch here := c.chain.head; {
	case here.Sequence == c.after.Sequence && c.after.Hash != ([32]byte{}) && here != c.after:
		return fmt.Errorf("%w: record %d is not the one that was read before", ErrReplaced, here.Sequence)
	case here.Sequence <= c.after.Sequence:
		return nil
	}
	r, err := decode(line)
	if err != nil {
		return err
	}
	return fn(r)
}
