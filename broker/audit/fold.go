package audit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// A FolderConfig says what a Folder folds and for how long.
type FolderConfig struct {
	// Log takes the records. Required.
	Log Appender
	// Every is how long repeats are counted before the count is written; 0
	// means 5 min.
	Every time.Duration
	// Keys bounds how many denials are remembered; 0 means 4096.
	Keys int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger is told when counts could not be written; nil discards.
	Logger *slog.Logger
}

// A Folder keeps a workload that asks again and again from filling the record:
// the first denial is written at once, and repeats by the same node on the
// same facts with the same kind and code are counted and written as one record
// that names the first. What the repeats differ in otherwise, such as their
// audiences, is not kept. So too with an operator who reads, and of whom what is OK
// is folded: then by who it is and with which SVID.
type Folder struct {
	log    Appender
	every  time.Duration
	limit  int
	now    func() time.Time
	logger *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // holds one

	mu      sync.Mutex // guards what follows, and the entries
	entries map[foldKey]*entry
	uses    uint64 // a clock for the least recently used
	closed  bool
}

type foldKey [sha256.Size]byte

// An entry is one denial that may repeat.
type entry struct {
	key     foldKey
	first   chan struct{} // closed when the first record is durable or failed
	ref     Ref
	err     error // of the first record
	ready   bool  // first is closed, without error
	event   Event // what the record of the repeats says
	repeats uint64
	until   time.Time
	used    uint64
}

// foldBatch is how many counts go into one call of Append.
const foldBatch = 64

// NewFolder returns a Folder that writes to c.Log until it is closed.
func NewFolder(c FolderConfig) (*Folder, error) {
	if c.Log == nil {
		return nil, errors.New("folding denials: there is no record to write to")
	}
	if c.Every < 0 || c.Keys < 0 {
		return nil, errors.New("folding denials: a negative time or bound is not possible")
	}
	if c.Every == 0 {
		c.Every = 5 * time.Minute
	}
	if c.Keys == 0 {
		c.Keys = 4096
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Folder{
		log: c.Log, every: c.Every, limit: c.Keys, now: c.Now, logger: c.Logger,
		cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1),
		entries: make(map[foldKey]*entry),
	}
	go f.run(ctx)
	return f, nil
}

// Append records e, or counts it as a repeat, and returns the place to quote
// to the caller: its own, or that of the first of its like. Like Log.Append it
// returns nothing that is not durable; only counts may be lost in a crash.
func (f *Folder) Append(ctx context.Context, e Event) (Ref, error) {
	key := keyOf(e)
	for {
		have, mine, victim, err := f.enter(key, e)
		switch {
		case err != nil:
			return Ref{}, err
		case mine:
			return f.lead(ctx, have, victim, e)
		case have == nil: // no room to remember it
			return appendOne(ctx, f.log, e)
		}
		select {
		case <-have.first:
		case <-ctx.Done():
			return Ref{}, fmt.Errorf("waiting for the audit record to be durable: %w", context.Cause(ctx))
		}
		if have.err == nil {
			return have.ref, nil
		}
		if !errors.Is(have.err, context.Canceled) && !errors.Is(have.err, context.DeadlineExceeded) {
			return Ref{}, have.err
		}
		// The caller before us gave up, which says nothing about the disk.
	}
}

func appendOne(ctx context.Context, log Appender, e Event) (Ref, error) {
	refs, err := log.Append(ctx, e)
	if err != nil {
		return Ref{}, err
	}
	return refs[0], nil
}

// enter finds the entry for key and counts e as its repeat, or makes one,
// which is then the caller's (mine) to lead. victim is an older entry that
// had to make room. No entry at all means that there is none to push out.
func (f *Folder) enter(key foldKey, e Event) (have *entry, mine bool, victim *entry, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false, nil, ErrClosed
	}
	f.uses++
	if have = f.entries[key]; have != nil {
		have.used = f.uses
		have.repeats += max(e.Count, 1)
		return have, false, nil, nil
	}
	if len(f.entries) >= f.limit {
		if victim = f.oldest(); victim == nil {
			return nil, false, nil, nil
		}
		delete(f.entries, victim.key)
	}
	have = &entry{key: key, first: make(chan struct{}), used: f.uses, event: Event{
		Kind: e.Kind, OK: e.OK, Node: e.Node, SPIFFEID: e.SPIFFEID, Identity: e.Identity, Code: e.Code, Actor: e.Actor, Spare: e.Spare,
	}}
	if e.OK {
		have.event.Serial = e.Serial
	}
	f.entries[key] = have
	return have, true, victim, nil
}

