package agentcmd

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent/evidence/boundkeypair"
	"github.com/credence-id/credence/agent/evidence/tpm"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *verbs) keyCommand() *cobra.Command {
	create := &cobra.Command{
		Use: "create FILE", Short: "Make this machine's key, and print the JoinRule that registers it", Args: cobra.ExactArgs(1),
		Long: `Create makes the key by which this machine joins by method bound_keypair, in a file
that nobody else may read, and prints the JoinRule that lets it in: an operator applies
that, or adds its line below keys to a rule that has other nodes'. The key itself stays
here. Where the file has a key already it stays as it is, and its rule is printed again.

With --tpm the machine's TPM makes the key and never gives it out: the file, which OpenSSL's
provider tpm2 reads too, is of use to that TPM alone, until it is cleared. Who may use the
TPM: ` + p.name + ` tpm --help.`,
		Example: `  ` + p.name + ` key create node.key --node build-7 > rule.yaml   # on the node
  credence validate rule.yaml   # the operator: and apply -f it`,
		RunE: p.createKey,
	}
	create.Flags().String("node", "", "name of the node (node.name); default the machine's")
	create.Flags().Bool("tpm", false, "have the machine's TPM make and keep the key")
	create.Flags().String("device", "", "with --tpm: its device, or the socket of one in software (default "+tpm.Device+")")
	return cli.Group("key", "This machine's key", cli.AddOutput(create, "rule"))
}

type keyView struct {
	Node      string `json:"node"`
	File      string `json:"file"`
	Made      bool   `json:"made"` // just now
	PublicKey string `json:"public_key"`
	KeyDigest string `json:"key_digest"` // node.bound_keypair.key_digest

	tpm    bool   // it is asked to have the key
	device string // its, if not the default
}

// nodeName is what a node, and the rule that has its name, may be called.
var nodeName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

func (p *verbs) createKey(cmd *cobra.Command, args []string) error {
	v := keyView{File: cli.Absolute(args[0])}
	if v.Node, _ = cmd.Flags().GetString("node"); v.Node == "" {
		host, _ := os.Hostname() // else it is asked for below
		v.Node = strings.ToLower(host)
	}
	if !nodeName.MatchString(v.Node) {
		return cli.BadInput(fmt.Errorf("--node: %.80q: 1 to 63 of a-z, 0-9, - and . are wanted, the first a letter or digit", v.Node))
	}
	v.tpm, _ = cmd.Flags().GetBool("tpm")
	v.device, _ = cmd.Flags().GetString("device")
	if v.device != "" && !v.tpm {
		return cli.BadInput(errors.New("--device: is of --tpm"))
	}
	if v.device != "" {
		v.device = cli.Absolute(v.device)
	}
	key, err := v.key()
	switch {
	case errors.Is(err, tpm.ErrAbsent):
		return cli.WithCode(cli.ExitNo, err)
	case v.tpm && errors.Is(err, fs.ErrPermission):
		return cli.WithCode(cli.ExitDenied, fmt.Errorf("%w: become root, or a member of the device's group", err))
	case err != nil:
		return cli.BadInput(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	v.PublicKey = base64.StdEncoding.EncodeToString(der)
	if v.KeyDigest, err = boundkeypair.Digest(key); err != nil {
		return err
	}
	if !v.Made {
		fmt.Fprintf(p.Err, "%s has a key already: this is its rule\n", v.File)
	}
	return p.Show(cmd, v, func() error {
		if cli.OutputOf(cmd) == "table" {
			return p.Fields([][2]string{{"node", v.Node}, {"file", v.File}, {"public key", v.PublicKey}, {"digest", v.KeyDigest}})
		}
		at := fmt.Sprintf("%q", v.File)
		if v.device != "" {
			at += fmt.Sprintf(", device: %q", v.device)
		}
		_, err := fmt.Fprintf(p.Out, ruleTemplate, v.Node, v.Node, at, v.Node, v.Node, v.PublicKey, v.Node)
		return err
	})
}

// key makes the file's, unless it has one.
func (v *keyView) key() (crypto.PublicKey, error) {
	_, err := os.Lstat(v.File)
	if err == nil {
		f := boundkeypair.File{Path: v.File, Device: v.device}
		if v.tpm {
			return f.Held()
		}
		return f.Public()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	v.Made = true
	if v.tpm {
		return boundkeypair.CreateTPMKey(v.File, v.device)
	}
	return boundkeypair.CreateKey(v.File)
}

const ruleTemplate = `# Lets node %s in by its key: credence apply -f FILE, or add the line below keys to a
# rule that has other nodes'. In that machine's agent.yaml:
#   join: {method: bound_keypair, rule: %s, key: %s}
kind: JoinRule
name: %q
bound_keypair:
  keys:
    %q: %s
  recovery: {limit: 1}   # how often it may join without the state of its last join; mode: relaxed is any number
allow: [{node.bound_keypair.name: %q}]
`
