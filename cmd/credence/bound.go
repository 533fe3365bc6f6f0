package main

import (
	"context"
	"fmt"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/cli"
)

// checkShared tries the database that brokers share, and tells how late what one of
// them evicts, revokes or denies holds.
func (f *brokerFile) checkShared(ctx context.Context, now func() time.Time) []cli.Finding {
	if !f.shared() {
		return []cli.Finding{cli.Found("an eviction holds at once", nil)}
	}
	bound := fmt.Sprintf("an eviction holds at once on the broker that makes it, within %v on the others; on one without the database when that is back, at most %v: nodes' SVIDs end, and nobody renews them",
		server.EvictionBound, broker.NodeLife)
	return []cli.Finding{cli.Found("database", store.Check(ctx, f.Store, now)), cli.Found(bound, nil)}
}
