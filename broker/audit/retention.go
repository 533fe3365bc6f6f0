package audit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// maxRemoved is how many files one record of KindTruncate names; each takes
// less than 100 bytes of it.
const maxRemoved = 512

// A Hold is a reader of the record that has got as far as Sequence: what comes
// after must not be removed yet.
type Hold struct {
	Name     string // of the reader, for the operator
	Sequence uint64
}

// TruncateConfig says what Truncate removes.
type TruncateConfig struct {
	Before time.Time // files all of whose records are older go. Required
	Holds  []Hold    // readers that still need what they have not read
	Actor  string    // who asks
	Reason string
}

// Truncated says what Truncate did.
type Truncated struct {
	Files   int    // that were removed
	Records uint64 // in them
	Last    Ref    // the last of them; zero if there is none
	Held    *Hold  // what kept older files from being removed too, if anything did
}

// Truncate removes the files all of whose records are older than c.Before,
// from the oldest on, but for the newest file and for what a Hold needs.
// Before, it checks that they hold together, since nobody can afterwards, and
// records what goes. What an earlier call recorded but did not live to remove,
// it removes first. Appending goes on meanwhile.
func (l *Log) Truncate(ctx context.Context, c TruncateConfig) (done Truncated, err error) {
	if c.Before.IsZero() {
		return done, errors.New("truncating the audit record: no time is given")
	}
	l.truncating.Lock()
	defer l.truncating.Unlock()
	if err := l.resume(ctx); err != nil {
		return done, fmt.Errorf("truncating the audit record: %w", err)
	}
	began, _ := l.state() // what is recorded of it is not removed by it
	for {
		t, held, err := l.removable(ctx, c, began.first)
		if err != nil {
			return done, fmt.Errorf("truncating the audit record: %w", err)
		}
		done.Held = held
		if len(t.Files) == 0 {
			return done, nil
		}
		refs, err := l.Append(ctx, Event{Kind: KindTruncate, OK: true, Actor: c.Actor, Reason: c.Reason, Detail: t.detail()})
		if err != nil {
			return done, fmt.Errorf("truncating the audit record: %w", err)
		}
		t.Record = refs[0]
		if err := l.remove(t); err != nil {
			return done, fmt.Errorf("truncating the audit record: %w", err)
		}
		done.Files += len(t.Files)
		done.Records += t.Last.Sequence - t.First + 1
		done.Last = t.Last
	}
}

// RetainConfig says how long Retain keeps records.
type RetainConfig struct {
	Keep time.Duration // required
	// Holds are asked for before each removal. Required.
	Holds func(context.Context) ([]Hold, error)
	// Every is how often it looks; 0 means an hour.
	Every time.Duration
}

// Retention is what keeps Retain from what it is to do.
type Retention struct {
	Held    *Hold // a reader that has not got so far
	Problem error
}

// Retain removes what is older than c.Keep, by Truncate, until ctx ends or the Log
// is closed, and says so in the log. So that records go soon after their time
// also where little is recorded, it has a new file begun after a tenth of it. told
// is called after each look; nil: nobody is.
func (l *Log) Retain(ctx context.Context, c RetainConfig, told func(Retention)) error {
	if c.Keep <= 0 || c.Holds == nil {
		return errors.New("keeping the audit record for a time: a time and who reads it are wanted")
	}
	if c.Every == 0 {
		c.Every = time.Hour
	}
	for {
		r := l.retain(ctx, c)
		if told != nil && ctx.Err() == nil {
			told(r)
		}
		if at, _ := l.state(); at.closed {
			return ErrClosed
		}
		if !sleep(ctx, c.Every) {
			return fmt.Errorf("keeping the audit record for a time: %w", context.Cause(ctx))
		}
	}
}

func (l *Log) retain(ctx context.Context, c RetainConfig) Retention {
	now := l.now()
	holds, err := c.Holds(ctx)
	var done Truncated
	if err == nil {
		err = l.beginAnew(now.Add(-c.Keep / 10))
	}
	if err == nil {
		done, err = l.Truncate(ctx, TruncateConfig{Before: now.Add(-c.Keep), Holds: holds, Actor: "retention"})
	}
	if done.Records > 0 {
		l.log.InfoContext(ctx, "audit record: what was too old was removed", "files", done.Files, "records", done.Records, "last", done.Last.ID())
	}
	switch {
	case err != nil && ctx.Err() == nil:
		l.log.WarnContext(ctx, "audit record: what is too old could not be removed", "error", err)
	case done.Held != nil:
		l.log.WarnContext(ctx, "audit record: what is too old stays, since a reader has not got so far", "reader", done.Held.Name, "at", done.Held.Sequence)
	}
	return Retention{Held: done.Held, Problem: err}
}

