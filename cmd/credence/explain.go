package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain", Short: "Say why a process gets what it gets, or what was nearest",
		Long: `Explain attests a process through the agent on this machine (--pid), and asks the
broker why it is granted what it is granted: which Identity, by which terms, on
which facts; where nothing is, the nearest Identities with the terms that fail,
and the Denies that hold. Only the operator may ask: a workload that is denied
learns a record's number and no reason.

Without access to the broker (no --admin, no CREDENCE_ADMIN), --pid asks it
through the agent, and --self asks about this very process, through the workload
socket. A broker tells a node less: of Identities that are for this node the
names of the facts that are not as they must be.

With --facts it asks about a process that there is not, by what it would prove,
on the node that --node names. --node alone says what workloads on a node can
get, --identity alone who can get an Identity now, and with a process or facts
what that one Identity lacks.

It exits 0 where something is granted, 1 where nothing is, 3 where the broker or
the agent does not answer, 4 where a Deny withholds it or the node was evicted.`,
		Example: `  credence explain --pid $$
  credence explain --pid $$ --target gcp -o json
  credence explain --node dev
  credence explain --identity demo
  credence explain --self
  echo '{"workload.unix.uid": ["4711"]}' > facts.json
  credence explain --node dev --facts facts.json || echo 'nothing for uid 4711'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := explainQuestion(cmd)
			switch {
			case err != nil:
				return err
			case q.self:
				return agentcmd.ExplainSelf(p.Program, cmd)
			case q.pid != 0 && !hasAdmin(cmd) && q.identity != "":
				return cli.BadInput(fmt.Errorf("--identity is for who has access to the broker: set %s, or give --admin", adminVariable))
			case q.pid != 0 && !hasAdmin(cmd):
				return agentcmd.ExplainPID(p.Program, cmd)
			}
			request, err := q.request(cmd)
			if err != nil {
				return err
			}
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Explain(ctx, request)
				if err != nil {
					return err
				}
				err = p.Show(cmd, json.RawMessage(r.GetJson()), func() error {
					_, err := fmt.Fprintln(p.Out, strings.TrimRight(r.GetText(), "\n"))
					return err
				})
				if err != nil || r.GetGranted() {
					return err
				}
				if slices.Contains([]string{identity.CodeDenied, identity.CodeDeniedUnknown, "node_evicted"}, r.GetCode()) {
					return cli.Coded{Code: cli.ExitDenied}
				}
				return cli.Coded{Code: cli.ExitNo}
			})
		},
	}
	agentcmd.ExplainFlags(cmd)
	cmd.Flags().String("node", "", "a joined node, by name or SPIFFE ID")
	cmd.Flags().String("facts", "", "a JSON file of facts: {\"workload.unix.uid\": [\"1000\"]}; without --node of node.* too")
	cmd.Flags().String("identity", "", "an Identity's name")
	completeFlag(cmd, "node", completeNodes)
	completeFlag(cmd, "identity", completeNamed("Identity"))
	completeFlag(cmd, "target", completeNamed("Target"))
	cli.CompleteFiles(cmd, "facts", "json")
	return cli.AddOutput(addAdmin(cmd))
}

// hasAdmin says whether there is a broker's admin socket to ask.
func hasAdmin(cmd *cobra.Command) bool {
	where, _ := cmd.Flags().GetString("admin")
	return where != "" || os.Getenv(adminVariable) != ""
}

// A question is what is to be explained.
type question struct {
	pid                           int
	self                          bool
	node, facts, identity, target string
	audiences                     []string
}

func explainQuestion(cmd *cobra.Command) (q question, err error) {
	q.pid, _ = cmd.Flags().GetInt("pid")
	q.self, _ = cmd.Flags().GetBool("self")
	q.node, _ = cmd.Flags().GetString("node")
	q.facts, _ = cmd.Flags().GetString("facts")
	q.identity, _ = cmd.Flags().GetString("identity")
	q.target, _ = cmd.Flags().GetString("target")
	q.audiences, _ = cmd.Flags().GetStringArray("audience")
	whom := 0
	for _, one := range []bool{q.pid != 0, q.self, q.facts != ""} {
		if one {
			whom++
		}
	}
	switch {
	case whom > 1:
		return q, cli.BadInput(errors.New("one of --pid, --self and --facts is wanted"))
	case len(q.audiences) > 0 && q.target != "":
		return q, cli.BadInput(errors.New("--audience or --target, not both"))
	case q.pid < 0:
		return q, cli.BadInput(fmt.Errorf("--pid %d: no process has it", q.pid))
	case (q.pid != 0 || q.self) && q.node != "":
		return q, cli.BadInput(errors.New("--node is for --facts, or stands alone: a process is on the node of its agent"))
	case q.self && q.identity != "":
		return q, cli.BadInput(errors.New("--identity is for who has access to the broker: give --pid"))
	case whom == 0 && (q.node == "") == (q.identity == ""):
		return q, cli.BadInput(errors.New("whom about? one of --pid, --self, --facts, --node and --identity is wanted"))
	case whom == 0 && (q.target != "" || len(q.audiences) > 0):
		return q, cli.BadInput(errors.New("--audience and --target are for a process or facts"))
	}
	return q, nil
}

// request is the question for the broker.
func (q question) request(cmd *cobra.Command) (*api.ExplainRequest, error) {
	r := &api.ExplainRequest{
		Facts: map[string]*api.Values{}, Node: q.node, Audiences: q.audiences, Target: q.target, Identity: q.identity,
		Reach: q.pid == 0 && q.facts == "",
	}
	if q.facts != "" {
		text, err := cli.ReadSmall(q.facts)
		if err != nil {
			return nil, cli.BadInput(err)
		}
		var m map[string][]string
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, cli.BadInput(fmt.Errorf("%s: an object of lists of strings is wanted: %w", q.facts, err))
		}
		for name, values := range m {
			r.Facts[name] = &api.Values{Values: values}
		}
	}
	if q.pid == 0 {
		return r, nil
	}
	conn, where, err := agentcmd.DialAdmin(cmd)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	got, err := agentapi.NewAdminClient(conn).Attest(cmd.Context(), &agentapi.AttestRequest{Pid: int32(q.pid)})
	if err != nil {
		return nil, cli.Reached("agent", where, err)
	}
	r.Node, r.Unknown, r.Why = got.GetNode(), got.GetUnknown(), got.GetWhy()
	for name, v := range got.GetFacts() {
		r.Facts[name] = &api.Values{Values: v.GetValues()}
	}
	return r, nil
}
