package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) auditCommand() *cobra.Command {
	tail := &cobra.Command{
		Use: "tail", Short: "Show the last records; -f follows", Args: cobra.NoArgs,
		Long: `Tail asks the broker for the last records of its chain: who got which identity,
when and why, and who was refused or changed the policy. -f goes on with what
comes, until Ctrl-C. Flags pick some. As JSON each record is one line, as YAML
one document.`,
		Example: "  credence audit tail -n 5\n  credence audit tail -n 1 -o json\n  credence audit tail --outcome denied -n 3",
		RunE:    p.tailAudit,
	}
	tail.Flags().Uint32P("last", "n", 20, "how many")
	tail.Flags().BoolP("follow", "f", false, "go on with what comes")
	addFilter(tail)
	verify := &cobra.Command{
		Use: "verify [--data DIR]", Short: "Check the whole record: that nothing was changed, cut out or put in", Args: cobra.NoArgs,
		Long: `Verify checks each record's hash against the one before it. The broker does it,
or with --data this program, on a broker's data directory, running or not.
Compare the head that it prints with one that was noted elsewhere: whoever can
write the files could have made a new chain, but not one that ends in an old
head. It exits 1 where the record does not hold.`,
		Example: "  credence audit verify\n  credence audit verify --data ./state/broker",
		RunE:    p.verifyAudit,
	}
	verify.Flags().String("data", "", "a broker's data directory, instead of asking a broker")
	return cli.Group("audit", "The record of who got which identity, when and why", cli.AddOutput(addAdmin(tail)), cli.AddOutput(addAdmin(verify)), p.queryCommand())
}

func (p *program) tailAudit(cmd *cobra.Command, _ []string) error {
	n, _ := cmd.Flags().GetUint32("last")
	follow, _ := cmd.Flags().GetBool("follow")
	filter, err := filterOf(cmd)
	if err != nil {
		return err
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		stream, err := c.TailAudit(ctx, &api.TailAuditRequest{Last: n, Follow: follow, Filter: filter})
		if err != nil {
			return err
		}
		for first := true; ; first = false {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if err := p.writeRecord(cli.OutputOf(cmd), m.GetJson(), first); err != nil {
				return err
			}
		}
	})
}

// writeRecord writes one record: as it stands, or the gist of it on one line.
func (p *program) writeRecord(form string, text []byte, first bool) error {
	switch form {
	case "json":
		_, err := fmt.Fprintf(p.Out, "%s\n", text)
		return err
	case "yaml":
		if _, err := fmt.Fprintln(p.Out, "---"); err != nil {
			return err
		}
		return cli.WriteYAML(p.Out, json.RawMessage(text))
	}
	var r audit.Record
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	// The rows come one by one: their widths are what they mostly have.
	const row = "%s  %s  %s  %-12s  %s\n"
	if first {
		fmt.Fprintf(p.Out, row, fmt.Sprintf("%-8s", "RECORD"), fmt.Sprintf("%-20s", "AT"), "OK", "WHAT", "WHO")
	}
	mark, ref := "ok", fmt.Sprintf("%-8s", r.Ref().ID())
	if !r.OK {
		mark = "no"
	}
	if p.Colours(p.Out) {
		mark, ref = cli.Paint("OK", mark), cli.Paint("RECORD", ref)
	}
	_, err := fmt.Fprintf(p.Out, row, ref, r.Time.UTC().Format("2006-01-02 15:04:05Z"), mark, r.Kind, gist(r))
	return err
}

func gist(r audit.Record) string {
	var all []string
	add := func(label, value string) {
		if value != "" {
			all = append(all, label+value)
		}
	}
	add("", r.SPIFFEID)
	add("node ", strings.TrimPrefix(r.Node, "spiffe://"))
	add("by ", r.Identity)
	add("serial ", r.Serial)
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
	return strings.Join(all, "  ")
}

type verifyView struct {
	Holds    bool   `json:"holds"`
	Records  uint64 `json:"records"`
	Files    uint32 `json:"files"`
	Sequence uint64 `json:"sequence"`
	Head     string `json:"head"` // hex, the last record's hash
	Problem  string `json:"problem"`
}

func (p *program) verifyAudit(cmd *cobra.Command, _ []string) error {
	v, err := p.verified(cmd)
	if err != nil {
		return err
	}
	err = p.Show(cmd, v, func() error {
		if !v.Holds {
			return nil
		}
		_, err := fmt.Fprintf(p.Out, "%d records in %d files hold together; the head is %s %s\n", v.Records, v.Files, audit.Ref{Sequence: v.Sequence}.ID(), v.Head)
		return err
	})
	if err == nil && !v.Holds {
		err = cli.WithCode(cli.ExitNo, errors.New(v.Problem))
	}
	return err
}

// verified reads the record in --data, or has the broker read its own.
func (p *program) verified(cmd *cobra.Command) (v verifyView, err error) {
	defer p.StartProgress("reading the record").Stop()
	if dir, _ := cmd.Flags().GetString("data"); dir != "" {
		report, err := audit.Verify(filepath.Join(dir, "audit"))
		v = verifyView{err == nil, report.Records, uint32(report.Files), report.Head.Sequence, hex.EncodeToString(report.Head.Hash[:]), ""}
		if err != nil {
			v.Problem = err.Error()
		}
		return v, nil
	}
	err = adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.VerifyAudit(ctx, &api.VerifyAuditRequest{})
		v = verifyView{r.GetProblem() == "", r.GetRecords(), r.GetFiles(), r.GetSequence(), hex.EncodeToString(r.GetHead()), r.GetProblem()}
		return err
	})
	return v, err
}
