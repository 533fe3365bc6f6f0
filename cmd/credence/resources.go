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
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) applyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Make the broker hold the resources of a file, all or none",
		Long: `Apply checks the resources of files and has the broker hold them: all of them or,
where one is refused, none. It touches only what the owner, --owner, wrote
before; what is not in the files stays. Workloads feel it at once: agents ask
again for what a change concerns. plan says first what apply would do.

A mistake is told with its file, line and field; nothing is changed then (2).`,
		Example: `  credence apply -f - <<'EOF'
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
		Long: `Plan checks the resources of files as apply would, with the broker and what it
holds, and says what would be created or changed, line by line. It changes
nothing.`,
		Example: `  credence plan -f - <<'EOF'
  kind: Identity
  name: web
  spiffe_id: /web
  match: [{node.name: dev, workload.unix.user: www-data}]
  EOF`,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.apply(cmd, true) },
	}
	return applyFlags(cmd)
}

func applyFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringArrayP("file", "f", nil, "a YAML file, a directory of *.yaml, or - for standard input; may be repeated")
	cmd.Flags().String("owner", "default", "whose resources these are: apply touches no other's")
	cli.CompleteFiles(cmd, "file", "yaml", "yml")
	return cli.AddOutput(addAdmin(cmd))
}

// readResources parses all files that -f names, and reads the bundle files of
// peers in their place.
func (p *program) readResources(names []string) ([]resource.Resource, error) {
	if len(names) == 0 {
		return nil, cli.BadInput(errors.New("-f FILE, DIR or - is wanted"))
	}
	var all []resource.Resource
	seen := make(seenNames)
	for _, name := range names {
		files, err := expand(name)
		if err != nil {
			return nil, cli.BadInput(err)
		}
		for _, file := range files {
			parsed, err := p.readOne(file)
			if err != nil {
				return nil, cli.BadInput(err)
			}
			if err := seen.add(file, parsed); err != nil {
				return nil, cli.BadInput(err)
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
	in := p.In
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
			return cli.ReadSmall(name)
		})
		if err != nil {
			return nil, err
		}
	}
	return parsed, nil
}

// documentsOf is the resources as a broker reads them fast.
func documentsOf(all []resource.Resource) ([]byte, error) {
	var text []byte
	for _, r := range all {
		body, err := r.Text()
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
		return cli.BadInput(err)
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		waiting := p.StartProgress(fmt.Sprintf("the broker checks %d resources", len(all)))
		r, err := c.Apply(ctx, &api.ApplyRequest{Yaml: text, Owner: owner, File: "apply", DryRun: dry})
		waiting.Stop()
		if status.Code(err) == codes.InvalidArgument {
			return cli.WithCode(cli.ExitInput, errors.New(place(status.Convert(err).Message(), all)))
		}
		if err != nil {
			return err
		}
		for _, w := range r.GetWarnings() {
			fmt.Fprintln(p.Err, "warning:", w)
		}
		v, err := viewApply(r, dry)
		if err != nil {
			return err
		}
		return p.Show(cmd, v, func() error { return p.writeApplied(r, dry) })
	})
}

func (p *program) writeApplied(r *api.ApplyResponse, dry bool) error {
	for _, a := range r.GetApplied() {
		text := fmt.Sprintf("%s %s %s\n", a.GetKind(), a.GetName(), planned(a.GetAction(), dry))
		if dry && a.GetAction() == "changed" {
			text += difference(inLines(a.GetBefore()), inLines(a.GetAfter()))
		}
		if _, err := io.WriteString(p.Out, text); err != nil {
			return err
		}
	}
	return nil
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

// inLines is a resource as people write it. What this program doesn't know is
// left as it came, which apply takes too.
func inLines(text []byte) string {
	all, err := registry().Read("", text)
	if err != nil || len(all) != 1 {
		return string(text)
	}
	lines, err := all[0].YAML()
	if err != nil {
		return string(text)
	}
	return string(lines)
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
		Long: `Get asks the broker for the resources that it holds, all of a kind, or one. As
YAML they come as apply takes them. It exits 1 where there is none of that name.`,
		Example: `  credence get identity
  credence get target gcp -o yaml
  credence get -o json`,
		Args: cobra.MaximumNArgs(2), ValidArgsFunction: completeResource,
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
					return cli.WithCode(cli.ExitNo, fmt.Errorf("there is no %s %s; credence get %s lists what there is", request.GetKind(), args[1], strings.ToLower(request.GetKind())))
				}
				return p.writeResources(cmd, r.GetResources())
			})
		},
	}
	return cli.AddOutput(addAdmin(cmd))
}

func kindOf(text string) (string, error) {
	for _, k := range resource.Kinds {
		if strings.EqualFold(k, text) || strings.EqualFold(k+"s", text) || (k == "Identity" && strings.EqualFold(text, "identities")) || (k == "Deny" && strings.EqualFold(text, "denies")) {
			return k, nil
		}
	}
	return "", cli.BadInput(fmt.Errorf("kind %q is none of %s", text, strings.Join(resource.Kinds, ", ")))
}

// writeResources writes YAML as apply takes it, whatever the other forms have
// around it.
func (p *program) writeResources(cmd *cobra.Command, all []*api.Resource) error {
	if cli.OutputOf(cmd) == "yaml" {
		for _, r := range all {
			fmt.Fprintf(p.Out, "---\n%s", inLines(r.GetYaml()))
		}
		return nil
	}
	views, err := viewResources(all)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, r := range all {
		rows = append(rows, []string{r.GetKind(), r.GetName(), fmt.Sprint(r.GetRevision()), r.GetOwner(), r.GetActor(), cli.When(r.GetWrittenAt())})
	}
	return p.Show(cmd, views, func() error { return p.Table("KIND|NAME|REVISION|OWNER|WRITTEN BY|AT", rows) })
}

func (p *program) deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete KIND NAME", Short: "Remove one resource", Args: cobra.ExactArgs(2), ValidArgsFunction: completeResource,
		Long: `Delete has the broker drop one resource of the owner, --owner. What was granted
by it is erased on the nodes at once. What others name, such as a Target that an
Identity lists, is not deleted (2).`,
		Example: `  credence apply -f - <<'EOF'
  kind: Deny
  name: incident-2
  match: [{node.name: build-8}]
  EOF
  credence delete deny incident-2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			owner, _ := cmd.Flags().GetString("owner")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Delete(ctx, &api.DeleteRequest{Kind: kind, Name: args[1], Owner: owner})
				if err != nil {
					return err
				}
				v := map[string]any{"kind": kind, "name": args[1], "revision": r.GetRevision()}
				return p.Say(cmd, v, fmt.Sprintf("%s %s deleted", kind, args[1]))
			})
		},
	}
	cmd.Flags().String("owner", "default", "whose resource it is")
	return cli.AddOutput(addAdmin(cmd))
}
