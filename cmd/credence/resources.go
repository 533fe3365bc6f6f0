package main

import (
	"context"
	"errors"
	"fmt"
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
		Short: "Make the broker hold the resources of files, all or none",
		Long: `Apply checks the resources of files and has the broker hold them: all of them or,
where one is refused, none, under one revision. It touches only what the owner,
--owner, wrote before; --take-over makes what others own the owner's. Workloads
feel it at once: agents ask again for what a change concerns. plan says first what
apply would do; history, get --revision and rollback lead back.

What is not in the files stays, unless --prune deletes it: what the owner has, and
nothing of others. More than a tenth of that goes only with --yes, and nothing where
the files hold no resource.

Of a directory *.yaml, *.yml and *.json are read, by their names' order, with -R those
of the directories below too. A mistake is told with its file, line and field; nothing
is changed then (2).

Without the database, --here has Denies hold on this broker, durably, and everywhere
when the database is back; delete --here undoes that before.`,
		Example: `  credence apply -f - <<'EOF'
  kind: Deny
  name: incident-1
  match: [{node.name: build-7}]
  EOF
  mkdir -p policy && credence get --owner default -o yaml > policy/all.yaml
  credence apply -f policy --prune
  credence apply --here -f - <<'EOF'
  {kind: Deny, name: incident-3, match: [{node.name: build-9}]}
  EOF`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.apply(cmd, false) },
	}
	cmd.Flags().Bool("here", false, "Denies alone, without the database too: on this broker until it is back")
	cmd.Flags().Bool("yes", false, "delete also more than a tenth of what the owner has")
	return applyFlags(cmd)
}

func (p *program) planCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "plan -f FILE|DIR|-", Short: "Say what apply would change", Args: cobra.NoArgs,
		Long: `Plan checks the resources of files as apply would, with the broker and what it
holds, and says what would be created, changed and deleted, and of an Identity how
many of its SVIDs have not ended. It changes nothing. It exits 0 where apply would
change nothing either, 1 where it would, and 2 where it would be refused; but that
--yes is missing is told.`,
		Example: `  credence get --owner dev -o yaml > dev.yaml
  credence plan -f dev.yaml --owner dev --prune  # a copy of what stands: 0`,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.apply(cmd, true) },
	}
	return applyFlags(cmd)
}

func applyFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringArrayP("file", "f", nil, "a file, a directory of *.yaml, *.yml and *.json, or - for standard input; may be repeated")
	cmd.Flags().BoolP("recursive", "R", false, "read directories below too; =false: leave them out")
	cmd.Flags().String("owner", "default", "whose resources these are: apply touches no other's")
	cmd.Flags().Bool("prune", false, "delete what the owner has and the files have not")
	cmd.Flags().Bool("take-over", false, "make what belongs to other owners the owner's")
	cmd.Flags().Uint64("base", 0, "the `revision` that plan named: refuse if policy is of another by now")
	cli.CompleteFiles(cmd, "file", "yaml", "yml", "json")
	completeFlag(cmd, "owner", completeOwners)
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) apply(cmd *cobra.Command, dry bool) error {
	names, _ := cmd.Flags().GetStringArray("file")
	recursive, _ := cmd.Flags().GetBool("recursive")
	reader := &resourceReader{p: p, seen: make(seenNames), recursive: recursive, shallow: !recursive && cmd.Flags().Changed("recursive")}
	all, err := reader.read(names)
	if err != nil {
		return err
	}
	request := &api.ApplyRequest{File: cmd.Name(), DryRun: dry}
	if request.Yaml, err = documentsOf(all); err != nil {
		return cli.BadInput(err)
	}
	request.Owner, _ = cmd.Flags().GetString("owner")
	request.Prune, _ = cmd.Flags().GetBool("prune")
	request.Yes, _ = cmd.Flags().GetBool("yes")
	request.TakeOver, _ = cmd.Flags().GetBool("take-over")
	request.Base, _ = cmd.Flags().GetUint64("base")
	request.Here, _ = cmd.Flags().GetBool("here")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		waiting := p.StartProgress(fmt.Sprintf("the broker checks %d resources", len(all)))
		r, err := c.Apply(ctx, request)
		waiting.Stop()
		if status.Code(err) == codes.InvalidArgument {
			return cli.WithCode(cli.ExitInput, errors.New(place(status.Convert(err).Message(), all)))
		}
		if err != nil {
			return err
		}
		p.warn(r)
		v, err := viewApply(r, dry)
		if err != nil {
			return err
		}
		if err := p.Show(cmd, v, func() error { return p.writeOutcome(r, dry) }); err != nil {
			return err
		}
		return differs(r, dry)
	})
}

