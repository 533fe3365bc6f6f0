// Command credence-agent is the agent alone, for nodes: the verbs of credence
// agent, and those of a workload. It links nothing that signs and no database; a
// test holds it to that.
package main

import (
	"os"
	"time"

	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/stop"
)

func main() {
	p := &cli.Program{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now}
	os.Exit(p.Execute(stop.Context(), agentcmd.Root(p), os.Args[1:]))
}
