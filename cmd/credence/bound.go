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
	return []cli.Finding{
		cli.Found("database", store.Check(ctx, f.Store, now)),
		cli.Found(fmt.Sprintf("an eviction holds within %v on the other brokers", server.EvictionBound), nil),
		// Nodes' SVIDs end by then, and nobody renews them.
		cli.Found(fmt.Sprintf("on one without the database within %v, or when that is back", broker.NodeLife), nil),
	}
}
