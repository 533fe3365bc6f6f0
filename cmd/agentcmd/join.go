package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/evidence/kubernetes"
	"github.com/credence-id/credence/agent/evidence/oidc"
	"github.com/credence-id/credence/cmd/cli"
)

// joinFile is how the node proves itself. The comments of its fields are their
// manual.
type joinFile struct {
	Method string `yaml:"method"` // token; kubernetes; or oidc, github, gitlab, circleci, azure_devops, terraform_cloud, aws_oidc
	Rule   string `yaml:"rule"`   // the JoinRule, where the broker has several of the method

	TokenFile    string   `yaml:"token_file"`    // holds the join token, the issuer's, or the pod's (default /var/run/secrets/tokens/credence); read anew each time
	TokenEnv     string   `yaml:"token_env"`     // the issuer's: the variable that holds it
	TokenCommand []string `yaml:"token_command"` // the issuer's: what prints it
	Audience     string   `yaml:"audience"`      // asked for, where the issuer lets one choose; default credence://TRUST DOMAIN/join
}

const tokenMethod = "token"

// kubernetesMethod is that of pods.
const kubernetesMethod = "kubernetes"

func (f *joinFile) complete(trustDomain string) error {
	switch f.Method {
	case kubernetesMethod:
		cli.SetDefault(&f.TokenFile, kubernetes.DefaultFile)
		return f.only(false)
	case tokenMethod:
		if err := f.only(f.Rule != ""); err != nil {
			return err
		}
		if f.TokenFile == "" {
			return errors.New("join.token_file: is required: a file that holds what credence token create printed")
		}
		return nil
	}
	cli.SetDefault(&f.Audience, "credence://"+trustDomain+"/join")
	if !oidc.Known(f.Method) {
		return fmt.Errorf("join.method: %q is none that this program has", f.Method)
	}
	if err := f.issuers().Check(); err != nil {
		return fmt.Errorf("join.%w", err)
	}
	return nil
}

// only refuses what is not of a method whose token is in a file.
func (f *joinFile) only(rule bool) error {
	for _, other := range []struct {
		field string
		set   bool
	}{{"rule", rule}, {"token_env", f.TokenEnv != ""}, {"token_command", f.TokenCommand != nil}, {"audience", f.Audience != ""}} {
		if other.set {
			return fmt.Errorf("join.%s: is not of join method %s", other.field, f.Method)
		}
	}
	return nil
}

// issuers are where an issuer's token is.
func (f *joinFile) issuers() oidc.Config {
	return oidc.Config{Method: f.Method, Audience: f.Audience, File: f.TokenFile, Env: f.TokenEnv, Command: f.TokenCommand}
}

// join is how the agent proves itself. evidence, if it is not nil, stands for
// what the file says.
func (f *joinFile) join(evidence func(context.Context) ([]byte, error)) agent.Join {
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
	default:
		j.Evidence = f.issuers().Evidence
	}
	return j
}
