package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/evidence/awsec2"
	"github.com/credence-id/credence/agent/evidence/awsiam"
	"github.com/credence-id/credence/agent/evidence/azure"
	"github.com/credence-id/credence/agent/evidence/boundkeypair"
	"github.com/credence-id/credence/agent/evidence/gcp"
	"github.com/credence-id/credence/agent/evidence/kubernetes"
	"github.com/credence-id/credence/agent/evidence/oidc"
	"github.com/credence-id/credence/agent/evidence/spiffe"
	"github.com/credence-id/credence/agent/evidence/tpm"
	"github.com/credence-id/credence/agent/evidence/x509"
	"github.com/credence-id/credence/cmd/cli"
)

// joinFile is how the node proves itself. The comments of its fields are their
// manual.
type joinFile struct {
	Method string `yaml:"method"` // token; kubernetes; x509; spiffe; tpm; bound_keypair; aws_iam; aws_ec2; azure; gcp; or oidc, github, gitlab, circleci, azure_devops, terraform_cloud, aws_oidc
	Rule   string `yaml:"rule"`   // the JoinRule, where the broker has several of the method

	TokenFile    string   `yaml:"token_file"`    // holds the join token, the issuer's, or the pod's (default /var/run/secrets/tokens/credence); read anew each time
	TokenEnv     string   `yaml:"token_env"`     // the issuer's: the variable that holds it
	TokenCommand []string `yaml:"token_command"` // the issuer's: what prints it
	Audience     string   `yaml:"audience"`      // asked for, where the issuer lets one choose; default credence://TRUST DOMAIN/join. azure: the App ID URI that the JoinRule's audience is of; none: no token is shown
	ClientID     string   `yaml:"client_id"`     // azure: the managed identity's, where the machine has several
	Endpoint     string   `yaml:"endpoint"`      // azure: of instance metadata; default http://169.254.169.254
	Cert         string   `yaml:"cert"`          // x509, spiffe: the chain in PEM, leaf first; read anew each time. tpm: the endorsement key's likewise; default what the TPM holds
	Key          string   `yaml:"key"`           // x509, spiffe: its key in PEM; bound_keypair: this machine's, which credence agent key create makes
	Device       string   `yaml:"device"`        // tpm, bound_keypair with a key in the TPM: default /dev/tpmrm0; or the socket of one in software
	EK           string   `yaml:"ek"`            // tpm: rsa or ecc, which endorsement key; default the one that there is a certificate of, or rsa
	Socket       string   `yaml:"socket"`        // spiffe, instead of cert and key: another agent's Workload API, which gives this one its SVID, such as unix:///run/spire/agent.sock
}

// Methods that are none of an OpenID issuer.
const (
	tokenMethod      = "token"
	kubernetesMethod = "kubernetes"
	x509Method       = "x509"
	spiffeMethod     = "spiffe"
	tpmMethod        = "tpm"
	boundKeyMethod   = "bound_keypair"
	awsIAMMethod     = "aws_iam"
	awsEC2Method     = "aws_ec2"
	azureMethod      = "azure"
	gcpMethod        = "gcp"
)

// fields are those besides method that a method takes.
func (f *joinFile) fields() []string {
	switch f.Method {
	case tokenMethod:
		return []string{"token_file"}
	case kubernetesMethod:
		return []string{"rule", "token_file"}
	case x509Method:
		return []string{"rule", "cert", "key"}
	case spiffeMethod:
		return []string{"rule", "cert", "key", "socket"}
	case tpmMethod:
		return []string{"rule", "cert", "device", "ek"}
	case boundKeyMethod:
		return []string{"rule", "key", "device"}
	case awsIAMMethod, awsEC2Method: // what they need is AWS' SDK's and instance metadata's to find
		return []string{"rule"}
	case azureMethod:
		return []string{"rule", "audience", "client_id", "endpoint"}
	case gcpMethod:
		return []string{"rule", "audience"}
	}
	return []string{"rule", "token_file", "token_env", "token_command", "audience"}
}

