package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

const nodeColumns = `id, revision, name, method, join_rule, durable_key, facts, joined_at, serial, previous_serial, expires_at, evicted_at,
	issued_at, previous_issued_at, authority, previous_authority, key_digest, previous_key_digest`

// selectNode has the columns of scanNode, with what is known of a node's joins.
const selectNode = `SELECT ` + nodeColumns + `, COALESCE(joins, 0), COALESCE(digest, ''), COALESCE(recoveries, 0), COALESCE(refused_at, 0)
	FROM node LEFT JOIN (SELECT durable_key AS of_key, joins, digest, recoveries, refused_at FROM join_state) AS joined ON of_key = durable_key`

// readNode reads one within a transaction that writes.
func readNode(ctx context.Context, tx *sql.Tx, id string) (broker.Node, error) {
	n, err := scanNode(tx.QueryRowContext(ctx, selectNode+` WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = broker.ErrNotFound
	}
	return n, err
}

// Nodes returns all nodes, by ID.
func (s *Store) Nodes(ctx context.Context) ([]broker.Node, error) {
	all, err := nodes(ctx, s.read, selectNode+` ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("reading nodes: %w", err)
	}
	return all, nil
}

// Node returns one as it stands now. The error wraps broker.ErrNotFound where
// there is none, and ErrAway while a snapshot stands in, which cannot know.
func (s *Store) Node(ctx context.Context, id string) (broker.Node, error) {
	if !s.read.now.Load().made.IsZero() {
		return broker.Node{}, fmt.Errorf("reading node %s: %w: a snapshot stands in for it", id, ErrAway)
	}
	all, err := nodes(ctx, s.read, selectNode+` WHERE id = $1`, id)
	if err == nil && len(all) == 0 {
		err = broker.ErrNotFound
	}
	if err != nil {
		return broker.Node{}, fmt.Errorf("reading node %s: %w", id, s.wayOut(err))
	}
	return all[0], nil
}

// A querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func nodes(ctx context.Context, from querier, query string, args ...any) (all []broker.Node, err error) {
	rows, err := from.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		n, err := scanNode(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, rows.Err()
}

func scanNode(row interface{ Scan(...any) error }) (broker.Node, error) {
	var n broker.Node
	var revision, joined, expires, issued, previous, joins, recoveries, refused int64
	var evicted sql.NullInt64
	var facts, digest []byte
	err := row.Scan(&n.ID, &revision, &n.Name, &n.Method, &n.JoinRule, &n.DurableKey, &facts, &joined, &n.Serial, &n.PreviousSerial, &expires, &evicted,
		&issued, &previous, &n.Authority, &n.PreviousAuthority, &n.Key, &n.PreviousKey,
		&joins, &digest, &recoveries, &refused)
	if err != nil {
		return broker.Node{}, err
	}
	if n.Facts, err = identity.ParseFacts("node", facts); err != nil {
		return broker.Node{}, fmt.Errorf("node %s: %w", n.ID, err)
	}
	n.Revision, n.JoinedAt, n.ExpiresAt = uint64(revision), fromMillis(joined), fromMillis(expires)
	n.EvictedAt, n.IssuedAt, n.PreviousIssuedAt = fromMillis(evicted.Int64), fromMillis(issued), fromMillis(previous)
	n.Joins = join.State{Joins: uint64(joins), Recoveries: uint64(recoveries), RefusedAt: fromMillis(refused)}
	copy(n.Joins.Digest[:], digest)
	return n, nil
}

// SaveNode writes a node that joined or renewed, and returns it with its new
// revision. It refuses with broker.ErrConflict where its durable key is banned
// or another than the one that has its ID; and, unless n.Revision is zero (a
// join), where that is not what stands: whoever renews does so on what it read,
// and an eviction or a new join in between wins. Where it joined by a step, and
// another join by its durable key was made since that began, the error is neither:
// it may try again.
func (s *Store) SaveNode(ctx context.Context, n broker.Node) (broker.Node, error) {
	facts, err := n.Facts.MarshalJSON()
	if err != nil {
		return broker.Node{}, fmt.Errorf("saving node %s: %w", n.ID, err)
	}
	// What cannot be read back would keep the next broker from starting.
	if _, err := identity.ParseFacts("node", facts); err != nil {
		return broker.Node{}, fmt.Errorf("saving node %s: %w", n.ID, err)
	}
	saved := n
	err = s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		if err := admissible(ctx, tx, n); err != nil {
			return err
		}
		if err := step(ctx, tx, n); err != nil {
			return err
		}
		if n.Revision == 0 {
			if _, err := tx.ExecContext(ctx, `DELETE FROM removed WHERE kind = 'node' AND name = $1`, n.ID); err != nil {
				return err
			}
		}
		const write = `INSERT INTO node (` + nodeColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, NULL, $12, $13, $14, $15, $16, $17)
			ON CONFLICT (id) DO UPDATE SET revision = $2, name = $3, method = $4, join_rule = $5, durable_key = $6, facts = $7,
				joined_at = $8, serial = $9, previous_serial = $10, expires_at = $11, evicted_at = NULL,
				issued_at = $12, previous_issued_at = $13, authority = $14, previous_authority = $15, key_digest = $16, previous_key_digest = $17`
		_, err := tx.ExecContext(ctx, write, n.ID, revision, n.Name, n.Method, n.JoinRule, n.DurableKey, facts,
			millis(n.JoinedAt), bytesOf(n.Serial), bytesOf(n.PreviousSerial), millis(n.ExpiresAt),
			millis(n.IssuedAt), millis(n.PreviousIssuedAt), n.Authority, n.PreviousAuthority, bytesOf(n.Key), bytesOf(n.PreviousKey))
		saved.Revision = uint64(revision) // not n's, by which a second try judges
		return err
	})
	if err != nil {
		return broker.Node{}, fmt.Errorf("saving node %s: %w", n.ID, err)
	}
	saved.EvictedAt = time.Time{}
	if n.Step != nil {
		saved.Joins, saved.Step = n.Step.To, nil
	}
	return saved, nil
}

// admissible says whether a node may be written over what stands.
func admissible(ctx context.Context, tx *sql.Tx, n broker.Node) error {
	var since int64
	err := tx.QueryRowContext(ctx, `SELECT banned_at FROM banned WHERE durable_key = $1`, n.DurableKey).Scan(&since)
	if err == nil {
		return fmt.Errorf("%w: it was evicted at %s", broker.ErrConflict, fromMillis(since).Format(time.RFC3339))
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var revision int64
	var key string
	err = tx.QueryRowContext(ctx, `SELECT revision, durable_key FROM node WHERE id = $1`, n.ID).Scan(&revision, &key)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return err
	case n.Revision != 0 && n.Revision != uint64(revision):
		return fmt.Errorf("%w: it stands at revision %d, not %d", broker.ErrConflict, revision, n.Revision)
	case err == nil && key != n.DurableKey:
		return fmt.Errorf("%w: another machine has its ID", broker.ErrConflict)
	}
	return nil
}

// EvictNode marks the node evicted, and all others of its durable key, which it
// bans. A node that is
// evicted already stays evicted since then. The error wraps broker.ErrNotFound
// if there is no such node.
func (s *Store) EvictNode(ctx context.Context, id string, at time.Time) (broker.Node, error) {
	var n broker.Node
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		const evict = `UPDATE node SET revision = $1, evicted_at = COALESCE(evicted_at, $2)
			WHERE id = $3 OR evicted_at IS NULL AND durable_key = (SELECT durable_key FROM node WHERE id = $3)`
		_, err := tx.ExecContext(ctx, evict, revision, millis(at), id)
		if err != nil {
			return err
		}
		if n, err = readNode(ctx, tx, id); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO banned (durable_key, node, banned_at) VALUES ($1, $2, $3) ON CONFLICT (durable_key) DO NOTHING`, n.DurableKey, id, millis(at))
		return err
	})
	if err != nil {
		return broker.Node{}, fmt.Errorf("evicting node %s: %w", id, err)
	}
	return n, nil
}

