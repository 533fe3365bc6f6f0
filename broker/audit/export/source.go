package export

import (
	"context"
	"fmt"

	"github.com/credence-id/credence/broker/audit"
)

// Files is a Source that reads a record's directory to the end it has now,
// whoever writes it.
type Files struct{ Dir string }

// Oldest is the place before the oldest record there is.
func (f Files) Oldest() (audit.Ref, error) { return audit.OldestIn(f.Dir) }

// FollowAfter reads from a place to the end. The error wraps audit.ErrReplaced if
// that place is not in the record.
func (f Files) FollowAfter(ctx context.Context, after audit.Ref, fn func(audit.Record) error) error {
	oldest, err := f.Oldest()
	if err != nil {
		return err
	}
	begin := after.Sequence
	if after.Hash != ([32]byte{}) && oldest.Sequence < after.Sequence {
		begin-- // the place itself is looked at
	}
	c := Chain{At: after}
	for r, err := range audit.Read(ctx, f.Dir, begin) {
		if err != nil {
			return err
		}
		if r.Sequence == after.Sequence {
			if r.Ref() != after {
				return fmt.Errorf("%w: record %d is not the one that was read before", audit.ErrReplaced, r.Sequence)
			}
			begin = after.Sequence
			continue
		}
		if err := c.Next(r); err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	if begin < after.Sequence {
		return fmt.Errorf("%w: it ends before record %d, which was read before", audit.ErrReplaced, after.Sequence)
	}
	return nil
}

// A Chain is followed record by record from a place, whose hash may be unknown.
type Chain struct{ At audit.Ref }

// Next takes a record that comes next; the error wraps audit.ErrReplaced if this
// one doesn't.
func (c *Chain) Next(r audit.Record) error {
	if r.Sequence != c.At.Sequence+1 {
		return fmt.Errorf("%w: record %d comes after record %d", audit.ErrReplaced, r.Sequence, c.At.Sequence)
	}
	if c.At.Hash != ([32]byte{}) && r.Previous != fmt.Sprintf("%x", c.At.Hash) {
		return fmt.Errorf("%w: record %d does not follow from the one before", audit.ErrReplaced, r.Sequence)
	}
	c.At = r.Ref()
	return nil
}