func (f *joinFile) complete(trustDomain string) error {
	takes := f.fields()
	for _, given := range []struct {
		field string
		set   bool
	}{
		{"rule", f.Rule != ""}, {"token_file", f.TokenFile != ""}, {"token_env", f.TokenEnv != ""}, {"token_command", f.TokenCommand != nil},
		{"audience", f.Audience != ""}, {"client_id", f.ClientID != ""}, {"endpoint", f.Endpoint != ""}, {"cert", f.Cert != ""}, {"key", f.Key != ""}, {"device", f.Device != ""}, {"ek", f.EK != ""}, {"socket", f.Socket != ""},
	} {
		if given.set && !slices.Contains(takes, given.field) {
			return fmt.Errorf("join.%s: is not of join method %s", given.field, f.Method)
		}
	}
	switch f.Method {
	case tokenMethod:
		if f.TokenFile == "" {
			return errors.New("join.token_file: is required: a file that holds what credence token create printed")
		}
		return nil
	case kubernetesMethod:
		cli.SetDefault(&f.TokenFile, kubernetes.DefaultFile)
		return nil
	case x509Method:
		if f.Cert == "" || f.Key == "" {
			return errors.New("join.cert: cert and key are required: files that hold this machine's certificate and its key")
		}
		return nil
	case spiffeMethod:
		return f.completeSPIFFE()
	case tpmMethod:
		if err := f.tpm(trustDomain).Check(); err != nil {
			return fmt.Errorf("join.%w", err)
		}
		return nil
	case boundKeyMethod:
		if f.Key == "" {
			return errors.New("join.key: is required: a file for this machine's key, which credence agent key create makes")
		}
		return nil
	case awsIAMMethod, awsEC2Method:
		return nil
	case azureMethod:
		if u, err := url.Parse(f.Endpoint); err != nil || f.Endpoint != "" && (u.Scheme != "http" || u.Host == "") {
			return fmt.Errorf("join.endpoint: %.200q: http://HOST is wanted", f.Endpoint)
		}
		return nil
	}
	cli.SetDefault(&f.Audience, "credence://"+trustDomain+"/join")
	if f.Method == gcpMethod {
		return nil
	}
	if !oidc.Known(f.Method) {
		return fmt.Errorf("join.method: %q is none that this program has", f.Method)
	}
	if err := f.issuers().Check(); err != nil {
		return fmt.Errorf("join.%w", err)
	}
	return nil
}

// completeSPIFFE wants one place for the SVID, and makes the socket's a path.
func (f *joinFile) completeSPIFFE() (err error) {
	if files := f.Cert != "" && f.Key != ""; files == (f.Socket != "") || !files && f.Cert+f.Key != "" {
		return errors.New("join.socket: it, or cert and key, are required: where this machine's X509-SVID is")
	}
	if f.Socket == "" {
		return nil
	}
	if f.Socket, err = cli.SocketPath(f.Socket); err != nil {
		return fmt.Errorf("join.socket: %w", err)
	}
	return nil
}

// issuers are where an issuer's token is.
func (f *joinFile) issuers() oidc.Config {
	return oidc.Config{Method: f.Method, Audience: f.Audience, File: f.TokenFile, Env: f.TokenEnv, Command: f.TokenCommand}
}

// tpm is the machine's TPM.
func (f *joinFile) tpm(trustDomain string) tpm.Config {
	return tpm.Config{TrustDomain: trustDomain, Device: f.Device, EK: f.EK, Cert: f.Cert}
}

// join is how the agent, which keeps what it has in data, proves itself. evidence, if it is not nil, stands for
// what the file says.
func (f *joinFile) join(trustDomain, data string, evidence func(context.Context) ([]byte, error)) agent.Join {
	j := agent.Join{Method: f.Method, Rule: f.Rule, Evidence: evidence, File: f.TokenFile}
	switch {
	case evidence != nil:
	case f.Method == tokenMethod:
		j.Evidence = func(context.Context) ([]byte, error) {
			text, err := cli.ReadSmall(f.TokenFile)
			return []byte(strings.TrimSpace(string(text))), err
		}
	case f.Method == kubernetesMethod:
		j.Evidence, j.File = kubernetes.Config{File: f.TokenFile}.Evidence, "" // it is replaced by the kubelet, not by a person
	case f.Method == x509Method || f.Method == spiffeMethod:
		c := x509.Config{Method: f.Method, TrustDomain: trustDomain, Pair: x509.Files(f.Cert, f.Key)}
		if f.Socket != "" {
			c.Pair = spiffe.Pair(f.Socket)
		}
		n := x509.New(c)
		j.Evidence, j.AnswerFor = n.Evidence, n.Answer
	case f.Method == tpmMethod:
		n := tpm.New(f.tpm(trustDomain))
		j.Evidence, j.AnswerFor = n.Evidence, n.Answer
	case f.Method == boundKeyMethod:
		p := boundkeypair.New(boundkeypair.Config{TrustDomain: trustDomain, Key: boundkeypair.File{Path: f.Key, Device: f.Device}, StateFile: filepath.Join(data, "bound_keypair.state")})
		j.Evidence, j.AnswerFor = p.Evidence, p.AnswerFor
	case f.Method == awsIAMMethod:
		c := awsiam.Config{TrustDomain: trustDomain}
		j.Evidence, j.Answer = c.Evidence, c.Answer
	case f.Method == awsEC2Method:
		c := awsec2.Config{TrustDomain: trustDomain, KeyFile: filepath.Join(data, "aws_ec2.key"), Metadata: os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")}
		j.Evidence, j.Answer = c.Evidence, c.Answer
	case f.Method == azureMethod:
		c := azure.Config{TrustDomain: trustDomain, Audience: f.Audience, ClientID: f.ClientID, Endpoint: f.Endpoint}
		j.Evidence, j.AnswerFor = c.Evidence, c.Answer
	case f.Method == gcpMethod:
		j.Evidence = gcp.Config{Audience: f.Audience, Host: os.Getenv("GCE_METADATA_HOST")}.Evidence // the variable that Google's own programs read
	default:
		j.Evidence = f.issuers().Evidence
	}
	return j
}
