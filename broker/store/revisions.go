package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
)

// kept is how far back policy is kept: so many revisions or, where those wrote
// more than so many resources, as many as wrote them; at least the last few.
// They are forgotten in parts: at times a tenth more stand.
type kept struct{ revisions, resources, anyway int64 }

// keepPolicy is what README says.
func keepPolicy() kept { return kept{revisions: 1_000, resources: 200_000, anyway: 10} }

// A Revision is one change of policy.
type Revision struct {
	Revision uint64
	Act
	Owner                     string // whose resources; empty: several owners'
	Created, Changed, Deleted int
	WrittenAt                 time.Time
	Some                      []string // the first few of what it wrote: "Identity web"
}

// someNames is how many those are.
const someNames = 3

// Revisions returns at most limit changes of policy, the newest first: those
// before a revision, and those that wrote a resource; zero and an empty kind are
// no bound. oldest is the first that is kept, zero before there is any.
func (s *Store) Revisions(ctx context.Context, before uint64, kind, name string, limit int) (all []Revision, oldest uint64, err error) {
	if before == 0 || before > 1<<62 {
		before = 1 << 62
	}
	const query = `SELECT p.revision, p.act, p.owner, p.actor, p.created, p.changed, p.deleted, p.written_at FROM policy_revision p
		WHERE p.revision < $1 AND ($2 = '' OR EXISTS (SELECT 1 FROM resource r WHERE r.kind = $2 AND r.name = $3 AND r.revision = p.revision))
		ORDER BY p.revision DESC LIMIT $4`
	rows, err := s.read.QueryContext(ctx, query, int64(before), kind, name, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("reading revisions: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r Revision
		var revision, written int64
		if err := rows.Scan(&revision, &r.What, &r.Owner, &r.Actor, &r.Created, &r.Changed, &r.Deleted, &written); err != nil {
			return nil, 0, fmt.Errorf("reading revisions: %w", err)
		}
		r.Revision, r.WrittenAt = uint64(revision), fromMillis(written)
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("reading revisions: %w", err)
	}
	rows.Close()
	for i := range all {
		if all[i].Some, err = s.some(ctx, all[i].Revision); err != nil {
			return nil, 0, err
		}
	}
	oldest, err = s.oldest(ctx)
	return all, oldest, err
}

func (s *Store) some(ctx context.Context, revision uint64) (names []string, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT kind, name FROM resource WHERE revision = $1 ORDER BY kind, name LIMIT $2`, int64(revision), someNames)
	if err != nil {
		return nil, fmt.Errorf("reading revisions: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var kind, name string
		if err := rows.Scan(&kind, &name); err != nil {
			return nil, fmt.Errorf("reading revisions: %w", err)
		}
		names = append(names, kind+" "+name)
	}
	return names, rows.Err()
}

func (s *Store) oldest(ctx context.Context) (uint64, error) {
	var n int64
	if err := s.read.QueryRowContext(ctx, `SELECT COALESCE(MIN(revision), 0) FROM policy_revision`).Scan(&n); err != nil {
		return 0, fmt.Errorf("reading revisions: %w", err)
	}
	return uint64(n), nil
}

// ResourcesAt returns what stood when a revision had been written, by kind and
// name, and the last revision of policy until then. It refuses with
// broker.ErrNotFound one that is not kept any more, or not there yet.
func (s *Store) ResourcesAt(ctx context.Context, revision uint64) ([]Resource, uint64, error) {
	head, err := s.Revision(ctx)
	if err != nil {
		return nil, 0, err
	}
	if revision == 0 || revision > head {
		return nil, 0, fmt.Errorf("revision %d: %w: the last is %d", revision, broker.ErrNotFound, head)
	}
	all, last, err := s.resourcesAt(ctx, int64(revision))
	if err != nil {
		return nil, 0, err
	}
	// Looked at last: what was forgotten while we read is missed.
	oldest, err := s.oldest(ctx)
	if err != nil {
		return nil, 0, err
	}
	if oldest == 0 || revision < oldest {
		return nil, 0, fmt.Errorf("revision %d: %w: policy is kept from revision %d on", revision, broker.ErrNotFound, oldest)
	}
	return all, last, nil
}

// Wrote is a resource as a revision wrote it, and what was there before.
type Wrote struct {
	Resource
	Before    []byte // nil: nothing, or it is not kept
	TakenFrom string // whose that was, if another's
}

// Written returns what a revision wrote, by kind and name, deletions among it.
func (s *Store) Written(ctx context.Context, revision uint64) ([]Wrote, error) {
	const query = `SELECT n.kind, n.name, n.owner, n.body, n.actor, n.written_at, o.body, COALESCE(o.owner, n.owner) FROM resource n
		LEFT JOIN resource o ON o.kind = n.kind AND o.name = n.name AND o.revision =
			(SELECT MAX(x.revision) FROM resource x WHERE x.kind = n.kind AND x.name = n.name AND x.revision < n.revision)
		WHERE n.revision = $1 ORDER BY n.kind, n.name`
	rows, err := s.read.QueryContext(ctx, query, int64(min(revision, 1<<62)))
	if err != nil {
		return nil, fmt.Errorf("reading revision %d: %w", revision, err)
	}
	defer rows.Close()
	var all []Wrote
	for rows.Next() {
		w := Wrote{Resource: Resource{Revision: revision}}
		var written int64
		var from string
		if err := rows.Scan(&w.Kind, &w.Name, &w.Owner, &w.Body, &w.Actor, &written, &w.Before, &from); err != nil {
			return nil, fmt.Errorf("reading revision %d: %w", revision, err)
		}
		if w.WrittenAt = fromMillis(written); w.Before != nil && from != w.Owner {
			w.TakenFrom = from
		}
		all = append(all, w)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading revision %d: %w", revision, err)
	}
	return all, nil
}

// forget deletes what stood before the revisions that are kept.
func (k kept) forget(ctx context.Context, tx *sql.Tx) error {
	var revisions, resources, from int64
	const size = `SELECT COUNT(*), COALESCE(SUM(created + changed + deleted), 0), MIN(revision) FROM policy_revision`
	if err := tx.QueryRowContext(ctx, size).Scan(&revisions, &resources, &from); err != nil {
		return err
	}
	if revisions <= k.anyway || revisions <= k.revisions+k.revisions/10 && resources <= k.resources+k.resources/10 {
		return nil
	}
	to, err := k.oldest(ctx, tx)
	if err != nil || to <= from {
		return err
	}
	if err := forgetResources(ctx, tx, from, to); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM policy_revision WHERE revision < $1`, to)
	return err
}

