package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"
)

// standIn has a snapshot answer what is read until the database is there; why is
// why it is not.
func (s *Store) standIn(ctx context.Context, from Snapshot, why error) error {
	file, err := os.Open(from.Path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; there is no snapshot of it to start from", why)
	}
	if err != nil {
		return errors.Join(why, err)
	}
	defer file.Close()
	made, plain, err := from.open(file, s.now())
	if err != nil {
		return errors.Join(why, err)
	}
	memory, head, err := Load(ctx, Config{memory: true, Now: s.now}, plain)
	if err != nil {
		return errors.Join(why, fmt.Errorf("the snapshot %s: %w; start when the database is there", from.Path, err))
	}
	e := memory.read.now.Load()
	e.made = made
	for _, table := range ToStart().Without { // what is not known is not empty
		if _, err := memory.write.now.Load().ExecContext(ctx, "DROP TABLE "+table); err != nil {
			return errors.Join(why, err, memory.Close())
		}
	}
	if err := memory.write.close(); err != nil {
		return errors.Join(why, err, memory.read.close())
	}
	s.live = s.pool(s.read.now.Load().DB)
	s.read.now.Store(e)
	s.saw(head.Revision)
	s.primary.lose(why)
	s.primary.mu.Lock()
	s.primary.absence.Snapshot = made
	s.primary.mu.Unlock()
	return nil
}

// openMemory makes a database in memory, that ends with its last connection.
func (s *Store) openMemory(ctx context.Context) error {
	s.wayOut, s.again = sqliteWayOut, func(error) bool { return false }
	s.busy = s.again
	name := "file:/" + rand.Text() + "?vfs=memdb&_pragma=busy_timeout(5000)"
	write, err := sql.Open("sqlite", name+"&_txlock=immediate")
	if err != nil {
		return err
	}
	write.SetMaxOpenConns(1)
	s.write = s.pool(write)
	read, err := sql.Open("sqlite", name+"&_pragma=query_only(1)")
	if err != nil {
		return err
	}
	read.SetMaxOpenConns(5)
	s.read = s.pool(read)
	s.read.now.Load().pin, err = read.Conn(ctx)
	return err
}

// goOn has what is read come from the database again, once it is there. It never
// goes back: what stands in is of the start.
func (s *Store) goOn(ctx context.Context) error {
	s.going.Lock()
	defer s.going.Unlock()
	e := s.read.now.Load()
	if e.made.IsZero() {
		return nil
	}
	if err := s.migrate(ctx, *ours()); err != nil {
		return err
	}
	var revision int64
	if err := s.write.QueryRowContext(ctx, `SELECT revision FROM head`).Scan(&revision); err != nil {
		return err
	}
	if uint64(revision) < s.seen.Load() {
		return fmt.Errorf("%w: it stands at revision %d, the snapshot that this broker started from at %d: is it another one, or an old backup? Start anew once it is right", ErrOlder, revision, s.seen.Load())
	}
	s.read.now.Store(s.live.now.Load())
	s.live = nil
	_ = e.pin.Close()
	e.SetMaxIdleConns(0) // it ends with the last that is in use
	return nil
}

// saw notes up to which revision the database is known to go.
func (s *Store) saw(revision uint64) {
	for {
		have := s.seen.Load()
		if have >= revision || s.seen.CompareAndSwap(have, revision) {
			return
		}
	}
}

// Seen is the revision of the last change that was looked at: what Revision said
// last, without asking.
func (s *Store) Seen() uint64 { return s.seen.Load() }

// maxAge is how old a snapshot may be that stands in.
const maxAge = 7 * 24 * time.Hour
