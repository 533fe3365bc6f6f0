package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/cmd/cli"
)

// addFilter gives a verb the flags that say which records are wanted.
func addFilter(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("spiffe-id", "", "whom it is about")
	f.String("identity", "", "which Identity granted it")
	f.String("node", "", "which node took part: its name, ID, or the end of its ID")
	f.String("serial", "", "of an SVID: hex serial number, or jti")
	f.String("kind", "", "such as deny, apply or issue.x509; issue.* is all that begin so")
	f.String("target", "", "which Target it was for")
	f.String("actor", "", "who did it, such as uid:0 or a SPIFFE ID")
	f.String("outcome", "", "ok or denied")
	f.String("since", "", "written from then on: a time (RFC 3339), or how long ago, such as 2h or 7d")
	f.String("until", "", "written before then")
	completeFlag(cmd, "identity", completeNamed("Identity"))
	completeFlag(cmd, "node", completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions([]cobra.Completion{"ok", "denied"}, cobra.ShellCompDirectiveNoFileComp))
}

// filterOf reads those flags; nil means all records.
func filterOf(cmd *cobra.Command) (*api.AuditFilter, error) {
	text := func(name string) string { v, _ := cmd.Flags().GetString(name); return v }
	f := &api.AuditFilter{
		SpiffeId: text("spiffe-id"), Identity: text("identity"), Node: text("node"), Serial: text("serial"), Kind: text("kind"),
		Target: text("target"), Actor: text("actor"), Outcome: text("outcome"),
	}
	if o := f.Outcome; o != "" && o != "ok" && o != "denied" {
		return nil, cli.BadInput(fmt.Errorf("--outcome %q: ok or denied is wanted", o))
	}
	for name, at := range map[string]*int64{"since": &f.Since, "until": &f.Until} {
		t, err := momentFlag(cmd, name)
		if err != nil {
			return nil, err
		}
		if !t.IsZero() {
			*at = t.UnixNano()
		}
	}
	if f.Since != 0 && f.Until != 0 && f.Since >= f.Until {
		return nil, cli.BadInput(fmt.Errorf("--since %s is not before --until %s", text("since"), text("until")))
	}
	for _, set := range []string{f.SpiffeId, f.Identity, f.Node, f.Serial, f.Kind, f.Target, f.Actor, f.Outcome} {
		if set != "" {
			return f, nil
		}
	}
	if f.Since == 0 && f.Until == 0 {
		return nil, nil
	}
	return f, nil
}

// momentFlag reads an RFC 3339 time, or how long ago it was.
func momentFlag(cmd *cobra.Command, name string) (time.Time, error) {
	text, _ := cmd.Flags().GetString(name)
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := parseAge(text); err == nil {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Year() < 1970 || t.Year() > 2261 { // what is told in nanoseconds
		return time.Time{}, cli.BadInput(fmt.Errorf("--%s %q: a time such as %s is wanted, or how long ago, such as 2h", name, text, time.Now().UTC().Format(time.RFC3339)))
	}
	return t, nil
}

// parseAge reads a time span, in days too.
func parseAge(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	d, err := time.ParseDuration(text)
	if err == nil && d < 0 {
		err = errors.New("it is negative")
	}
	return d, err
}

func (p *program) queryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "query [RECORD]", Short: "Find records: of whom, by what, on which node, when", Args: cobra.MaximumNArgs(1),
		Long: `Query finds records in the broker's chain, the newest first: the one whose ID a
caller quotes (r-000123), or those for which all flags hold. The broker reads its
own files, or with --data this program reads a broker's data directory, running
or not. The broker whose record it is has to be asked for r-000123@b2: any other
says so. As JSON each record is one line. Beside each file that is full lies a
small index, which only says what need not be read; --no-index reads all, as
whoever could write there could hide something so.

With --issued, --live or --authority it reads the issuance index in the store
instead: the SVIDs that somebody got from any broker, each until a day after its
end, within a moment of their record; --since and --until then mean when they
were issued.`,
		Example: "  credence audit query r-000123\n  credence audit query --kind deny --node build-7 --since 24h -o json\n  credence audit query --identity demo --live",
		RunE:    p.query,
	}
	addFilter(cmd)
	cmd.Flags().Uint32P("limit", "n", 100, "how many, the newest first; at most 10000")
	cmd.Flags().String("below", "", "older than this record: the next page")
	cmd.Flags().String("data", "", "a broker's data directory, instead of asking a broker")
	cmd.Flags().Bool("no-index", false, "read every record")
	cmd.Flags().Bool("issued", false, "list SVIDs, from the issuance index")
	cmd.Flags().Bool("live", false, "of these, only those that have not ended")
	cmd.Flags().String("authority", "", "of these, those that this key signed (credence ca show)")
	return cli.AddOutput(addAdmin(cmd))
}

// recordID reads the ID of a record into a query, and whose record it is in.
func recordID(text string, sequence *uint64, origin *string) error {
	if text == "" {
		return nil
	}
	n, of, err := audit.ParseID(text)
	if err == nil && of != "" && *origin != "" && of != *origin {
		err = fmt.Errorf("record %s: is in another record than %s's", text, *origin)
	}
	if err != nil {
		return cli.BadInput(err)
	}
	*sequence, *origin = n, cmp.Or(of, *origin)
	return nil
}

