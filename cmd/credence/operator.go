package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/resource"
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

// group is a noun: its verbs are below it.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(verbs...)
	return cmd
}

func (p *program) tokenCommand() *cobra.Command {
	create := &cobra.Command{
		Use: "create --node NAME", Short: "Make a join token, and print it with a ready agent.yaml", Args: cobra.NoArgs,
		Example: "  credence token create --node web-1 --label env=prod",
		RunE: func(cmd *cobra.Command, _ []string) error {
			node, _ := cmd.Flags().GetString("node")
			labels, _ := cmd.Flags().GetStringToString("label")
			ttl, _ := cmd.Flags().GetDuration("ttl")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.CreateToken(ctx, &api.CreateTokenRequest{Node: node, Labels: labels, Ttl: int64(ttl / time.Second)})
				if err != nil {
					return err
				}
				if outputOf(cmd) == "json" {
					return writeJSON(p.out, map[string]any{
						"token": r.GetToken(), "expires": time.Unix(r.GetExpires(), 0).UTC(), "trust_domain": r.GetTrustDomain(),
						"broker": r.GetAgentsAddress(), "ca_pin": r.GetCaPin(),
					})
				}
				fmt.Fprintf(p.out, `# A join token for node %s: single use, until %s.
# Put it into the file that token_file names, readable by the agent alone:
#
#   %s
#
# agent.yaml, for: credence agent run -c agent.yaml
trust_domain: %s
data: /var/lib/credence/agent
broker: [%q]
trust: {ca_pin: [%q]}
join: {method: token, token_file: /var/lib/credence/agent.token}
`, node, when(r.GetExpires()), r.GetToken(), r.GetTrustDomain(), r.GetAgentsAddress(), r.GetCaPin())
				return nil
			})
		},
	}
	create.Flags().String("node", "", "name of the node (node.name)")
	create.Flags().StringToString("label", nil, "K=V, a fact node.token.K of the node; may be repeated")
	create.Flags().Duration("ttl", 10*time.Minute, "life of the token, at most 1h")
	_ = create.MarkFlagRequired("node")
	return group("token", "Join tokens", addOutput(addAdmin(create), "yaml", "json"))
}

func (p *program) nodeCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the nodes that joined", Args: cobra.NoArgs, Example: "  credence node list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.ListNodes(ctx, &api.ListNodesRequest{})
				if err != nil {
					return err
				}
				if outputOf(cmd) == "json" {
					return writeJSON(p.out, r.GetNodes())
				}
				var rows [][]string
				for _, n := range r.GetNodes() {
					rows = append(rows, []string{n.GetId(), n.GetMethod(), nodeState(n), when(n.GetJoinedAt()), when(n.GetExpiresAt())})
				}
				return table(p.out, "NODE|METHOD|STATE|JOINED|SVID ENDS", rows)
			})
		},
	}
	evict := &cobra.Command{
		Use: "evict NODE", Short: "Shut a node out, and ban its return", Args: cobra.ExactArgs(1),
		Example: "  credence node evict build-7 --reason 'key leaked'",
		RunE: func(cmd *cobra.Command, args []string) error {
			reason, _ := cmd.Flags().GetString("reason")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				if _, err := c.EvictNode(ctx, &api.EvictNodeRequest{Id: args[0], Reason: reason}); err != nil {
					return err
				}
				fmt.Fprintf(p.out, "%s is evicted: its SVIDs are erased where its agent is connected, and end by themselves elsewhere\n", args[0])
				return nil
			})
		},
	}
	allow := &cobra.Command{
		Use: "allow NODE", Short: "Let an evicted node join again, by a new token", Args: cobra.ExactArgs(1),
		Example: "  credence node allow build-7 --reason 'reinstalled'",
		RunE: func(cmd *cobra.Command, args []string) error {
			reason, _ := cmd.Flags().GetString("reason")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				if _, err := c.AllowNode(ctx, &api.AllowNodeRequest{Id: args[0], Reason: reason}); err != nil {
					return err
				}
				fmt.Fprintf(p.out, "%s may join again: credence token create --node NAME\n", args[0])
				return nil
			})
		},
	}
	evict.Flags().String("reason", "", "for the record")
	allow.Flags().String("reason", "", "for the record")
	return group("node", "Nodes", addOutput(addAdmin(list), "table", "json"), addAdmin(evict), addAdmin(allow))
}

