package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) tokenCommand() *cobra.Command {
	create := &cobra.Command{
		Use: "create --node NAME", Short: "Make a join token, and print it with a ready agent.yaml", Args: cobra.NoArgs,
		Long: `Create asks the broker for a join token: whoever spends it first, within its
life, becomes the node of that name. To make one is the permission; there is no
JoinRule for it. The labels become facts of the node, node.token.K, that
Identities can match.

It prints an agent.yaml that has the broker's address and the pin of its root;
the token stands in a comment and belongs into the file that token_file names.
With -o token it prints the token alone, such as for a node that lost its SVID:
its agent takes up what the file holds by itself.`,
		Example: `  credence token create --node web-1 --label env=prod > agent.yaml
  credence token create --node web-1 -o token > agent.token`,
		RunE: p.createToken,
	}
	create.Flags().String("node", "", "name of the node (node.name)")
	create.Flags().StringToString("label", nil, "K=V, a fact node.token.K of the node; may be repeated")
	create.Flags().Duration("ttl", 10*time.Minute, "life of the token, at most 1h")
	_ = create.MarkFlagRequired("node")
	return cli.Group("token", "Join tokens", cli.AddOutput(addAdmin(create), "agent", "token"))
}

type tokenView struct {
	Token       string     `json:"token"`
	Expires     cli.Moment `json:"expires"`
	Node        string     `json:"node"`
	TrustDomain string     `json:"trust_domain"`
	Broker      string     `json:"broker"`
	CAPin       string     `json:"ca_pin"`
}

func (p *program) createToken(cmd *cobra.Command, _ []string) error {
	node, _ := cmd.Flags().GetString("node")
	labels, _ := cmd.Flags().GetStringToString("label")
	ttl, _ := cmd.Flags().GetDuration("ttl")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.CreateToken(ctx, &api.CreateTokenRequest{Node: node, Labels: labels, Ttl: int64(ttl / time.Second)})
		if err != nil {
			return err
		}
		v := tokenView{r.GetToken(), cli.Moment(r.GetExpires()), node, r.GetTrustDomain(), r.GetAgentsAddress(), r.GetCaPin()}
		return p.Show(cmd, v, func() error {
			switch cli.OutputOf(cmd) {
			case "token":
				_, err := fmt.Fprintln(p.Out, v.Token)
				return err
			case "table":
				return p.Fields([][2]string{
					{"token", v.Token}, {"ends", cli.When(r.GetExpires())}, {"node", v.Node}, {"trust domain", v.TrustDomain}, {"broker", v.Broker}, {"pin", v.CAPin},
				})
			}
			_, err := fmt.Fprintf(p.Out, agentTemplate, v.Node, cli.When(r.GetExpires()), v.Token, v.TrustDomain, v.Broker, v.CAPin)
			return err
		})
	})
}

const agentTemplate = `# A join token for node %s: single use, until %s.
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
# attest: {docker: {}, podman: {}, containerd: {}, systemd: {}}   # what these say of a workload, as workload.docker.labels.tier
# attest: {kubernetes: {api: in-cluster}}         # its pod, as workload.kubernetes.namespace: in a pod with $NODE_NAME
# What the broker's record is still to be told of while the broker is away: beyond
# max it is lost and counted (drop), or nothing more is exchanged (stop).
# spool: {full: drop, max: 64MiB}
# What is written for programs that call nothing, files, aws_credentials or sdk:
# outputs: [{name: web, uid: 33, files: {dir: /run/web}, after: {reload: nginx.service}}]
`