// bytesOf keeps an absent value from becoming NULL.
func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// ForgetNodes removes some of the nodes that match, with how far they have
// reported, and returns their IDs. One that is evicted stays, for it is banned, and
// one whose joins are told apart: an operator may have to allow the next.
func (s *Store) ForgetNodes(ctx context.Context, ended broker.Ended) (ids []string, err error) {
	fail := func(err error) ([]string, error) { return nil, fmt.Errorf("forgetting nodes that have ended: %w", err) }
	const find = `SELECT n.id FROM node n WHERE n.join_rule <> '' AND n.evicted_at IS NULL AND NOT EXISTS (SELECT 1 FROM join_state j WHERE j.durable_key = n.durable_key)
		AND (n.expires_at < $1 OR n.expires_at < $2 AND
		EXISTS (SELECT 1 FROM node o WHERE o.durable_key = n.durable_key AND (o.expires_at > n.expires_at OR o.expires_at = n.expires_at AND o.id > n.id)))
		ORDER BY n.expires_at LIMIT $3`
	rows, err := s.read.QueryContext(ctx, find, millis(ended.Before), millis(ended.FormerBefore), ended.Most)
	if err != nil {
		return fail(err)
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return fail(err)
		}
		found = append(found, id)
	}
	if err := rows.Err(); err != nil || len(found) == 0 {
		return found, err
	}
	at, age, now := s.ago(ended.FormerBefore)
	past := s.before("expires_at", "$2", "$3", "$4")
	err = s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		ids = nil
		for _, id := range found { // which may have joined again meanwhile
			result, err := tx.ExecContext(ctx, `DELETE FROM node WHERE id = $1 AND evicted_at IS NULL AND `+past, id, at, age, now)
			if err != nil {
				return err
			}
			switch n, err := result.RowsAffected(); {
			case err != nil:
				return err
			case n == 0:
				continue
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM report_mark WHERE node = $1`, id); err != nil {
				return err
			}
			if err := removed(ctx, tx, "node", id, revision); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return ids, nil
}