func nodeState(n *api.NodeInfo) string {
	switch {
	case n.GetEvictedAt() != 0:
		return "evicted"
	case n.GetConnected():
		return "connected"
	}
	return "away"
}

func (p *program) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain --pid N", Short: "Say why a process gets what it gets, or what was nearest",
		Long: `Explain attests a process through the agent on this machine, and asks the broker
why it is granted what it is granted; where nothing is, the nearest miss with
the failing term.`,
		Example: "  credence explain --pid $$\n  credence explain --node web-1 --facts facts.json",
		Args:    cobra.NoArgs,
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
				if outputOf(cmd) == "json" {
					fmt.Fprintf(p.out, "%s\n", r.GetJson())
				} else {
					fmt.Fprintln(p.out, strings.TrimRight(r.GetText(), "\n"))
				}
				if !r.GetGranted() {
					return coded{code: exitNo}
				}
				return nil
			})
		},
	}
	cmd.Flags().Int("pid", 0, "a process on this machine")
	cmd.Flags().String("agent-admin", "", "the agent's admin socket, for --pid (default $CREDENCE_AGENT_ADMIN)")
	cmd.Flags().String("node", "", "a joined node, by name or SPIFFE ID, for --facts")
	cmd.Flags().String("facts", "", "a JSON file of workload facts: {\"workload.unix.uid\": [\"1000\"]}")
	cmd.Flags().StringArray("audience", nil, "explain a JWT-SVID for this audience")
	cmd.Flags().String("target", "", "explain a JWT-SVID for this target")
	return addOutput(addAdmin(cmd), "text", "json")
}

func (p *program) explainRequest(cmd *cobra.Command) (*api.ExplainRequest, error) {
	pid, _ := cmd.Flags().GetInt("pid")
	facts, _ := cmd.Flags().GetString("facts")
	request := &api.ExplainRequest{Facts: map[string]*api.Values{}}
	request.Node, _ = cmd.Flags().GetString("node")
	request.Audiences, _ = cmd.Flags().GetStringArray("audience")
	request.Target, _ = cmd.Flags().GetString("target")
	if (pid == 0) == (facts == "") {
		return nil, input(errors.New("one of --pid and --facts is wanted"))
	}
	if facts != "" {
		text, err := readSmall(facts)
		if err != nil {
			return nil, input(err)
		}
		var m map[string][]string
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, input(fmt.Errorf("%s: an object of lists of strings is wanted: %w", facts, err))
		}
		for name, values := range m {
			request.Facts[name] = &api.Values{Values: values}
		}
		return request, nil
	}
	where, _ := cmd.Flags().GetString("agent-admin")
	if where == "" {
		where = os.Getenv("CREDENCE_AGENT_ADMIN")
	}
	if where == "" {
		return nil, input(errors.New("which agent? set CREDENCE_AGENT_ADMIN to its admin socket, or give --agent-admin"))
	}
	conn, err := dialSocket(where)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r, err := agentapi.NewAdminClient(conn).Attest(cmd.Context(), &agentapi.AttestRequest{Pid: int32(pid)})
	if err != nil {
		return nil, reached("agent", where, err)
	}
	request.Node, request.Unknown = r.GetNode(), r.GetUnknown()
	for name, v := range r.GetFacts() {
		request.Facts[name] = &api.Values{Values: v.GetValues()}
	}
	return request, nil
}

func (p *program) authorityCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "List the keys that sign, and what becomes of them", Args: cobra.NoArgs, Example: "  credence ca show",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.ListAuthorities(ctx, &api.ListAuthoritiesRequest{})
				if err != nil {
					return err
				}
				if outputOf(cmd) == "json" {
					return writeJSON(p.out, r.GetAuthorities())
				}
				var rows [][]string
				for _, a := range r.GetAuthorities() {
					rows = append(rows, []string{a.GetUse(), a.GetAlg(), a.GetState(), a.GetId(), when(a.GetNotAfter()), a.GetNext(), when(a.GetNextAt())})
				}
				return table(p.out, "KIND|ALG|STATE|KEY|ENDS|NEXT|AT", rows)
			})
		},
	}
	cmd := group("authority", "Signing authorities", addOutput(addAdmin(show), "table", "json"))
	cmd.Aliases = []string{"ca"}
	return cmd
}