func (p *program) warn(r *api.ApplyResponse) {
	for _, w := range r.GetWarnings() {
		fmt.Fprintln(p.Err, "warning:", w)
	}
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

func (p *program) getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get [KIND [NAME]]", Short: "Show resources; -o yaml gives back what apply takes",
		Long: `Get asks the broker for the resources that it holds, all of a kind, or one
(KIND/NAME does too); with --revision for those that it held then, which history
lists. As YAML they come as apply takes them. It exits 1 where there is none of that
name.`,
		Example: `  credence get identity
  credence get target/gcp -o yaml
  credence get -o json
  credence get --revision "$(credence history --limit 1 -o revision)" -o yaml`,
		Args: cobra.MaximumNArgs(2), ValidArgsFunction: completeResource,
		RunE: p.get,
	}
	cmd.Flags().Uint64("revision", 0, "of policy: what stood when it had been written")
	cmd.Flags().String("owner", "", "of this owner alone")
	completeFlag(cmd, "owner", completeOwners)
	completeFlag(cmd, "revision", completeRevisions)
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) get(cmd *cobra.Command, args []string) error {
	request := &api.GetRequest{}
	var err error
	if request.Kind, request.Name, err = kindAndName(args); err != nil {
		return err
	}
	request.Revision, _ = cmd.Flags().GetUint64("revision")
	owner, _ := cmd.Flags().GetString("owner")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.Get(ctx, request)
		if err != nil {
			return err
		}
		all := slices.DeleteFunc(r.GetResources(), func(r *api.Resource) bool { return owner != "" && r.GetOwner() != owner })
		if request.GetName() != "" && len(all) == 0 {
			return cli.WithCode(cli.ExitNo, fmt.Errorf("there is no %s %s; credence get %s lists what there is", request.GetKind(), request.GetName(), strings.ToLower(request.GetKind())))
		}
		return p.writeResources(cmd, all)
	})
}

// kindAndName reads KIND, KIND NAME or KIND/NAME; nothing is all.
func kindAndName(args []string) (kind, name string, err error) {
	if len(args) == 1 {
		if k, n, ok := strings.Cut(args[0], "/"); ok {
			args = []string{k, n}
		}
	}
	if len(args) == 0 {
		return "", "", nil
	}
	if kind, err = kindOf(args[0]); err == nil && len(args) > 1 {
		if name = args[1]; name == "" {
			err = cli.BadInput(fmt.Errorf("%s: a name is wanted", kind))
		}
	}
	return kind, name, err
}

// oneResource reads KIND NAME or KIND/NAME.
func oneResource(args []string) (kind, name string, err error) {
	kind, name, err = kindAndName(args)
	if err == nil && kind != "" && name == "" {
		err = cli.BadInput(fmt.Errorf("%s: which one? KIND NAME is wanted", kind))
	}
	return kind, name, err
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
		Use: "delete KIND NAME", Short: "Remove one resource", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: completeResource,
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
			kind, name, err := oneResource(args)
			if err != nil {
				return err
			}
			owner, _ := cmd.Flags().GetString("owner")
			here, _ := cmd.Flags().GetBool("here")
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Delete(ctx, &api.DeleteRequest{Kind: kind, Name: name, Owner: owner, Here: here})
				if err != nil {
					return err
				}
				v := map[string]any{"kind": kind, "name": name, "revision": r.GetRevision()}
				return p.Say(cmd, v, fmt.Sprintf("%s %s deleted", kind, name))
			})
		},
	}
	cmd.Flags().String("owner", "default", "whose resource it is")
	cmd.Flags().Bool("here", false, "a Deny of apply --here that the database does not have")
	return cli.AddOutput(addAdmin(cmd))
}
