package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/audit/export"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) exportRecordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "export --to FILE|URL|- | --otlp URL", Short: "Carry the record to a file or a collector, each record at least once", Args: cobra.NoArgs,
		Long: `Export copies the record, from where it stopped the last time to its end, or with
--follow on and on: as JSON lines to a file, by POST to a collector or to standard
output, or as OpenTelemetry logs (OTLP/HTTP). Lines go as they stand, with their
chain. What was acknowledged is noted in a cursor file, from which it goes on; what
was under way when it ended is sent again. If the record is not the one that the
cursor is of any more, it says so, exits 1 and exports nothing.

After records comes, once a minute at most and at the end, how far the record had
got as the broker signed it: a line {"head": ...}, or a log of event name
credence.audit.head. With --data nobody signs, so none comes. audit verify --heads
takes such a file as it is.

A broker does this by itself where audit.export of broker.yaml says so.`,
		Example: "  credence audit export --to -\n  credence audit export --to audit.jsonl --data ./state/broker",
		RunE:    p.exportRecord,
	}
	f := cmd.Flags()
	f.String("to", "", "a file, an https URL, or - for standard output")
	f.String("otlp", "", "an OTLP/HTTP endpoint such as https://collector.example:4318")
	f.String("cursor", "", "the file that says how far it got; default FILE.cursor; of a URL required")
	f.Bool("follow", false, "go on with what comes, and try for ever")
	f.String("headers-file", "", "\"Name: value\" lines for the collector, such as an Authorization")
	f.String("client-svid", "", "a directory of svid x509 --out, shown to the collector")
	f.String("ca-file", "", "verifies the collector; default the system's roots")
	f.String("data", "", "a broker's data directory, instead of asking a broker")
	return addAdmin(cmd)
}

// exportTries is how often a verb that is to end tries.
const exportTries = 5

func (p *program) exportRecord(cmd *cobra.Command, _ []string) (err error) {
	text := func(name string) string { v, _ := cmd.Flags().GetString(name); return v }
	e := exportFile{Name: "export", To: text("to"), HeadersFile: text("headers-file"), SVIDDir: text("client-svid"), CAFile: text("ca-file")}
	if otlp := text("otlp"); otlp != "" {
		if e.To != "" {
			return cli.BadInput(errors.New("--to or --otlp: one of the two"))
		}
		e.To, e.OTLP = otlp, true
	}
	config := export.Config{Name: e.To, Cursor: text("cursor"), Log: p.Logger(), Tries: exportTries, Final: isFinal}
	follow, _ := cmd.Flags().GetBool("follow")
	if follow {
		config.Tries = 0
	}
	switch {
	case e.To == "":
		return cli.BadInput(errors.New("where to? --to or --otlp says it"))
	case e.To == "-":
		config.Sink = export.Writer{W: p.Out}
	case !isURL(e.To):
		if config.Cursor == "" {
			config.Cursor = e.To + ".cursor"
		}
		e.To = cli.Absolute(e.To)
	case config.Cursor == "":
		return cli.BadInput(errors.New("--cursor: a file is wanted that says what the collector has"))
	}
	if config.Sink == nil {
		if err := e.check(); err != nil {
			return cli.BadInput(fmt.Errorf("--%w", err))
		}
		sink, closer, err := e.sink(map[string]string{"service.name": "credence-broker"})
		if err != nil {
			return cli.BadInput(err)
		}
		defer closer.Close()
		config.Sink = sink
	}
	record := brokerRecord{cmd: cmd, follow: follow}
	config.Source, config.Head = record, record.head
	if dir := text("data"); dir != "" {
		if follow {
			return cli.BadInput(errors.New("--follow: asks a broker: leave out --data"))
		}
		config.Source, config.Head = export.Files{Dir: filepath.Join(dir, "audit")}, nil
	}
	x, err := export.New(config)
	if err != nil {
		return cli.BadInput(err)
	}
	err = x.Run(cmd.Context())
	if at := x.State().At; at.Sequence > 0 {
		fmt.Fprintf(p.Err, "all up to %s is exported\n", at.ID())
	}
	switch {
	case cmd.Context().Err() != nil:
		return nil // Ctrl-C; the cursor says where it was
	case errors.Is(err, audit.ErrReplaced):
		return cli.WithCode(cli.ExitNo, fmt.Errorf("%w; look at the record (credence audit verify); to export all of this one, take the cursor %s away", err, config.Cursor))
	}
	return err
}

