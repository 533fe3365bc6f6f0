package workloadcmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/cmd/cli"
)

func (p *verbs) svidCommand() *cobra.Command {
	x := &cobra.Command{
		Use: "x509", Short: "Fetch this process's X509-SVIDs", Args: cobra.NoArgs,
		Long: `X509 fetches from the Workload API what it gives to this process: this program,
as the user that runs it. With --out the first identity is written to svid.pem
(leaf and chain), svid_key.pem and svid_bundle.pem. Where nothing is granted it
exits 4, with the number of the record that tells the operator why.`,
		Example: "  " + p.name + " svid x509\n  " + p.name + " svid x509 -o json\n  " + p.name + " svid x509 --out ./tls",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.svidX509(cmd) },
	}
	x.Flags().String("out", "", "a directory to write to")
	j := &cobra.Command{
		Use: "jwt --audience A", Short: "Fetch a JWT-SVID of this process", Args: cobra.NoArgs,
		Long: `Jwt fetches from the Workload API a JWT-SVID of this process: this program, as
the user that runs it, for audiences that its Identity lists (jwt.audiences). It
prints the token of the first identity, or with -o all of them. Where nothing is
granted it exits 4.`,
		Example: "  " + p.name + " svid jwt --audience orders\n  " + p.name + " svid jwt --audience orders -o json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.svidJWT(cmd) },
	}
	j.Flags().StringArray("audience", nil, "whom the token is for; may be repeated")
	_ = j.MarkFlagRequired("audience")
	for _, c := range []*cobra.Command{x, j} {
		c.Flags().String("socket", "", "the Workload API (default $"+cli.WorkloadVariable+")")
	}
	return cli.Group("svid", "SVIDs of this process", cli.AddOutput(x), cli.AddOutput(j, "token"))
}

// workloadAPI calls do with a client of the Workload API.
func workloadAPI(cmd *cobra.Command, do func(context.Context, *workloadapi.Client) error) error {
	where, _ := cmd.Flags().GetString("socket")
	if where == "" {
		where = os.Getenv(cli.WorkloadVariable)
	}
	if where == "" {
		return cli.BadInput(fmt.Errorf("which Workload API? set %s to unix:///path of the agent's socket, or give --socket", cli.WorkloadVariable))
	}
	path, err := cli.SocketPath(where)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+path))
	if err != nil {
		return cli.BadInput(err)
	}
	defer client.Close()
	if _, err := os.Stat(path); err != nil {
		return cli.WithCode(cli.ExitUnreachable, fmt.Errorf("no Workload API at %s: is the agent running?", path))
	}
	if err := do(ctx, client); err != nil {
		return cli.Reached("agent", where, err)
	}
	return nil
}

func (p *verbs) svidX509(cmd *cobra.Command) error {
	dir, _ := cmd.Flags().GetString("out")
	return workloadAPI(cmd, func(ctx context.Context, c *workloadapi.Client) error {
		x, err := c.FetchX509Context(ctx)
		if err != nil {
			return err
		}
		if dir != "" {
			return p.writeSVID(cmd, dir, x)
		}
		all, rows := []x509View{}, [][]string{}
		for _, s := range x.SVIDs {
			leaf := s.Certificates[0]
			r := x509View{s.ID.String(), s.Hint, cli.SerialText(leaf), cli.Moment(leaf.NotAfter.Unix())}
			all = append(all, r)
			rows = append(rows, []string{r.SPIFFEID, r.Hint, r.Serial, cli.When(int64(r.NotAfter))})
		}
		return p.Show(cmd, all, func() error { return p.Table("SPIFFE ID|HINT|SERIAL|ENDS", rows) })
	})
}

type x509View struct {
	SPIFFEID string     `json:"spiffe_id"`
	Hint     string     `json:"hint"`
	Serial   string     `json:"serial"`
	NotAfter cli.Moment `json:"not_after"`
}

// writeSVID writes the first identity's three files, each replaced whole; the
// key first, so that a reader never finds a chain newer than its key for long.
func (p *verbs) writeSVID(cmd *cobra.Command, dir string, x *workloadapi.X509Context) error {
	svid := x.DefaultSVID()
	bundle, err := x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return err
	}
	chain, key, err := svid.Marshal()
	if err != nil {
		return err
	}
	roots, err := bundle.Marshal()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := []string{}
	for _, f := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{{"svid_key.pem", key, 0o600}, {"svid.pem", chain, 0o644}, {"svid_bundle.pem", roots, 0o644}} {
		if err := renameio.WriteFile(filepath.Join(dir, f.name), f.text, f.mode, renameio.WithTempDir(dir)); err != nil {
			return err
		}
		files = append(files, filepath.Join(dir, f.name))
	}
	ends := svid.Certificates[0].NotAfter.Unix()
	v := map[string]any{"spiffe_id": svid.ID.String(), "not_after": cli.Moment(ends), "files": files}
	return p.Show(cmd, v, func() error {
		_, err := fmt.Fprintf(p.Out, "wrote svid.pem, svid_key.pem and svid_bundle.pem of %s to %s; they end at %s\n", svid.ID, dir, cli.When(ends))
		return err
	})
}

type jwtView struct {
	SPIFFEID string     `json:"spiffe_id"`
	Hint     string     `json:"hint"`
	Audience []string   `json:"audience"`
	Expires  cli.Moment `json:"expires"`
	Token    string     `json:"token"`
}

func (p *verbs) svidJWT(cmd *cobra.Command) error {
	audiences, _ := cmd.Flags().GetStringArray("audience")
	return workloadAPI(cmd, func(ctx context.Context, c *workloadapi.Client) error {
		svids, err := c.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: audiences[0], ExtraAudiences: audiences[1:]})
		if err != nil {
			return err
		}
		if cli.OutputOf(cmd) == "token" {
			_, err := fmt.Fprintln(p.Out, svids[0].Marshal())
			return err
		}
		all, rows := []jwtView{}, [][]string{}
		for _, s := range svids {
			all = append(all, jwtView{s.ID.String(), s.Hint, s.Audience, cli.Moment(s.Expiry.Unix()), s.Marshal()})
			rows = append(rows, []string{s.ID.String(), s.Hint, strings.Join(s.Audience, ","), cli.When(s.Expiry.Unix())})
		}
		return p.Show(cmd, all, func() error { return p.Table("SPIFFE ID|HINT|AUDIENCE|ENDS", rows) })
	})
}
