package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/store"
)

// How a broker follows what others write.
const (
	// LookEvery is how often it looks whether there is something new: with nothing
	// new, that is all it asks of the store.
	LookEvery = time.Second
	// LookTime bounds one look, and the reading of what is new.
	LookTime = 10 * time.Second
)

// catchUp brings into force, until ctx ends, what other brokers wrote, and what
// was written here and could not be brought into force at once: a Deny that
// stands in the store and withholds nothing would be worse than one that was
// refused. It ends with an error where another broker took this one's name.
func (s *Server) catchUp(ctx context.Context) error {
	away := false
	ctx, cancel := context.WithCancel(ctx)
	rung := make(chan struct{}, 1)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		s.cfg.Store.Bell(ctx, func() {
			select {
			case rung <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { cancel(); <-listening }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(LookEvery):
		case <-rung:
		}
		if s.grown.Swap(false) {
			debug.FreeOSMemory()
		}
		err := s.look(ctx)
		if errors.Is(err, store.ErrNamed) {
			return err
		}
		if err != nil && !away && ctx.Err() == nil {
			s.cfg.Log.ErrorContext(ctx, "what other brokers write is not in force here", "error", err)
		}
		if err == nil {
			s.tendDenies(ctx)
		}
		if away && err == nil {
			s.cfg.Log.InfoContext(ctx, "what other brokers wrote is in force", "revision", s.taken.Load())
		}
		away = err != nil
	}
}

// tendDenies takes to the store what was denied here, and drops copies of Denies that
// the snapshot has by now.
func (s *Server) tendDenies(ctx context.Context) {
	if now := s.cfg.Now(); s.heres.Load() > 0 && now.Sub(s.savedAt).Abs() >= s.saveWait {
		err := s.saveHere(ctx)
		if err != nil && !s.unsaved && ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "what is denied here is not in the database; it holds here", "error", err)
		}
		s.unsaved, s.savedAt = err != nil, now
		if s.saveWait = min(max(2*s.saveWait, 2*LookEvery), time.Minute); err == nil || errors.Is(err, store.ErrAway) {
			s.saveWait = 0 // else each try would stand in the record, every second
		}
	}
	if s.applying.TryLock() { // whoever holds it does it
		s.copyDenies(ctx)
		s.applying.Unlock()
	}
}

// look takes what is new in the store, if anything is.
func (s *Server) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, LookTime)
	defer cancel()
	revision, err := s.revision(ctx)
	if !errors.Is(err, context.Canceled) {
		s.cfg.Broker.NoteStore(err)
	}
	if err != nil {
		return err
	}
	s.written.Store(revision)
	if revision != s.taken.Load() {
		err := s.take(ctx)
		if s.untaken.Store(err != nil); err != nil {
			return err
		}
	}
	if !s.behind.Load() {
		return nil
	}
	s.applying.Lock() // an apply that was under way may have done it
	defer s.applying.Unlock()
	_, err = s.current(ctx)
	return err
}

// revision asks the store for its revision, by which the broker says now and then
// that it is there.
func (s *Server) revision(ctx context.Context) (uint64, error) {
	now := s.cfg.Now()
	if s.cfg.Replica == nil || now.Sub(s.beat).Abs() < store.BeatEvery {
		return s.cfg.Store.Revision(ctx)
	}
	r, head := *s.cfg.Replica, s.cfg.Audit.Head()
	r.Applied, r.Head = s.taken.Load(), store.Head{Sequence: head.Sequence, Hash: head.Hash}
	r.Connected, r.Holds = s.cfg.Broker.Holds(s.cfg.Authority.Bundle().Sequence)
	revision, err := s.cfg.Store.Beat(ctx, r)
	if err == nil {
		s.beat = now
	}
	return revision, err
}

// take takes over what was written since the last time: nodes and revocations
// first, which wait for nothing. What cannot be taken now is read again.
func (s *Server) take(ctx context.Context) error {
	c, err := s.cfg.Store.Changes(ctx, s.taken.Load())
	if err != nil {
		return err
	}
	if err := s.cfg.Broker.Take(c.Changes); err != nil {
		s.cfg.Log.WarnContext(ctx, "revocations of other brokers hold, and are not in the deny file", "error", err)
	}
	err = s.takeResources(ctx, c.Resources, c.Oldest)
	if c.Authorities { // whatever became of the rest
		err = errors.Join(err, s.cfg.Authority.Reload(ctx))
	}
	if c.Bundles {
		err = errors.Join(err, s.cfg.Peers.Reload(ctx))
	}
	if err != nil {
		return err
	}
	s.taken.Store(c.Revision)
	return nil
}

// takeResources brings into force what others wrote. What is known already is
// passed over: every resource up to the last one is.
func (s *Server) takeResources(ctx context.Context, rows []store.Resource, oldest uint64) error {
	if len(rows) == 0 || rows[len(rows)-1].Revision <= s.state.Load().last {
		return nil
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	return s.takeRows(ctx, rows, oldest)
}

// takeRows is takeResources. The caller holds applying.
func (s *Server) takeRows(ctx context.Context, rows []store.Resource, oldest uint64) error {
	now := s.state.Load()
	for len(rows) > 0 && rows[0].Revision <= now.last {
		rows = rows[1:]
	}
	if len(rows) == 0 {
		return nil
	}
	if now.last < oldest { // that something was deleted may be forgotten
		return s.load(ctx, now)
	}
	s.behind.Store(true)
	all := make([]*stored, len(rows))
	for i, row := range rows {
		all[i] = &stored{row: row}
		if row.Body == nil {
			continue
		}
		var err error
		if all[i], err = s.parsed(row, nil); err != nil {
			return fmt.Errorf("taking over what another broker wrote: %w", err)
		}
	}
	next, err := s.with(now, now, all, rows[len(rows)-1].Revision)
	if err != nil {
		return fmt.Errorf("taking over what another broker wrote: %w", err)
	}
	return s.enforce(ctx, next)
}

// current returns what stands, to change it or to hold a change against it: as the
// store has it or, where that is away, as it was last known. The caller holds
// applying.
func (s *Server) current(ctx context.Context) (*state, error) {
	if s.behind.Load() {
		if err := s.load(ctx, s.state.Load()); err != nil {
			return nil, err
		}
		return s.state.Load(), nil
	}
	if s.cfg.Replica == nil {
		return s.state.Load(), nil
	}
	rows, oldest, err := s.cfg.Store.ResourcesSince(ctx, s.state.Load().last)
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "what other brokers wrote is not known", "error", err)
		return s.state.Load(), nil
	}
	if err := s.takeRows(ctx, rows, oldest); err != nil {
		return nil, err
	}
	return s.state.Load(), nil
}

// otherReplicas are the other brokers that share the store and are there.
func (s *Server) otherReplicas(ctx context.Context) ([]store.Replica, error) {
	if s.cfg.Replica == nil {
		return nil, nil
	}
	all, err := s.cfg.Store.Replicas(ctx, store.GoneAfter)
	return slices.DeleteFunc(all, func(r store.Replica) bool { return r.Name == s.cfg.Replica.Name }), err
}
