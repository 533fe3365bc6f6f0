package agentcmd

import (
	"context"
	"log/slog"

	"github.com/credence-id/credence/agent"
)

// NewAdmin serves the operator on the node.
var NewAdmin = newAdmin

// EraseLeftovers is what a start does first.
var EraseLeftovers = (*File).eraseLeftovers

// Tell tells the service manager of an agent, until ctx ends.
func Tell(ctx context.Context, a interface {
	Hung() []string
	Joined() <-chan struct{}
	Status() agent.Status
}, log *slog.Logger) {
	newService(log).run(ctx, a)
}

// JoinOf is how a node proves itself.
func JoinOf(f *File) agent.Join { return f.Join.join(f.TrustDomain, f.Data, nil) }