// isFinal says whether a broker would say the same again.
func isFinal(err error) bool {
	c, ok := errors.AsType[cli.Coded](err)
	return ok && c.Code != cli.ExitUnreachable
}

// brokerRecord is the record of the broker that flags name.
type brokerRecord struct {
	cmd    *cobra.Command
	follow bool
}

// Oldest is for the broker to know.
func (brokerRecord) Oldest() (audit.Ref, error) { return audit.Ref{}, nil }

// FollowAfter follows the chain that the broker sends.
func (b brokerRecord) FollowAfter(ctx context.Context, after audit.Ref, fn func(audit.Record) error) error {
	conn, where, err := dialAdmin(ctx, b.cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := api.NewAdminClient(conn).ExportAudit(ctx, &api.ExportAuditRequest{Sequence: after.Sequence, Hash: after.Hash[:], Follow: b.follow})
	begun := after.Sequence > 0
	for c := (export.Chain{At: after}); err == nil; {
		var m *api.AuditRecord
		if m, err = stream.Recv(); err != nil {
			break
		}
		r, err := audit.ParseLine(m.GetJson())
		if err != nil {
			return fmt.Errorf("reading what the broker sent: %w", err)
		}
		if !begun {
			c.At.Sequence, begun = r.Sequence-1, true
		}
		if err := c.Next(r); err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case status.Code(err) == codes.DataLoss:
		return fmt.Errorf("%w: %s", audit.ErrReplaced, status.Convert(err).Message())
	}
	return cli.Reached("broker", where, err)
}

// head asks for a head that is signed: the broker's own.
func (b brokerRecord) head(ctx context.Context) (none audit.Head, err error) {
	conn, where, err := dialAdmin(ctx, b.cmd)
	if err != nil {
		return none, err
	}
	defer conn.Close()
	stream, err := api.NewAdminClient(conn).ListHeads(ctx, &api.ListHeadsRequest{})
	for err == nil {
		var m *api.AuditHead
		if m, err = stream.Recv(); err != nil {
			break
		}
		h, err := audit.ParseHead(m.GetHead())
		if err != nil {
			return none, fmt.Errorf("reading what the broker sent: %w", err)
		}
		if len(h.Chain) > 0 {
			return h, nil
		}
	}
	if errors.Is(err, io.EOF) {
		return none, nil
	}
	return none, cli.Reached("broker", where, err)
}

func (p *program) truncateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "truncate --before TIME", Short: "Remove old records, and record that", Args: cobra.NoArgs,
		Long: `Truncate has the broker remove the oldest files of its record all of whose records
are older than a time, at the admin socket only. Before, it records their range,
their digests and the hash from which the chain goes on; audit verify demands that
record where a beginning is missing. What the issuance index or an exporter of
broker.yaml has not read yet stays. audit.keep of broker.yaml does this by itself.`,
		Example: "  credence audit truncate --before 400d --reason 'kept long enough'",
		RunE:    p.truncateRecord,
	}
	cmd.Flags().String("before", "", "a time (RFC 3339), or how long ago, such as 400d")
	cmd.Flags().String("reason", "", "for the record")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) truncateRecord(cmd *cobra.Command, _ []string) error {
	before, err := momentFlag(cmd, "before")
	if err != nil {
		return err
	}
	if before.IsZero() {
		return cli.BadInput(errors.New("--before: which records? Those of files that are older than a time"))
	}
	reason, _ := cmd.Flags().GetString("reason")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.TruncateAudit(ctx, &api.TruncateAuditRequest{Before: before.UnixNano(), Reason: reason})
		if err != nil {
			return err
		}
		text := "no file of the record is so old"
		if r.GetFiles() > 0 {
			text = fmt.Sprintf("%d records in %d files were removed, up to %s", r.GetRecords(), r.GetFiles(), audit.Ref{Sequence: r.GetLast()}.ID())
		}
		if r.GetHeldBy() != "" {
			text += fmt.Sprintf("; older ones stay, since %s has got to %s", r.GetHeldBy(), audit.Ref{Sequence: r.GetHeldAt()}.ID())
		}
		return p.Say(cmd, map[string]any{
			"files": r.GetFiles(), "records": r.GetRecords(), "last": r.GetLast(), "held_by": r.GetHeldBy(), "held_at": r.GetHeldAt(),
		}, text)
	})
}
