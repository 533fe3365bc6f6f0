// Package export carries the broker's record to where whoever can write its
// files cannot change it: a file, a collector of JSON lines, or one of
// OpenTelemetry logs.
//
// Every record arrives at least once, in order: what has been acknowledged is
// noted in a cursor file before the next is sent, so that after a crash what was
// under way is sent again. A record that its receiver does not take is sent until
// it does; none is passed over. The Exporter reads the record's files, so a slow
// receiver holds up nothing but itself.
//
// The package trusts the receiver to keep what it acknowledged, and nothing else
// that it says: answers are bounded, redirects are not followed. Lines go as they
// stand in the record, so the receiver can check their chain. Once a minute at most
// a head that the broker signed goes along, which shows whose record it is: no
// record, and of no cursor's concern. audit.ReadKept reads such a file.
package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// A Source reads the record on from a place, and returns nil at its end if it has
// one; an *audit.Log does, which has none.
type Source interface {
	FollowAfter(ctx context.Context, after audit.Ref, fn func(audit.Record) error) error
	// Oldest is the place before the oldest record there is.
	Oldest() (audit.Ref, error)
}

// A Sink hands records over. It returns nil once they are kept; a *Refusal where
// its receiver said how to go on. Other errors are tried anew.
type Sink interface {
	Send(ctx context.Context, batch []audit.Record) error
	// SendHead hands over a signed head, of a record that was handed over. It
	// must not be mistaken for a record. What fails is not tried anew.
	SendHead(ctx context.Context, h audit.Head) error
}

// A Refusal is a receiver's answer that it has not taken all of a batch.
type Refusal struct {
	Err        error
	RetryAfter time.Duration // the receiver's wish; zero: none
	Split      bool          // smaller batches may do: it is not known which record is to blame
}

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// Config is what an Exporter is made of.
type Config struct {
	// Name is the operator's, for the log. Required, as are Source and Sink.
	Name   string
	Source Source
	Sink   Sink
	// Cursor is the file that says how far it has got; made if absent. Empty:
	// nowhere, and it begins with the oldest record.
	Cursor string
	// Head returns the newest signed head of the record, the zero Head where
	// there is none; it is asked once a minute at most. Nil: no heads go along.
	Head func(context.Context) (audit.Head, error)
	// Tries is how often a batch is sent, or the source read, before Run gives
	// up; 0 means for ever.
	Tries int
	// Final says of an error of the Source that trying anew does not help; nil:
	// it always may.
	Final func(error) bool
	// Pause is the first of the growing pauses between tries; 0 means 1 s.
	Pause time.Duration
	// Log is told of what does not work; nil discards.
	Log *slog.Logger
}

// Bounds of one batch, and of waiting.
const (
	batchRecords  = 512
	batchBytes    = 1 << 20 // of lines, about
	linger        = 200 * time.Millisecond
	longestPause  = time.Minute
	longestWished = 15 * time.Minute // of Retry-After
)

// An Exporter carries one record to one receiver.
type Exporter struct {
	cfg   Config
	heads heads // of the one goroutine that Run has at it

	mu    sync.Mutex // guards what follows
	state State
}

// State is how far an Exporter has got.
type State struct {
	Name    string
	At      audit.Ref // all up to this record has been acknowledged
	Problem string    // why it does not go on; empty: it does
}

// New returns an Exporter that goes on from its cursor.
func New(c Config) (*Exporter, error) {
	if c.Name == "" || c.Source == nil || c.Sink == nil || c.Tries < 0 || c.Pause < 0 {
		return nil, errors.New("exporting the audit record: a name, a source and a sink are wanted")
	}
	if c.Pause == 0 {
		c.Pause = time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	e := &Exporter{cfg: c, state: State{Name: c.Name}}
	if c.Cursor != "" {
		at, err := LoadCursor(c.Cursor)
		if err != nil {
			return nil, fmt.Errorf("exporting the audit record to %s: %w", c.Name, err)
		}
		e.state.At = at
	}
	e.heads.told = e.state.At.Sequence
	return e, nil
}

// State says how far it has got.
func (e *Exporter) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// Hold is what of the record must not be removed yet.
func (e *Exporter) Hold() audit.Hold {
	s := e.State()
	return audit.Hold{Name: "export " + s.Name, Sequence: s.At.Sequence}
}

func (e *Exporter) set(change func(*State)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.state)
}

// Run exports until the source ends, ctx does, or after Config.Tries. The error
// wraps audit.ErrReplaced if the place in the cursor is not in the record: with
// Tries it returns, without it says so again and again, but it never begins anew
// by itself.
func (e *Exporter) Run(ctx context.Context) error {
	pause := e.cfg.Pause
	for tries := 1; ; tries++ {
		before := e.State().At
		err := e.follow(ctx)
		switch {
		case err == nil, errors.Is(err, audit.ErrClosed):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("exporting the audit record to %s: %w", e.cfg.Name, context.Cause(ctx))
		}
		if e.State().At != before {
			pause, tries = e.cfg.Pause, 1
		}
		if e.cfg.Final != nil && e.cfg.Final(err) {
			return err
		}
		if e.cfg.Tries > 0 && (tries >= e.cfg.Tries || errors.Is(err, audit.ErrReplaced) || errors.Is(err, errGaveUp)) {
			return fmt.Errorf("exporting the audit record to %s: %w", e.cfg.Name, err)
		}
		e.report(ctx, err)
		if !sleep(ctx, jitter(pause)) {
			continue // which says how ctx ended
		}
		pause = min(2*pause, longestPause)
	}
}

