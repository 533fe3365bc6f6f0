// Package workloadcmd is a workload's verbs, which both credence and
// credence-agent have: svid, credentials and exec. They ask the agent over the
// workload socket, as the process that runs them, and hold no right of their own.
package workloadcmd

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/cmd/cli"
)

// verbs are a workload's.
type verbs struct {
	*cli.Program
	name    string               // what is typed before them
	targets cobra.CompletionFunc // completes a target's name
	person  Person               // nil: people have no SVIDs here
}

// A Person are the X509-SVIDs of whoever types, where there is no agent: those
// that they have or, with a life, new ones.
type Person func(ctx context.Context, ttl time.Duration) (*workloadapi.X509Context, error)

// Commands makes svid, credentials and exec. name is what is typed before them;
// targets completes a target's name; person may be nil.
func Commands(p *cli.Program, name string, targets cobra.CompletionFunc, person Person) []*cobra.Command {
	v := &verbs{p, name, targets, person}
	return []*cobra.Command{v.svidCommand(), v.credentialsCommand(), v.execCommand()}
}