// oldest is the first revision to keep.
func (k kept) oldest(ctx context.Context, tx *sql.Tx) (revision int64, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT revision, created + changed + deleted FROM policy_revision ORDER BY revision DESC LIMIT $1`, k.revisions)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var sum int64
	for n := int64(0); rows.Next(); n++ {
		var r, wrote int64
		if err := rows.Scan(&r, &wrote); err != nil {
			return 0, err
		}
		if sum += wrote; sum > k.resources && n >= k.anyway {
			break
		}
		revision = r
	}
	return revision, rows.Err()
}

// forgetResources deletes what was written over, or deleted, between two
// revisions: only what was written there can be the reason for it.
func forgetResources(ctx context.Context, tx *sql.Tx, from, to int64) error {
	all, err := lastWritten(ctx, tx, from, to)
	if err != nil {
		return err
	}
	const old = `DELETE FROM resource WHERE kind = $1 AND name = $2 AND (revision < $3 OR revision = $3 AND body IS NULL AND revision < $4)`
	del, err := tx.PrepareContext(ctx, old)
	if err != nil {
		return err
	}
	defer del.Close()
	for _, r := range all {
		if _, err := del.ExecContext(ctx, r.Kind, r.Name, int64(r.Revision), to); err != nil {
			return err
		}
	}
	return nil
}

// lastWritten tells when each resource was last written from one revision to
// another.
func lastWritten(ctx context.Context, tx *sql.Tx, from, to int64) (all []Resource, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT kind, name, MAX(revision) FROM resource WHERE revision >= $1 AND revision <= $2 GROUP BY kind, name`, from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r Resource
		if err := rows.Scan(&r.Kind, &r.Name, &r.Revision); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}
