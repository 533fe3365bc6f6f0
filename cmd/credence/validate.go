package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers/sandbox/clouds"
)

func (p *program) validateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "validate FILE...", Short: "Check resources, broker.yaml, agent.yaml or sandbox.yaml, offline",
		Long: `Validate reads files as the broker, the agent or the sandbox would, tells which of
them a file is by its keys, and holds them against each other: resources against what
broker.yaml permits, names against each other. It asks nobody; peers and targets
that are not in the files are taken as known. A mistake is told with its file,
line and field (2). What is permitted and seldom meant is a warning, as with plan
and apply, which know besides which nodes stand and who may become one.`,
		Example: `  credence broker init --trust-domain example.org > broker.yaml
  credence validate broker.yaml`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: p.validate,
	}
	return cli.AddOutput(cmd)
}

// fileView is what a valid file is.
type fileView struct {
	File      string `json:"file"`
	Kind      string `json:"kind"` // resources, broker, agent, sandbox
	Resources int    `json:"resources"`
}

// A validFile is one file that holds by itself.
type validFile struct {
	view   fileView
	all    []resource.Resource
	broker *brokerFile
}

func (p *program) validate(cmd *cobra.Command, args []string) error {
	var all []resource.Resource
	var broker validFile
	views, seen := []fileView{}, make(seenNames)
	for _, file := range args {
		f, err := p.validateOne(file)
		if err == nil {
			err = seen.add(file, f.all)
		}
		if err != nil {
			return cli.BadInput(err)
		}
		if f.broker != nil {
			if broker.broker != nil {
				return cli.BadInput(fmt.Errorf("%s: %s is a broker.yaml too: resources can be held against one at a time", file, broker.view.File))
			}
			broker = f
		}
		all, views = append(all, f.all...), append(views, f.view)
	}
	set, err := compile(all, broker)
	if err != nil {
		return cli.BadInput(resource.Locate(err, all))
	}
	warnings := []string{}
	for _, w := range set.Lint(identity.Scope{}) {
		warnings = append(warnings, locateWarning(w, all))
		fmt.Fprintln(p.Err, "warning:", warnings[len(warnings)-1])
	}
	v := map[string]any{"valid": true, "files": views, "warnings": warnings}
	return p.Show(cmd, v, func() error {
		_, err := fmt.Fprintln(p.Out, "valid:", strings.Join(args, ", "))
		return err
	})
}

// locateWarning puts a lint at its place in a file.
func locateWarning(w identity.Warning, all []resource.Resource) string {
	i := slices.IndexFunc(all, func(r resource.Resource) bool { return r.Kind == w.Kind && r.Name == w.Name })
	if i < 0 {
		return w.String()
	}
	return all[i].At(w.Field, w.Msg).Error() + " [" + w.Lint + "]"
}

// validateOne tells what a file is by its first keys.
func (p *program) validateOne(file string) (validFile, error) {
	text, err := cli.ReadUpTo(file, resource.MaxBytes+1)
	if err != nil {
		return validFile{}, err
	}
	switch {
	case hasKey(text, "kind"):
		all, err := parseFile(file, text)
		return validFile{fileView{file, "resources", len(all)}, all, nil}, err
	case hasKey(text, "broker") || hasKey(text, "join"):
		var f agentcmd.File
		if err := cli.ParseFile(file, text, &f); err != nil {
			return validFile{}, err
		}
		return validFile{view: fileView{File: file, Kind: "agent"}}, cli.InFile(file, f.Complete())
	}
	if slices.ContainsFunc([]string{"aws", "gcp", "azure", "oauth", "vault", "issuers", "setup"}, func(key string) bool { return hasKey(text, key) }) {
		var f clouds.Config
		if err := cli.ParseFile(file, text, &f); err != nil {
			return validFile{}, err
		}
		return validFile{view: fileView{File: file, Kind: "sandbox"}}, cli.InFile(file, f.Check())
	}
	var f brokerFile
	if err := cli.ParseFile(file, text, &f); err != nil {
		return validFile{}, err
	}
	return validFile{view: fileView{File: file, Kind: "broker"}, broker: &f}, cli.InFile(file, f.complete())
}

func hasKey(text []byte, key string) bool {
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, key+":") {
			return true
		}
	}
	return false
}

// compile holds resources against each other, and against broker.yaml if it is
// among the files, as the broker would. What they name may stand in the broker
// already: peers and targets that are not in the files are taken as there;
// without broker.yaml, any DNS name and subject may be asked for.
func compile(all []resource.Resource, with validFile) (*identity.Set, error) {
	config := identity.Config{JWT: true, AnyDNSName: true, Subjects: []string{"CN=*", "O=**", "OU=**", "C=**", "L=**", "ST=**", "STREET=**", "UID=**"}}
	var set identity.Resources
	peers, targets := map[string]bool{}, map[string]bool{}
	for _, r := range all {
		switch {
		case r.Identity != nil:
			set.Identities = append(set.Identities, *r.Identity)
			for _, name := range r.Identity.FederatesWith {
				peers[name] = true
			}
			for _, name := range r.Identity.Targets {
				targets[name] = true
			}
		case r.Deny != nil:
			set.Denies = append(set.Denies, *r.Deny)
		}
	}
	for name := range peers {
		set.Peers = append(set.Peers, name)
	}
	for name := range targets {
		set.Targets = append(set.Targets, targetOf(all, name))
	}
	td, err := trustDomainOf(all)
	if err != nil {
		return nil, err
	}
	config.TrustDomain = td
	if broker := with.broker; broker != nil {
		if err := needIssuer(all, with); err != nil {
			return nil, err
		}
		config.AnyDNSName, config.DNSSuffixes, config.Subjects, config.JWT = false, broker.DNSSuffixes, broker.Subjects, broker.Issuer != ""
		if config.TrustDomain, err = identity.ParseTrustDomain(broker.TrustDomain); err != nil {
			return nil, err
		}
	}
	return identity.NewSet(config, set)
}

// targetOf is a target as far as the files tell: one that stands in none takes
// any audience.
func targetOf(all []resource.Resource, name string) identity.Target {
	for _, r := range all {
		if r.Target != nil && r.Name == name {
			return resource.PolicyTarget(*r.Target, 0)
		}
	}
	return identity.Target{Name: name, Audience: "any"}
}

// needIssuer refuses what would never get a JWT-SVID.
func needIssuer(all []resource.Resource, with validFile) error {
	if with.broker.Issuer != "" {
		return nil
	}
	for _, r := range all {
		switch {
		case r.Identity != nil && r.Identity.JWT != nil:
			return r.At("jwt", with.view.File+" has no issuer, and without one there is no JWT-SVID: set issuer there, or leave jwt out here")
		case r.Target != nil && r.Target.Settings.Audience() != "":
			return r.At(r.Target.Flow, with.view.File+" has no issuer, and this cloud takes a JWT-SVID: set issuer there, or use aws_roles_anywhere or oauth's vault_cert, which take an X509-SVID")
		}
	}
	return nil
}
