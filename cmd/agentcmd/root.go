package agentcmd

import (
	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/workloadcmd"
)

// Root is all of credence-agent: the agent's verbs, and a workload's.
func Root(p *cli.Program) *cobra.Command {
	const name = "credence-agent"
	root := &cobra.Command{
		Use:   name,
		Short: "The agent of a node: identities for its workloads",
		Long: `Credence-agent is the part of credence that a node needs: it joins the node to a
broker, attests workloads, and gives them SVIDs and what clouds give for them. Its
verbs are those of credence agent and, for workloads, credence svid, credentials
and exec. Policy is the broker's: its operators use credence, elsewhere.

Exit codes: 0 done; 1 done, and the answer is no; 2 bad input; 3 agent not
reached; 4 denied. exec: the command's own, 125 if exec itself fails.`,
		Example: "  " + name + " run -c /etc/credence/agent.yaml",
	}
	root.AddCommand(Commands(p, name)...)
	root.AddCommand(workloadcmd.Commands(p, name, cobra.NoFileCompletions, nil)...)
	root.AddCommand(p.VersionCommand(name))
	p.Furnish(root)
	return root
}
