package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
)

// SaveCutoff keeps a cut-off. One of the same kind and value that reaches
// further stays as it is: nothing that was revoked becomes good again.
func (s *Store) SaveCutoff(ctx context.Context, c broker.Cutoff) error {
	const write = `INSERT INTO cutoff (kind, value, revision, issued_before, reason, actor, made_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (kind, value) DO UPDATE SET revision = $3, issued_before = $4, reason = $5, actor = $6, made_at = $7
		WHERE cutoff.issued_before < $4`
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		_, err := tx.ExecContext(ctx, write, c.Kind, c.Value, revision, millis(c.Before), c.Reason, c.Actor, millis(c.MadeAt))
		return err
	})
	if err != nil {
		return fmt.Errorf("saving the cut-off of %s %s: %w", c.Kind, c.Value, err)
	}
	return nil
}

// Cutoffs returns the cut-offs that were written after a revision, in the order
// in which they were, and the revision of the last one.
func (s *Store) Cutoffs(ctx context.Context, after uint64) ([]broker.Cutoff, uint64, error) {
	all, last, err := cutoffs(ctx, s.read, int64(after))
	if err != nil {
		return nil, 0, fmt.Errorf("reading cut-offs: %w", err)
	}
	return all, last, nil
}

func cutoffs(ctx context.Context, from querier, after int64) (all []broker.Cutoff, last uint64, err error) {
	const query = `SELECT kind, value, revision, issued_before, reason, actor, made_at FROM cutoff WHERE revision > $1 ORDER BY revision`
	rows, err := from.QueryContext(ctx, query, after)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	last = uint64(after)
	for rows.Next() {
		var c broker.Cutoff
		var revision, before, made int64
		if err := rows.Scan(&c.Kind, &c.Value, &revision, &before, &c.Reason, &c.Actor, &made); err != nil {
			return nil, 0, err
		}
		c.Before, c.MadeAt, last = fromMillis(before), fromMillis(made), uint64(revision)
		all = append(all, c)
	}
	return all, last, rows.Err()
}

// ForgetCutoffs removes the cut-offs that reach no further than a time.
func (s *Store) ForgetCutoffs(ctx context.Context, upTo time.Time) error {
	at, age, now := s.ago(upTo.Add(time.Millisecond))
	past := s.before("issued_before", "$1", "$2", "$3")
	var one int
	err := s.read.QueryRowContext(ctx, `SELECT 1 FROM cutoff WHERE `+past+` LIMIT 1`, at, age, now).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		err = s.revise(ctx, func(tx *sql.Tx, _ int64) error {
			_, err := tx.ExecContext(ctx, `DELETE FROM cutoff WHERE `+past, at, age, now)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("forgetting cut-offs: %w", err)
	}
	return nil
}
