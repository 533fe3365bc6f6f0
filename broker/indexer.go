package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// A Follower reads the record on from a place, and waits for more; an
// *audit.Log does.
type Follower interface {
	FollowAfter(ctx context.Context, after audit.Ref, fn func(audit.Record) error) error
	Oldest() (audit.Ref, error)
	Head() audit.Ref // of what is durable
}

// What the indexer writes at once, and when.
const (
	indexBatch  = 1024
	indexLinger = 200 * time.Millisecond
	indexSkip   = 8192 // records of other kinds after which the place is written anyway
	indexPause  = time.Second
)

// An indexer copies what was issued, and how far nodes have reported, from the
// record to the index. It reads
// what is durable already, so that it costs the signing path nothing; what it
// has not read yet when the process dies it reads after the next start.
type indexer struct {
	record Follower
	index  Index
	origin string
	log    *slog.Logger
	added  func([]Issued) // told of what is in the index now, before it is waited for

	mu      sync.Mutex // guards what follows
	running bool
	at      uint64        // all records up to this one are in the index
	moved   chan struct{} // closed and replaced when at or running changes
}

func newIndexer(cfg Config) *indexer {
	return &indexer{record: cfg.Record, index: cfg.Index, origin: cfg.Origin, log: cfg.Log, moved: make(chan struct{})}
}

// run indexes until ctx ends or the record is closed. While the store is away
// it tries anew, with the last place that was written.
func (x *indexer) run(ctx context.Context) {
	x.set(func() { x.running = true })
	defer x.set(func() { x.running = false })
	for pause := indexPause; ; pause = min(2*pause, 30*indexPause) {
		err := x.follow(ctx, func() { pause = indexPause })
		if ctx.Err() != nil || errors.Is(err, audit.ErrClosed) {
			return
		}
		x.log.WarnContext(ctx, "what is issued is not indexed for now; nothing is lost", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// follow reads on from the place in the index, in one goroutine, and writes in
// another.
func (x *indexer) follow(ctx context.Context, wrote func()) error {
	from, err := x.index.IndexedUpTo(ctx, x.origin)
	if err != nil {
		return err
	}
	if from == x.record.Head() { // there is nothing to read that would say so
		x.set(func() { x.at = from.Sequence })
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	records := make(chan audit.Record, indexBatch)
	var writing sync.WaitGroup
	writing.Go(func() {
		if err := x.write(ctx, records, wrote); err != nil {
			cancel(err)
		}
	})
	err = x.read(ctx, from, func(r audit.Record) error {
		select {
		case records <- r:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(records)
	writing.Wait()
	return err
}

// read follows the record. If that is another one than was indexed, or its
// older part has been archived, all that is there is read: a row that is in
// the index already stays.
func (x *indexer) read(ctx context.Context, from audit.Ref, fn func(audit.Record) error) error {
	err := x.record.FollowAfter(ctx, from, fn)
	if !errors.Is(err, audit.ErrReplaced) {
		return err
	}
	x.log.WarnContext(ctx, "the audit record is not the one that was indexed; it is indexed from its beginning", "error", err)
	if from, err = x.record.Oldest(); err != nil {
		return err
	}
	return x.record.FollowAfter(ctx, from, fn)
}

// write gathers records and writes what was issued and reported, with the
// place, until there are no more records.
func (x *indexer) write(ctx context.Context, records <-chan audit.Record, wrote func()) error {
	var rows []Issued
	reported := marks{}
	var last audit.Ref
	skipped := 0
	linger := time.NewTimer(indexLinger)
	linger.Stop()
	defer linger.Stop()
	waiting := false
	for {
		select {
		case r, more := <-records:
			if !more {
				return nil
			}
			last = r.Ref()
			if row, ok := issuedOf(r); ok {
				rows = append(rows, row)
			} else if !reported.take(r) {
				skipped++
			}
			if len(rows) < indexBatch && len(reported) < indexBatch {
				if !waiting {
					linger.Reset(indexLinger)
					waiting = true
				}
				continue
			}
		case <-linger.C:
		}
		waiting = false
		if len(rows) > 0 || len(reported) > 0 || skipped >= indexSkip {
			// Before the place: what is read twice moves no mark back.
			if len(reported) > 0 {
				if err := x.index.SaveMarks(ctx, reported.all()); err != nil {
					return err
				}
			}
			if err := x.index.AddIssued(ctx, x.origin, last, rows); err != nil {
				return err
			}
			x.added(rows)
			clear(reported)
			rows, skipped = rows[:0], 0
			wrote()
		}
		x.set(func() { x.at = last.Sequence })
	}
}

// issuedOf reads what a record says was issued.
func issuedOf(r audit.Record) (Issued, bool) {
	i := Issued{
		Kind: KindX509, Serial: r.Serial, SPIFFEID: r.SPIFFEID, Identity: r.Identity, Revision: r.Revision, Node: r.Node,
		Authority: r.Authority, Target: r.Target, Audiences: r.Audiences, IssuedAt: r.Issued, ExpiresAt: r.NotAfter, Record: r.Sequence,
	}
	switch r.Kind {
	case "issue.x509":
	case "issue.jwt":
		i.Kind = KindJWT
	case "join", "renew":
		i.Identity = "" // no Identity granted it
	default:
		return Issued{}, false
	}
	if i.IssuedAt.IsZero() {
		i.IssuedAt = r.Time
	}
	return i, r.OK && i.Serial != "" && !i.ExpiresAt.IsZero()
}

func (x *indexer) set(change func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change()
	close(x.moved)
	x.moved = make(chan struct{})
}

// wait returns once a record and all before it are in the index, and says
// whether they are: not if it does not run, or ctx ends first.
func (x *indexer) wait(ctx context.Context, sequence uint64) bool {
	for {
		x.mu.Lock()
		there, running, moved := x.at >= sequence, x.running, x.moved
		x.mu.Unlock()
		if there || !running {
			return there
		}
		select {
		case <-ctx.Done():
			return false
		case <-moved:
		}
	}
}
