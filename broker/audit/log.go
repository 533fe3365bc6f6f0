package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Log writes the record. Its methods may be used by many at once.
type Log struct {
	now  func() time.Time
	lock *os.File // holds the directory for this process
	log  *slog.Logger
	done chan struct{}
	err  error // of closing; readable after done

	truncating sync.Mutex  // held by Truncate
	renew      atomic.Bool // the next record begins a new file

	mu      sync.Mutex // guards what follows
	wake    *sync.Cond // there is something in queue, or closing is set
	queue   []*call
	queued  int // bytes in queue
	closing bool
	at      state
	changed chan struct{} // closed and replaced when at changes
	stats   Stats         // but for what is known elsewhere

	observe func(Commit)
	secrets *secrets
}

// state is how far the record is durable.
type state struct {
	head   Ref
	first  uint64 // of the newest file
	size   int64  // of the newest file
	closed bool
}

// A call is one call of Append that waits for the disk.
type call struct {
	events [][]byte // encoded
	bytes  int
	spare  bool // it may not take of the reserve
	refs   []Ref
	err    error
	done   chan struct{} // refs and err are set
}

// Open opens the record in c.Dir for writing, or begins one. It checks the
// newest file whole and its link to the one before, or to the record that says
// that all before were removed for their age; the rest is for Verify.
// An incomplete write at the very end, as a crash leaves it, was never
// confirmed and is cut off; anything else that is wrong is a BrokenError, and
// the record must be set aside and looked at before a new one is begun.
func Open(c Config) (*Log, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := makeDir(c.disk, c.Dir); err != nil {
		return nil, fmt.Errorf("opening the audit record: %w", err)
	}
	dir, err := lock(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the audit record %s: %w", c.Dir, err)
	}
	hidden, err := openSecrets(c.disk, c.Dir, c.HMACFacts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the audit record: %w", err), dir.Close())
	}
	t := &tape{dir: c.Dir, max: c.MaxBytes, disk: c.disk, log: c.Log, reserve: reserve{size: c.Reserve}}
	head, err := t.load()
	if err == nil {
		err = t.prepare(head)
	}
	if err != nil {
		t.drop()
		return nil, errors.Join(fmt.Errorf("opening the audit record: %w", err), dir.Close())
	}
	l := &Log{
		now:     c.Now,
		observe: c.Observe,
		secrets: hidden,
		lock:    dir,
		log:     c.Log,
		done:    make(chan struct{}),
		at:      state{head: head, first: t.first, size: t.size},
		changed: make(chan struct{}),
	}
	l.wake = sync.NewCond(&l.mu)
	t.replenish(c.Now())
	go l.run(t, head)
	return l, nil
}

// load finds the end of the record. The tape's file stays closed, so that mend
// cuts off what is beyond.
func (t *tape) load() (Ref, error) {
	firsts, err := list(t.dir)
	if err != nil || len(firsts) == 0 {
		return Ref{}, err
	}
	n := len(firsts) - 1
	t.first, t.path = firsts[n], fileName(t.dir, firsts[n])
	c := chain{head: Ref{Sequence: t.first - 1}, open: t.first > 1}
	var cuts []Truncation
	size, err := sizeOf(t.path)
	if err != nil {
		return Ref{}, err
	}
	s, err := scan(t.path, size, true, &c, func(line []byte) error {
		if t, ok := truncationIn(line); ok {
			cuts = append(cuts, t)
		}
		return nil
	})
	if err != nil {
		return Ref{}, fmt.Errorf("%w; set %s aside as it is, look at it, and begin a new record", err, t.dir)
	}
	t.size = s.end
	if s.torn > 0 {
		t.log.Warn("audit record: cutting off an incomplete write that was never confirmed", "file", t.path, "offset", s.end, "bytes", s.torn)
	}
	if n == 0 { // the others, if there were any, were removed for their age
		begin := beginning{last: Ref{Sequence: t.first - 1, Hash: s.prev}}
		begin.take(cuts...)
		return c.head, begin.check(t.dir)
	}
	before, err := t.before(firsts[:n])
	if err != nil {
		return Ref{}, err
	}
	if before.Sequence != t.first-1 || s.lines > 0 && s.prev != before.Hash {
		return Ref{}, &BrokenError{File: t.path, Line: 1, Err: fmt.Errorf("it does not follow from record %d, with which the file before ends", before.Sequence)}
	}
	if s.lines == 0 {
		return before, nil
	}
	return c.head, nil
}

// before returns the last place in the file before the newest.
func (t *tape) before(firsts []uint64) (Ref, error) {
	path := fileName(t.dir, firsts[len(firsts)-1])
	size, err := sizeOf(path)
	if err != nil {
		return Ref{}, err
	}
	return lastRef(path, size)
}

