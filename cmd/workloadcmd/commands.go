// Package workloadcmd is a workload's verbs, which both credence and
// credence-agent have: svid, credentials and exec. They ask the agent over the
// workload socket, as the process that runs them, and hold no right of their own.
package workloadcmd

import (
	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
)

// verbs are a workload's.
type verbs struct {
	*cli.Program
	name    string               // what is typed before them
	targets cobra.CompletionFunc // completes a target's name
}

// Commands makes svid, credentials and exec. name is what is typed before them;
// targets completes a target's name.
func Commands(p *cli.Program, name string, targets cobra.CompletionFunc) []*cobra.Command {
	v := &verbs{p, name, targets}
	return []*cobra.Command{v.svidCommand(), v.credentialsCommand(), v.execCommand()}
}