func (p *program) query(cmd *cobra.Command, args []string) (err error) {
	if live, _ := cmd.Flags().GetBool("live"); live || cmd.Flags().Changed("issued") || cmd.Flags().Changed("authority") {
		return p.queryIssued(cmd, args)
	}
	f, err := filterOf(cmd)
	if err != nil {
		return err
	}
	r := &api.QueryAuditRequest{Filter: f}
	below, _ := cmd.Flags().GetString("below")
	if err := recordID(below, &r.Below, &r.Origin); err != nil {
		return err
	}
	if len(args) > 0 {
		if r.Filter == nil {
			r.Filter = &api.AuditFilter{}
		}
		if err := recordID(args[0], &r.Filter.Sequence, &r.Origin); err != nil {
			return err
		}
	}
	r.NoIndex, _ = cmd.Flags().GetBool("no-index")
	limit, _ := cmd.Flags().GetUint32("limit")
	if limit == 0 || limit > 10_000 {
		return cli.BadInput(fmt.Errorf("--limit %d: 1 to 10000 are possible; --below goes on", limit))
	}
	r.Limit = limit + 1 // which says whether there are more
	found, last := uint32(0), uint64(0)
	show := func(text []byte) error {
		if found++; found > limit {
			fmt.Fprintf(p.Err, "there are more: --below %s goes on\n", audit.Ref{Sequence: last}.ID())
			return nil
		}
		rec, err := audit.ParseLine(text)
		if err != nil {
			return fmt.Errorf("reading what the broker found: %w", err)
		}
		last = rec.Sequence
		return p.writeRecord(cli.OutputOf(cmd), text, found == 1)
	}
	defer func() {
		if err == nil && found == 0 {
			fmt.Fprintln(p.Err, "there is no such record")
		}
	}()
	if dir, _ := cmd.Flags().GetString("data"); dir != "" {
		if r.Origin != "" {
			return cli.BadInput(fmt.Errorf("--data %s: the files do not say whose record they are: where they are broker %[2]s's, leave out @%[2]s", dir, r.Origin))
		}
		return p.queryFiles(cmd.Context(), filepath.Join(dir, "audit"), r, show)
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		stream, err := c.QueryAudit(ctx, r)
		for err == nil {
			var m *api.AuditRecord
			if m, err = stream.Recv(); err == nil && r.Origin != "" && m.GetOrigin() != r.Origin {
				return cli.BadInput(fmt.Errorf("the broker does not say that its record is %[1]s's, as one of this release does: ask %[1]s on its machine, with the files: credence audit query RECORD --data DIR", r.Origin))
			}
			if err == nil {
				err = show(m.GetJson())
			}
		}
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// queryFiles is the query without a broker.
func (p *program) queryFiles(ctx context.Context, dir string, r *api.QueryAuditRequest, show func([]byte) error) error {
	f := r.GetFilter()
	q := audit.Query{
		Sequence: f.GetSequence(), Below: r.GetBelow(), Limit: int(r.GetLimit()), NoIndex: r.GetNoIndex(),
		SPIFFEID: f.GetSpiffeId(), Identity: f.GetIdentity(), Node: f.GetNode(), Serial: f.GetSerial(), Kind: f.GetKind(), Target: f.GetTarget(), Actor: f.GetActor(),
	}
	if ok := f.GetOutcome() == "ok"; f.GetOutcome() != "" {
		q.OK = &ok
	}
	if f.GetSince() != 0 {
		q.Since = time.Unix(0, f.GetSince())
	}
	if f.GetUntil() != 0 {
		q.Until = time.Unix(0, f.GetUntil())
	}
	for record, err := range audit.Search(ctx, dir, q) {
		if err != nil {
			return err
		}
		line, err := record.Line()
		if err == nil {
			err = show(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// queryIssued lists SVIDs from the issuance index.
func (p *program) queryIssued(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return cli.BadInput(fmt.Errorf("record %s: is not in the issuance index: leave out --issued, --live and --authority", args[0]))
	}
	for _, name := range []string{"kind", "target", "actor", "outcome", "below", "data", "no-index"} {
		if cmd.Flags().Changed(name) {
			return cli.BadInput(fmt.Errorf("--%s: is of records, and the issuance index has none: leave out --issued, --live and --authority", name))
		}
	}
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
	for name, at := range map[string]*int64{"since": &r.From, "until": &r.Before} {
		t, err := momentFlag(cmd, name)
		if err != nil {
			return err
		}
		if !t.IsZero() {
			*at = t.Unix()
		}
	}
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		got, err := api.NewAuthoritiesClient(conn).ListIssued(ctx, r)
		if err != nil {
			return err
		}
		views, rows := viewIssued(got.GetIssued())
		return p.Show(cmd, map[string]any{"count": got.GetCount(), "issued": views}, func() error {
			if left := got.GetCount() - uint64(len(rows)); left > 0 {
				defer fmt.Fprintf(p.Err, "%d more: -n, --since and --until narrow it down\n", left)
			}
			return p.Table(issuedHead, rows)
		})
	})
}
