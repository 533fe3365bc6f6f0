package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
)

// forgetSpent is how much that has ended leaves with each that comes: more than
// come, so that the table holds about what lives.
const forgetSpent = 64

// SpendEvidence spends what a digest stands for, once: of any number of callers
// exactly one succeeds, and the others' error wraps broker.ErrSpent. It is kept
// until it ends. It is no change in the sense of Revision: nobody watches it.
func (s *Store) SpendEvidence(ctx context.Context, digest [32]byte, ends, now time.Time) error {
	const (
		forget = `DELETE FROM spent_evidence WHERE digest IN (SELECT digest FROM spent_evidence WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)`
		insert = `INSERT INTO spent_evidence (digest, expires_at) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING`
	)
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, forget, millis(now), forgetSpent); err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, insert, digest[:], millis(ends))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 1 {
			return err
		}
		return broker.ErrSpent
	})
	if err != nil {
		return fmt.Errorf("spending evidence: %w", err)
	}
	return nil
}
