// Package spool keeps records on disk, in order, until somebody says that they
// have arrived elsewhere: a queue that outlives its process.
//
// A record is durable when Append returns: many callers share one fsync. What
// is durable is never given up again. There is a bound of bytes; what comes
// beyond it, or what the disk doesn't take, is lost and counted, and as soon as
// there is room again the count stands among the records as a Gap.
//
// The directory, mode 0700, holds segments named by the sequence number of
// their first record, such as 000000000001.seg, mode 0600. A line is
//
//	<sequence> <r or g> <CRC-32C of the rest, 8 hex digits> <payload>
//
// A line that a crash tore was never confirmed, and is cut off. Which records
// have arrived is kept too, but not synced: after a power cut some are handed
// out again, with the sequence numbers that they had.
//
// It trusts the file system to keep what fsync said it keeps, and no content:
// what it reads back is bounded and checked. What a record says is left to the
// caller; it must hold no secret.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Bounds.
const (
	MinMax     = 1 << 20 // of Config.Max
	DefaultMax = 64 << 20
	MaxRecord  = 32 << 10 // bytes of one record
	maxWaiting = 4096     // calls of Append that wait for the disk
	maxBatch   = 1 << 20  // bytes of one group commit
	maxSegment = 64 << 20 // bytes that are read back
	reserve    = 1 << 10  // more than a gap takes

	maxSequence = 1 << 62
)

var (
	// ErrFull is the error of a record for which there is no room within Max.
	ErrFull = errors.New("the spool is full")
	// ErrDisk is the error of a record that the disk didn't take.
	ErrDisk = errors.New("the spool's disk takes nothing")
	// ErrRefused is the error of a record that can never be kept.
	ErrRefused = errors.New("a record is one line of 1 byte to 32 KiB")
	// ErrClosed is the error of use after Close.
	ErrClosed = errors.New("the spool is closed")
)

// Why records were lost.
const (
	LostFull    = "full"    // beyond the bound
	LostDisk    = "disk"    // not taken by the disk, or not in time
	LostDamaged = "damaged" // not readable any more
	LostRefused = "refused" // by whoever was to get them
)

// A Config says where the spool is. Fields are required unless noted.
type Config struct {
	Dir     string           // its own directory, made if absent
	Max     int64            // bytes on disk; 0 is 64 MiB
	Segment int64            // bytes after which a new file is begun; 0 is 1 MiB, at most an eighth of Max
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil means time.Now

	disk disk // nil means the real one
}

// A Record is one of the spool: Data, or a Gap. Sequence numbers go up.
type Record struct {
	Sequence uint64
	Data     []byte
	Gap      *Gap

	missing uint64 // before it: damaged
	segment uint64 // the one that it is in
	end     int64  // offset behind it
}

// A Gap is how many records were lost at its place.
type Gap struct {
	Lost  uint64    `json:"lost"`
	Why   string    `json:"why"`   // the first one
	Since time.Time `json:"since"` // when the first one was
	Total uint64    `json:"total"` // lost in all the spool's life
}

// Stats are the state of a spool.
type Stats struct {
	Backlog uint64 // records that have not arrived
	Bytes   int64  // on disk
	Max     int64
	Lost    uint64 // records, in all its life
	Untold  uint64 // of these, not yet told by a Gap
	Trouble string // of the disk, now; empty: none
	Full    bool   // what comes now is lost
}

// A Spool is a durable queue. Append may be used by many at once, the other
// methods by one.
type Spool struct {
	cfg  Config
	id   string
	done chan struct{}
	wake chan struct{} // of capacity 1

	tape *tape // the writer's, once it runs

	mu       sync.Mutex // guards what follows
	running  bool
	work     *sync.Cond // there is something to do for run
	queue    []*call
	closing  bool
	segments []segment // the last one is written to
	bytes    int64     // of all segments
	next     uint64    // sequence number of the next record
	shipped  uint64    // records up to this one have arrived
	read     place     // where the first one after shipped begins
	lost     losses
	trouble  error
}

// segment is one file. What lies behind size is not confirmed.
type segment struct {
	first uint64
	size  int64
}

type place struct {
	segment uint64
	offset  int64
}

// A call is one record that waits for the disk, or with nil data asks whether
// there is room.
type call struct {
	data []byte
	err  error
	done chan struct{}
}