// Append records the events, in order and with no others between, and returns
// their places once they are durable. Many callers share one fsync.
//
// All of a call is recorded or none. On error nothing of it may be released.
// If ctx ended while the disk was at work, or the process died before Append
// returned, the events may stand in the record all the same (after a death,
// perhaps the first of them only): the record may say more than was released,
// never less.
func (l *Log) Append(ctx context.Context, events ...Event) ([]Ref, error) {
	c, err := l.newCall(events)
	if err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("recording %s: %w", events[0].Kind, err)
	}
	if err := l.enqueue(c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c.refs, c.err
	case <-ctx.Done():
		l.withdraw(c)
		return nil, fmt.Errorf("waiting for the audit record to be durable: %w", context.Cause(ctx))
	}
}

func (l *Log) newCall(events []Event) (*call, error) {
	if len(events) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrRefused)
	}
	c := &call{done: make(chan struct{}), spare: true}
	for _, e := range events {
		b, err := encodeEvent(l.secrets.hide(e))
		if err != nil {
			return nil, err
		}
		c.events = append(c.events, b)
		c.bytes += len(b) + lineOverhead
		c.spare = c.spare && (e.Spare || !e.OK)
	}
	if c.bytes > maxBatch {
		return nil, fmt.Errorf("%w: %d events at once take %d bytes, %d are possible", ErrRefused, len(events), c.bytes, maxBatch)
	}
	return c, nil
}

func (l *Log) enqueue(c *call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return ErrClosed
	}
	if l.queued+c.bytes > maxQueue {
		return fmt.Errorf("%w: %d bytes already wait for the disk, which is too slow or stands still", ErrUnavailable, l.queued)
	}
	l.queue = append(l.queue, c)
	l.queued += c.bytes
	l.wake.Signal()
	return nil
}

// withdraw takes c back if the disk has not got it yet.
func (l *Log) withdraw(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, c); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
		l.queued -= c.bytes
	}
}

// Head returns the place of the last durable record: the thing to keep where
// whoever writes this directory cannot change it.
func (l *Log) Head() Ref {
	at, _ := l.state()
	return at.head
}

func (l *Log) state() (state, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at, l.changed
}

func (l *Log) publish(at state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = at
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close records what was appended before, and gives the directory free.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closing = true
	l.wake.Signal()
	l.mu.Unlock()
	<-l.done
	return l.err
}

// run is the one writer. It takes whatever has gathered while the disk was at
// work: the slower the disk, the more share one fsync.
func (l *Log) run(t *tape, head Ref) {
	defer close(l.done)
	for batch := l.take(); len(batch) > 0; batch = l.take() {
		head = l.record(t, head, batch)
	}
	l.err = errors.Join(t.close(head), l.lock.Close())
	l.publish(state{head: head, first: t.first, size: t.size, closed: true})
}

// record makes calls durable and returns the new head. While the disk is full,
// those that may wait are refused, and the others take of the reserve.
func (l *Log) record(t *tape, head Ref, batch []*call) Ref {
	t.replenish(l.now())
	batch = refuseSpare(batch, t.refusal())
	at, err := l.commit(t, head, batch)
	if isFull(err) && t.reserve.size > 0 {
		t.shorten(err)
		batch = refuseSpare(batch, t.refusal())
		if len(batch) > 0 && t.spend(head) {
			at, err = l.commit(t, head, batch)
		}
	}
	for _, c := range batch {
		c.end(err)
	}
	return at
}

// refuseSpare ends the calls that may wait, if there is an error to end them with,
// and returns the others.
func refuseSpare(batch []*call, err error) (left []*call) {
	if err == nil {
		return batch
	}
	for _, c := range batch {
		if c.spare {
			c.end(err)
			continue
		}
		left = append(left, c)
	}
	return left
}

func (c *call) end(err error) {
	if c.err = err; err != nil {
		c.refs = nil
	}
	close(c.done)
}

// commit writes calls after head and returns the new one.
func (l *Log) commit(t *tape, head Ref, batch []*call) (Ref, error) {
	if len(batch) == 0 {
		return head, nil
	}
	size, at, now := 0, head, l.now()
	for _, c := range batch {
		size += c.bytes
	}
	data := make([]byte, 0, size)
	for _, c := range batch {
		c.refs = make([]Ref, len(c.events))
		for i, e := range c.events {
			data, at = appendLine(data, at, now, e)
			c.refs[i] = at
		}
	}
	if l.renew.Swap(false) {
		t.fresh = true
	}
	err := t.append(data, head)
	l.note(Commit{Records: int(at.Sequence - head.Sequence), Bytes: len(data), Took: l.now().Sub(now), Err: err})
	if err != nil {
		return head, err
	}
	l.publish(state{head: at, first: t.first, size: t.size})
	return at, nil
}

// take waits for calls and returns those that go together; none means that
// the Log is closing.
func (l *Log) take() []*call {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !l.closing {
		l.wake.Wait()
	}
	n, size := 0, 0
	for n < len(l.queue) && size+l.queue[n].bytes <= maxBatch {
		size += l.queue[n].bytes
		n++
	}
	batch := slices.Clone(l.queue[:n])
	l.queue = slices.Delete(l.queue, 0, n)
	l.queued -= size
	return batch
}
