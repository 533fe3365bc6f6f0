package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
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
		Use: "verify [--data DIR] [--heads FILE] [--from-agents]", Short: "Check the whole record: that nothing was changed, cut out or put in", Args: cobra.NoArgs,
		Long: `Verify checks each record's hash against the one before it. The broker does it,
or with --data this program, on a broker's data directory, running or not.
Whoever can write the files can make a new chain, but not one that has the heads
which others keep: --from-agents asks connected agents for theirs, and --heads
reads those that credence audit heads, or an agent's heads.jsonl, kept, or JSON
lines of credence audit export as they are, of one broker. The first
head that does not fit says from which record on the record cannot be trusted. A
broker that may be another's judges nothing: with --data this program does. It
exits 1 where the record does not hold.`,
		Example: "  credence audit verify\n  credence audit verify --data ./state/broker",
		RunE:    p.verifyAudit,
	}
	verify.Flags().String("data", "", "a broker's data directory, instead of asking a broker")
	verify.Flags().String("heads", "", "heads that were kept, one a line, or an exported record; - reads standard input")
	verify.Flags().String("origin", "", "with --data: the name of the broker whose record it is, where the heads are of several")
	addAskedAgents(verify)
	return cli.Group("audit", "The record of who got which identity, when and why", cli.AddOutput(addAdmin(tail)), cli.AddOutput(addAdmin(verify)), p.headsCommand(), p.hmacCommand(), p.queryCommand(), p.exportRecordCommand(), p.truncateCommand())
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
		if strings.Contains(value, "  ") || strings.ContainsFunc(value, func(r rune) bool { return !strconv.IsPrint(r) }) {
			value = strconv.Quote(value) // who asked wrote it: a line is one record, and no terminal obeys it
		}
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
	if r.Kind == "admin" {
		for _, name := range slices.Sorted(maps.Keys(r.Detail)) {
			add(name+" ", r.Detail[name])
		}
	} else {
		add("", r.Detail["kind"])
		add("", r.Detail["name"])
	}
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

	Confirmed uint64   `json:"confirmed"` // heads kept elsewhere that stand in the record
	Agents    uint32   `json:"agents"`    // that told theirs
	Notes     []string `json:"notes"`     // on heads that were not held against it

	Removed *removedView `json:"removed"` // null: it has its beginning
}

// removedView are records that were removed for their age, as a record says.
type removedView struct {
	Last   uint64     `json:"last"` // all up to this one
	Hash   string     `json:"hash"` // of that one
	Record uint64     `json:"record"`
	At     cli.Moment `json:"at"`
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
		if r := v.Removed; r != nil {
			fmt.Fprintf(p.Out, "records up to %s were removed for their age at %s, as %s says; the chain goes on from %s\n", audit.Ref{Sequence: r.Last}.ID(), cli.When(int64(r.At)), audit.Ref{Sequence: r.Record}.ID(), r.Hash)
		}
		if v.Confirmed > 0 || v.Agents > 0 {
			_, err = fmt.Fprintf(p.Out, "%d heads that were kept elsewhere stand in it; %d agents told theirs\n", v.Confirmed, v.Agents)
		}
		for _, note := range v.Notes {
			fmt.Fprintln(p.Err, note)
		}
		return err
	})
	if err == nil && !v.Holds {
		err = cli.WithCode(cli.ExitNo, errors.New(v.Problem))
	}
	return err
}

// verified reads the record in --data, or has the broker read its own.
func (p *program) verified(cmd *cobra.Command) (v verifyView, err error) {
	kept, err := p.headsFile(cmd)
	if err != nil {
		return v, err
	}
	fromAgents, most := askedAgents(cmd)
	defer p.StartProgress("reading the record").Stop()
	if dir, _ := cmd.Flags().GetString("data"); dir != "" {
		if fromAgents {
			return v, cli.BadInput(errors.New("--from-agents asks the broker: credence audit heads --from-agents prints what --heads takes"))
		}
		origin, _ := cmd.Flags().GetString("origin")
		known, notes, err := knownHere(origin, kept)
		if err != nil {
			return v, err
		}
		report, err := audit.VerifyKnown(cmd.Context(), filepath.Join(dir, "audit"), known)
		if report.Gone > 0 {
			notes = append(notes, fmt.Sprintf("%d heads are of records that were removed: nothing here stands against them", report.Gone))
		}
		v = verifyView{
			Holds: err == nil, Records: report.Records, Files: uint32(report.Files), Sequence: report.Head.Sequence, Head: hex.EncodeToString(report.Head.Hash[:]),
			Confirmed: uint64(report.Confirmed), Notes: notes,
		}
		if t := report.Removed; t != nil {
			v.Removed = &removedView{t.Last.Sequence, hex.EncodeToString(t.Last.Hash[:]), t.Record.Sequence, cli.Moment(t.Time.Unix())}
		}
		if err != nil {
			v.Problem = err.Error()
		}
		return v, nil
	}
	lines, err := keptLines(kept)
	if err != nil {
		return v, err
	}
	err = adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.VerifyAudit(ctx, &api.VerifyAuditRequest{Heads: lines, FromAgents: fromAgents, Agents: most})
		v = verifyView{
			r.GetProblem() == "", r.GetRecords(), r.GetFiles(), r.GetSequence(), hex.EncodeToString(r.GetHead()), r.GetProblem(),
			r.GetConfirmed(), r.GetAgents(), r.GetNotes(), nil,
		}
		if t := r.GetRemoved(); t != nil {
			v.Removed = &removedView{t.GetLast(), hex.EncodeToString(t.GetHash()), t.GetRecord(), cli.Moment(t.GetAt())}
		}
		return err
	})
	return v, err
}
