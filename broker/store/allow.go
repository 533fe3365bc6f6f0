package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker"
)

// AllowNode lifts the ban on an evicted node and forgets the node: it may join
// again, and the SVIDs of its former life stay without effect. The error wraps
// broker.ErrNotFound if no such node is evicted.
func (s *Store) AllowNode(ctx context.Context, id string) error {
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		var key string
		err := tx.QueryRowContext(ctx, `DELETE FROM node WHERE id = $1 AND evicted_at IS NOT NULL RETURNING durable_key`, id).Scan(&key)
		if errors.Is(err, sql.ErrNoRows) {
			return broker.ErrNotFound
		}
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, `DELETE FROM banned WHERE durable_key = $1`, key); err != nil {
			return err
		}
		if err := removed(ctx, tx, "node", id, revision); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE join_state SET digest = $1, recoveries = 0, refused_at = 0 WHERE durable_key = $2`, []byte{}, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("allowing node %s: %w", id, err)
	}
	return nil
}
