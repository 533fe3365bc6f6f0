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
	Body       []byte
}

// Apply writes all changes in one transaction, each under a revision of its
// own, and returns the resources as written. It refuses with
// broker.ErrConflict if base, which Resources returned, is no longer the last
// resource written, and if a resource belongs to another owner; with
// broker.ErrNotFound if what it should delete is not there. Without changes it
// does nothing.
func (s *Store) Apply(ctx context.Context, base uint64, actor string, changes []Change) ([]Resource, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	var written []Resource
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		var last int64
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(revision), 0) FROM resource`).Scan(&last); err != nil {
			return err
		}
		if uint64(last) != base {
			return fmt.Errorf("%w: they stand at revision %d, not %d", broker.ErrConflict, last, base)
		}
		// The others' revisions follow the first, under its lock.
		if _, err := tx.ExecContext(ctx, `UPDATE head SET revision = revision + $1`, len(changes)-1); err != nil {
			return err
		}
		w, err := newWriter(ctx, tx)
		if err != nil {
			return err
		}
		defer w.close()
		for i, c := range changes {
			r, err := s.applyOne(ctx, w, revision+int64(i), actor, c)
			if err != nil {
				return fmt.Errorf("%s %s: %w", c.Kind, c.Name, err)
			}
			written = append(written, r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("writing resources: %w", err)
	}
	return written, nil
}

// A writer holds the statements of one Apply.
type writer struct{ current, insert *sql.Stmt }

func newWriter(ctx context.Context, tx *sql.Tx) (w writer, err error) {
	const current = `SELECT owner, body IS NULL FROM resource WHERE kind = $1 AND name = $2 ORDER BY revision DESC LIMIT 1`
	if w.current, err = tx.PrepareContext(ctx, current); err != nil {
		return w, err
	}
	const insert = `INSERT INTO resource (kind, name, revision, owner, body, actor, written_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`
	if w.insert, err = tx.PrepareContext(ctx, insert); err != nil {
		w.current.Close()
	}
	return w, err
}

func (w writer) close() {
	w.current.Close()
	w.insert.Close()
}

func (s *Store) applyOne(ctx context.Context, w writer, revision int64, actor string, c Change) (Resource, error) {
	if c.Body != nil && len(c.Body) == 0 {
		return Resource{}, errors.New("its text is empty")
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
	if gone && c.Body == nil {
		return Resource{}, broker.ErrNotFound
	}
	if !gone && owner != c.Owner {
		return Resource{}, fmt.Errorf("%w: it belongs to owner %q, not %q", broker.ErrConflict, owner, c.Owner)
	}
	at := millis(s.now())
	if _, err := w.insert.ExecContext(ctx, c.Kind, c.Name, revision, c.Owner, c.Body, actor, at); err != nil {
		return Resource{}, err
	}
	return Resource{c.Kind, c.Name, uint64(revision), c.Owner, c.Body, actor, fromMillis(at)}, nil
}

// Resources returns every resource that stands, by kind and name, and the
// revision of the last resource written: the base of the next Apply.
func (s *Store) Resources(ctx context.Context) ([]Resource, uint64, error) {
	const query = `SELECT r.kind, r.name, r.revision, r.owner, r.body, r.actor, r.written_at FROM resource r
		WHERE r.revision = (SELECT MAX(x.revision) FROM resource x WHERE x.kind = r.kind AND x.name = r.name)
		ORDER BY r.kind, r.name`
	rows, err := s.read.QueryContext(ctx, query)
	if err != nil {
		return nil, 0, fmt.Errorf("reading resources: %w", err)
	}
	defer rows.Close()
	var all []Resource
	var last uint64
	for rows.Next() {
		var r Resource
		var revision, written int64
		if err := rows.Scan(&r.Kind, &r.Name, &revision, &r.Owner, &r.Body, &r.Actor, &written); err != nil {
			return nil, 0, fmt.Errorf("reading resources: %w", err)
		}
		r.Revision, r.WrittenAt = uint64(revision), fromMillis(written)
		last = max(last, r.Revision)
		if r.Body != nil {
			all = append(all, r)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("reading resources: %w", err)
	}
	return all, last, nil
}