// report says what does not work.
func (e *Exporter) report(ctx context.Context, err error) {
	e.set(func(s *State) { s.Problem = err.Error() })
	if errors.Is(err, audit.ErrReplaced) {
		e.cfg.Log.ErrorContext(ctx, "audit export stands still: the record is not the one that was exported", "exporter", e.cfg.Name, "cursor", e.cfg.Cursor, "error", err)
		return
	}
	e.cfg.Log.WarnContext(ctx, "audit export is held up; nothing is lost", "exporter", e.cfg.Name, "error", err)
}

// follow reads in one goroutine and sends in another.
func (e *Exporter) follow(ctx context.Context) error {
	from := e.State().At
	if from == (audit.Ref{}) {
		var err error
		if from, err = e.cfg.Source.Oldest(); err != nil {
			return err
		}
	}
	// Before the source is asked: what that one calls its end is not before this.
	e.askHead(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	records := make(chan audit.Record, batchRecords)
	var sending sync.WaitGroup
	sending.Go(func() {
		if err := e.send(ctx, records); err != nil {
			cancel(err)
		}
	})
	err := e.cfg.Source.FollowAfter(ctx, from, func(r audit.Record) error {
		select {
		case records <- r:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(records)
	sending.Wait()
	if err == nil || errors.Is(err, audit.ErrClosed) {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
	}
	return err
}

// send gathers records and delivers them, and heads after them.
func (e *Exporter) send(ctx context.Context, records <-chan audit.Record) error {
	wake := time.NewTimer(headEvery)
	defer wake.Stop()
	for {
		batch, more := gather(ctx, records, wake.C)
		if len(batch) > 0 {
			if err := e.deliver(ctx, batch); err != nil {
				return err
			}
		}
		if ctx.Err() == nil {
			wake.Reset(e.tellHead(ctx))
		}
		if !more {
			return context.Cause(ctx)
		}
	}
}

// gather takes what is there and what comes within a moment; nothing, if it is
// woken while nothing comes.
func gather(ctx context.Context, records <-chan audit.Record, wake <-chan time.Time) (batch []audit.Record, more bool) {
	var late <-chan time.Time
	for size := 0; len(batch) < batchRecords && size < batchBytes; {
		select {
		case r, open := <-records:
			if !open {
				return batch, false
			}
			if late == nil {
				late = time.After(linger)
			}
			batch = append(batch, r)
			size += sizeOf(r)
		case <-late:
			return batch, true
		case <-wake:
			return batch, true
		case <-ctx.Done():
			return nil, false
		}
	}
	return batch, true
}

// sizeOf is about how long a record's line is, in less time than to write it.
func sizeOf(r audit.Record) int {
	n := 512 + len(r.Reason)
	for name, values := range r.Facts {
		n += len(name) + 8
		for _, v := range values {
			n += len(v) + 3
		}
	}
	for name, v := range r.Detail {
		n += len(name) + len(v) + 6
	}
	return n
}

var errGaveUp = errors.New("given up")

// deliver sends a batch until it is acknowledged, and notes that.
func (e *Exporter) deliver(ctx context.Context, batch []audit.Record) error {
	for pause, tries := e.cfg.Pause, 1; ; tries++ {
		err := e.cfg.Sink.Send(ctx, batch)
		if err == nil {
			return e.acknowledged(batch[len(batch)-1].Ref())
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		refusal, _ := errors.AsType[*Refusal](err)
		if refusal != nil && refusal.Split && len(batch) > 1 {
			e.report(ctx, fmt.Errorf("records %d to %d are sent in smaller parts: %w", batch[0].Sequence, batch[len(batch)-1].Sequence, err))
			half := len(batch) / 2
			if err := e.deliver(ctx, batch[:half]); err != nil {
				return err
			}
			return e.deliver(ctx, batch[half:])
		}
		err = fmt.Errorf("records %d to %d: %w", batch[0].Sequence, batch[len(batch)-1].Sequence, err)
		if e.cfg.Tries > 0 && tries >= e.cfg.Tries {
			return fmt.Errorf("%w: %w", errGaveUp, err)
		}
		e.report(ctx, err)
		wait := jitter(pause)
		if refusal != nil {
			wait = max(wait, min(refusal.RetryAfter, longestWished))
		}
		if !sleep(ctx, wait) {
			return context.Cause(ctx)
		}
		pause = min(2*pause, longestPause)
	}
}

func (e *Exporter) acknowledged(at audit.Ref) error {
	if e.cfg.Cursor != "" {
		if err := saveCursor(e.cfg.Cursor, at); err != nil {
			return err
		}
	}
	e.set(func(s *State) { s.At, s.Problem = at, "" })
	return nil
}

// jitter spreads waiting, so that many do not come back at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

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
