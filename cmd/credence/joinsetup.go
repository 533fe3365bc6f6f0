package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
)

func (p *program) joinCommand() *cobra.Command {
	var f ciFlags
	setup := &cobra.Command{
		Use: "setup SYSTEM", Short: "Write what lets the jobs of a CI system join, and a job that does", Args: cobra.ExactArgs(1),
		ValidArgs: ciNames(),
		Long: `Setup writes three files, with the trust domain, address and pins of the broker as
they are now: policy.yaml, a JoinRule that lets in the jobs that the flags name, and
an Identity for them; credence-agent.yaml, which belongs into the repository and
holds no secret; and a job that runs an agent for one command. It asks the broker
alone and changes nothing. Systems, and what tells their jobs apart:

  github           --repository OWNER/NAME, and --environment, --ref (refs/heads/main)
  gitlab           --project GROUP/NAME, and --environment, --ref (main)
  circleci         --organization ID --project ID, the UUIDs of both
  azure_devops     --organization ID, its UUID, --project ORGANIZATION/PROJECT/PIPELINE
  terraform_cloud  --organization NAME --project WORKSPACE
  aws_oidc         --issuer URL, of the account's outbound web identity federation,
                   --role ARN

With --target the job runs its command with credentials of those targets; without,
it fetches an X509-SVID. --host names a server of your own (github, gitlab,
terraform_cloud).`,
		Example: `  credence join setup github --repository acme/checkout --target aws-web-identity,gcp
  credence join setup gitlab --project acme/checkout --out ./setup
  credence apply -f ./setup/policy.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.joinSetup(cmd, args[0], f) },
	}
	for _, v := range []struct {
		to         *string
		name, text string
	}{
		{&f.Repository, "repository", "github: OWNER/NAME"},
		{&f.Project, "project", "the project, pipeline or workspace"},
		{&f.Organization, "organization", "the organization"},
		{&f.Environment, "environment", "github, gitlab: jobs of this environment alone"},
		{&f.Ref, "ref", "github, gitlab: jobs of this ref alone"},
		{&f.Host, "host", "a server of your own"},
		{&f.Issuer, "issuer", "aws_oidc: the account's issuer"},
		{&f.Role, "role", "aws_oidc: ARN of the jobs' role"},
		{&f.Name, "name", "of JoinRule and Identity (default: by the project's)"},
		{&f.Broker, "address", "host:port by which jobs reach the broker (default: its own word)"},
		{&f.Out, "out", "directory to write the files to (default: standard output)"},
	} {
		setup.Flags().StringVar(v.to, v.name, "", v.text)
	}
	setup.Flags().StringSliceVar(&f.Targets, "target", nil, "targets of the job's command")
	completeFlag(setup, "target", completeNamed("Target"))
	return cli.Group("join", "Nodes that join without a token", addAdmin(setup))
}

// ciFlags say whose jobs are meant.
type ciFlags struct {
	Repository, Project, Organization, Environment, Ref, Host, Issuer, Role, Name, Broker, Out string
	Targets                                                                                    []string
}

func (p *program) joinSetup(cmd *cobra.Command, system string, f ciFlags) error {
	ci, ok := ciSystems[system]
	if !ok {
		return cli.BadInput(fmt.Errorf("%q: setup knows %s", system, strings.Join(ciNames(), ", ")))
	}
	if err := ci.check(f); err != nil {
		return cli.BadInput(err)
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		at, err := whereToJoin(ctx, c, f.Broker)
		if err != nil {
			return err
		}
		files, err := ci.files(system, f, at)
		if err != nil {
			return cli.BadInput(err)
		}
		if f.Out == "" {
			for i, file := range files {
				if i > 0 {
					fmt.Fprintln(p.Out, "---")
				}
				fmt.Fprintf(p.Out, "# %s\n%s", file.path, file.text)
			}
			return nil
		}
		for _, file := range files { // a repository may have a job of its own there
			if path := filepath.Join(f.Out, file.path); !isAbsent(path) {
				return cli.BadInput(fmt.Errorf("%s is there already: give another --out, and take over what you want of it", path))
			}
		}
		for _, file := range files {
			path := filepath.Join(f.Out, file.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return cli.BadInput(err)
			}
			if err := os.WriteFile(path, []byte(file.text), 0o644); err != nil {
				return cli.BadInput(err)
			}
			fmt.Fprintln(p.Err, "written:", path)
		}
		return nil
	})
}

func isAbsent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// meeting is where agents meet a broker, and how they know it.
type meeting struct {
	TrustDomain, Broker string
	Pins                []string
	note                string // what a person has to see to
}

func (m meeting) audience() string { return "credence://" + m.TrustDomain + "/join" }

// whereToJoin asks the broker. at is by which address jobs reach it; empty: its own.
func whereToJoin(ctx context.Context, c api.AdminClient, at string) (meeting, error) {
	status, err := c.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return meeting{}, err
	}
	shown, err := c.ShowBundle(ctx, &api.ShowBundleRequest{})
	if err != nil {
		return meeting{}, err
	}
	td, err := federation.ParseTrustDomain(status.GetTrustDomain())
	if err != nil {
		return meeting{}, err
	}
	bundle, err := federation.ParseBundle(td, shown.GetDocument())
	if err != nil {
		return meeting{}, err
	}
	m := meeting{TrustDomain: td.Name(), Broker: at}
	if at == "" {
		m.Broker = status.GetListen()["agents"]
	}
	host, port, err := net.SplitHostPort(m.Broker)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || !ciHost.MatchString(host) {
		return meeting{}, cli.BadInput(fmt.Errorf("--address: %.80q: host:port is wanted", m.Broker))
	}
	if ip := net.ParseIP(host); ip != nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		m.note = "# Jobs elsewhere do not reach " + m.Broker + ": set listen.agents in broker.yaml, and give --address.\n"
	}
	for _, ca := range bundle.X509Authorities() {
		if pin := federation.Fingerprint(ca); !slices.Contains(m.Pins, pin) {
			m.Pins = append(m.Pins, pin)
		}
	}
	if len(m.Pins) == 0 {
		return meeting{}, errors.New("the broker's bundle has no root to pin")
	}
	return m, nil
}
