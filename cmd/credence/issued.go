package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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

// timeFlag reads an RFC 3339 time, or how long ago it was.
func timeFlag(cmd *cobra.Command, name string) (int64, error) {
	text, _ := cmd.Flags().GetString(name)
	if text == "" {
		return 0, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago).Unix(), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, cli.BadInput(fmt.Errorf("--%s %q: a time such as %s is wanted, or how long ago, such as 2h", name, text, time.Now().UTC().Format(time.RFC3339)))
	}
	return t.Unix(), nil
}

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
	var err error
	if request.Before, err = timeFlag(cmd, "before"); err != nil {
		return err
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

func (p *program) queryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "query --spiffe-id ID | --identity NAME | --node NODE | --authority KEY | --serial SERIAL", Short: "List the SVIDs that somebody got", Args: cobra.NoArgs,
		Long: `Query asks the broker which SVIDs were issued: to an ID, by an Identity, for a
node, with a key, or under one serial number (of a JWT-SVID its jti). It reads
the issuance index, which follows the record within a moment and keeps an SVID
until a day after its end; the record itself keeps all.`,
		Example: "  credence audit query --identity demo --live\n  credence audit query --spiffe-id spiffe://dev.example/demo/workload --from 2h -o json",
		RunE:    p.query,
	}
	cmd.Flags().String("serial", "", "hex serial number, or jti")
	cmd.Flags().String("spiffe-id", "", "whom it names")
	cmd.Flags().String("identity", "", "which Identity granted it")
	cmd.Flags().String("node", "", "which node it went to")
	cmd.Flags().String("authority", "", "which key signed it (credence ca show)")
	cmd.Flags().String("from", "", "issued from then on: a time (RFC 3339), or how long ago")
	cmd.Flags().String("before", "", "issued before then")
	cmd.Flags().Bool("live", false, "only those that have not ended")
	cmd.Flags().Uint32P("limit", "n", 100, "how many, the newest first")
	completeFlag(cmd, "identity", completeNamed("Identity"))
	completeFlag(cmd, "node", completeNodes)
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) query(cmd *cobra.Command, _ []string) (err error) {
	r := &api.ListIssuedRequest{}
	r.Serial, _ = cmd.Flags().GetString("serial")
	r.SpiffeId, _ = cmd.Flags().GetString("spiffe-id")
	r.Identity, _ = cmd.Flags().GetString("identity")
	r.Node, _ = cmd.Flags().GetString("node")
	r.Authority, _ = cmd.Flags().GetString("authority")
	r.Live, _ = cmd.Flags().GetBool("live")
	r.Limit, _ = cmd.Flags().GetUint32("limit")
	if r.Serial+r.SpiffeId+r.Identity+r.Node+r.Authority == "" {
		return cli.BadInput(errors.New("whose SVIDs? --spiffe-id, --identity, --node, --authority or --serial names them"))
	}
	if r.From, err = timeFlag(cmd, "from"); err != nil {
		return err
	}
	if r.Before, err = timeFlag(cmd, "before"); err != nil {
		return err
	}
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		got, err := api.NewAuthoritiesClient(conn).ListIssued(ctx, r)
		if err != nil {
			return err
		}
		views, rows := viewIssued(got.GetIssued())
		return p.Show(cmd, map[string]any{"count": got.GetCount(), "issued": views}, func() error {
			if left := got.GetCount() - uint64(len(rows)); left > 0 {
				defer fmt.Fprintf(p.Err, "%d more: -n, --from and --before narrow it down\n", left)
			}
			return p.Table(issuedHead, rows)
		})
	})
}
