package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
)

// A Resource is one resource as it was last written.
type Resource struct {
	Kind, Name string
	Revision   uint64
	Owner      string
	Body       []byte // one YAML document; nil: deleted
	Actor      string
	WrittenAt  time.Time
}

// A Change writes one resource, or deletes it where Body is nil.
type Change struct {
	Kind, Name string
	Owner      string
	From       string // whose it is before; empty: Owner's
	Body       []byte
}

// An Act is who changes resources, and in which words that was asked for.
type Act struct{ Actor, What string }

// Apply writes all changes in one transaction, under one revision, and returns
// the resources as written. It refuses with broker.ErrConflict if base, which
// Resources returned, is no longer the last revision of a resource, and if a
// resource belongs to another owner; with broker.ErrNotFound if what it should
// delete is not there; and two changes of one resource. Without changes it does
// nothing. What Revisions no longer lists is forgotten by the way.
func (s *Store) Apply(ctx context.Context, base uint64, act Act, changes []Change) ([]Resource, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	var written []Resource
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		written = nil
		var last int64
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(revision), 0) FROM resource`).Scan(&last); err != nil {
			return err
		}
		if uint64(last) != base {
			return fmt.Errorf("%w: they stand at revision %d, not %d", broker.ErrConflict, last, base)
		}
		w, err := newWriter(ctx, tx, revision, act, millis(s.now()))
		if err != nil {
			return err
		}
		defer w.close()
		for _, c := range changes {
			r, err := w.write(ctx, c)
			if err != nil {
				return fmt.Errorf("%s %s: %w", c.Kind, c.Name, err)
			}
			written = append(written, r)
		}
		if err := w.finish(ctx, tx); err != nil {
			return err
		}
		return s.keep.forget(ctx, tx)
	})
	if err != nil {
		return nil, fmt.Errorf("writing resources: %w", err)
	}
	return written, nil
}

// A writer writes the resources of one revision.
type writer struct {
	current, insert *sql.Stmt
	row             Revision
	at              int64
	seen            map[[2]string]bool
}

func newWriter(ctx context.Context, tx *sql.Tx, revision int64, act Act, at int64) (*writer, error) {
	w := &writer{
		row: Revision{Revision: uint64(revision), Act: act, WrittenAt: fromMillis(at)}, at: at, seen: make(map[[2]string]bool),
	}
	const current = `SELECT owner, body IS NULL FROM resource WHERE kind = $1 AND name = $2 ORDER BY revision DESC LIMIT 1`
	var err error
	if w.current, err = tx.PrepareContext(ctx, current); err != nil {
		return nil, err
	}
	const insert = `INSERT INTO resource (kind, name, revision, owner, body, actor, written_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`
	if w.insert, err = tx.PrepareContext(ctx, insert); err != nil {
		w.current.Close()
		return nil, err
	}
	return w, nil
}

func (w *writer) close() {
	w.current.Close()
	w.insert.Close()
}

func (w *writer) write(ctx context.Context, c Change) (Resource, error) {
	if c.Body != nil && len(c.Body) == 0 {
		return Resource{}, errors.New("its text is empty")
	}
	if name := [2]string{c.Kind, c.Name}; w.seen[name] {
		return Resource{}, errors.New("it is changed twice")
	} else {
		w.seen[name] = true
	}
	var owner string
	var gone bool
	err := w.current.QueryRowContext(ctx, c.Kind, c.Name).Scan(&owner, &gone)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		gone = true
	case err != nil:
		return Resource{}, err
	}
	from := c.From
	if from == "" {
		from = c.Owner
	}
	if gone && c.Body == nil {
		return Resource{}, broker.ErrNotFound
	}
	if !gone && owner != from {
		return Resource{}, fmt.Errorf("%w: it belongs to owner %q, not %q", broker.ErrConflict, owner, from)
	}
	w.count(c, gone)
	if _, err := w.insert.ExecContext(ctx, c.Kind, c.Name, int64(w.row.Revision), c.Owner, c.Body, w.row.Actor, w.at); err != nil {
		return Resource{}, err
	}
	return Resource{c.Kind, c.Name, w.row.Revision, c.Owner, c.Body, w.row.Actor, w.row.WrittenAt}, nil
}

func (w *writer) count(c Change, gone bool) {
	switch {
	case len(w.seen) == 1:
		w.row.Owner = c.Owner
	case w.row.Owner != c.Owner:
		w.row.Owner = "" // several owners'
	}
	switch {
	case c.Body == nil:
		w.row.Deleted++
	case gone:
		w.row.Created++
	default:
		w.row.Changed++
	}
}

func (w *writer) finish(ctx context.Context, tx *sql.Tx) error {
	const insert = `INSERT INTO policy_revision (revision, act, owner, actor, created, changed, deleted, written_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	r := w.row
	_, err := tx.ExecContext(ctx, insert, int64(r.Revision), r.What, r.Owner, r.Actor, r.Created, r.Changed, r.Deleted, w.at)
	return err
}

// Resources returns every resource that stands, by kind and name, and the
// revision of the last resource written: the base of the next Apply.
func (s *Store) Resources(ctx context.Context) ([]Resource, uint64, error) {
	return s.resourcesAt(ctx, int64(^uint64(0)>>1))
}

func (s *Store) resourcesAt(ctx context.Context, revision int64) ([]Resource, uint64, error) {
	const query = `SELECT r.kind, r.name, r.revision, r.owner, r.body, r.actor, r.written_at
		FROM (SELECT kind, name, MAX(revision) AS revision FROM resource WHERE revision <= $1 GROUP BY kind, name) AS last
		JOIN resource r ON r.kind = last.kind AND r.name = last.name AND r.revision = last.revision ORDER BY r.kind, r.name`
	tx, err := s.slowly(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("reading resources: %w", err)
	}
	defer tx.Rollback()
	all, err := readResources(ctx, tx, query, revision)
	if err != nil {
		return nil, 0, fmt.Errorf("reading resources: %w", s.wayOut(err))
	}
	var last uint64
	stand := all[:0]
	for _, r := range all {
		last = max(last, r.Revision)
		if r.Body != nil {
			stand = append(stand, r)
		}
	}
	return stand, last, nil
}

// slowly begins to read what may take longer than statements may, as it was at
// one time.
func (s *Store) slowly(ctx context.Context) (*sql.Tx, error) {
	snapshot := !s.read.now.Load().made.IsZero() // has no such word; once the database is back, it stays
	tx, err := s.read.BeginTx(ctx, s.atOnce)
	if err != nil || s.unhurried == "" || snapshot {
		return tx, err
	}
	if _, err := tx.ExecContext(ctx, s.unhurried); err != nil {
		return nil, errors.Join(s.wayOut(err), tx.Rollback())
	}
	return tx, nil
}

// readResources reads rows of resources.
func readResources(ctx context.Context, from querier, query string, args ...any) ([]Resource, error) {
	rows, err := from.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Resource
	for rows.Next() {
		var r Resource
		var revision, written int64
		if err := rows.Scan(&r.Kind, &r.Name, &revision, &r.Owner, &r.Body, &r.Actor, &written); err != nil {
			return nil, err
		}
		r.Revision, r.WrittenAt = uint64(revision), fromMillis(written)
		all = append(all, r)
	}
	return all, rows.Err()
}
