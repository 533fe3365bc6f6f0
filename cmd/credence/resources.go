package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource"
)

func (p *program) applyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Make the broker hold the resources of a file, all or none",
		Example: `  credence apply -f identities.yaml
  credence apply -f - <<EOF
  kind: Deny
  name: incident-1
  match: [{node.name: build-7}]
  EOF`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.apply(cmd, false) },
	}
	return applyFlags(cmd)
}

func (p *program) planCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "plan -f FILE|DIR|-", Short: "Say what apply would change", Args: cobra.NoArgs,
		Example: "  credence plan -f identities.yaml",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.apply(cmd, true) },
	}
	return applyFlags(cmd)
}

func applyFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringArrayP("file", "f", nil, "a YAML file, a directory of *.yaml, or - for standard input; may be repeated")
	cmd.Flags().String("owner", "default", "whose resources these are: apply touches no other's")
	return addOutput(addAdmin(cmd), "table", "json")
}

// readResources parses all files that -f names, and reads the bundle files of
// peers in their place.
func (p *program) readResources(names []string) ([]resource.Resource, error) {
	if len(names) == 0 {
		return nil, input(errors.New("-f FILE, DIR or - is wanted"))
	}
	var all []resource.Resource
	seen := make(seenNames)
	for _, name := range names {
		files, err := expand(name)
		if err != nil {
			return nil, input(err)
		}
		for _, file := range files {
			parsed, err := p.readOne(file)
			if err != nil {
				return nil, input(err)
			}
			if err := seen.add(file, parsed); err != nil {
				return nil, input(err)
			}
			all = append(all, parsed...)
		}
	}
	return all, nil
}

// seenNames tells in which file each kind and name stands.
type seenNames map[string]string

func (s seenNames) add(file string, parsed []resource.Resource) error {
	for _, r := range parsed {
		key := r.Kind + " " + r.Name
		if first, twice := s[key]; twice {
			return r.At("name", "it stands in "+first+" too: a name is used once per kind")
		}
		s[key] = file
	}
	return nil
}

func expand(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}, err
	}
	var files []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, ".yml")) {
			files = append(files, path)
		}
		return err
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: there is no *.yaml in it", name)
	}
	return files, err
}

func (p *program) readOne(file string) ([]resource.Resource, error) {
	in := p.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, resource.MaxBytes+1))
	if err != nil {
		return nil, err
	}
	parsed, err := registry().Parse(file, text)
	if err != nil {
		return nil, err
	}
	for i := range parsed {
		err := parsed[i].ReadBundle(func(name string) ([]byte, error) {
			if !filepath.IsAbs(name) && file != "-" {
				name = filepath.Join(filepath.Dir(file), name)
			}
			return readSmall(name)
		})
		if err != nil {
			return nil, err
		}
	}
	return parsed, nil
}

func documentsOf(all []resource.Resource) ([]byte, error) {
	var text []byte
	for _, r := range all {
		body, err := r.YAML()
		if err != nil {
			return nil, err
		}
		text = append(append(text, "---\n"...), body...)
	}
	return text, nil
}

func (p *program) apply(cmd *cobra.Command, dry bool) error {
	names, _ := cmd.Flags().GetStringArray("file")
	owner, _ := cmd.Flags().GetString("owner")
	all, err := p.readResources(names)
	if err != nil {
		return err
	}
	text, err := documentsOf(all)
	if err != nil {
		return input(err)
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.Apply(ctx, &api.ApplyRequest{Yaml: text, Owner: owner, File: "apply", DryRun: dry})
		if status.Code(err) == codes.InvalidArgument {
			return coded{exitInput, errors.New(place(status.Convert(err).Message(), all))}
		}
		if err != nil {
			return err
		}
		if outputOf(cmd) == "json" {
			return writeJSON(p.out, r)
		}
		for _, a := range r.GetApplied() {
			fmt.Fprintf(p.out, "%s %s %s\n", a.GetKind(), a.GetName(), planned(a.GetAction(), dry))
			if dry && a.GetAction() == "changed" {
				fmt.Fprint(p.out, difference(string(a.GetBefore()), string(a.GetAfter())))
			}
		}
		for _, w := range r.GetWarnings() {
			fmt.Fprintln(p.err, "warning:", w)
		}
		return nil
	})
}

// place puts the file and line of the resource that a refusal names before it.
func place(message string, all []resource.Resource) string {
	for _, r := range all {
		if name := r.Kind + " " + r.Name + ": "; strings.Contains(message, name) {
			_, rest, _ := strings.Cut(message, name)
			field, msg, ok := strings.Cut(rest, ": ")
			if !ok {
				field, msg = "", rest
			}
			return r.At(field, msg).Error()
		}
	}
	return message
}

func planned(action string, dry bool) string {
	if !dry {
		return action
	}
	return map[string]string{"created": "would be created", "changed": "would change", "unchanged": "stays"}[action]
}

// difference is the lines that go and come, each document being short.
func difference(before, after string) string {
	old, next := strings.Split(strings.TrimSpace(before), "\n"), strings.Split(strings.TrimSpace(after), "\n")
	var b strings.Builder
	for _, l := range old {
		if !slices.Contains(next, l) {
			fmt.Fprintln(&b, "  -", l)
		}
	}
	for _, l := range next {
		if !slices.Contains(old, l) {
			fmt.Fprintln(&b, "  +", l)
		}
	}
	return b.String()
}

