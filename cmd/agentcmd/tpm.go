package agentcmd

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent/evidence/tpm"
	"github.com/credence-id/credence/cmd/cli"
)

// tpmView is a TPM as an operator registers it.
type tpmView struct {
	Node        string           `json:"node"`
	Key         string           `json:"key"` // rsa or ecc
	EKHash      string           `json:"ek_hash"`
	Certificate *certificateView `json:"certificate"` // null: it shows none
	Passed      string           `json:"passed"`      // why one that the TPM holds is not shown
}

type certificateView struct {
	Subject string     `json:"subject"`
	Issuer  string     `json:"issuer"`
	CAURLs  []string   `json:"ca_urls"` // where its issuer's certificate is found
	Ends    cli.Moment `json:"ends"`
}

// nodeNames are what a JoinRule registers machines by.
var nodeNames = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)

func (p *verbs) tpmCommand() *cobra.Command {
	var c tpm.Config
	var node string
	cmd := &cobra.Command{
		Use: "tpm", Short: "This machine's TPM, and the JoinRule that lets it join", Args: cobra.NoArgs,
		Long: `Tpm asks the TPM of this machine for its endorsement key, and prints a JoinRule that
registers it (of several machines, put all into one ek_hashes), with what its maker's
certificate says: machines with one join without being registered, by the CA that
issued it in the rule's roots. It needs no agent and no broker. The TPM's device is
root's and the group tss's: run it as root, or a member; the agent's user has to be
one too (with systemd, SupplementaryGroups=tss and DeviceAllow=/dev/tpmrm0 rw).
Making an RSA key takes some TPMs seconds. It exits 1 where there is no TPM.`,
		Example: `  # where there is a TPM; an operator applies the file
  [ ! -w /dev/tpmrm0 ] || ` + p.name + ` tpm --node rack-7 > racks.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Check(); err != nil {
				return cli.BadInput(err)
			}
			if node == "" {
				host, err := os.Hostname()
				if err != nil {
					return err
				}
				node, _, _ = strings.Cut(host, ".")
			}
			if !nodeNames.MatchString(node) || strings.Trim(node, ".") == "" {
				return cli.BadInput(fmt.Errorf("--node %.64q: 1 to 63 of A-Z, a-z, 0-9, dots, dashes and underscores are wanted", node))
			}
			found, err := tpm.New(c).Find(cmd.Context())
			switch {
			case errors.Is(err, tpm.ErrAbsent):
				return cli.WithCode(cli.ExitNo, err)
			case errors.Is(err, fs.ErrPermission):
				return cli.WithCode(cli.ExitDenied, fmt.Errorf("%w: become root, or a member of the device's group", err))
			case err != nil:
				return err
			}
			return p.showTPM(cmd, node, found)
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "the name it is to have (default the host's)")
	cmd.Flags().StringVar(&c.Device, "device", "", "the TPM's device, or the socket of one in software (default "+tpm.Device+")")
	cmd.Flags().StringVar(&c.EK, "ek", "", "rsa or ecc, which endorsement key (default as join.ek in agent.yaml)")
	cmd.Flags().StringVar(&c.Cert, "cert", "", "a PEM file with its certificate (default what the TPM holds)")
	cli.CompleteFiles(cmd, "cert", "pem", "crt")
	return cli.AddOutput(cmd, "rule")
}

func (p *verbs) showTPM(cmd *cobra.Command, node string, found tpm.Found) error {
	v := tpmView{Node: node, Key: found.Kind, EKHash: found.Hash, Passed: found.Passed}
	certificate := "none that it shows"
	switch {
	case len(found.Chain) > 0:
		v.Certificate = viewCertificate(found.Chain[0])
		certificate = fmt.Sprintf("issued by %s, until %s", v.Certificate.Issuer, found.Chain[0].NotAfter.UTC().Format("2006-01-02"))
	case found.Passed != "":
		certificate += ": " + found.Passed
	}
	return p.Show(cmd, v, func() error {
		if cli.OutputOf(cmd) == "table" {
			rows := [][2]string{{"NODE", node}, {"KEY", v.Key}, {"EK HASH", v.EKHash}, {"CERTIFICATE", certificate}}
			if c := v.Certificate; c != nil {
				rows = append(rows, [2]string{"SUBJECT", c.Subject}, [2]string{"CA AT", strings.Join(c.CAURLs, " ")})
			}
			return p.Fields(rows)
		}
		_, err := fmt.Fprintf(p.Out, "# The TPM of %s, endorsement key of kind %s.\n# Its certificate: %s.\n", node, v.Key, oneLine(certificate))
		if err == nil && v.Certificate != nil {
			for _, url := range v.Certificate.CAURLs {
				fmt.Fprintf(p.Out, "# Its CA's: %s\n", oneLine(url))
			}
		}
		if err == nil {
			_, err = fmt.Fprintf(p.Out, "kind: JoinRule\nname: tpm\ntpm:\n  ek_hashes:\n    %q: %s\nallow: [{node.tpm.registered: \"true\"}]\n", node, v.EKHash)
		}
		return err
	})
}

func viewCertificate(c *x509.Certificate) *certificateView {
	return &certificateView{
		Subject: c.Subject.String(), Issuer: c.Issuer.String(), CAURLs: append([]string{}, c.IssuingCertificateURL...), Ends: cli.Moment(c.NotAfter.Unix()),
	}
}

// oneLine keeps what a certificate says in its comment.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, text)
}
