package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	agentapi "github.com/credence-id/credence/agent/api"
)

// agentAdminFlag adds --agent-admin.
func agentAdminFlag(cmd *cobra.Command, more string) {
	cmd.Flags().String("agent-admin", "", "the agent's admin socket"+more+" (default $CREDENCE_AGENT_ADMIN)")
}

// dialAgentAdmin connects to the agent's admin socket, and says where that is.
func dialAgentAdmin(cmd *cobra.Command) (conn *grpc.ClientConn, where string, err error) {
	where, _ = cmd.Flags().GetString("agent-admin")
	if where == "" {
		where = os.Getenv("CREDENCE_AGENT_ADMIN")
	}
	if where == "" {
		return nil, "", input(errors.New("which agent? set CREDENCE_AGENT_ADMIN to its admin socket, or give --agent-admin"))
	}
	conn, err = dialSocket(where)
	return conn, where, err
}

type heldView struct {
	SPIFFEID  string `json:"spiffe_id"`
	Identity  string `json:"identity"`
	Ends      moment `json:"ends"`
	Workloads uint32 `json:"workloads"`
	Lent      bool   `json:"lent"`
}

type agentStatusView struct {
	Node         string     `json:"node"`
	NodeEnds     moment     `json:"node_ends"`
	Connected    bool       `json:"connected"`
	Heard        moment     `json:"heard"`
	Trouble      string     `json:"trouble"`
	Seal         string     `json:"seal"`
	Reports      uint64     `json:"reports"`
	Lost         uint64     `json:"lost"`
	SpoolTrouble string     `json:"spool_trouble"`
	Held         []heldView `json:"held"`
}

func (p *program) agentStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "How the agent does, and for how long it goes on without a broker", Args: cobra.NoArgs,
		Long: `Status asks the agent of this machine for its node, its broker, and the SVIDs that
it serves: each goes on until it ENDS, a restart of the agent included, though no
broker answers. The node's own end is when a broker must have answered, else it
joins again. SEAL is what keeps SVIDs on disk from who has the disk alone: keyring
or plain, a file beside them. It exits 1 while no broker is connected.`,
		Example: "  credence agent status\n  credence agent status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, where, err := dialAgentAdmin(cmd)
			if err != nil {
				return err
			}
			defer conn.Close()
			r, err := agentapi.NewAdminClient(conn).Status(cmd.Context(), &agentapi.StatusRequest{})
			if err != nil {
				return reached("agent", where, err)
			}
			if err := p.tellAgent(cmd, r); err != nil || r.GetConnected() {
				return err
			}
			return coded{code: exitNo}
		},
	}
	agentAdminFlag(cmd, "")
	return addOutput(cmd)
}

func (p *program) tellAgent(cmd *cobra.Command, r *agentapi.StatusResponse) error {
	v := agentStatusView{
		Node: r.GetNode(), NodeEnds: moment(r.GetNodeEnds()), Connected: r.GetConnected(), Heard: moment(r.GetHeardAt()), Trouble: r.GetTrouble(),
		Seal: r.GetSeal(), Reports: r.GetBacklog(), Lost: r.GetLost(), SpoolTrouble: r.GetSpoolTrouble(), Held: []heldView{},
	}
	rows := [][]string{}
	for _, h := range r.GetHeld() {
		v.Held = append(v.Held, heldView{h.GetSpiffeId(), h.GetIdentity(), moment(h.GetEnds()), h.GetWorkloads(), h.GetLent()})
		note := ""
		if h.GetLent() {
			note = "decided before the broker went away"
		}
		rows = append(rows, []string{h.GetSpiffeId(), strconv.FormatUint(uint64(h.GetWorkloads()), 10), when(h.GetEnds()), note})
	}
	return p.show(cmd, v, func() error {
		if err := p.fields(v.fields()); err != nil || len(rows) == 0 {
			return err
		}
		fmt.Fprintln(p.out)
		return p.table("SPIFFE ID|WORKLOADS|ENDS|", rows)
	})
}

func (v agentStatusView) fields() [][2]string {
	broker := "connected, heard at " + when(int64(v.Heard))
	if !v.Connected {
		broker = "not connected, last heard at " + when(int64(v.Heard))
	}
	node := v.Node
	if node == "" {
		node = "not joined"
	}
	all := [][2]string{{"node", node}, {"node ends", when(int64(v.NodeEnds))}, {"broker", broker}}
	if v.Trouble != "" {
		all = append(all, [2]string{"trouble", v.Trouble})
	}
	all = append(all, [2]string{"seal", v.Seal}, [2]string{"reports", fmt.Sprintf("%d wait for the broker, %d were lost", v.Reports, v.Lost)})
	if v.SpoolTrouble != "" {
		all = append(all, [2]string{"spool", v.SpoolTrouble})
	}
	return all
}
