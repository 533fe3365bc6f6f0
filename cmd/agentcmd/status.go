package agentcmd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/cmd/cli"
)

// AdminFlag adds --agent-admin.
func AdminFlag(cmd *cobra.Command, more string) {
	cmd.Flags().String("agent-admin", "", "the agent's admin socket"+more+" (default $CREDENCE_AGENT_ADMIN)")
}

// DialAdmin connects to the agent's admin socket, and says where that is.
func DialAdmin(cmd *cobra.Command) (conn *grpc.ClientConn, where string, err error) {
	where, _ = cmd.Flags().GetString("agent-admin")
	if where == "" {
		where = os.Getenv("CREDENCE_AGENT_ADMIN")
	}
	if where == "" {
		return nil, "", cli.BadInput(errors.New("which agent? set CREDENCE_AGENT_ADMIN to its admin socket, or give --agent-admin"))
	}
	conn, err = cli.DialSocket(where)
	return conn, where, err
}

type heldView struct {
	SPIFFEID  string     `json:"spiffe_id"`
	Identity  string     `json:"identity"`
	Ends      cli.Moment `json:"ends"`
	Workloads uint32     `json:"workloads"`
	Lent      bool       `json:"lent"`
	JWT       []jwtView  `json:"jwt"` // of each audience that its identity lists
}

// jwtView is how long an audience goes on without a broker.
type jwtView struct {
	Audience string     `json:"audience"`
	Use      string     `json:"use"`  // "", "audited" or "single_use"
	Ends     cli.Moment `json:"ends"` // null: some workload has no token
}

// sessionView is what a provider gave to the workloads of a SPIFFE ID.
type sessionView struct {
	Target   string     `json:"target"`
	Flow     string     `json:"flow"`
	SPIFFEID string     `json:"spiffe_id"`
	Ends     cli.Moment `json:"ends"`    // null: nothing is held
	Failing  cli.Moment `json:"failing"` // since when exchanges fail; null: the last did not
	Trouble  string     `json:"trouble"`
}

type statusView struct {
	Node         string        `json:"node"`
	NodeEnds     cli.Moment    `json:"node_ends"`
	Connected    bool          `json:"connected"`
	Heard        cli.Moment    `json:"heard"`
	Trouble      string        `json:"trouble"`
	Needs        string        `json:"needs"`
	Seal         string        `json:"seal"`
	Reports      uint64        `json:"reports"`
	Lost         uint64        `json:"lost"`
	SpoolTrouble string        `json:"spool_trouble"`
	Hung         []string      `json:"hung"`    // loops; empty: it lives
	Unready      []string      `json:"unready"` // why; empty: it is ready
	Held         []heldView    `json:"held"`
	Sessions     []sessionView `json:"sessions"` // with clouds
}

func (p *verbs) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "How the agent does, and for how long it goes on without a broker", Args: cobra.NoArgs,
		Long: `Status asks the agent of this machine for its node, its broker, and the SVIDs that
it serves: each goes on until it ENDS, a restart of the agent included, though no
broker answers. Below each are the audiences of its JWT-SVIDs, each with the end of
the token that is held for it; where none is, a broker must make it when it is asked
for. What clouds gave stands by TARGET, with why it is not replaced where that fails.
The node's own end is when a broker must have answered, else it
joins again; where it can't by itself, NEEDS is the command that helps, for the
broker's machine, without the --label flags that the node had. SEAL is what keeps
SVIDs on disk from who has the disk alone: tpm, keyring, or plain, a file beside
them. It exits 1 while no broker is connected; with --ready
while it isn't ready instead: before the node has joined, and when less than a
quarter of an SVID's life is left and its renewal failed.`,
		Example: "  " + p.name + " status\n  " + p.name + " status --ready",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, where, err := DialAdmin(cmd)
			if err != nil {
				return err
			}
			defer conn.Close()
			r, err := agentapi.NewAdminClient(conn).Status(cmd.Context(), &agentapi.StatusRequest{})
			if err != nil {
				return cli.Reached("agent", where, err)
			}
			good := r.GetConnected()
			if ready, _ := cmd.Flags().GetBool("ready"); ready {
				good = len(r.GetUnready()) == 0
			}
			if err := p.tell(cmd, r); err != nil || good {
				return err
			}
			return cli.Coded{Code: cli.ExitNo}
		},
	}
	AdminFlag(cmd, "")
	cmd.Flags().Bool("ready", false, "exit 1 while the agent isn't ready, for probes")
	return cli.AddOutput(cmd)
}

