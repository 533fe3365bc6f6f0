package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/credence-id/credence/broker/authority"
)

// Acquire gives holder a lease under a higher fence than anybody had before. If
// another holds it, unless take is set, it returns the other's and false.
//
// Times are the brokers', since no word for the database's clock is one both
// engines know. Clocks that differ cost no safety, which is the fence's: one that
// is ahead takes a lease too soon, and what the former holder then writes is
// refused; one that is behind waits longer. A lease that seems to last for more
// than twice its life was taken by a clock that was wrong, and is over.
func (s *Store) Acquire(ctx context.Context, name, holder string, life time.Duration, take bool) (lease authority.Lease, ok bool, err error) {
	now := s.now()
	over := millis(now)
	if take {
		over = math.MaxInt64
	}
	const acquire = `INSERT INTO lease (name, holder, fence, expires_at) VALUES ($1, $2, 1, $3)
		ON CONFLICT (name) DO UPDATE SET holder = $2, fence = lease.fence + 1, expires_at = $3
		WHERE lease.holder = $2 OR lease.expires_at <= $4 OR lease.expires_at > $5 RETURNING fence`
	const holding = `SELECT holder, fence, expires_at FROM lease WHERE name = $1`
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		lease = authority.Lease{Holder: holder, Until: now.Add(life)}
		ok = true
		err := tx.QueryRowContext(ctx, acquire, name, holder, millis(lease.Until), over, millis(now.Add(2*life))).Scan(&lease.Fence)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		ok = false
		var until int64
		err = tx.QueryRowContext(ctx, holding, name).Scan(&lease.Holder, &lease.Fence, &until)
		lease.Until = fromMillis(until)
		return err
	})
	if err != nil {
		return authority.Lease{}, false, fmt.Errorf("acquiring the lease %s: %w", name, err)
	}
	return lease, ok, nil
}

// Release ends the lease with that fence, if it is the last that was given.
func (s *Store) Release(ctx context.Context, name string, fence uint64) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE lease SET expires_at = 0 WHERE name = $1 AND fence = $2`, name, int64(fence))
		return err
	})
	if err != nil {
		return fmt.Errorf("releasing the lease %s: %w", name, err)
	}
	return nil
}

// fenced refuses what is written under another fence than the last that was given:
// a higher one is of a database that was lost. It holds the lease until the
// transaction ends.
func fenced(ctx context.Context, tx *sql.Tx, name string, fence uint64) error {
	var last int64
	err := tx.QueryRowContext(ctx, `UPDATE lease SET fence = fence WHERE name = $1 RETURNING fence`, name).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) { // nobody ever had it: one broker alone
		last, err = 0, nil
	}
	if err == nil && uint64(last) != fence {
		return conflicting(authority.ErrFenced)
	}
	return err
}

var _ authority.Leases = (*Store)(nil)
