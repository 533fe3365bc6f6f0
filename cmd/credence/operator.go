package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

// trustDomainOf is the trust domain that full IDs in resources name; where
// there are none, any will do.
func trustDomainOf(all []resource.Resource) (spiffeid.TrustDomain, error) {
	for _, r := range all {
		if r.Identity != nil && strings.HasPrefix(r.Identity.SPIFFEID, "spiffe://") {
			name, _, _ := strings.Cut(strings.TrimPrefix(r.Identity.SPIFFEID, "spiffe://"), "/")
			return spiffeid.TrustDomainFromString(name)
		}
	}
	return spiffeid.TrustDomainFromString("example.org")
}

func (p *program) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain --pid N", Short: "Say why a process gets what it gets, or what was nearest",
		Long: `Explain attests a process through the agent on this machine, and asks the broker
why it is granted what it is granted; where nothing is, the nearest miss with
the failing term. Only the operator may ask: a workload that is denied learns a
record's number and no reason.

With --facts it asks about a process that there is not, by what it would prove,
on the node that --node names. It exits 1 where nothing is granted.`,
		Example: `  credence explain --pid $$
  credence explain --pid $$ --target gcp -o json
  echo '{"workload.unix.uid": ["4711"]}' > facts.json
  credence explain --node dev --facts facts.json || echo 'nothing for uid 4711'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request, err := p.explainRequest(cmd)
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
				if err != nil {
					return err
				}
				if !r.GetGranted() {
					return cli.Coded{Code: cli.ExitNo}
				}
				return nil
			})
		},
	}
	cmd.Flags().Int("pid", 0, "a process on this machine")
	agentcmd.AdminFlag(cmd, ", for --pid")
	cmd.Flags().String("node", "", "a joined node, by name or SPIFFE ID, for --facts")
	cmd.Flags().String("facts", "", "a JSON file of workload facts: {\"workload.unix.uid\": [\"1000\"]}")
	cmd.Flags().StringArray("audience", nil, "explain a JWT-SVID for this audience")
	cmd.Flags().String("target", "", "explain a JWT-SVID for this target")
	completeFlag(cmd, "node", completeNodes)
	completeFlag(cmd, "target", completeNamed("Target"))
	cli.CompleteFiles(cmd, "facts", "json")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) explainRequest(cmd *cobra.Command) (*api.ExplainRequest, error) {
	pid, _ := cmd.Flags().GetInt("pid")
	facts, _ := cmd.Flags().GetString("facts")
	request := &api.ExplainRequest{Facts: map[string]*api.Values{}}
	request.Node, _ = cmd.Flags().GetString("node")
	request.Audiences, _ = cmd.Flags().GetStringArray("audience")
	request.Target, _ = cmd.Flags().GetString("target")
	if (pid == 0) == (facts == "") {
		return nil, cli.BadInput(errors.New("one of --pid and --facts is wanted"))
	}
	if facts != "" {
		text, err := cli.ReadSmall(facts)
		if err != nil {
			return nil, cli.BadInput(err)
		}
		var m map[string][]string
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, cli.BadInput(fmt.Errorf("%s: an object of lists of strings is wanted: %w", facts, err))
		}
		for name, values := range m {
			request.Facts[name] = &api.Values{Values: values}
		}
		return request, nil
	}
	conn, where, err := agentcmd.DialAdmin(cmd)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r, err := agentapi.NewAdminClient(conn).Attest(cmd.Context(), &agentapi.AttestRequest{Pid: int32(pid)})
	if err != nil {
		return nil, cli.Reached("agent", where, err)
	}
	request.Node, request.Unknown = r.GetNode(), r.GetUnknown()
	for name, v := range r.GetFacts() {
		request.Facts[name] = &api.Values{Values: v.GetValues()}
	}
	return request, nil
}