func (p *verbs) tell(cmd *cobra.Command, r *agentapi.StatusResponse) error {
	v := statusView{
		Node: r.GetNode(), NodeEnds: cli.Moment(r.GetNodeEnds()), Connected: r.GetConnected(), Heard: cli.Moment(r.GetHeardAt()), Trouble: r.GetTrouble(), Needs: r.GetNeeds(),
		Seal: r.GetSeal(), Reports: r.GetBacklog(), Lost: r.GetLost(), SpoolTrouble: r.GetSpoolTrouble(),
		Hung: append([]string{}, r.GetHung()...), Unready: append([]string{}, r.GetUnready()...), Held: []heldView{}, Sessions: []sessionView{},
	}
	rows := [][]string{}
	for _, h := range r.GetHeld() {
		one := heldView{h.GetSpiffeId(), h.GetIdentity(), cli.Moment(h.GetEnds()), h.GetWorkloads(), h.GetLent(), []jwtView{}}
		note := ""
		if h.GetLent() {
			note = "decided before the broker went away"
		}
		rows = append(rows, []string{h.GetSpiffeId(), strconv.FormatUint(uint64(h.GetWorkloads()), 10), cli.When(h.GetEnds()), note})
		for _, j := range h.GetJwt() {
			one.JWT = append(one.JWT, jwtView{j.GetAudience(), j.GetUse(), cli.Moment(j.GetEnds())})
			rows = append(rows, []string{"  jwt " + j.GetAudience(), "", cli.When(j.GetEnds()), jwtNote(j)})
		}
		v.Held = append(v.Held, one)
	}
	clouds := [][]string{}
	for _, c := range r.GetSessions() {
		v.Sessions = append(v.Sessions, sessionView{c.GetTarget(), c.GetFlow(), c.GetSpiffeId(), cli.Moment(c.GetEnds()), cli.Moment(c.GetFailing()), c.GetTrouble()})
		note := ""
		if c.GetFailing() != 0 {
			note = "fails since " + cli.When(c.GetFailing()) + ": " + c.GetTrouble()
		}
		clouds = append(clouds, []string{c.GetTarget(), c.GetSpiffeId(), cli.When(c.GetEnds()), note})
	}
	return p.Show(cmd, v, func() error {
		if err := p.Fields(v.fields()); err != nil {
			return err
		}
		return errors.Join(p.below("SPIFFE ID|WORKLOADS|ENDS|", rows), p.below("TARGET|SPIFFE ID|ENDS|", clouds))
	})
}

// below shows a table under what was shown, if it has rows.
func (p *verbs) below(header string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(p.Out)
	return p.Table(header, rows)
}

// jwtNote says what an end of a token, or its absence, comes to.
func jwtNote(j *agentapi.StatusResponse_Held_JWT) string {
	switch {
	case j.GetUse() == "single_use":
		return "single_use: made for each call"
	case j.GetEnds() != 0:
		return j.GetUse()
	case strings.Contains(j.GetAudience(), "*"):
		return "a pattern: made when asked for"
	}
	return "none is held yet"
}

func (v statusView) fields() [][2]string {
	broker := "connected, heard at " + cli.When(int64(v.Heard))
	if !v.Connected {
		broker = "not connected, last heard at " + cli.When(int64(v.Heard))
	}
	node := v.Node
	if node == "" {
		node = "not joined"
	}
	all := [][2]string{{"node", node}, {"node ends", cli.When(int64(v.NodeEnds))}, {"broker", broker}}
	if v.Trouble != "" {
		all = append(all, [2]string{"trouble", v.Trouble})
	}
	if v.Needs != "" {
		all = append(all, [2]string{"needs", v.Needs})
	}
	for _, why := range v.Hung {
		all = append(all, [2]string{"not live", why})
	}
	for _, why := range v.Unready {
		all = append(all, [2]string{"not ready", why})
	}
	all = append(all, [2]string{"seal", v.Seal}, [2]string{"reports", fmt.Sprintf("%d wait for the broker, %d were lost", v.Reports, v.Lost)})
	if v.SpoolTrouble != "" {
		all = append(all, [2]string{"spool", v.SpoolTrouble})
	}
	return all
}
