package agentcmd

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/cmd/cli"
)

// factsView is what is known of a process.
type factsView struct {
	Node    string              `json:"node"`
	Facts   map[string][]string `json:"facts"`
	Unknown []string            `json:"unknown"`
}

func (p *verbs) attestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "attest --pid N", Short: "Attest a process, and say what is known of it", Args: cobra.NoArgs,
		Long: `Attest has the agent of this machine prove what a process is, as it would if the
process asked it for an SVID, and prints the facts that a broker would decide on.
Unknown are the facts of an attestor that failed, and costly ones that no Identity
and no Deny reads: no Identity matches on those, and each Deny that reads them holds.`,
		Example: "  " + p.name + " attest --pid $$\n  " + p.name + " attest --pid $$ -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			pid, _ := cmd.Flags().GetInt32("pid")
			if pid < 1 {
				return cli.BadInput(errors.New("--pid: a process of this machine is wanted"))
			}
			conn, where, err := DialAdmin(cmd)
			if err != nil {
				return err
			}
			defer conn.Close()
			r, err := agentapi.NewAdminClient(conn).Attest(cmd.Context(), &agentapi.AttestRequest{Pid: pid})
			if err != nil {
				return cli.Reached("agent", where, err)
			}
			return p.tellFacts(cmd, r)
		},
	}
	cmd.Flags().Int32("pid", 0, "the process")
	_ = cmd.MarkFlagRequired("pid")
	AdminFlag(cmd, "")
	return cli.AddOutput(cmd)
}

func (p *verbs) tellFacts(cmd *cobra.Command, r *agentapi.AttestResponse) error {
	v := factsView{Node: r.GetNode(), Facts: map[string][]string{}, Unknown: append([]string{}, r.GetUnknown()...)}
	for name, values := range r.GetFacts() {
		v.Facts[name] = values.GetValues()
	}
	rows := [][]string{}
	for _, name := range slices.Sorted(maps.Keys(v.Facts)) {
		rows = append(rows, []string{name, strings.Join(v.Facts[name], ", ")})
	}
	for _, prefix := range v.Unknown {
		rows = append(rows, []string{prefix, "unknown"})
	}
	return p.Show(cmd, v, func() error { return p.Table("FACT|VALUE", rows) })
}
