package store

import (
	"context"
	"database/sql"
	"fmt"
)

// ConfirmAnchor keeps that an operator has seen a root registered where a
// target's cloud looks for it. To confirm again changes nothing.
func (s *Store) ConfirmAnchor(ctx context.Context, root, target, actor string) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		const insert = `INSERT INTO confirmation (root, target, actor, confirmed_at) VALUES ($1, $2, $3, $4) ON CONFLICT (root, target) DO NOTHING`
		_, err := tx.ExecContext(ctx, insert, root, target, actor, millis(s.now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("confirming the anchor of target %s: %w", target, err)
	}
	return nil
}

// ConfirmedAnchors returns the targets for which a root was confirmed, by name.
func (s *Store) ConfirmedAnchors(ctx context.Context, root string) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT target FROM confirmation WHERE root = $1 ORDER BY target`, root)
	if err != nil {
		return nil, fmt.Errorf("reading confirmed anchors: %w", err)
	}
	defer rows.Close()
	var targets []string
	for rows.Next() {
		var target string
		if err := rows.Scan(&target); err != nil {
			return nil, fmt.Errorf("reading confirmed anchors: %w", err)
		}
		targets = append(targets, target)
	}
	return targets, rows.Err()
}
