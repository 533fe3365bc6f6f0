package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// Revocations returns what is revoked, by issuer and serial number, and the
// newest CRL of each issuer.
func (s *Store) Revocations(ctx context.Context) ([]authority.Revocation, []authority.CRL, error) {
	fail := func(err error) ([]authority.Revocation, []authority.CRL, error) {
		return nil, nil, fmt.Errorf("reading revocations: %w", err)
	}
	tx, err := s.read.BeginTx(ctx, s.atOnce) // both as they were at one time
	if err != nil {
		return fail(err)
	}
	defer tx.Rollback()
	revoked, err := revocations(ctx, tx)
	if err != nil {
		return fail(err)
	}
	lists, err := crls(ctx, tx)
	if err != nil {
		return fail(err)
	}
	return revoked, lists, nil
}

func revocations(ctx context.Context, tx *sql.Tx) (all []authority.Revocation, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT issuer, serial, at, not_after, reason FROM revoked ORDER BY issuer, serial`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r authority.Revocation
		var serial []byte
		var at, notAfter int64
		if err := rows.Scan(&r.Issuer, &serial, &at, &notAfter, &r.Reason); err != nil {
			return nil, err
		}
		r.Serial, r.At, r.NotAfter = new(big.Int).SetBytes(serial), fromMillis(at), fromMillis(notAfter)
		all = append(all, r)
	}
	return all, rows.Err()
}

func crls(ctx context.Context, tx *sql.Tx) (all []authority.CRL, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT issuer, number, this_update, next_update, der FROM crl ORDER BY issuer`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var l authority.CRL
		var number, this, next int64
		if err := rows.Scan(&l.Issuer, &number, &this, &next, &l.DER); err != nil {
			return nil, err
		}
		l.Number, l.ThisUpdate, l.NextUpdate = big.NewInt(number), fromMillis(this), fromMillis(next)
		all = append(all, l)
	}
	return all, rows.Err()
}

// SaveRevocations keeps revocations and CRLs, in one transaction, as
// authority.Records asks.
func (s *Store) SaveRevocations(ctx context.Context, added []authority.Revocation, lists []authority.CRL) error {
	err := s.revise(ctx, func(tx *sql.Tx, revision int64) error {
		const add = `INSERT INTO revoked (issuer, serial, revision, at, not_after, reason) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (issuer, serial) DO NOTHING`
		for _, r := range added {
			if r.Issuer == "" || r.Serial == nil || r.Serial.Sign() <= 0 {
				return errors.New("a revocation without an issuer or a positive serial number")
			}
			_, err := tx.ExecContext(ctx, add, r.Issuer, r.Serial.Bytes(), revision, millis(r.At), millis(r.NotAfter), r.Reason)
			if err != nil {
				return err
			}
		}
		for _, l := range lists {
			if err := saveCRL(ctx, tx, l, revision); err != nil {
				return fmt.Errorf("CRL of %s: %w", l.Issuer, err)
			}
		}
		return s.forgetLists(ctx, tx, lists)
	})
	if err != nil {
		return fmt.Errorf("saving revocations: %w", err)
	}
	return nil
}

// forgetListsAfter is longer than any issuing CA lives after its last CRL.
const forgetListsAfter = 30 * 24 * time.Hour

// forgetLists removes what is left of CAs that make no lists any more.
func (s *Store) forgetLists(ctx context.Context, tx *sql.Tx, made []authority.CRL) error {
	for _, l := range made {
		at, age, now := s.ago(l.ThisUpdate.Add(-forgetListsAfter))
		if _, err := tx.ExecContext(ctx, `DELETE FROM revoked WHERE `+s.before("not_after", "$1", "$2", "$3"), at, age, now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM crl WHERE `+s.before("next_update", "$1", "$2", "$3"), at, age, now); err != nil {
			return err
		}
	}
	return nil
}

func saveCRL(ctx context.Context, tx *sql.Tx, l authority.CRL, revision int64) error {
	if l.Issuer == "" || l.Number == nil || !l.Number.IsInt64() || l.Number.Sign() <= 0 {
		return errors.New("it has no issuer, or no number of 1 to 2^63-1")
	}
	const forget = `DELETE FROM revoked WHERE issuer = $1 AND not_after < (SELECT this_update FROM crl WHERE issuer = $1)`
	if _, err := tx.ExecContext(ctx, forget, l.Issuer); err != nil {
		return err
	}
	const write = `INSERT INTO crl (issuer, revision, number, this_update, next_update, der) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (issuer) DO UPDATE SET revision = $2, number = $3, this_update = $4, next_update = $5, der = $6 WHERE crl.number < $3`
	result, err := tx.ExecContext(ctx, write, l.Issuer, revision, l.Number.Int64(), millis(l.ThisUpdate), millis(l.NextUpdate), bytesOf(l.DER))
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(fmt.Errorf("number %s is not above the last one", l.Number), err)
	}
	return nil
}
