package agentcmd

import (
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
)

// verbs are the agent's.
type verbs struct {
	*cli.Program
	name string // what is typed before them
}

// Commands makes run, check, status, metrics, attest, explain, tpm and key. name is what is
// typed before them.
func Commands(p *cli.Program, name string) []*cobra.Command {
	return (&verbs{p, name}).commands()
}

func (p *verbs) commands() []*cobra.Command {
	runCmd := &cobra.Command{
		Use: "run -c agent.yaml [-- COMMAND [ARG...]]", Short: "Run the agent until it is told to stop, or for a command", Args: command,
		Long: `Run joins this machine to a broker as a node, by the token of agent.yaml, and
serves the Workload API, Envoy's SDS and cloud credentials, and writes its
outputs, until it is told to stop (SIGINT, SIGTERM). A joined agent needs no token
to start again. It prints the SPIFFE_ENDPOINT_SOCKET to set. While the broker is
away it waits and serves what it holds; what only a person can mend ends it with
one line (2).

With a COMMAND, a job's say, it runs that as soon as it has joined, with
SPIFFE_ENDPOINT_SOCKET in its environment, passes signals on, and ends with it and
by its exit code (125 if the agent itself fails). ephemeral: true in agent.yaml
instead of data keeps nothing on the machine.

Under systemd it takes over the sockets that are handed to it, by the names workload
and admin, tells when it is ready (Type=notify) and, where WatchdogSec= is set, that
none of its loops hangs.`,
		Example: `  credence token create --node here > agent.yaml   # and put the token into its token_file
  ` + p.name + ` run -c agent.yaml`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := config(cmd)
			if err != nil {
				return err
			}
			if err := cli.CheckClock(p.Now()); err != nil {
				return cli.BadInput(err)
			}
			if f.handed, err = handed(); err != nil {
				return cli.BadInput(err)
			}
			defer func() { _ = f.handed.close() }()
			if !signal.Ignored(syscall.SIGHUP) { // else it is to outlive its terminal (nohup)
				ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
				defer stop()
				cmd.SetContext(ctx)
			}
			remove, err := f.settle()
			if err != nil {
				return cli.BadInput(err)
			}
			defer func() {
				if gone := remove(); err == nil {
					err = cli.BadInput(gone)
				}
			}()
			a, err := New(f, nil, p.Now, p.Logger())
			if err != nil {
				return cli.BadInput(err)
			}
			if len(args) > 0 {
				return p.beside(cmd, a, f, args)
			}
			a.service = newService(p.Logger())
			fmt.Fprintf(p.Err, "agent of %s: export %s=%s\n", f.TrustDomain, cli.WorkloadVariable, cli.ShellWord("unix://"+cli.Absolute(f.Socket)))
			if err := cli.CheckTraversable(f.Socket); err != nil && !f.Ephemeral {
				fmt.Fprintln(p.Err, "warning:", err)
			}
			return cli.BadInput(a.Run(cmd.Context()))
		},
	}
	check := &cobra.Command{
		Use: "check -c agent.yaml", Short: "Check this machine for an agent: disk, socket, clock, broker", Args: cobra.NoArgs,
		Long: `Check tries on this machine what agent run would need: clock, data directory,
workload socket, where outputs are written (it makes directories that are
missing there), and whether the broker's address answers. It exits 1 where
something is wrong.`,
		Example: `  credence token create --node web-2 | sed 's,/var/lib/credence,.,' > agent.yaml
  ` + p.name + ` check -c agent.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := config(cmd)
			if err != nil {
				return err
			}
			remove, err := f.settle()
			if err != nil {
				return cli.BadInput(err)
			}
			defer func() { _ = remove() }()
			findings := []cli.Finding{
				cli.Found("clock", cli.CheckClock(p.Now())),
				cli.Found("data directory", cli.CheckDir(f.Data)),
				cli.Found("workload socket", cli.CheckSocket(f.Socket)),
			}
			findings = append(findings, f.checkPlaces()...)
			outputs, err := f.deliveries(nil, p.Now, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			for _, d := range outputs {
				findings = append(findings, cli.Found("output "+d.output.Name+", "+d.kind, d.check()))
			}
			for _, b := range f.Broker {
				findings = append(findings, cli.Found("broker "+b, cli.CheckReach(cmd.Context(), b)))
			}
			return p.Check(cmd, findings)
		},
	}
	for _, c := range []*cobra.Command{runCmd, check} {
		c.Flags().StringP("config", "c", "agent.yaml", "configuration")
		cli.CompleteFiles(c, "config", "yaml", "yml")
	}
	return []*cobra.Command{runCmd, cli.AddOutput(check), p.statusCommand(), p.metricsCommand(), p.attestCommand(), p.explainCommand(), p.tpmCommand(), p.keyCommand()}
}

func config(cmd *cobra.Command) (File, error) {
	path, _ := cmd.Flags().GetString("config")
	var f File
	if err := cli.LoadFile(path, &f); err != nil {
		return f, err
	}
	return f, cli.BadInput(cli.InFile(path, f.Complete()))
}