func (p *program) getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get [KIND [NAME]]", Short: "Show resources; -o yaml gives back what apply takes",
		Example: "  credence get identity\n  credence get identity checkout -o yaml",
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &api.GetRequest{}
			if len(args) > 0 {
				kind, err := kindOf(args[0])
				if err != nil {
					return err
				}
				request.Kind = kind
			}
			if len(args) > 1 {
				request.Name = args[1]
			}
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Get(ctx, request)
				if err != nil {
					return err
				}
				if len(args) > 1 && len(r.GetResources()) == 0 {
					return coded{exitNo, fmt.Errorf("there is no %s %s", request.GetKind(), args[1])}
				}
				return p.writeResources(outputOf(cmd), r.GetResources())
			})
		},
	}
	return addOutput(addAdmin(cmd), "table", "yaml", "json")
}

func kindOf(text string) (string, error) {
	for _, k := range resource.Kinds {
		if strings.EqualFold(k, text) || strings.EqualFold(k+"s", text) || (k == "Identity" && strings.EqualFold(text, "identities")) || (k == "Deny" && strings.EqualFold(text, "denies")) {
			return k, nil
		}
	}
	return "", input(fmt.Errorf("kind %q is none of %s", text, strings.Join(resource.Kinds, ", ")))
}

func (p *program) writeResources(form string, all []*api.Resource) error {
	switch form {
	case "yaml":
		for _, r := range all {
			fmt.Fprintf(p.out, "---\n%s", r.GetYaml())
		}
		return nil
	case "json":
		return writeJSON(p.out, all)
	}
	var rows [][]string
	for _, r := range all {
		rows = append(rows, []string{r.GetKind(), r.GetName(), fmt.Sprint(r.GetRevision()), r.GetOwner(), r.GetActor(), when(r.GetWrittenAt())})
	}
	return table(p.out, "KIND|NAME|REVISION|OWNER|WRITTEN BY|AT", rows)
}

func (p *program) deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete KIND NAME", Short: "Remove one resource", Args: cobra.ExactArgs(2),
		Example: "  credence delete deny incident-1",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			owner, _ := cmd.Flags().GetString("owner")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				if _, err := c.Delete(ctx, &api.DeleteRequest{Kind: kind, Name: args[1], Owner: owner}); err != nil {
					return err
				}
				fmt.Fprintf(p.out, "%s %s deleted\n", kind, args[1])
				return nil
			})
		},
	}
	cmd.Flags().String("owner", "default", "whose resource it is")
	return addAdmin(cmd)
}

func (p *program) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE...", Short: "Check resources, broker.yaml or agent.yaml, offline",
		Example: "  credence validate broker.yaml identities.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var all []resource.Resource
			var broker *brokerFile
			seen := make(seenNames)
			for _, file := range args {
				found, f, err := p.validateOne(file)
				if err == nil {
					err = seen.add(file, found)
				}
				if err != nil {
					return input(err)
				}
				all = append(all, found...)
				if f != nil {
					broker = f
				}
			}
			if err := crossCheck(all, broker); err != nil {
				return input(resource.Locate(err, all))
			}
			fmt.Fprintln(p.out, "valid:", strings.Join(args, ", "))
			return nil
		},
	}
}

// validateOne tells what a file is by its first keys.
func (p *program) validateOne(file string) ([]resource.Resource, *brokerFile, error) {
	text, err := readUpTo(file, resource.MaxBytes+1)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case hasKey(text, "kind"):
		found, err := p.readOne(file)
		return found, nil, err
	case hasKey(text, "broker") || hasKey(text, "join"):
		var f agentFile
		if err := parseFile(file, text, &f); err != nil {
			return nil, nil, err
		}
		return nil, nil, inFile(file, f.complete())
	}
	var f brokerFile
	if err := parseFile(file, text, &f); err != nil {
		return nil, nil, err
	}
	return nil, &f, inFile(file, f.complete())
}

func hasKey(text []byte, key string) bool {
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, key+":") {
			return true
		}
	}
	return false
}

// crossCheck holds resources against each other, and against broker.yaml if it
// is among the files, as the broker would. What they name may stand in the
// broker already: peers and targets that are not in the files are taken as
// there; without broker.yaml, any DNS name and subject may be asked for.
func crossCheck(all []resource.Resource, broker *brokerFile) error {
	config := identity.Config{JWT: true, Subjects: []string{"CN=*", "O=**", "OU=**", "C=**", "L=**", "ST=**", "STREET=**", "UID=**"}}
	var set identity.Resources
	peers, targets := map[string]bool{}, map[string]bool{}
	for _, r := range all {
		switch {
		case r.Identity != nil:
			set.Identities = append(set.Identities, *r.Identity)
			if r.Identity.X509 != nil {
				config.DNSSuffixes = append(config.DNSSuffixes, r.Identity.X509.DNSNames...)
			}
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
		set.Targets = append(set.Targets, identity.Target{Name: name, Audience: "any"})
	}
	td, err := trustDomainOf(all)
	if err != nil {
		return err
	}
	config.TrustDomain = td
	if broker != nil {
		config.DNSSuffixes, config.Subjects, config.JWT = broker.DNSSuffixes, broker.Subjects, broker.Issuer != ""
		if config.TrustDomain, err = identity.ParseTrustDomain(broker.TrustDomain); err != nil {
			return err
		}
	}
	_, err = identity.NewSet(config, set)
	return err
}
