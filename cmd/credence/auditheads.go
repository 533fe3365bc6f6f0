package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) headsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "heads [--from-agents]", Short: "Print signed heads of the record, to be kept elsewhere", Args: cobra.NoArgs,
		Long: `Heads prints how far the broker's record has got, as the broker signed it: one line
of JSON, that goes to where the broker's disk does not reach. With --from-agents
also those that connected agents keep: of each minute of the last hour, each hour
of two days, each day of ninety. An agent's own are in heads.jsonl in its data
directory. credence audit verify --heads holds a record against them.`,
		Example: "  credence audit heads\n  credence audit heads --from-agents",
		RunE: func(cmd *cobra.Command, _ []string) error {
			fromAgents, most := askedAgents(cmd)
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				stream, err := c.ListHeads(ctx, &api.ListHeadsRequest{FromAgents: fromAgents, Agents: most})
				if err != nil {
					return err
				}
				for {
					m, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						return err
					}
					if _, err := fmt.Fprintf(p.Out, "%s\n", m.GetHead()); err != nil {
						return err
					}
				}
			})
		},
	}
	addAskedAgents(c)
	return addAdmin(c)
}

func addAskedAgents(cmd *cobra.Command) {
	cmd.Flags().Bool("from-agents", false, "ask connected agents, chosen by chance, for the heads that they keep")
	cmd.Flags().Uint32("agents", 0, "how many are asked, at most 2000 (default 200)")
}

func askedAgents(cmd *cobra.Command) (ask bool, most uint32) {
	ask, _ = cmd.Flags().GetBool("from-agents")
	most, _ = cmd.Flags().GetUint32("agents")
	return ask || most > 0, most
}

func (p *program) hmacCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "hmac FACT=VALUE [--data DIR]", Short: "Show how the record has a secret fact's value, to find it there", Args: cobra.ExactArgs(1),
		Long: `Hmac prints what stands in the record for a value of a fact that broker.yaml's
audit.hmac_facts names: an HMAC, under a key in the record's directory.`,
		Example: "  credence audit hmac user.email=ana@example.org",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, value, ok := strings.Cut(args[0], "=")
			if !ok || name == "" {
				return cli.BadInput(fmt.Errorf("%q: FACT=VALUE is wanted", args[0]))
			}
			if dir, _ := cmd.Flags().GetString("data"); dir != "" {
				recorded, err := audit.HashFact(filepath.Join(dir, "audit"), name, value)
				if err == nil {
					_, err = fmt.Fprintln(p.Out, recorded)
				}
				return cli.BadInput(err)
			}
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.HashFact(ctx, &api.HashFactRequest{Name: name, Value: value})
				if err == nil {
					_, err = fmt.Fprintln(p.Out, r.GetRecorded())
				}
				return err
			})
		},
	}
	c.Flags().String("data", "", "a broker's data directory, instead of asking a broker")
	return addAdmin(c)
}

// headsFile reads the heads of --heads, "-" being standard input.
func (p *program) headsFile(cmd *cobra.Command) (kept audit.Kept, err error) {
	path, _ := cmd.Flags().GetString("heads")
	if path == "" {
		return kept, nil
	}
	in := p.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return kept, cli.BadInput(err)
		}
		defer f.Close()
		in = f
	}
	if kept, err = audit.ReadKept(in); err != nil {
		return kept, cli.BadInput(fmt.Errorf("%s: %w", path, err))
	}
	return kept, nil
}

// keptLines are what a broker is given to hold its record against.
func keptLines(kept audit.Kept) (lines [][]byte, err error) {
	for _, h := range kept.Heads {
		line, err := h.Line()
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	for _, r := range kept.Records {
		line, err := r.Line()
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// knownHere are the heads that a record on this machine is held against: of all
// brokers in the file those of the one whose record it is, and exported records of
// which the file says nothing else.
func knownHere(origin string, kept audit.Kept) (known []audit.Known, notes []string, err error) {
	heads := kept.Heads
	others := make(map[string]int)
	for _, h := range heads {
		others[h.Origin]++
	}
	if origin == "" && len(others) > 1 {
		return nil, nil, cli.BadInput(fmt.Errorf("the heads are of %d brokers: --origin NAME says whose record this is", len(others)))
	}
	for _, h := range heads {
		if origin == "" || h.Origin == origin {
			known = append(known, audit.Known{Ref: h.Ref(), Time: h.Time, By: "the file"})
		}
	}
	if n := len(heads) - len(known); n > 0 {
		notes = append(notes, fmt.Sprintf("%d heads are of other brokers", n))
	}
	for _, r := range kept.Records {
		known = append(known, audit.Known{Ref: r.Ref(), Time: r.Time, By: "the file"})
	}
	return known, notes, nil
}
