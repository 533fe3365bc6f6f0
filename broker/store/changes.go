package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
)

// ErrOlder says that a database stood before what was read of it already: a copy
// that lags behind, or a backup that was restored under a running broker.
var ErrOlder = errors.New("the database is older than what was read before")

// Changes are what was written after a revision, each as it stands now, all as
// of one time.
type Changes struct {
	broker.Changes
	Resources []Resource // by revision; Body nil: deleted
	// Oldest is the revision from which on policy is kept. Who stands before it is
	// not told of all that was deleted, and reads what stands anew.
	Oldest uint64

	// What else changed: it is read by who keeps it.
	Authorities, Bundles bool
}

// Changes returns what was written after a revision. The error wraps ErrOlder if
// that is not reached here: nothing of such a database may be used.
func (s *Store) Changes(ctx context.Context, after uint64) (c Changes, err error) {
	tx, err := s.read.BeginTx(ctx, s.atOnce)
	if err != nil {
		return c, fmt.Errorf("reading changes: %w", s.wayOut(err))
	}
	defer tx.Rollback()
	if err := s.changes(ctx, tx, int64(after), &c); err != nil {
		return Changes{}, fmt.Errorf("reading changes: %w", s.wayOut(err))
	}
	return c, nil
}

// ResourcesSince returns the resources that were written after a revision, as
// they stand now, by revision; Body is nil of those deleted. oldest is as in
// Changes. The error wraps ErrOlder if that is not reached here.
func (s *Store) ResourcesSince(ctx context.Context, after uint64) (all []Resource, oldest uint64, err error) {
	tx, err := s.read.BeginTx(ctx, s.atOnce)
	if err != nil {
		return nil, 0, fmt.Errorf("reading resources: %w", s.wayOut(err))
	}
	defer tx.Rollback()
	var c Changes
	if err = reached(ctx, tx, int64(after), &c); err == nil {
		all, err = resourcesSince(ctx, tx, int64(after))
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading resources: %w", s.wayOut(err))
	}
	return all, c.Oldest, nil
}

func resourcesSince(ctx context.Context, tx *sql.Tx, after int64) ([]Resource, error) {
	const query = `SELECT r.kind, r.name, r.revision, r.owner, r.body, r.actor, r.written_at
		FROM (SELECT kind, name, MAX(revision) AS revision FROM resource WHERE revision > $1 GROUP BY kind, name) AS last
		JOIN resource r ON r.kind = last.kind AND r.name = last.name AND r.revision = last.revision ORDER BY r.revision, r.kind, r.name`
	return readResources(ctx, tx, query, after)
}

// reached reads the revision at which the database stands, and from which on it
// keeps policy.
func reached(ctx context.Context, tx *sql.Tx, after int64, c *Changes) error {
	var last, oldest int64
	if err := tx.QueryRowContext(ctx, `SELECT revision, COALESCE((SELECT MIN(revision) FROM policy_revision), 0) FROM head`).Scan(&last, &oldest); err != nil {
		return err
	}
	if last < after {
		return fmt.Errorf("%w: it stands at revision %d, not %d", ErrOlder, last, after)
	}
	c.Revision, c.Oldest = uint64(last), uint64(oldest)
	return nil
}

func (s *Store) changes(ctx context.Context, tx *sql.Tx, after int64, c *Changes) (err error) {
	if err := reached(ctx, tx, after, c); err != nil {
		return err
	}
	if c.Resources, err = resourcesSince(ctx, tx, after); err != nil {
		return err
	}
	if c.Nodes, err = nodes(ctx, tx, selectNode+` WHERE node.revision > $1 ORDER BY id`, after); err != nil {
		return err
	}
	if c.Forgotten, err = names(ctx, tx, `SELECT name FROM removed WHERE kind = 'node' AND revision > $1 ORDER BY name`, after); err != nil {
		return err
	}
	if c.Cutoffs, _, err = cutoffs(ctx, tx, after); err != nil {
		return err
	}
	const others = `SELECT EXISTS (SELECT 1 FROM authority WHERE revision > $1) OR EXISTS (SELECT 1 FROM publication WHERE revision > $1) OR EXISTS (SELECT 1 FROM crl WHERE revision > $1) OR EXISTS (SELECT 1 FROM revoked WHERE revision > $1),
		EXISTS (SELECT 1 FROM bundle WHERE revision > $1)`
	return tx.QueryRowContext(ctx, others, after).Scan(&c.Authorities, &c.Bundles)
}

func names(ctx context.Context, tx *sql.Tx, query string, args ...any) (all []string, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		all = append(all, name)
	}
	return all, rows.Err()
}

// removed notes that a row is gone, for those who follow.
func removed(ctx context.Context, tx *sql.Tx, kind, name string, revision int64) error {
	const note = `INSERT INTO removed (kind, name, revision) VALUES ($1, $2, $3) ON CONFLICT (kind, name) DO UPDATE SET revision = $3`
	_, err := tx.ExecContext(ctx, note, kind, name, revision)
	return err
}