func (p *program) nodeCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "list", Short: "List the nodes that joined", Args: cobra.NoArgs,
		Long: `List asks the broker for every node that ever joined: connected ones, ones that
are away, and evicted ones. SVID ENDS is when a node that stays away must join
again.`,
		Example: "  credence node list\n  credence node list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.nodes(cmd, "", func(all []*api.NodeInfo, views []nodeView) error {
				return p.Show(cmd, views, func() error {
					var rows [][]string
					for i, n := range all {
						rows = append(rows, []string{n.GetId(), n.GetName(), n.GetMethod(), views[i].State, cli.When(n.GetJoinedAt()), cli.When(n.GetExpiresAt())})
					}
					return p.Table("NODE|NAME|METHOD|STATE|JOINED|SVID ENDS", rows)
				})
			})
		},
	}
	one := &cobra.Command{
		Use: "show NODE", Short: "Show one node and the facts that it proved", Args: cobra.ExactArgs(1),
		Long: `Show asks the broker for one node, by its name or SPIFFE ID: since when it is
here, the facts that it proved when it joined, which Identities can match, and, if
it is evicted, why. It exits 1 where there is no such node.`,
		Example: "  credence node show dev\n  credence node show dev -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.nodes(cmd, args[0], func(all []*api.NodeInfo, views []nodeView) error {
				if len(views) == 0 {
					return cli.WithCode(cli.ExitNo, fmt.Errorf("there is no node %s; credence node list has them all", args[0]))
				}
				return p.Show(cmd, views[0], func() error { return p.Fields(views[0].fields()) })
			})
		},
	}
	evict := &cobra.Command{
		Use: "evict NODE", Short: "Shut a node out, and ban its return", Args: cobra.ExactArgs(1),
		Long: `Evict has the broker refuse a node, by its name or SPIFFE ID, from now on: its
agent, where it is connected, erases all SVIDs and cloud credentials at once and
ends; what it holds elsewhere ends by itself. The node cannot join again, with a
new token either, until it is allowed to.

Without the database, --here does so on this broker, durably, and everywhere when
the database is back.`,
		Example: "  credence node evict dev --reason 'a drill'\n  credence node evict dev --here",
		RunE: func(cmd *cobra.Command, args []string) error {
			reason, _ := cmd.Flags().GetString("reason")
			here, _ := cmd.Flags().GetBool("here")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.EvictNode(ctx, &api.EvictNodeRequest{Id: args[0], Reason: reason, Here: here})
				if err != nil {
					return err
				}
				v := map[string]any{"node": args[0], "evicted": true, "revision": r.GetRevision(), "problem": r.GetProblem()}
				text := args[0] + " is evicted: its SVIDs are erased where its agent is connected, and end by themselves elsewhere"
				if problem := r.GetProblem(); problem != "" {
					text += "; " + problem
				}
				return p.Say(cmd, v, text)
			})
		},
	}
	allow := &cobra.Command{
		Use: "allow NODE", Short: "Let an evicted node join again, or one recover", Args: cobra.ExactArgs(1),
		Long: `Allow lifts the ban of an evicted node, by its name or SPIFFE ID. It is not let
in by that: it joins again, with a new token or what else proves it, as any other.
A node of join method bound_keypair whose recoveries are spent may recover again; one
that was evicted because two machines have its key comes back as whichever of them is
first: register another key before, if it may be stolen.`,
		Example: "  credence node allow dev --reason 'the drill is over'",
		RunE: func(cmd *cobra.Command, args []string) error {
			reason, _ := cmd.Flags().GetString("reason")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				if _, err := c.AllowNode(ctx, &api.AllowNodeRequest{Id: args[0], Reason: reason}); err != nil {
					return err
				}
				return p.Say(cmd, map[string]any{"node": args[0], "evicted": false}, args[0]+" may join again; by a token: credence token create --node NAME")
			})
		},
	}
	for _, c := range []*cobra.Command{one, evict, allow} {
		c.ValidArgsFunction = completeFirst(completeNodes)
	}
	evict.Flags().String("reason", "", "for the record")
	evict.Flags().Bool("here", false, "on this broker at once, also without the database")
	allow.Flags().String("reason", "", "for the record")
	return cli.Group("node", "Nodes", cli.AddOutput(addAdmin(show)), cli.AddOutput(addAdmin(one)), cli.AddOutput(addAdmin(evict)), cli.AddOutput(addAdmin(allow)))
}

// nodes calls show with the node of that name or ID, or with all.
func (p *program) nodes(cmd *cobra.Command, id string, show func([]*api.NodeInfo, []nodeView) error) error {
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.ListNodes(ctx, &api.ListNodesRequest{Id: id})
		if err != nil {
			return err
		}
		views := []nodeView{}
		for _, n := range r.GetNodes() {
			views = append(views, viewNode(n))
		}
		return show(r.GetNodes(), views)
	})
}

func (v nodeView) fields() [][2]string {
	rows := [][2]string{
		{"node", v.ID}, {"name", v.Name}, {"state", v.State}, {"method", v.Method}, {"joined", cli.When(int64(v.JoinedAt))},
		{"SVID ends", cli.When(int64(v.ExpiresAt))},
	}
	if v.EvictedAt != 0 {
		rows = append(rows, [2]string{"evicted", cli.When(int64(v.EvictedAt))})
		if v.EvictReason != "" {
			rows = append(rows, [2]string{"reason", v.EvictReason})
		}
	}
	if v.Joins != 0 {
		rows = append(rows, [2]string{"joins", fmt.Sprintf("%d, %d of them recoveries", v.Joins, v.Recoveries)})
	}
	if v.RefusedAt != 0 {
		rows = append(rows, [2]string{"refused", cli.When(int64(v.RefusedAt)) + ", a recovery; credence node allow " + v.Name + " lets it in"})
	}
	for _, name := range sortedKeys(v.Facts) {
		rows = append(rows, [2]string{name, strings.Join(v.Facts[name], ", ")})
	}
	return rows
}
