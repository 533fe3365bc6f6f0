package store

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/federation"
)

// Bundles returns the peers' bundles as they were last believed.
func (s *Store) Bundles(ctx context.Context) ([]federation.Stored, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT trust_domain, sequence, document, fetched_at, confirmed_at, held, held_at FROM bundle ORDER BY trust_domain`)
	if err != nil {
		return nil, fmt.Errorf("reading bundles: %w", err)
	}
	defer rows.Close()
	var all []federation.Stored
	for rows.Next() {
		var b federation.Stored
		var name, sequence string
		var fetched, confirmed, heldAt int64
		if err := rows.Scan(&name, &sequence, &b.Document, &fetched, &confirmed, &b.Held, &heldAt); err != nil {
			return nil, fmt.Errorf("reading bundles: %w", err)
		}
		if b.TrustDomain, err = spiffeid.TrustDomainFromString(name); err != nil {
			return nil, fmt.Errorf("reading bundles: %w", err)
		}
		if b.Sequence, err = strconv.ParseUint(sequence, 10, 64); err != nil {
			return nil, fmt.Errorf("reading the bundle of %s: %w", name, err)
		}
		b.FetchedAt, b.ConfirmedAt = fromMillis(fetched), fromMillis(confirmed)
		if b.HeldAt = fromMillis(heldAt); len(b.Held) == 0 {
			b.Held = nil
		}
		all = append(all, b)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading bundles: %w", err)
	}
	return all, nil
}

// SaveBundle keeps a peer's bundle, in place of an earlier one. The error wraps
// broker.ErrConflict where what stands is newer: another broker's.
func (s *Store) SaveBundle(ctx context.Context, b federation.Stored) error {
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		const write = `INSERT INTO bundle (trust_domain, revision, sequence, document, fetched_at, confirmed_at, held, held_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (trust_domain) DO UPDATE SET revision = $2, sequence = $3, document = $4, fetched_at = $5, confirmed_at = $6, held = $7, held_at = $8
			WHERE bundle.confirmed_at <= $6 AND ($3 = '0' OR LENGTH(bundle.sequence) < LENGTH($3) OR LENGTH(bundle.sequence) = LENGTH($3) AND bundle.sequence <= $3)`
		result, err := tx.ExecContext(ctx, write, b.TrustDomain.Name(), revision, strconv.FormatUint(b.Sequence, 10), bytesOf(b.Document), millis(b.FetchedAt), millis(b.ConfirmedAt), bytesOf(b.Held), millis(b.HeldAt))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return fmt.Errorf("%w: another broker has a newer one", broker.ErrConflict)
	})
	if err != nil {
		return fmt.Errorf("saving the bundle of %s: %w", b.TrustDomain, err)
	}
	return nil
}

// DeleteBundle forgets a peer's bundle; one that is not there is forgotten
// already.
func (s *Store) DeleteBundle(ctx context.Context, td spiffeid.TrustDomain) error {
	err := s.revise(ctx, func(tx *sql.Tx, _ int64) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM bundle WHERE trust_domain = $1`, td.Name())
		return err
	})
	if err != nil {
		return fmt.Errorf("deleting the bundle of %s: %w", td, err)
	}
	return nil
}
