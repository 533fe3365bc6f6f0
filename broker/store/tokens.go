package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
)

// A Token is a join token, of which only the hash is kept.
type Token struct {
	Hash      []byte // SHA-256 of the token
	Node      string // node.name of whoever spends it
	Labels    map[string]string
	ExpiresAt time.Time
	CreatedBy string
}

// CreateToken keeps a token's hash.
func (s *Store) CreateToken(ctx context.Context, t Token) error {
	labels, err := json.Marshal(t.Labels)
	if err != nil {
		return fmt.Errorf("creating a token: %w", err)
	}
	const insert = `INSERT INTO join_token (hash, node_name, labels, expires_at, created_by) VALUES ($1, $2, $3, $4, $5)`
	err = s.revise(ctx, func(tx *sql.Tx, _ int64) error {
		_, err := tx.ExecContext(ctx, insert, t.Hash, t.Node, labels, millis(t.ExpiresAt), t.CreatedBy)
		return err
	})
	if err != nil {
		return fmt.Errorf("creating a token: %w", err)
	}
	return nil
}

// SpendToken spends the token of this hash, once: of any number of callers
// exactly one succeeds. The error wraps broker.ErrNotFound if there is none,
// and broker.ErrSpent if it is spent or expired.
func (s *Store) SpendToken(ctx context.Context, hash []byte, by string, now time.Time) (node string, labels map[string]string, err error) {
	const spend = `UPDATE join_token SET spent_at = $1, spent_by = $2 WHERE hash = $3 AND spent_at IS NULL AND expires_at > $1 RETURNING node_name, labels`
	var text []byte
	err = s.revise(ctx, func(tx *sql.Tx, _ int64) error {
		return tx.QueryRowContext(ctx, spend, millis(now), by, hash).Scan(&node, &text)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil, fmt.Errorf("spending a token: %w", s.whyNot(ctx, hash))
	}
	if err != nil {
		return "", nil, fmt.Errorf("spending a token: %w", err)
	}
	if err := json.Unmarshal(text, &labels); err != nil {
		return "", nil, fmt.Errorf("spending a token: %w", err)
	}
	return node, labels, nil
}

// whyNot tells the operator why a token was not spent.
func (s *Store) whyNot(ctx context.Context, hash []byte) error {
	var spent sql.NullInt64
	var expires int64
	err := s.read.QueryRowContext(ctx, `SELECT spent_at, expires_at FROM join_token WHERE hash = $1`, hash).Scan(&spent, &expires)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: there is no such token", broker.ErrNotFound)
	case err != nil:
		return err
	case spent.Valid:
		return fmt.Errorf("%w: at %s", broker.ErrSpent, fromMillis(spent.Int64).Format(time.RFC3339))
	}
	return fmt.Errorf("%w: it expired at %s", broker.ErrSpent, fromMillis(expires).Format(time.RFC3339))
}
