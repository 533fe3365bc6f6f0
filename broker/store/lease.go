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
// It lasts by the database's clock, and a Lease's times are told by ours. Safety is
// the fence's: what a former holder writes is refused. A lease that seems to last
// for more than twice its life was taken by a clock that was wrong, and is over.
func (s *Store) Acquire(ctx context.Context, name, holder string, life time.Duration, take bool) (lease authority.Lease, ok bool, err error) {
	now := s.time("$4")
	over := int64(0)
	if take {
		over = math.MaxInt64 / 2
	}
	acquire := `INSERT INTO lease (name, holder, fence, expires_at) VALUES ($1, $2, 1, ` + now + ` + $3)
		ON CONFLICT (name) DO UPDATE SET holder = $2, fence = lease.fence + 1, expires_at = ` + now + ` + $3
		WHERE lease.holder = $2 OR lease.expires_at <= ` + now + ` + $5 OR lease.expires_at > ` + now + ` + 2 * $3 RETURNING fence, expires_at - $3`
	holding := `SELECT holder, fence, expires_at, ` + s.time("$2") + ` FROM lease WHERE name = $1`
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		lease = authority.Lease{Holder: holder, Until: s.now().Add(life)}
		ok = true
		var until, there int64
		err := tx.QueryRowContext(ctx, acquire, name, holder, life.Milliseconds(), s.timeArg(), over).Scan(&lease.Fence, &there)
		if err == nil {
			lease.Ahead = time.Duration(millis(s.now())-there) * time.Millisecond
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		ok = false
		err = tx.QueryRowContext(ctx, holding, name, s.timeArg()).Scan(&lease.Holder, &lease.Fence, &until, &there)
		lease.Until = fromMillis(millis(s.now()) + until - there)
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
