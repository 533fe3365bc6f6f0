package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

// issuedView is one SVID that was issued, as -o json has it.
type issuedView struct {
	Kind      string     `json:"kind"`
	Serial    string     `json:"serial"`
	SPIFFEID  string     `json:"spiffe_id"`
	Identity  string     `json:"identity"`
	Revision  uint64     `json:"revision"`
	Node      string     `json:"node"`
	Authority string     `json:"authority"`
	Target    string     `json:"target"`
	Audiences []string   `json:"audiences"`
	IssuedAt  cli.Moment `json:"issued_at"`
	ExpiresAt cli.Moment `json:"expires_at"`
	Record    uint64     `json:"record"`
}

func viewIssued(all []*api.Issued) (views []issuedView, rows [][]string) {
	views = []issuedView{}
	for _, i := range all {
		v := issuedView{
			i.GetKind(), i.GetSerial(), i.GetSpiffeId(), i.GetIdentity(), i.GetRevision(), i.GetNode(), i.GetAuthority(), i.GetTarget(),
			append([]string{}, i.GetAudiences()...), cli.Moment(i.GetIssuedAt()), cli.Moment(i.GetExpiresAt()), i.GetRecord(),
		}
		views = append(views, v)
		rows = append(rows, []string{
			v.Kind, v.SPIFFEID, v.Node[strings.LastIndexByte(v.Node, '/')+1:], cli.When(i.GetIssuedAt()), cli.When(i.GetExpiresAt()), v.Serial,
		})
	}
	return views, rows
}

const issuedHead = "KIND|SPIFFE ID|NODE|ISSUED|ENDS|SERIAL"

func (p *program) revokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke --spiffe-id ID | --identity NAME | --node NODE | --authority KEY", Short: "Cut off what was issued before a time", Args: cobra.NoArgs,
		Long: `Revoke makes that nothing counts any more which was issued before a time, by
default now: this broker refuses a node's SVIDs, connected agents erase what
falls under it and ask anew, and their validators refuse JWT-SVIDs of the ID or
key. It holds at once, also while the database is away, and it is no Deny: who
is still granted something gets it anew. To shut somebody out, apply a Deny or
evict the node first.

Serial numbers of X509-SVIDs go onto the CRLs of their CAs (credence ca crl), for
those who read them; a JWT-SVID is on no list, and whoever else verifies it takes
it until it ends. The output says what is outstanding and until when, and for
each Target where something of it may have been exchanged until when sessions
live that the cloud gave, and what its operator can do: commands and policies,
to be read before they are run. Nothing is done in a cloud by this.`,
		Example: "  credence ca revoke --spiffe-id spiffe://dev.example/demo/workload --reason 'copied from a laptop'\n  credence ca revoke --identity demo --before 1h",
		RunE:    p.revoke,
	}
	cmd.Flags().String("spiffe-id", "", "everything that names this ID")
	cmd.Flags().String("identity", "", "everything that this Identity granted")
	cmd.Flags().String("node", "", "a node's own SVIDs, and all that it got for its workloads")
	cmd.Flags().String("authority", "", "everything that this key signed (credence ca show)")
	cmd.Flags().String("before", "", "a time (RFC 3339), or how long ago; default now")
	cmd.Flags().String("reason", "", "for the record")
	completeFlag(cmd, "identity", completeNamed("Identity"))
	completeFlag(cmd, "node", completeNodes)
	return cli.AddOutput(addAdmin(cmd))
}

// revokeView is what a revocation came to, as -o json has it.
type revokeView struct {
	Before   cli.Moment   `json:"before"`
	Count    uint64       `json:"count"`
	Issued   []issuedView `json:"issued"`
	Problems []string     `json:"problems"`
	Outside  *outsideView `json:"outside"` // null: it could not be told
}

// cutKinds are the kinds of a cut-off by the flags that name them.
var cutKinds = [][2]string{{"spiffe-id", "id"}, {"identity", "identity"}, {"node", "node"}, {"authority", "authority"}}

func (p *program) revoke(cmd *cobra.Command, _ []string) error {
	request := &api.RevokeRequest{}
	for _, k := range cutKinds {
		v, _ := cmd.Flags().GetString(k[0])
		switch {
		case v == "":
		case request.Kind != "":
			return cli.BadInput(errors.New("one of --spiffe-id, --identity, --node and --authority is wanted: revoke them one by one"))
		default:
			request.Kind, request.Value = k[1], v
		}
	}
	if request.Kind == "" {
		return cli.BadInput(errors.New("what is to be revoked? --spiffe-id, --identity, --node or --authority names it"))
	}
	request.Reason, _ = cmd.Flags().GetString("reason")
	before, err := momentFlag(cmd, "before")
	if err != nil {
		return err
	}
	if !before.IsZero() {
		request.Before = before.Unix()
	}
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		r, err := api.NewAuthoritiesClient(conn).Revoke(ctx, request)
		if err != nil {
			return err
		}
		for _, problem := range r.GetProblems() {
			fmt.Fprintf(p.Err, "warning: %s\n", problem)
		}
		view := revokeView{Before: cli.Moment(r.GetBefore()), Count: r.GetCount(), Problems: list(r.GetProblems())}
		var rows [][]string
		view.Issued, rows = viewIssued(r.GetIssued())
		if o, err := p.askOutside(ctx, conn, request, r.GetBefore()); err != nil {
			fmt.Fprintf(p.Err, "warning: it is done, but what others make of it cannot be told: %v\n", err)
		} else {
			v := o.view()
			view.Outside = &v
		}
		return p.Show(cmd, view, func() error {
			fmt.Fprintln(p.Out, revoked(r))
			if len(rows) > 0 {
				if err := p.Table(issuedHead, rows); err != nil {
					return err
				}
			}
			if view.Outside != nil {
				p.tellOutside(*view.Outside)
			}
			return nil
		})
	})
}

// revoked says what a cut-off comes to.
func revoked(r *api.RevokeResponse) string {
	text := fmt.Sprintf("what was issued before %s counts no more; ", cli.When(r.GetBefore()))
	var until int64
	for _, i := range r.GetIssued() {
		until = max(until, i.GetExpiresAt())
	}
	if until == 0 {
		return text + "nothing of it is outstanding"
	}
	return text + fmt.Sprintf("%d SVIDs of it are outstanding, and believed by peers and clouds until %s", r.GetCount(), cli.When(until))
}
