package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
)

// JoinState returns what is known of the joins of a durable key, with its method's
// name before it as a node has it.
func (s *Store) JoinState(ctx context.Context, durableKey string) (join.State, error) {
	state, err := joinState(s.read.QueryRowContext(ctx, joinStateOf, durableKey))
	if err != nil {
		return join.State{}, fmt.Errorf("reading the state of a join: %w", err)
	}
	return state, nil
}

const joinStateOf = `SELECT joins, digest, recoveries, refused_at FROM join_state WHERE durable_key = $1`

func joinState(row one) (join.State, error) {
	var joins, recoveries, refused int64
	var digest []byte
	err := row.Scan(&joins, &digest, &recoveries, &refused)
	if errors.Is(err, sql.ErrNoRows) {
		return join.State{}, nil
	}
	state := join.State{Joins: uint64(joins), Recoveries: uint64(recoveries), RefusedAt: fromMillis(refused)}
	if len(digest) > 0 && copy(state.Digest[:], digest) != len(state.Digest) {
		err = errors.Join(err, errors.New("a digest that is none"))
	}
	return state, err
}

// step writes the state that a join leaves, if what it came from still stands.
func step(ctx context.Context, tx *sql.Tx, n broker.Node) error {
	if n.Step == nil {
		return nil
	}
	stands, err := joinState(tx.QueryRowContext(ctx, joinStateOf, n.DurableKey))
	if err != nil {
		return err
	}
	if from := n.Step.From; stands.Joins != from.Joins || stands.Digest != from.Digest || stands.Recoveries != from.Recoveries {
		return errors.New("by the same key another join came in between")
	}
	to := n.Step.To
	_, err = tx.ExecContext(ctx, `INSERT INTO join_state (durable_key, joins, digest, recoveries, refused_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (durable_key) DO UPDATE SET joins = $2, digest = $3, recoveries = $4, refused_at = $5`,
		n.DurableKey, int64(to.Joins), to.Digest[:], int64(to.Recoveries), millis(to.RefusedAt))
	return err
}

// RefuseJoin notes when a node was refused a recovery, the first time since it
// joined last.
func (s *Store) RefuseJoin(ctx context.Context, id string, at time.Time) (broker.Node, error) {
	n, err := s.touchNode(ctx, id, `UPDATE join_state SET refused_at = $2 WHERE refused_at = 0 AND durable_key = (SELECT durable_key FROM node WHERE id = $1)`, millis(at))
	if err != nil {
		return broker.Node{}, fmt.Errorf("noting that node %s was refused: %w", id, err)
	}
	return n, nil
}

// ForgetRecoveries lets a node recover as often as if it never had; the next join of
// one that was refused may show anything. The error wraps broker.ErrNotFound where
// there is no such node, or it never did and was not refused.
func (s *Store) ForgetRecoveries(ctx context.Context, id string) (broker.Node, error) {
	n, err := s.touchNode(ctx, id, `UPDATE join_state SET recoveries = 0, refused_at = 0,
		digest = CASE WHEN refused_at > 0 THEN $2 ELSE digest END
		WHERE (recoveries > 0 OR refused_at > 0) AND durable_key = (SELECT durable_key FROM node WHERE id = $1)`, []byte{})
	if err != nil {
		return broker.Node{}, fmt.Errorf("forgetting the recoveries of node %s: %w", id, err)
	}
	return n, nil
}

// touchNode changes what stands beside a node.
func (s *Store) touchNode(ctx context.Context, id, change string, args ...any) (n broker.Node, err error) {
	err = s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		result, err := tx.ExecContext(ctx, change, append([]any{id}, args...)...)
		if err != nil {
			return err
		}
		if changed, err := result.RowsAffected(); err != nil || changed == 0 {
			return errors.Join(broker.ErrNotFound, err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE node SET revision = $1 WHERE id = $2`, revision, id); err != nil {
			return err
		}
		n, err = readNode(ctx, tx, id)
		return err
	})
	return n, err
}
