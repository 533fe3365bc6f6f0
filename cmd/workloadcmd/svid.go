package workloadcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
)

const waitAndWatch = `

--ttl asks for a life: at most the identity's, else it exits 4 and names that. It
needs an agent of ours; such an SVID is made for this call and kept nowhere.
--wait waits for so long while the agent or the broker is not there yet, or
nothing is granted yet, and ends with what it was told last.
`

func (p *verbs) svidCommand() *cobra.Command {
	x := &cobra.Command{
		Use: "x509", Short: "Fetch this process's X509-SVIDs", Args: cobra.NoArgs,
		Long: `X509 fetches from the Workload API what it gives to this process: this program,
as the user that runs it. With --out the first identity is written to svid.pem
(leaf and chain), svid_key.pem and svid_bundle.pem. Where nothing is granted it
exits 4, with the number of the record that tells the operator why.` + waitAndWatch + `
--watch goes on until SIGINT or SIGTERM, and rewrites the files of --out at each
rotation, all at once: they are links into ..data, which one rename replaces.
What is withdrawn is erased. Each change is a line on standard error; with
-o json, of JSON on standard output.`,
		Example: "  " + p.name + " svid x509\n  " + p.name + " svid x509 -o json\n  " + p.name + " svid x509 --out ./tls --ttl 12m --wait 30s",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.svid(cmd, x509Kind{}) },
	}
	j := &cobra.Command{
		Use: "jwt --audience A", Short: "Fetch a JWT-SVID of this process", Args: cobra.NoArgs,
		Long: `Jwt fetches from the Workload API a JWT-SVID of this process: this program, as
the user that runs it, for audiences that its Identity lists (jwt.audiences). It
prints the token of the first identity, or with -o all of them; --out writes the
first to jwt_svid.token. Where nothing is granted it exits 4.` + waitAndWatch + `
--watch goes on until SIGINT or SIGTERM: it rewrites the file of --out at half of
each token's life. What is withdrawn is erased. Each change is a line on standard
error; with -o json, of JSON on standard output.`,
		Example: "  " + p.name + " svid jwt --audience orders\n  " + p.name + " svid jwt --audience orders -o json\n  " + p.name + " svid jwt --audience orders --ttl 2m --wait 30s",
		RunE: func(cmd *cobra.Command, _ []string) error {
			audiences, _ := cmd.Flags().GetStringArray("audience")
			return p.svid(cmd, jwtKind{audiences})
		},
	}
	j.Flags().StringArray("audience", nil, "whom the token is for; may be repeated")
	_ = j.MarkFlagRequired("audience")
	for _, c := range []*cobra.Command{x, j} {
		c.Flags().String("out", "", "a directory to write to")
		c.Flags().Duration("ttl", 0, "the life to ask for, such as 12m (default: the identity's)")
		c.Flags().Duration("wait", 0, "how long to wait for the agent, the broker and a grant")
		c.Flags().Bool("watch", false, "go on, and rewrite the files of --out")
		c.Flags().String("socket", "", "the Workload API (default $"+cli.WorkloadVariable+")")
	}
	return cli.Group("svid", "SVIDs of this process", cli.AddOutput(x), cli.AddOutput(j, "token"))
}

// An svidKind is what svid x509 and svid jwt have of their own.
type svidKind interface {
	// fetch asks the Workload API or, with a life, the agent's own service.
	fetch(ctx context.Context, from *asked) (fetched, error)
	// follow tells of each newer state until ctx ends. The first is had already.
	follow(ctx context.Context, from *asked, first fetched, tell func(fetched, error)) error
}

// fetched is what one answer gave.
type fetched interface {
	print(p *verbs, cmd *cobra.Command) error
	files() ([]svidFile, error) // the first identity's
	about() svidAbout           // the first identity
}

// A svidFile is one of --out.
type svidFile struct {
	name string
	text []byte
	mode os.FileMode
}

type svidAbout struct {
	id   string
	ends time.Time
}

// asked is what the flags say.
type asked struct {
	*verbs
	cmd    *cobra.Command
	socket string
	out    string
	ttl    time.Duration
	wait   time.Duration
	watch  bool
	person bool // there is no agent: ask whoever types
}

func (p *verbs) asked(cmd *cobra.Command, kind svidKind) (*asked, error) {
	a := &asked{verbs: p, cmd: cmd, socket: workloadSocket(cmd)}
	a.out, _ = cmd.Flags().GetString("out")
	a.ttl, _ = cmd.Flags().GetDuration("ttl")
	a.wait, _ = cmd.Flags().GetDuration("wait")
	a.watch, _ = cmd.Flags().GetBool("watch")
	_, x509 := kind.(x509Kind)
	a.person = a.socket == "" && p.person != nil && x509
	var err error
	switch {
	case a.person && (a.watch || a.wait > 0):
		err = fmt.Errorf("--watch and --wait are about an agent: set %s to unix:///path of its socket, or give --socket", cli.WorkloadVariable)
	case a.socket == "" && !a.person:
		err = fmt.Errorf("which Workload API? set %s to unix:///path of the agent's socket, or give --socket", cli.WorkloadVariable)
	case cmd.Flags().Changed("ttl") && (a.ttl <= 0 || a.ttl%time.Second != 0):
		err = fmt.Errorf("--ttl %s: whole seconds are wanted, such as 12m", a.ttl)
	case a.wait < 0:
		err = fmt.Errorf("--wait %s: a time is wanted, such as 2m", a.wait)
	case a.watch && a.out == "":
		err = errors.New("--watch keeps files fresh: say where with --out DIR")
	}
	if err != nil {
		return nil, cli.BadInput(err)
	}
	if a.person {
		return a, nil
	}
	path, err := cli.SocketPath(a.socket)
	if err != nil {
		return nil, err
	}
	a.socket = path
	return a, nil
}

func (p *verbs) svid(cmd *cobra.Command, kind svidKind) error {
	a, err := p.asked(cmd, kind)
	if err != nil {
		return err
	}
	var got fetched
	err = a.patiently(cmd.Context(), func(ctx context.Context) (err error) {
		got, err = kind.fetch(ctx, a)
		return err
	})
	switch {
	case err != nil:
		return err
	case a.watch:
		return a.keepFresh(cmd.Context(), kind, got)
	case a.out != "":
		return a.writeOnce(got)
	}
	return got.print(p, cmd)
}

// writeOnce writes the first identity's files, each replaced whole; the key
// first, so that a reader never finds a chain newer than its key for long.
func (a *asked) writeOnce(got fetched) error {
	all, err := got.files()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.out, 0o755); err != nil {
		return err
	}
	names, paths := []string{}, []string{}
	for _, f := range all {
		if err := renameio.WriteFile(filepath.Join(a.out, f.name), f.text, f.mode, renameio.WithTempDir(a.out)); err != nil {
			return err
		}
		names, paths = append(names, f.name), append(paths, filepath.Join(a.out, f.name))
	}
	about := got.about()
	v := map[string]any{"spiffe_id": about.id, "not_after": cli.Moment(about.ends.Unix()), "files": paths}
	return a.Show(a.cmd, v, func() error {
		_, err := fmt.Fprintf(a.Out, "wrote %s of %s to %s, which ends at %s\n", strings.Join(names, ", "), about.id, a.out, cli.When(about.ends.Unix()))
		return err
	})
}
