package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/broker/api"
)

const workloadVariable = "SPIFFE_ENDPOINT_SOCKET"

func (p *program) svidCommand() *cobra.Command {
	x := &cobra.Command{
		Use: "x509", Short: "Fetch this process's X509-SVIDs", Args: cobra.NoArgs,
		Long: `X509 fetches from the Workload API what it gives to this process: this program,
as the user that runs it. With --out the first identity is written to svid.pem
(leaf and chain), svid_key.pem and svid_bundle.pem. Where nothing is granted it
exits 4, with the number of the record that tells the operator why.`,
		Example: "  credence svid x509\n  credence svid x509 -o json\n  credence svid x509 --out ./tls",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.svidX509(cmd) },
	}
	x.Flags().String("out", "", "a directory to write to")
	j := &cobra.Command{
		Use: "jwt --audience A", Short: "Fetch a JWT-SVID of this process", Args: cobra.NoArgs,
		Long: `Jwt fetches from the Workload API a JWT-SVID of this process: this program, as
the user that runs it, for audiences that its Identity lists (jwt.audiences). It
prints the token of the first identity, or with -o all of them. Where nothing is
granted it exits 4.`,
		Example: "  credence svid jwt --audience orders\n  credence svid jwt --audience orders -o json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.svidJWT(cmd) },
	}
	j.Flags().StringArray("audience", nil, "whom the token is for; may be repeated")
	_ = j.MarkFlagRequired("audience")
	for _, c := range []*cobra.Command{x, j} {
		c.Flags().String("socket", "", "the Workload API (default $"+workloadVariable+")")
	}
	return group("svid", "SVIDs of this process", addOutput(x), addOutput(j, "token"))
}

// workloadAPI calls do with a client of the Workload API.
func workloadAPI(cmd *cobra.Command, do func(context.Context, *workloadapi.Client) error) error {
	where, _ := cmd.Flags().GetString("socket")
	if where == "" {
		where = os.Getenv(workloadVariable)
	}
	if where == "" {
		return input(fmt.Errorf("which Workload API? set %s to unix:///path of the agent's socket, or give --socket", workloadVariable))
	}
	path, err := socketPath(where)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+path))
	if err != nil {
		return input(err)
	}
	defer client.Close()
	if _, err := os.Stat(path); err != nil {
		return coded{exitUnreachable, fmt.Errorf("no Workload API at %s: is the agent running?", path)}
	}
	if err := do(ctx, client); err != nil {
		return reached("agent", where, err)
	}
	return nil
}

func (p *program) svidX509(cmd *cobra.Command) error {
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
			r := x509View{s.ID.String(), s.Hint, serialText(leaf), moment(leaf.NotAfter.Unix())}
			all = append(all, r)
			rows = append(rows, []string{r.SPIFFEID, r.Hint, r.Serial, when(int64(r.NotAfter))})
		}
		return p.show(cmd, all, func() error { return p.table("SPIFFE ID|HINT|SERIAL|ENDS", rows) })
	})
}

type x509View struct {
	SPIFFEID string `json:"spiffe_id"`
	Hint     string `json:"hint"`
	Serial   string `json:"serial"`
	NotAfter moment `json:"not_after"`
}

// writeSVID writes the first identity's three files, each replaced whole; the
// key first, so that a reader never finds a chain newer than its key for long.
func (p *program) writeSVID(cmd *cobra.Command, dir string, x *workloadapi.X509Context) error {
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
	v := map[string]any{"spiffe_id": svid.ID.String(), "not_after": moment(ends), "files": files}
	return p.show(cmd, v, func() error {
		_, err := fmt.Fprintf(p.out, "wrote svid.pem, svid_key.pem and svid_bundle.pem of %s to %s; they end at %s\n", svid.ID, dir, when(ends))
		return err
	})
}

type jwtView struct {
	SPIFFEID string   `json:"spiffe_id"`
	Hint     string   `json:"hint"`
	Audience []string `json:"audience"`
	Expires  moment   `json:"expires"`
	Token    string   `json:"token"`
}

func (p *program) svidJWT(cmd *cobra.Command) error {
	audiences, _ := cmd.Flags().GetStringArray("audience")
	return workloadAPI(cmd, func(ctx context.Context, c *workloadapi.Client) error {
		svids, err := c.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: audiences[0], ExtraAudiences: audiences[1:]})
		if err != nil {
			return err
		}
		if outputOf(cmd) == "token" {
			_, err := fmt.Fprintln(p.out, svids[0].Marshal())
			return err
		}
		all, rows := []jwtView{}, [][]string{}
		for _, s := range svids {
			all = append(all, jwtView{s.ID.String(), s.Hint, s.Audience, moment(s.Expiry.Unix()), s.Marshal()})
			rows = append(rows, []string{s.ID.String(), s.Hint, strings.Join(s.Audience, ","), when(s.Expiry.Unix())})
		}
		return p.show(cmd, all, func() error { return p.table("SPIFFE ID|HINT|AUDIENCE|ENDS", rows) })
	})
}

func (p *program) bundleCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show [TRUST-DOMAIN]", Short: "Print our bundle, or a peer's as last believed", Args: cobra.MaximumNArgs(1),
		Long: `Show asks the broker for our own bundle, or for a peer's as last believed, as the
SPIFFE document; as PEM, for a Roles Anywhere trust anchor or any TLS server; or
as the JWKS of its JWT keys. As a table, JSON or YAML it says what is in the
bundle, how fresh it is, and the fingerprint by which peers add us: in hex, and
as words to compare by phone. It exits 1 where there is no bundle yet.`,
		Example: `  credence bundle show -o pem > anchor.pem
  credence bundle show -o table                # with the fingerprint for peer add
  credence bundle show partner.example -o table`,
		ValidArgsFunction: completeFirst(completeNamed("Peer")),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &api.ShowBundleRequest{}
			if len(args) > 0 {
				request.TrustDomain = args[0]
			}
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.ShowBundle(ctx, request)
				if err != nil {
					return err
				}
				if len(r.GetDocument()) == 0 {
					return coded{exitNo, fmt.Errorf("no bundle of %s yet: %s", r.GetTrustDomain(), r.GetLastError())}
				}
				return p.writeBundle(cmd, r)
			})
		},
	}
	return group("bundle", "Trust bundles", addOutput(addAdmin(show), "spiffe", "pem", "jwks"), p.publishCommand())
}

func (p *program) writeBundle(cmd *cobra.Command, r *api.ShowBundleResponse) error {
	form := outputOf(cmd)
	if form == "spiffe" {
		var document json.RawMessage = r.GetDocument()
		return writeJSON(p.out, document)
	}
	td, err := spiffeid.TrustDomainFromString(r.GetTrustDomain())
	if err != nil {
		return err
	}
	b, err := spiffebundle.Parse(td, r.GetDocument())
	if err != nil {
		return err
	}
	if form == "jwks" {
		text, err := jwtbundle.FromJWTAuthorities(td, b.JWTAuthorities()).Marshal()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.out, "%s\n", text)
		return err
	}
	if form == "pem" {
		return writePEM(p, b.X509Authorities())
	}
	v := viewBundle(r, b)
	return p.show(cmd, v, func() error { return p.fields(v.fields()) })
}

func writePEM(p *program, certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return coded{exitNo, errors.New("the bundle holds no X.509 authority")}
	}
	for _, c := range certs {
		if err := pem.Encode(p.out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	return nil
}