// beginAnew has the next record begin a file, if the newest was begun before.
func (l *Log) beginAnew(before time.Time) error {
	at, _ := l.state()
	if at.size == 0 {
		return nil
	}
	old, err := begunBefore(fileName(l.lock.Name(), at.first), before)
	if err == nil && old {
		l.renew.Store(true)
	}
	return err
}

// resume removes what a record says was removed and still stands there.
func (l *Log) resume(ctx context.Context) error {
	dir := l.lock.Name()
	for r, err := range Search(ctx, dir, Query{Kind: KindTruncate, Limit: 1}) {
		if err != nil {
			return err
		}
		if t, ok := truncationOf(r); ok {
			return l.remove(t)
		}
	}
	return nil
}

// remove removes the files of t that are still there, the oldest first, so that
// what a crash leaves is one piece, and none that is not what t says.
func (l *Log) remove(t Truncation) error {
	dir := l.lock.Name()
	for _, name := range t.names() {
		path := filepath.Join(dir, name)
		digest, err := digestOf(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if digest != t.Files[name] {
			return &BrokenError{File: path, Err: fmt.Errorf("it is not the file that %s says was removed", t.Record.ID())}
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if err := os.Remove(sidecarName(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return l.lock.Sync()
}

// removable returns the oldest files that may go, of those before one.
func (l *Log) removable(ctx context.Context, c TruncateConfig, until uint64) (t Truncation, held *Hold, err error) {
	dir := l.lock.Name()
	firsts, err := list(dir)
	if err != nil || len(firsts) == 0 {
		return t, nil, err
	}
	t = Truncation{First: firsts[0], Before: c.Before, Files: make(map[string][32]byte)}
	chain := chain{head: Ref{Sequence: firsts[0] - 1}, open: firsts[0] > 1}
	for i, first := range firsts {
		if first >= until || i+1 == len(firsts) || len(t.Files) == maxRemoved {
			return t, nil, nil
		}
		path := fileName(dir, first)
		if old, err := begunBefore(path, c.Before); err != nil || !old {
			return t, nil, err
		}
		if held := holding(c.Holds, firsts[i+1]-1); held != nil {
			return t, held, nil
		}
		next := chain
		if old, err := oldFile(ctx, path, &next, c.Before); err != nil || !old {
			return t, nil, err
		}
		if next.head.Sequence+1 != firsts[i+1] {
			return t, nil, &BrokenError{File: path, Err: fmt.Errorf("it ends with record %d, and the next file begins with %d", next.head.Sequence, firsts[i+1])}
		}
		digest, err := digestOf(path)
		if err != nil {
			return t, nil, err
		}
		t.Files[filepath.Base(path)], t.Last, chain = digest, next.head, next
	}
	return t, nil, nil
}

// holding returns who has not read up to last.
func holding(holds []Hold, last uint64) *Hold {
	for _, h := range holds {
		if h.Sequence < last {
			return &h
		}
	}
	return nil
}

// begunBefore says whether a file's first record is older than before: if not,
// the file need not be read.
func begunBefore(path string, before time.Time) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, MaxLine).ReadSlice('\n')
	if err != nil {
		return false, &BrokenError{File: path, Line: 1, Err: err}
	}
	r, err := ParseLine(line[:len(line)-1])
	if err != nil {
		return false, &BrokenError{File: path, Line: 1, Err: err}
	}
	return r.Time.Before(before), nil
}

// oldFile follows c through a whole file, and says whether all its records are
// older than before. Clocks are set back too, so each is looked at.
func oldFile(ctx context.Context, path string, c *chain, before time.Time) (bool, error) {
	size, err := sizeOf(path)
	if err != nil {
		return false, err
	}
	old := true
	_, err = scan(path, size, false, c, func(line []byte) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		r, err := decode(line)
		if err != nil {
			return &badLine{err}
		}
		if old = r.Time.Before(before); !old {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		err = nil
	}
	return old, err
}

func digestOf(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	h.Sum(sum[:0])
	return sum, err
}
