// Command credence-agent is the agent alone, for nodes: the verbs of credence
// agent, and those of a workload. It links nothing that signs and no database; a
// test holds it to that.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := &cli.Program{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now}
	code := p.Execute(ctx, agentcmd.Root(p), os.Args[1:])
	stop()
	os.Exit(code)
}