func (p *program) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the broker does", Args: cobra.NoArgs, Example: "  credence status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Status(ctx, &api.StatusRequest{})
				if err != nil {
					return err
				}
				if outputOf(cmd) == "json" {
					return writeJSON(p.out, r)
				}
				fmt.Fprintf(p.out, "trust domain  %s\nissuer        %s\nversion       %s\nup since      %s\nrevision      %d\nnodes         %d\nidentities    %d\n",
					r.GetTrustDomain(), r.GetIssuer(), r.GetVersion(), when(r.GetStartedAt()), r.GetRevision(), r.GetNodes(), r.GetIdentities())
				for name, address := range r.GetListen() {
					fmt.Fprintf(p.out, "%-13s %s\n", name, address)
				}
				return nil
			})
		},
	}
	return addOutput(addAdmin(cmd), "table", "json")
}

func (p *program) auditCommand() *cobra.Command {
	tail := &cobra.Command{
		Use: "tail", Short: "Show the last records; -f follows", Args: cobra.NoArgs, Example: "  credence audit tail -f",
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, _ := cmd.Flags().GetUint32("last")
			follow, _ := cmd.Flags().GetBool("follow")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				stream, err := c.TailAudit(ctx, &api.TailAuditRequest{Last: n, Follow: follow})
				if err != nil {
					return err
				}
				for {
					m, err := stream.Recv()
					if errors.Is(err, io.EOF) || ctx.Err() != nil {
						return nil
					}
					if err != nil {
						return err
					}
					if err := p.writeRecord(outputOf(cmd), m.GetJson()); err != nil {
						return err
					}
				}
			})
		},
	}
	tail.Flags().Uint32P("last", "n", 20, "how many")
	tail.Flags().BoolP("follow", "f", false, "go on with what comes")
	verify := &cobra.Command{
		Use: "verify --data DIR", Short: "Check the whole record: that nothing was changed, cut out or put in", Args: cobra.NoArgs,
		Long: `Verify reads the record in a broker's data directory, running or not, and checks
each record's hash against the one before it. Compare the head that it prints
with one that was noted elsewhere: whoever can write the files could have made
a new chain, but not one that ends in an old head.`,
		Example: "  credence audit verify --data /var/lib/credence/broker",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, _ := cmd.Flags().GetString("data")
			report, err := audit.Verify(filepath.Join(dir, "audit"))
			if err != nil {
				return coded{exitNo, err}
			}
			fmt.Fprintf(p.out, "%d records in %d files hold together; the head is %s %x\n", report.Records, report.Files, report.Head.ID(), report.Head.Hash)
			return nil
		},
	}
	verify.Flags().String("data", "", "the broker's data directory")
	_ = verify.MarkFlagRequired("data")
	return group("audit", "The record of who got which identity, when and why", addOutput(addAdmin(tail), "table", "json"), verify)
}

// writeRecord writes one record: as it stands, or the gist of it on one line.
func (p *program) writeRecord(form string, text []byte) error {
	if form == "json" {
		_, err := fmt.Fprintf(p.out, "%s\n", text)
		return err
	}
	var r audit.Record
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	var gist []string
	add := func(label, value string) {
		if value != "" {
			gist = append(gist, label+value)
		}
	}
	add("", r.SPIFFEID)
	add("node ", strings.TrimPrefix(r.Node, "spiffe://"))
	add("by ", r.Identity)
	add("for ", r.Target)
	add("for ", strings.Join(r.Audiences, ","))
	add("actor ", r.Actor)
	add("", r.Detail["kind"])
	add("", r.Detail["name"])
	add("code ", r.Code)
	add("", r.Reason)
	if r.Count > 1 {
		add("times ", fmt.Sprint(r.Count))
	}
	mark := "ok"
	if !r.OK {
		mark = "no"
	}
	_, err := fmt.Fprintf(p.out, "%s  %s  %s  %-12s %s\n", r.Ref().ID(), r.Time.UTC().Format("2006-01-02 15:04:05Z"), mark, r.Kind, strings.Join(gist, "  "))
	return err
}
