package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/broker"
)

// Ahead is by how much revisions are higher after a restore than in its backup:
// those that agents and other brokers saw since stay behind it.
const Ahead = 1 << 20

// clockSkew is by how much brokers' clocks may differ.
const clockSkew = time.Minute

// Since is what is known, besides a backup, of what happened after it.
type Since struct {
	Evicted []string        // IDs of nodes
	SVIDs   []broker.Issued // that nodes got, in that order
}

// Restored is what was made of a backup.
type Restored struct {
	Head     DumpHead // as the backup was
	Revision uint64
	Tokens   int      // join tokens that are void
	Known    []string // IDs of the nodes in the backup
	Evicted  []string // by Since, that were not in the backup
	Strange  []string // of Since.Evicted, that the backup doesn't know
	Renewed  map[string]bool
}

// Restore is Load, in the same transaction, of a database that takes the place of
// one that is lost and had gone on: nothing that others have seen goes back.
// Revisions go on far ahead; the bundle gets a new sequence number, and CRLs their
// next, when a broker opens it; open join tokens are void; the next JWT key to
// sign is made anew, since nobody knows what became of the one that was; what
// nodes showed last when they joined is not held against them.
func Restore(ctx context.Context, cfg Config, dump io.Reader, since Since) (*Store, Restored, error) {
	var r Restored
	s, head, err := load(ctx, cfg, dump, func(tx *sql.Tx, now time.Time) error {
		r = Restored{Renewed: map[string]bool{}}
		return r.adjust(ctx, tx, since, now)
	})
	r.Head = head
	return s, r, err
}

func (r *Restored) adjust(ctx context.Context, tx *sql.Tx, since Since, now time.Time) error {
	var revision int64
	if err := tx.QueryRowContext(ctx, `UPDATE head SET revision = revision + $1 RETURNING revision`, Ahead).Scan(&revision); err != nil {
		return err
	}
	r.Revision = uint64(revision)
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM join_token WHERE spent_at IS NULL AND expires_at > $1`, millis(now)).Scan(&r.Tokens); err != nil {
		return err
	}
	if err := r.know(ctx, tx); err != nil {
		return err
	}
	for _, act := range []struct {
		text string
		args []any
	}{
		{`DELETE FROM join_token WHERE spent_at IS NULL`, nil},
		{`UPDATE join_state SET digest = $1`, []any{[]byte{}}},
		{`UPDATE publication SET sequence = CASE WHEN sequence < $1 THEN $1 ELSE sequence END, digest = $2, revision = $3`, []any{millis(now), []byte{}, revision}},
		{`UPDATE crl SET this_update = 0`, nil}, // they are due
		// At most three keys are published: a standby that has an old key beside it
		// leaves at once.
		{`UPDATE authority SET state = 'revoked', revision = $1 WHERE purpose = 'jwt' AND state = 'published'
			AND alg IN (SELECT alg FROM authority WHERE purpose = 'jwt' AND state = 'active') AND alg IN (SELECT alg FROM authority WHERE purpose = 'jwt' AND state = 'old')`, []any{revision}},
		{`UPDATE authority SET state = 'old', not_after = $1, revision = $2 WHERE purpose = 'jwt' AND state = 'published'
			AND alg IN (SELECT alg FROM authority WHERE purpose = 'jwt' AND state = 'active')`, []any{millis(now), revision}},
	} {
		if _, err := tx.ExecContext(ctx, act.text, act.args...); err != nil {
			return err
		}
	}
	return r.follow(ctx, tx, since, revision, now)
}

func (r *Restored) know(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `SELECT id FROM node ORDER BY id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return err
		}
		r.Known = append(r.Known, id)
	}
	return rows.Err()
}

// follow does again what happened after the backup.
func (r *Restored) follow(ctx context.Context, tx *sql.Tx, since Since, revision int64, now time.Time) error {
	for _, i := range since.SVIDs {
		serial, err := hex.DecodeString(i.Serial)
		if err != nil {
			return err
		}
		done, err := tx.ExecContext(ctx, `UPDATE node SET revision = $1, previous_serial = serial, serial = $2, previous_issued_at = issued_at, issued_at = $3,
			previous_authority = authority, authority = $4, previous_key_digest = key_digest, key_digest = $5, expires_at = $6 WHERE id = $7 AND serial <> $2 AND issued_at <= $8`,
			revision, serial, millis(i.IssuedAt), i.Authority, []byte{}, millis(i.ExpiresAt), i.Node, millis(i.IssuedAt.Add(clockSkew)))
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err == nil && n > 0 {
			r.Renewed[i.Node] = true
		}
	}
	for _, id := range since.Evicted {
		var key string
		var evicted sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT durable_key, evicted_at FROM node WHERE id = $1`, id).Scan(&key, &evicted)
		if errors.Is(err, sql.ErrNoRows) {
			r.Strange = append(r.Strange, id)
			continue
		}
		if err != nil {
			return err
		}
		if evicted.Valid {
			continue
		}
		if _, err := tx.ExecContext(ctx, `UPDATE node SET revision = $1, evicted_at = $2 WHERE id = $3`, revision, millis(now), id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO banned (durable_key, node, banned_at) VALUES ($1, $2, $3) ON CONFLICT (durable_key) DO NOTHING`, key, id, millis(now)); err != nil {
			return err
		}
		r.Evicted = append(r.Evicted, id)
	}
	return nil
}

// Empty says whether a database at a URL has nothing of ours.
func Empty(ctx context.Context, cfg Config) (bool, error) {
	s, where, err := connect(ctx, cfg)
	if err == nil {
		_, _, err = standing(ctx, s.write.now.Load())
	}
	closed := s.Close()
	switch {
	case pgCode(err) == "42P01": // undefined_table
		return true, closed
	case err != nil:
		return false, errors.Join(fmt.Errorf("looking at the database %s: %w", where, err), closed)
	}
	return false, closed
}