// oldest returns the least recently used entry that is not being written.
func (f *Folder) oldest() (old *entry) {
	for _, e := range f.entries {
		if e.ready && (old == nil || e.used < old.used) {
			old = e
		}
	}
	return old
}

// lead writes the first record of have and, in the same call, the count of
// the entry that made room for it.
func (f *Folder) lead(ctx context.Context, have, victim *entry, e Event) (Ref, error) {
	events := []Event{e}
	if victim != nil && victim.repeats > 0 {
		events = append(events, victim.folded())
	}
	refs, err := f.log.Append(ctx, events...)
	f.mu.Lock()
	defer f.mu.Unlock()
	defer close(have.first)
	if err != nil {
		have.err = err
		delete(f.entries, have.key)
		f.restore(victim)
		return Ref{}, err
	}
	have.ref, have.ready, have.until = refs[0], true, f.now().Add(f.every)
	f.ring()
	return have.ref, nil
}

// ring lets run look for what is to be done.
func (f *Folder) ring() {
	select {
	case f.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// folded returns the record of e's repeats. Facts and reason stand in the first.
func (e *entry) folded() Event {
	folded := e.event
	folded.Count = e.repeats
	folded.Detail = map[string]string{"repeats": e.ref.ID()}
	return folded
}

// restore takes e in again after its count could not be written.
func (f *Folder) restore(e *entry) {
	if e == nil {
		return
	}
	if have := f.entries[e.key]; have != nil {
		have.repeats += e.repeats // it is the same denial, begun anew
		return
	}
	f.entries[e.key] = e
	f.ring()
}

// run writes the counts when their time is over.
func (f *Folder) run(ctx context.Context) {
	defer close(f.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		for wait, more := f.next(); more; wait, more = f.next() {
			if !sleep(ctx, wait) {
				return
			}
			if err := f.flush(ctx, f.now()); err != nil {
				f.logger.WarnContext(ctx, "counts of repeated denials could not be recorded yet", "error", err)
				if !sleep(ctx, f.every/10) {
					return
				}
			}
		}
	}
}

// next says how long it is until the first entry's time is over.
func (f *Folder) next() (wait time.Duration, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	for _, e := range f.entries {
		if d := max(e.until.Sub(now), 0); e.ready && (!more || d < wait) {
			wait, more = d, true
		}
	}
	return wait, more
}

// flush forgets the entries whose time is over and writes their counts.
func (f *Folder) flush(ctx context.Context, now time.Time) error {
	over := f.detach(now)
	for batch := range slices.Chunk(over, foldBatch) {
		var events []Event
		for _, e := range batch {
			events = append(events, e.folded())
		}
		if err := appendCounts(ctx, f.log, events...); err != nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, e := range over[slices.Index(over, batch[0]):] {
				f.restore(e)
			}
			return err
		}
	}
	return nil
}

// detach takes out the entries whose time is over and returns those that have
// repeats, in the order of their first records.
func (f *Folder) detach(now time.Time) (over []*entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, e := range f.entries {
		if !e.ready || e.until.After(now) {
			continue
		}
		delete(f.entries, key)
		if e.repeats > 0 {
			over = append(over, e)
		}
	}
	slices.SortFunc(over, func(a, b *entry) int { return cmp.Compare(a.ref.Sequence, b.ref.Sequence) })
	return over
}

// Close writes the counts that are left and ends the Folder. Later denials
// are refused with ErrClosed.
func (f *Folder) Close() error {
	f.cancel()
	<-f.done
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	if err := f.flush(context.Background(), time.Unix(1<<60, 0)); err != nil {
		return fmt.Errorf("closing the count of repeated denials, the last of which are lost: %w", err)
	}
	return nil
}

// keyOf digests what makes two events the same: node, kind, code, actor, facts and
// detail, in which the caller says what was asked and under which policy; but
// not target and audiences, which a workload could vary without end. Lengths go
// before strings, so that no two sets of facts read alike.
func keyOf(e Event) (key foldKey) {
	h := sha256.New()
	writeAll(h, []string{e.Kind, e.Node, e.Code, e.Actor})
	if e.OK {
		writeAll(h, []string{"ok", e.Serial})
	}
	for _, name := range slices.Sorted(maps.Keys(e.Detail)) {
		writeAll(h, []string{name, e.Detail[name]})
	}
	writeAll(h, nil) // facts begin
	for _, name := range slices.Sorted(maps.Keys(e.Facts)) {
		writeAll(h, []string{name})
		writeAll(h, slices.Sorted(slices.Values(e.Facts[name])))
	}
	h.Sum(key[:0])
	return key
}

func writeAll(h hash.Hash, ss []string) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(ss))))
	for _, s := range ss {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
}
