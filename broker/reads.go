package broker

import (
	"context"
	"fmt"

	"github.com/credence-id/credence/broker/audit"
)

// RecordRead records that an operator reads something, before they are answered.
// What the same one asks again of the same thing is counted, and its record says
// which it repeats: the place that is returned is that of the first.
func (b *Broker) RecordRead(ctx context.Context, e audit.Event) (audit.Ref, error) {
	ref, err := b.reads.Append(ctx, e)
	if err != nil {
		return audit.Ref{}, fmt.Errorf("recording what is read: %w", err)
	}
	return ref, nil
}

// CountUnrecorded counts what was answered though it could not be recorded. The
// count is recorded as soon as anything is.
func (b *Broker) CountUnrecorded(actor, asked string) { b.unrecorded.Add(actor + " " + asked) }
