// Command credence is the whole program: the operator's verbs, the broker, the
// agent, and dev, which runs the main job on one machine without a network.
//
// It is the only place that names drivers: a plain switch per kind builds the
// one that a configuration asks for. What each part does is left to its
// package.
package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/logincmd"
	"github.com/credence-id/credence/cmd/stop"
	"github.com/credence-id/credence/cmd/workloadcmd"
)

func main() {
	os.Exit(run(stop.Context(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// program is what every verb has.
type program struct {
	*cli.Program
	started time.Time
}

// run is the program, for main and for tests.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	return runAt(ctx, time.Now, args, in, out, errs)
}

// runAt is the program by some clock.
func runAt(ctx context.Context, now func() time.Time, args []string, in io.Reader, out, errs io.Writer) int {
	p := &program{&cli.Program{In: in, Out: out, Err: errs, Now: now}, time.Now()}
	return p.Execute(ctx, p.root(), args)
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "credence",
		Short: "Identities for workloads, and what clouds and peers give for them",
		Long: `Credence gives a workload that proves what it is a SPIFFE identity (an SVID),
lets peers in other trust domains verify it, and exchanges it for credentials
of AWS, GCP and Azure. No stored secret anywhere.

To see all of it on this machine, without a network or an account, run
"credence dev". It prints the two addresses that every other example needs:
CREDENCE_ADMIN, the broker's admin socket, for the operator's verbs, and
SPIFFE_ENDPOINT_SOCKET, the agent's, for the workload's.

Exit codes: 0 done; 1 done, and the answer is no; 2 bad input; 3 broker or agent
not reached; 4 denied. exec: the command's own, 125 if exec itself fails.`,
		Example: "  credence dev --once",
	}
	root.AddCommand(
		p.devCommand(), p.brokerCommand(), cli.Group("agent", "The agent", agentcmd.Commands(p.Program, "credence agent")...),
		p.applyCommand(), p.planCommand(), p.getCommand(), p.deleteCommand(), p.historyCommand(), p.policyRollbackCommand(), p.validateCommand(), p.testCommand(),
		p.tokenCommand(), p.joinCommand(), p.nodeCommand(), p.explainCommand(), p.peerCommand(), p.bundleCommand(), p.authorityCommand(),
		p.targetCommand(), p.sandboxCommand(), p.importCommand(),
		p.auditCommand(), p.statusCommand(), logincmd.Command(p.Program), p.VersionCommand("credence"),
	)
	root.AddCommand(workloadcmd.Commands(p.Program, "credence", completeFirst(completeNamed("Target")), func(ctx context.Context, ttl time.Duration) (*workloadapi.X509Context, error) {
		return logincmd.SVIDs(ctx, p.Program, ttl)
	})...)
	p.Furnish(root)
	return root
}
