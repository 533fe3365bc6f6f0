package agentcmd

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/workloadcmd"
)

// exitOwn is the exit code for a failure of our own beside a command's.
const exitOwn = 125

// told is how long an agent that has nothing else to do waits for the broker to
// take its reports.
const told = 3 * time.Second

// command holds that all arguments are a command to run beside the agent.
func command(cmd *cobra.Command, args []string) error {
	if at := cmd.ArgsLenAtDash(); len(args) > 0 && at != 0 {
		return cli.BadInput(errors.New("a command to run beside the agent follows --, and nothing else does"))
	} else if at == 0 && len(args) == 0 {
		return cli.BadInput(errors.New("no command follows --"))
	}
	return nil
}

// beside runs the agent for a command: from when it has joined until the command
// ends. Until then a signal ends us; after that signals are the command's.
func (p *verbs) beside(cmd *cobra.Command, a *Daemon, f File, args []string) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	select {
	case err := <-ended:
		return cli.WithCode(exitOwn, err)
	case <-cmd.Context().Done():
		cancel()
		return cli.WithCode(exitOwn, errors.Join(context.Cause(cmd.Context()), <-ended))
	case <-a.Agent.Joined():
	}
	code, err := workloadcmd.Child(cmd.Context(), p.Program, args, append(os.Environ(),
		cli.WorkloadVariable+"=unix://"+cli.Absolute(f.Socket), "CREDENCE_AGENT_ADMIN="+cli.Absolute(f.Admin)))
	a.tellAll(ctx)
	cancel()
	if err = errors.Join(err, <-ended); err != nil {
		return cli.WithCode(exitOwn, err)
	}
	if code != 0 {
		return cli.Coded{Code: code}
	}
	return nil
}

// tellAll waits until the broker has all that the agent has to report: what goes
// with the data directory is told by nobody.
func (p *Daemon) tellAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, told)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.Agent.Spooled().Backlog > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
