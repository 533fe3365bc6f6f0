package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

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
					return cli.WithCode(cli.ExitNo, fmt.Errorf("no bundle of %s yet: %s", r.GetTrustDomain(), r.GetLastError()))
				}
				return p.writeBundle(cmd, r)
			})
		},
	}
	return cli.Group("bundle", "Trust bundles", cli.AddOutput(addAdmin(show), "spiffe", "pem", "jwks"), p.publishCommand())
}

func (p *program) writeBundle(cmd *cobra.Command, r *api.ShowBundleResponse) error {
	form := cli.OutputOf(cmd)
	if form == "spiffe" {
		var document json.RawMessage = r.GetDocument()
		return cli.WriteJSON(p.Out, document)
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
		_, err = fmt.Fprintf(p.Out, "%s\n", text)
		return err
	}
	if form == "pem" {
		return writePEM(p, b.X509Authorities())
	}
	v := viewBundle(r, b)
	return p.Show(cmd, v, func() error { return p.Fields(v.fields()) })
}

func writePEM(p *program, certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return cli.WithCode(cli.ExitNo, errors.New("the bundle holds no X.509 authority"))
	}
	for _, c := range certs {
		if err := pem.Encode(p.Out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	return nil
}
