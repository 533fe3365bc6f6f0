package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
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

// atPlace marks a confirmation as of a JWT key at a place where it is published.
const atPlace = "place "

// ConfirmPlace keeps that a JWT key is published at a place. To confirm again
// changes nothing: it is there since the first time.
func (s *Store) ConfirmPlace(ctx context.Context, key, place, actor string) error {
	return s.ConfirmAnchor(ctx, key, atPlace+place, actor)
}

// Places returns since when places are known to have a JWT key.
func (s *Store) Places(ctx context.Context, key string) (map[string]time.Time, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT target, confirmed_at FROM confirmation WHERE root = $1`, key)
	if err != nil {
		return nil, fmt.Errorf("reading where key %s is published: %w", key, err)
	}
	defer rows.Close()
	places := make(map[string]time.Time)
	for rows.Next() {
		var target string
		var at int64
		if err := rows.Scan(&target, &at); err != nil {
			return nil, fmt.Errorf("reading where key %s is published: %w", key, err)
		}
		if place, ok := strings.CutPrefix(target, atPlace); ok {
			places[place] = fromMillis(at)
		}
	}
	return places, rows.Err()
}
