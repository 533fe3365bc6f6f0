package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "export root --out FILE", Short: "Copy the root and its key into a file, to be kept offline", Args: cobra.ExactArgs(1),
		Long: `Export writes the active root's certificate and private key as PEM into a new
file that only you can read. Whoever has that file is the trust domain: put it on
a medium that is locked away. It goes by the admin socket alone: no role may it.

With --remove the key then leaves the broker's own source, if that is a
directory. Before that, a CA of ours under the root must sign the issuing CAs:

  credence ca csr --out ca.csr
  credence ca export root --out root.pem
  openssl x509 -req -in ca.csr -CA root.pem -CAkey root.pem -days 1825 \
    -copy_extensions copyall -out ca.pem      # where root.pem may be
  cat ca.pem root-certificate.pem > chain.pem # credence bundle show -o pem has it
  credence ca install chain.pem
  credence ca export root --out root.pem --remove

That is also the ceremony back: when the CA is to be replaced, ca csr, OpenSSL
with root.pem, ca install. The key is needed for nothing else, but for a CRL
that names the CA itself.`,
		Example:   "  credence ca export root --out root.pem && rm root.pem",
		ValidArgs: []string{"root"},
		RunE: func(cmd *cobra.Command, args []string) error {
			out, _ := cmd.Flags().GetString("out")
			if args[0] != "root" || out == "" {
				return cli.BadInput(errors.New("credence ca export root --out FILE: the root is all that can be exported"))
			}
			remove, _ := cmd.Flags().GetBool("remove")
			return authoritiesClient(cmd, func(ctx context.Context, c api.AuthoritiesClient) error { return p.exportRoot(ctx, c, out, remove) })
		},
	}
	cmd.Flags().String("out", "", "the file to make; it must not exist")
	cmd.Flags().Bool("remove", false, "then take the key out of the broker's key source")
	return addAdmin(cmd)
}

func (p *program) exportRoot(ctx context.Context, c api.AuthoritiesClient, out string, remove bool) error {
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		return cli.BadInput(fmt.Errorf("%s is there already: an exported root is written into a new file", out))
	}
	r, err := c.ExportRoot(ctx, &api.ExportRootRequest{})
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.GetCertificate()}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: r.GetKey()})...)
	if err := writeNew(out, text); err != nil {
		return cli.BadInput(err)
	}
	fmt.Fprintf(p.Out, "root %s and its key are in %s: whoever has that file is the trust domain\n", r.GetRoot().GetId(), out)
	if !remove {
		return nil
	}
	if _, err := c.RemoveRootKey(ctx, &api.RemoveRootKeyRequest{Id: r.GetRoot().GetId()}); err != nil {
		return err
	}
	fmt.Fprintln(p.Out, "the broker has the key no more")
	return nil
}

// writeNew makes a file that only its owner can read, on the disk whole, and
// reads it back.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	if back, err := os.ReadFile(path); err != nil || !bytes.Equal(back, text) {
		return errors.Join(fmt.Errorf("%s does not hold what was written into it", path), err)
	}
	return nil
}
