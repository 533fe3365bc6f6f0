package agentcmd

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent"
	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/workloadcmd"
)

// ExplainFlags adds what the agent is told to be asked about a process.
func ExplainFlags(cmd *cobra.Command) {
	cmd.Flags().Int("pid", 0, "a process on this machine")
	cmd.Flags().Bool("self", false, "this process, as the workload that it is")
	AdminFlag(cmd, ", for --pid")
	cmd.Flags().String("socket", "", "the agent's workload socket, for --self (default $"+cli.WorkloadVariable+")")
	cmd.Flags().StringArray("audience", nil, "explain a JWT-SVID for this audience")
	cmd.Flags().String("target", "", "explain a JWT-SVID for this target")
}

func (p *verbs) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain", Short: "Say what a process gets, or which facts it misses", Args: cobra.NoArgs,
		Long: `Explain attests a process (--pid, through the agent's admin socket) or itself
(--self, through the workload socket, as any workload may) and says what it gets;
where that is nothing, why: an attestor that failed, a broker that is away and
since when, or which Identities are near. A broker tells a node less than its
operator: of Identities that are for this node the names of the facts that are not
as they must be. It exits 1 where nothing is granted.`,
		Example: "  " + p.name + ` explain --pid $$
  ` + p.name + ` explain --self -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pid, _ := cmd.Flags().GetInt("pid")
			self, _ := cmd.Flags().GetBool("self")
			switch {
			case (pid == 0) != self || pid < 0:
				return cli.BadInput(errors.New("one of --pid and --self is wanted"))
			case self:
				return ExplainSelf(p.Program, cmd)
			}
			return ExplainPID(p.Program, cmd)
		},
	}
	ExplainFlags(cmd)
	return cli.AddOutput(cmd)
}

func explainRequest(cmd *cobra.Command) *agentapi.ExplainRequest {
	r := &agentapi.ExplainRequest{}
	r.Audiences, _ = cmd.Flags().GetStringArray("audience")
	r.Target, _ = cmd.Flags().GetString("target")
	return r
}

// ExplainPID asks the agent about the process of --pid, as the operator of the
// node.
func ExplainPID(p *cli.Program, cmd *cobra.Command) error {
	conn, where, err := DialAdmin(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := explainRequest(cmd)
	pid, _ := cmd.Flags().GetInt("pid")
	r.Pid = int32(pid)
	got, err := agentapi.NewAdminClient(conn).Explain(cmd.Context(), r)
	if err != nil {
		return cli.Reached("agent", where, err)
	}
	return explained(p, cmd, got)
}

// ExplainSelf asks the agent about this process, as any workload may.
func ExplainSelf(p *cli.Program, cmd *cobra.Command) error {
	conn, where, err := workloadcmd.Dial(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	got, err := agentapi.NewChecksClient(workloadcmd.Conn(conn)).Explain(cmd.Context(), explainRequest(cmd))
	if err != nil {
		return cli.Reached("agent", where, err)
	}
	return explained(p, cmd, got)
}

// granted is the code where there is no refusal.
const granted = "granted"

// explainView is what a node is told.
type explainView struct {
	Code       string              `json:"code"`
	Text       string              `json:"text,omitempty"` // as the workload is told
	Record     string              `json:"record,omitempty"`
	Identities []grantedView       `json:"granted,omitempty"`
	Near       []nearView          `json:"near,omitempty"`
	Facts      map[string][]string `json:"facts"`
	Unknown    []string            `json:"unknown,omitempty"`
	Why        map[string]string   `json:"why,omitempty"` // of what is unknown
	Note       string              `json:"note,omitempty"`
}

type grantedView struct {
	Identity string     `json:"identity"`
	SPIFFEID string     `json:"spiffe_id"`
	Ends     cli.Moment `json:"ends"`
}

type nearView struct {
	Identity string   `json:"identity"`
	Item     uint32   `json:"item"`
	Missing  []string `json:"missing,omitempty"`
	When     bool     `json:"when,omitempty"`
	Code     string   `json:"code,omitempty"`
}

// explained prints what an agent explains.
func explained(p *cli.Program, cmd *cobra.Command, r *agentapi.ExplainResponse) error {
	v := explainView{
		Code: granted, Text: r.GetText(), Record: r.GetRecord(), Facts: map[string][]string{}, Unknown: r.GetUnknown(), Why: r.GetWhy(), Note: r.GetNote(),
	}
	if !r.GetGranted() {
		v.Code = strings.ToLower(r.GetCode())
	}
	for name, values := range r.GetFacts() {
		v.Facts[name] = values.GetValues()
	}
	for _, g := range r.GetIdentities() {
		v.Identities = append(v.Identities, grantedView{g.GetIdentity(), g.GetSpiffeId(), cli.Moment(g.GetEnds())})
	}
	for _, n := range r.GetNear() {
		v.Near = append(v.Near, nearView{n.GetIdentity(), n.GetItem(), n.GetMissing(), n.GetWhen(), n.GetCode()})
	}
	if err := p.Show(cmd, v, func() error { return v.print(p.Out) }); err != nil || r.GetGranted() {
		return err
	}
	switch r.GetCode() {
	case agent.BrokerUnreachable, agent.BrokerFailed, agent.AgentUnavailable:
		return cli.Coded{Code: cli.ExitUnreachable}
	case agent.NodeEvicted:
		return cli.Coded{Code: cli.ExitDenied}
	}
	return cli.Coded{Code: cli.ExitNo}
}

func (v explainView) print(w io.Writer) error {
	var b strings.Builder
	if v.Code != granted {
		fmt.Fprintf(&b, "nothing is granted (%s)\n  %s\n", v.Code, v.Text)
	}
	for _, g := range v.Identities {
		fmt.Fprintf(&b, "granted: %s, by Identity %s, until %s\n", g.SPIFFEID, g.Identity, cli.When(int64(g.Ends)))
	}
	for _, n := range v.Near {
		fmt.Fprintf(&b, "near: Identity %s, match[%d]\n", n.Identity, n.Item)
		for _, name := range n.Missing {
			fmt.Fprintf(&b, "  FAILS %s, which %s here\n", name, v.here(name))
		}
		if n.When {
			b.WriteString("  FAILS its when\n")
		}
		if n.Code != "" {
			fmt.Fprintf(&b, "  FAILS %s\n", n.Code)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.Why)) {
		fmt.Fprintf(&b, "unknown: %s: %s\n", name, v.Why[name])
	}
	if v.Note != "" {
		fmt.Fprintf(&b, "note: %s\n", v.Note)
	}
	if len(v.Near) > 0 {
		b.WriteString("what these would have to be, an operator of the broker sees with: credence explain\n")
	}
	_, err := fmt.Fprint(w, b.String())
	return err
}

// here is what is known of a fact on this node.
func (v explainView) here(name string) string {
	for _, u := range v.Unknown {
		if name == u || strings.HasPrefix(name, u+".") {
			return "is unknown"
		}
	}
	switch values, ok := v.Facts[name]; {
	case ok && len(values) == 1:
		return fmt.Sprintf("is %q", values[0])
	case ok:
		return fmt.Sprintf("is %q", values)
	}
	return "is absent or not told"
}
