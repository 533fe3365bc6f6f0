package store

import (
	"context"
	"crypto/sha256"
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
	return s.spend(ctx, ends, now, func(tx *sql.Tx) error {
		fresh, err := insertSpent(ctx, tx, digest, ends)
		if err == nil && !fresh {
			err = broker.ErrSpent
		}
		return err
	})
}

// SpendEvidenceFor spends what a digest stands for on a holder: for that one it
// succeeds again and again until it ends, for anybody else the error wraps
// broker.ErrSpent. What SpendEvidence spent is spent here, and the other way
// round.
func (s *Store) SpendEvidenceFor(ctx context.Context, digest [32]byte, holder string, ends, now time.Time) error {
	held := heldBy(digest, holder)
	return s.spend(ctx, ends, now, func(tx *sql.Tx) error {
		fresh, err := insertSpent(ctx, tx, digest, ends)
		if err != nil {
			return err
		}
		another, err := insertSpent(ctx, tx, held, ends)
		if err == nil && !fresh && another { // what was inserted just now is rolled back
			err = broker.ErrSpent
		}
		return err
	})
}

// HoldsEvidence says whether a holder has what a digest stands for, by
// SpendEvidenceFor, and it has not ended.
func (s *Store) HoldsEvidence(ctx context.Context, digest [32]byte, holder string, now time.Time) (held bool, err error) {
	digest = heldBy(digest, holder)
	row := s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM spent_evidence WHERE digest = $1 AND expires_at > $2)`, digest[:], millis(now))
	if err := row.Scan(&held); err != nil {
		return false, fmt.Errorf("asking who holds evidence: %w", err)
	}
	return held, nil
}

func heldBy(digest [32]byte, holder string) [32]byte {
	return sha256.Sum256(append(append([]byte("held by"), digest[:]...), holder...))
}

// spend does so after some of what has ended is forgotten.
func (s *Store) spend(ctx context.Context, ends, now time.Time, do func(*sql.Tx) error) error {
	at, age, there := s.ago(now.Add(time.Millisecond))
	forget := `DELETE FROM spent_evidence WHERE digest IN (SELECT digest FROM spent_evidence WHERE ` + s.before("expires_at", "$1", "$2", "$3") + ` ORDER BY expires_at LIMIT $4)`
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, forget, at, age, there, forgetSpent); err != nil {
			return err
		}
		return do(tx)
	})
	if err != nil {
		return fmt.Errorf("spending evidence: %w", err)
	}
	return nil
}

// insertSpent says whether a digest was not there yet.
func insertSpent(ctx context.Context, tx *sql.Tx, digest [32]byte, ends time.Time) (fresh bool, err error) {
	const insert = `INSERT INTO spent_evidence (digest, expires_at) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING`
	result, err := tx.ExecContext(ctx, insert, digest[:], millis(ends))
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n == 1, err
}