// Open takes up what an earlier one kept in Dir.
func Open(cfg Config) (*Spool, error) {
	if cfg.Max == 0 {
		cfg.Max = DefaultMax
	}
	if cfg.Dir == "" || cfg.Max < MinMax || cfg.Segment < 0 {
		return nil, fmt.Errorf("opening a spool: a directory, and a bound of %d bytes at least, are required", MinMax)
	}
	if cfg.Segment == 0 {
		cfg.Segment = 1 << 20
	}
	cfg.Segment = min(cfg.Segment, cfg.Max/8, maxSegment/2)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.disk == nil {
		cfg.disk = osDisk{}
	}
	s := &Spool{cfg: cfg, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	s.work = sync.NewCond(&s.mu)
	t := &tape{dir: cfg.Dir, disk: cfg.disk}
	if err := s.load(t); err != nil {
		return nil, fmt.Errorf("opening the spool %s: %w", cfg.Dir, err)
	}
	if s.shipped+1 < s.next {
		s.nudge()
	}
	s.tape = t
	return s, nil
}

// stir wakes the writer, which runs from the first time on: a spool that is
// opened and let go holds nothing. It must be called with mu held.
func (s *Spool) stir() {
	if !s.running {
		s.running = true
		go s.run(s.tape)
	}
	s.work.Signal()
}

// ID names the spool for as long as its directory lives: with a sequence
// number it names a record, everywhere and for ever.
func (s *Spool) ID() string { return s.id }

// Wake rings when there may be something for Next.
func (s *Spool) Wake() <-chan struct{} { return s.wake }

// Nudge rings Wake.
func (s *Spool) Nudge() { s.nudge() }

func (s *Spool) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Append makes a record durable. On an error it is lost, and counted; but if
// ctx ended while the disk was at work, it may be there all the same.
func (s *Spool) Append(ctx context.Context, record []byte) error {
	if len(record) == 0 || len(record) > MaxRecord || slices.Contains(record, '\n') {
		s.Lose(1, LostRefused)
		return ErrRefused
	}
	return s.wait(ctx, &call{data: record, done: make(chan struct{})})
}

// Room asks whether a record would be taken now: after trouble, of the disk
// itself, by writing what was lost.
func (s *Spool) Room(ctx context.Context) error {
	s.mu.Lock()
	calm := s.trouble == nil && s.lost.untold() == 0 && !s.full(reserve) && !s.closing
	s.mu.Unlock()
	if calm {
		return nil
	}
	return s.wait(ctx, &call{done: make(chan struct{})})
}

func (s *Spool) wait(ctx context.Context, c *call) error {
	if err := s.enqueue(c); err != nil {
		return err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		s.withdraw(c)
		return fmt.Errorf("%w in time: %w", ErrDisk, context.Cause(ctx))
	}
}

func (s *Spool) enqueue(c *call) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return ErrClosed
	case len(s.queue) >= maxWaiting:
		s.lost.add(c.count(), LostDisk, s.cfg.Now())
		return fmt.Errorf("%w: %d records wait for it", ErrDisk, len(s.queue))
	}
	s.queue = append(s.queue, c)
	s.stir()
	return nil
}

func (c *call) count() uint64 {
	if c.data == nil {
		return 0
	}
	return 1
}

// withdraw takes c back if the disk has not got it yet.
func (s *Spool) withdraw(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, c); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		s.lost.add(c.count(), LostDisk, s.cfg.Now())
		s.stir()
	}
}

// Lose counts records that were lost elsewhere.
func (s *Spool) Lose(n uint64, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 {
		s.lost.add(n, why, s.cfg.Now())
		s.stir()
	}
}

// Stats says how the spool does.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Backlog: s.next - 1 - s.shipped, Bytes: s.bytes, Max: s.cfg.Max, Lost: s.lost.Total, Untold: s.lost.untold(), Full: s.full(reserve)}
	if s.trouble != nil {
		st.Trouble = s.trouble.Error()
	}
	return st
}

// full must be called with mu held.
func (s *Spool) full(more int64) bool { return s.bytes+more > s.cfg.Max }

// Close makes durable what was appended before, and ends the spool.
func (s *Spool) Close() {
	s.mu.Lock()
	s.closing = true
	s.stir()
	s.mu.Unlock()
	<-s.done
}