// A Replica is a broker over the database, as it said last.
type Replica struct {
	Name      string
	Instance  string // of its data directory
	Version   string
	StartedAt time.Time
	SeenAt    time.Time
	Applied   uint64 // the revision that it acts on
	Connected int    // nodes with an open stream
	Holds     uint64 // each of them holds our bundle of this sequence number, or a newer one
	Head      Head
}

// A Head is the place of the last record in a broker's audit record.
type Head struct {
	Sequence uint64
	Hash     [32]byte
}

// How brokers of one name are told apart.
const (
	// BeatEvery is how often a broker says that it is there.
	BeatEvery = 10 * time.Second
	// GoneAfter is when another data directory may take a broker's name.
	GoneAfter = 4 * BeatEvery
)

// ErrNamed says that another broker has the name.
var ErrNamed = errors.New("another broker has this name")

const replicaColumns = `name, instance, version, started_at, seen_at, applied, connected, holds, head_sequence, head_hash`

// Claim takes a broker's name for a data directory. The error wraps ErrNamed
// where another directory's broker had it within GoneAfter.
func (s *Store) Claim(ctx context.Context, r Replica) error {
	now := s.time("$4")
	claim := `INSERT INTO broker (` + replicaColumns + `) VALUES ($1, $2, $3, ` + now + `, ` + now + `, 0, 0, 0, $5, $6)
		ON CONFLICT (name) DO UPDATE SET instance = $2, version = $3, started_at = ` + now + `, seen_at = ` + now + `, applied = 0, connected = 0, holds = 0, head_sequence = $5, head_hash = $6
		WHERE broker.instance = $2 OR broker.seen_at < ` + now + ` - $7`
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, claim, r.Name, r.Instance, r.Version, s.timeArg(), int64(r.Head.Sequence), r.Head.Hash[:], GoneAfter.Milliseconds())
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return fmt.Errorf("%w: give this one a name of its own (name in broker.yaml); if that one is gone for good, start this one %v after it ended", ErrNamed, GoneAfter)
	})
	if err != nil {
		return fmt.Errorf("taking the name %s: %w", r.Name, err)
	}
	return nil
}

// Beat says that a broker is there, and returns the revision of the last change:
// one statement, in place of Revision, and a look as that is. The error wraps ErrNamed where another
// data directory's broker took the name.
func (s *Store) Beat(ctx context.Context, r Replica) (uint64, error) {
	beat := `UPDATE broker SET seen_at = ` + s.time("$3") + `, applied = $4, connected = $5, holds = $6, head_sequence = $7, head_hash = $8 WHERE name = $1 AND instance = $2
		RETURNING (SELECT revision FROM head)`
	var revision int64
	err := s.look(ctx, func(ctx context.Context) error {
		return s.write.QueryRowContext(ctx, beat, r.Name, r.Instance, s.timeArg(), int64(r.Applied), r.Connected, int64(r.Holds), int64(r.Head.Sequence), r.Head.Hash[:]).Scan(&revision)
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNamed
	}
	if err != nil {
		return 0, fmt.Errorf("saying that broker %s is there: %w", r.Name, s.wayOut(err))
	}
	s.saw(uint64(revision))
	return uint64(revision), nil
}

// Replicas returns the brokers that were there within a time, by name. When that
// was the database's clock says; it is told by ours. The error is ErrAway while a
// snapshot stands in, which has neither.
func (s *Store) Replicas(ctx context.Context, within time.Duration) ([]Replica, error) {
	fail := func(err error) ([]Replica, error) { return nil, fmt.Errorf("reading the brokers: %w", s.wayOut(err)) }
	if !s.read.now.Load().made.IsZero() {
		return fail(fmt.Errorf("%w: a snapshot stands in for it", ErrAway))
	}
	now := s.time("$1")
	rows, err := s.read.QueryContext(ctx, `SELECT `+replicaColumns+`, `+now+` FROM broker WHERE seen_at >= `+now+` - $2 ORDER BY name`, s.timeArg(), within.Milliseconds())
	if err != nil {
		return fail(err)
	}
	defer rows.Close()
	var all []Replica
	for rows.Next() {
		var r Replica
		var started, seen, applied, holds, sequence, there int64
		var hash []byte
		if err := rows.Scan(&r.Name, &r.Instance, &r.Version, &started, &seen, &applied, &r.Connected, &holds, &sequence, &hash, &there); err != nil {
			return fail(err)
		}
		ahead := millis(s.now()) - there
		r.StartedAt, r.SeenAt, r.Applied, r.Holds, r.Head.Sequence = fromMillis(started+ahead), fromMillis(seen+ahead), uint64(applied), uint64(holds), uint64(sequence)
		copy(r.Head.Hash[:], hash)
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	return all, nil
}
