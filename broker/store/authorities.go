package store

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker/authority"
)

// Authorities returns all authorities, by ID, and what was last published.
func (s *Store) Authorities(ctx context.Context) ([]authority.Record, authority.Publication, error) {
	var p authority.Publication
	fail := func(err error) ([]authority.Record, authority.Publication, error) {
		return nil, authority.Publication{}, fmt.Errorf("reading authorities: %w", err)
	}
	tx, err := s.read.BeginTx(ctx, s.atOnce) // both as they were at one time
	if err != nil {
		return fail(err)
	}
	defer tx.Rollback()
	var sequence int64
	err = tx.QueryRowContext(ctx, `SELECT sequence, digest FROM publication`).Scan(&sequence, &p.Digest)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fail(err)
	}
	p.Sequence = uint64(sequence)
	rows, err := tx.QueryContext(ctx, `SELECT id, purpose, alg, state, broker, parent, key_ref, public_key, chain,
		published_at, activated_at, last_expiry, not_after, revoked_at, reason FROM authority ORDER BY id`)
	if err != nil {
		return fail(err)
	}
	defer rows.Close()
	var all []authority.Record
	for rows.Next() {
		var r authority.Record
		var chain []byte
		var published, activated, last, notAfter, revoked int64
		err := rows.Scan(&r.ID, &r.Use, &r.Alg, &r.State, &r.Broker, &r.Parent, &r.KeyRef, &r.PublicKey, &chain,
			&published, &activated, &last, &notAfter, &revoked, &r.Reason)
		if err != nil {
			return fail(err)
		}
		certs, err := x509.ParseCertificates(chain)
		if err != nil {
			return fail(fmt.Errorf("chain of %s: %w", r.ID, err))
		}
		for _, c := range certs {
			r.Chain = append(r.Chain, c.Raw)
		}
		r.PublishedAt, r.ActivatedAt = fromMillis(published), fromMillis(activated)
		r.LastExpiry, r.NotAfter = fromMillis(last), fromMillis(notAfter)
		r.RevokedAt = fromMillis(revoked)
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	return all, p, nil
}

// SaveAuthorities replaces the given records and the publication, in one
// transaction. It refuses a second active authority of one use, algorithm and
// broker.
func (s *Store) SaveAuthorities(ctx context.Context, changed []authority.Record, p authority.Publication) error {
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		// Two rows may change places as the active one: first let go of all.
		for _, r := range changed {
			if _, err := tx.ExecContext(ctx, `UPDATE authority SET state = 'old' WHERE id = $1`, r.ID); err != nil {
				return err
			}
		}
		for _, r := range changed {
			var chain []byte
			for _, der := range r.Chain {
				chain = append(chain, der...)
			}
			const write = `INSERT INTO authority (id, purpose, alg, state, revision, broker, parent, key_ref, public_key, chain,
					published_at, activated_at, last_expiry, not_after, revoked_at, reason)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
				ON CONFLICT (id) DO UPDATE SET purpose = $2, alg = $3, state = $4, revision = $5, broker = $6, parent = $7, key_ref = $8, public_key = $9, chain = $10,
					published_at = $11, activated_at = $12, last_expiry = $13, not_after = $14, revoked_at = $15, reason = $16`
			_, err := tx.ExecContext(ctx, write, r.ID, string(r.Use), r.Alg, string(r.State), revision, r.Broker, r.Parent, r.KeyRef, bytesOf(r.PublicKey), bytesOf(chain),
				millis(r.PublishedAt), millis(r.ActivatedAt), millis(r.LastExpiry), millis(r.NotAfter), millis(r.RevokedAt), r.Reason)
			if err != nil {
				return fmt.Errorf("%s: %w", r.ID, err)
			}
		}
		const publish = `INSERT INTO publication (one, sequence, digest) VALUES (1, $1, $2) ON CONFLICT (one) DO UPDATE SET sequence = $1, digest = $2`
		_, err := tx.ExecContext(ctx, publish, int64(p.Sequence), bytesOf(p.Digest))
		return err
	})
	if err != nil {
		return fmt.Errorf("saving authorities: %w", err)
	}
	return nil
}
