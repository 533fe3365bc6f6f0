package store

import (
	"cmp"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/credence-id/credence/broker"
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
	if p.Version, err = authoritiesVersion(ctx, tx); err != nil {
		return fail(err)
	}
	rows, err := tx.QueryContext(ctx, `SELECT id, purpose, alg, state, broker, parent, key_ref, public_key, chain,
		published_at, activated_at, last_expiry, not_after, revoked_at, reason, sealed FROM authority ORDER BY id`)
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
			&published, &activated, &last, &notAfter, &revoked, &r.Reason, &r.Sealed)
		if err != nil {
			return fail(err)
		}
		if len(r.Sealed) == 0 {
			r.Sealed = nil
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

// authoritiesVersion is how new the authorities are in the database.
func authoritiesVersion(ctx context.Context, tx *sql.Tx) (authority.Version, error) {
	var all, shared, published int64
	err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(revision), 0), COALESCE(MAX(CASE WHEN broker = '' THEN revision ELSE 0 END), 0),
		(SELECT COALESCE(MAX(revision), 0) FROM publication) FROM authority`).Scan(&all, &shared, &published)
	return authority.Version{All: uint64(max(all, published)), Shared: uint64(max(shared, published))}, err
}

// SaveAuthorities makes a change as authority.Records say it, in one
// transaction. It refuses a second active authority of one use, algorithm and
// broker, and a bundle's sequence number that falls.
func (s *Store) SaveAuthorities(ctx context.Context, c authority.Change) (saved authority.Saved, err error) {
	if len(c.Records) == 0 && c.Publication.Sequence == 0 {
		err = s.inTx(ctx, func(tx *sql.Tx) error { return raise(ctx, tx, c.LastExpiry) })
	} else {
		err = s.revise(ctx, func(tx *sql.Tx, revision int64) error {
			saved, err = saveAuthorities(ctx, tx, c, revision)
			return err
		})
	}
	if err != nil {
		return authority.Saved{}, fmt.Errorf("saving authorities: %w", err)
	}
	return saved, nil
}

// conflicting is both packages' word for it.
func conflicting(err error) error { return fmt.Errorf("%w: %w", broker.ErrConflict, err) }

func saveAuthorities(ctx context.Context, tx *sql.Tx, c authority.Change, revision int64) (saved authority.Saved, err error) {
	if saved.Before, err = authoritiesVersion(ctx, tx); err != nil {
		return saved, err
	}
	if c.Seen.Shared != saved.Before.Shared || c.All && c.Seen.All != saved.Before.All {
		return saved, conflicting(authority.ErrConflict)
	}
	saved.After = authority.Version{All: uint64(revision), Shared: saved.Before.Shared}
	if c.Shared() {
		saved.After.Shared = uint64(revision)
		if err := fenced(ctx, tx, authority.LeaseName, c.Fence); err != nil {
			return saved, err
		}
		// Also where it is of another broker's rows alone: that broker is to see it first.
		if _, err := tx.ExecContext(ctx, `UPDATE publication SET revision = $1`, revision); err != nil {
			return saved, err
		}
	}
	if err := writeAuthorities(ctx, tx, c.Records, revision); err != nil {
		return saved, err
	}
	if err := raise(ctx, tx, c.LastExpiry); err != nil {
		return saved, err
	}
	return saved, publish(ctx, tx, c.Publication, revision)
}

func writeAuthorities(ctx context.Context, tx *sql.Tx, changed []authority.Record, revision int64) error {
	// Two rows may change places as the active one: first let go of all.
	for _, r := range changed {
		if _, err := tx.ExecContext(ctx, `UPDATE authority SET state = 'old' WHERE id = $1`, r.ID); err != nil {
			return err
		}
	}
	const write = `INSERT INTO authority (id, purpose, alg, state, revision, broker, parent, key_ref, public_key, chain,
			published_at, activated_at, last_expiry, not_after, revoked_at, reason, sealed)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
		ON CONFLICT (id) DO UPDATE SET purpose = $2, alg = $3, state = $4, revision = $5, broker = $6, parent = $7, key_ref = $8, public_key = $9, chain = $10,
			published_at = $11, activated_at = $12, last_expiry = CASE WHEN authority.last_expiry < $13 THEN $13 ELSE authority.last_expiry END,
			not_after = $14, revoked_at = $15, reason = $16, sealed = $17`
	for _, r := range changed {
		var chain []byte
		for _, der := range r.Chain {
			chain = append(chain, der...)
		}
		_, err := tx.ExecContext(ctx, write, r.ID, string(r.Use), r.Alg, string(r.State), revision, r.Broker, r.Parent, r.KeyRef, bytesOf(r.PublicKey), bytesOf(chain),
			millis(r.PublishedAt), millis(r.ActivatedAt), millis(r.LastExpiry), millis(r.NotAfter), millis(r.RevokedAt), r.Reason, bytesOf(r.Sealed))
		if err != nil {
			return fmt.Errorf("%s: %w", r.ID, err)
		}
	}
	return nil
}

// raise has last expiries be no sooner than ends say: in the order of the IDs, so
// that no two wait for each other.
func raise(ctx context.Context, tx *sql.Tx, ends map[string]time.Time) error {
	const up = `UPDATE authority SET last_expiry = CASE WHEN last_expiry < $2 THEN $2 ELSE last_expiry END WHERE id = $1 AND state <> 'revoked'`
	for _, id := range slices.Sorted(maps.Keys(ends)) {
		result, err := tx.ExecContext(ctx, up, id, millis(ends[id]))
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("%s was ended: %w", id, conflicting(authority.ErrConflict)))
		}
	}
	return nil
}

func publish(ctx context.Context, tx *sql.Tx, p authority.Publication, revision int64) error {
	if p.Sequence == 0 {
		return nil
	}
	var last int64
	err := tx.QueryRowContext(ctx, `SELECT sequence FROM publication`).Scan(&last)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if uint64(last) > p.Sequence {
		return fmt.Errorf("sequence number %d after %d: %w", p.Sequence, uint64(last), conflicting(authority.ErrConflict))
	}
	const publish = `INSERT INTO publication (one, sequence, digest, revision) VALUES (1, $1, $2, $3) ON CONFLICT (one) DO UPDATE SET sequence = $1, digest = $2, revision = $3`
	_, err = tx.ExecContext(ctx, publish, int64(p.Sequence), bytesOf(p.Digest), revision)
	return err
}
