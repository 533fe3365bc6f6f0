package audit

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// An Appender makes events durable; a *Log does.
type Appender interface {
	Append(context.Context, ...Event) ([]Ref, error)
}

// A CounterConfig says what a Counter counts and how often it writes.
type CounterConfig struct {
	// Log takes the counts. Required.
	Log Appender
	// Kind is the kind of the records; empty means "join.refused".
	Kind string
	// Code is that of the records; empty means "strangers".
	Code string
	// Every is the least time between two records; 0 means 10 s. While
	// strangers go on it doubles from record to record, up to 64 times, so
	// that not even patience fills the disk.
	Every time.Duration
	// Reasons bounds how many reasons one record tells apart; 0 means 32. The
	// rest is counted as "other".
	Reasons int
	// Logger is told when counts could not be written; nil discards.
	Logger *slog.Logger
}

// A Counter counts what strangers cause, such as failed joins. They have
// proved nothing, so they get no record each: they could fill the disk and
// put everyone else's records behind theirs. The first after a quiet time is
// written at once, the others together, with a count for each reason.
type Counter struct {
	log    Appender
	kind   string
	code   string
	every  time.Duration
	limit  int
	logger *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // holds one

	mu     sync.Mutex // guards what follows
	counts map[string]uint64
	closed bool
}

const (
	otherReason  = "other"
	maxReason    = 128 // bytes
	maxStretch   = 64
	countTimeout = 5 * time.Second
)

// NewCounter returns a Counter that writes to c.Log until it is closed.
func NewCounter(c CounterConfig) (*Counter, error) {
	if c.Log == nil {
		return nil, errors.New("counting strangers: there is no record to write to")
	}
	if c.Every < 0 || c.Reasons < 0 {
		return nil, errors.New("counting strangers: a negative time or bound is not possible")
	}
	if c.Kind == "" {
		c.Kind = "join.refused"
	}
	if c.Code == "" {
		c.Code = "strangers"
	}
	if c.Every == 0 {
		c.Every = 10 * time.Second
	}
	if c.Reasons == 0 {
		c.Reasons = 32
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Counter{
		log: c.Log, kind: c.Kind, code: c.Code, every: c.Every, limit: c.Reasons, logger: c.Logger,
		cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1),
		counts: make(map[string]uint64),
	}
	go n.run(ctx)
	return n, nil
}

// Add counts one more. It never waits for the disk. A reason is one of a few
// words of ours, not what the stranger said: long ones and those above the
// bound are counted as "other".
func (n *Counter) Add(reason string) {
	n.add(reason, 1)
	select {
	case n.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (n *Counter) add(reason string, count uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	reason = valid(reason)
	if _, known := n.counts[reason]; reason == "" || len(reason) > maxReason || !known && len(n.counts) >= n.limit {
		reason = otherReason
	}
	if !n.closed {
		n.counts[reason] += count
	}
}

// run writes what has gathered, waits, and waits longer as long as there is
// more each time.
func (n *Counter) run(ctx context.Context) {
	defer close(n.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		}
		for wait := n.every; n.flush(ctx); wait = min(2*wait, maxStretch*n.every) {
			if !sleep(ctx, wait) {
				return
			}
		}
	}
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// flush writes the counts, if there are any, and says whether there were. What
// can't be written is kept for the next time.
func (n *Counter) flush(ctx context.Context) bool {
	n.mu.Lock()
	counts := n.counts
	n.counts = make(map[string]uint64)
	n.mu.Unlock()
	if len(counts) == 0 {
		return false
	}
	e := Event{Kind: n.kind, Code: n.code, Detail: make(map[string]string)}
	for reason, count := range counts {
		e.Count += count
		e.Detail[reason] = strconv.FormatUint(count, 10)
	}
	if err := appendCounts(ctx, n.log, e); err != nil {
		n.logger.WarnContext(ctx, "counts of strangers could not be recorded yet", "count", e.Count, "error", err)
		for reason, count := range counts {
			n.add(reason, count)
		}
	}
	return true
}

// appendCounts records counts. That the counting ends does not end it: what
// was already on its way would be written twice. A disk that stands still
// does, so a count may come out too high, never too low.
func appendCounts(ctx context.Context, log Appender, events ...Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout)
	defer cancel()
	_, err := log.Append(ctx, events...)
	return err
}

// Close writes what is left and ends the Counter. Later calls of Add count
// nothing.
func (n *Counter) Close() error {
	n.cancel()
	<-n.done
	n.flush(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	lost := len(n.counts) > 0
	n.closed, n.counts = true, nil
	if lost {
		return errors.New("closing the count of strangers: the last counts could not be recorded and are lost")
	}
	return nil
}
