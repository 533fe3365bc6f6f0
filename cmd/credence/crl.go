package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

// crlView is a CRL, as -o json has it.
type crlView struct {
	Issuer     string         `json:"issuer"`  // key ID
	Subject    string         `json:"subject"` // of the issuer
	Number     string         `json:"number"`  // decimal
	ThisUpdate cli.Moment     `json:"this_update"`
	NextUpdate cli.Moment     `json:"next_update"`
	Revoked    []crlEntryView `json:"revoked"`
	DER        []byte         `json:"der"`
}

type crlEntryView struct {
	Serial    string     `json:"serial"` // hex, as audit query has it
	RevokedAt cli.Moment `json:"revoked_at"`
}

func viewCRL(l *api.ListCRLsResponse_List) (crlView, error) {
	list, err := x509.ParseRevocationList(l.GetCrl().GetDer())
	if err != nil {
		return crlView{}, fmt.Errorf("reading the CRL of %s: %w", l.GetIssuer(), err)
	}
	v := crlView{
		Issuer: l.GetIssuer(), Subject: list.Issuer.String(), Number: list.Number.String(), Revoked: []crlEntryView{},
		ThisUpdate: cli.Moment(list.ThisUpdate.Unix()), NextUpdate: cli.Moment(list.NextUpdate.Unix()), DER: list.Raw,
	}
	for _, e := range list.RevokedCertificateEntries {
		v.Revoked = append(v.Revoked, crlEntryView{fmt.Sprintf("%032x", e.SerialNumber), cli.Moment(e.RevocationTime.Unix())})
	}
	return v, nil
}

// maxEntries is how many entries a table shows.
const maxEntries = 100

func (p *program) crlCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "crl", Short: "Show or write the CRLs of our CAs", Args: cobra.NoArgs,
		Long: `Crl asks the broker for the certificate revocation lists of its CAs: which serial
numbers each holds, and until when it is good. The broker makes each anew at half
of its life, and at once when something is revoked; its listeners web and spiffe
serve them at /crl/KEY.crl, and agents hand them to workloads.

With --out it writes KEY.crl (DER) and KEY.pem of each into a directory, for
what takes CRLs by hand.`,
		Example: "  credence ca crl\n  credence ca crl --out crl -o json",
		RunE:    p.crls,
	}
	cmd.Flags().String("out", "", "directory to write them into")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) crls(cmd *cobra.Command, _ []string) error {
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		r, err := api.NewAuthoritiesClient(conn).ListCRLs(ctx, &api.ListCRLsRequest{})
		if err != nil {
			return err
		}
		views, rows, entries, left := []crlView{}, [][]string{}, [][]string{}, 0
		for _, l := range r.GetLists() {
			v, err := viewCRL(l)
			if err != nil {
				return err
			}
			views = append(views, v)
			rows = append(rows, []string{v.Issuer, v.Subject, v.Number, cli.When(int64(v.ThisUpdate)), cli.When(int64(v.NextUpdate)), fmt.Sprint(len(v.Revoked))})
			for _, e := range v.Revoked {
				if len(entries) == maxEntries {
					left++
					continue
				}
				entries = append(entries, []string{e.Serial, cli.When(int64(e.RevokedAt)), v.Issuer})
			}
		}
		if dir, _ := cmd.Flags().GetString("out"); dir != "" {
			if err := writeCRLs(dir, views); err != nil {
				return cli.BadInput(err)
			}
		}
		return p.Show(cmd, views, func() error {
			if err := p.Table("KEY|ISSUER|NUMBER|FROM|UNTIL|REVOKED", rows); err != nil || len(entries) == 0 {
				return err
			}
			fmt.Fprintln(p.Out)
			if err := p.Table("SERIAL|REVOKED|KEY", entries); err != nil {
				return err
			}
			if left > 0 {
				fmt.Fprintf(p.Err, "%d more: -o json has all\n", left)
			}
			return nil
		})
	})
}

// writeCRLs writes each in both forms. Who reads one meanwhile reads it whole.
func writeCRLs(dir string, all []crlView) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	for _, v := range all {
		if v.Issuer == "" || strings.Trim(v.Issuer, "0123456789abcdef") != "" {
			return fmt.Errorf("the broker names a key %.80q: that is no name of a file", v.Issuer)
		}
		for suffix, text := range map[string][]byte{".crl": v.DER, ".pem": pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: v.DER})} {
			if err := renameio.WriteFile(filepath.Join(dir, v.Issuer+suffix), text, 0o644); err != nil {
				return fmt.Errorf("--out: %w", err)
			}
		}
	}
	return nil
}
