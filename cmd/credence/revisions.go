package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) historyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "history [KIND NAME]", Short: "List the changes of policy: when, by whom, what",
		Long: `History lists the changes that were made to the broker's resources, the newest
first: all of them, or those that wrote one resource. Each has a revision, by which
get --revision shows what stood then and rollback leads back to it; with --revision
history tells all that one of them wrote, line by line. The broker keeps the last
1,000, or as many as wrote 200,000 resources; the record (credence audit) keeps all.`,
		Example: `  credence history
  credence history identity demo -o json
  credence history --revision "$(credence history --limit 1 -o revision)"`,
		Args: cobra.MaximumNArgs(2), ValidArgsFunction: completeResource,
		RunE: p.history,
	}
	cmd.Flags().Uint32("limit", 20, "list so many, at most 1000")
	cmd.Flags().Uint64("before", 0, "list those before this `revision`")
	cmd.Flags().Uint64("revision", 0, "tell what this one wrote")
	completeFlag(cmd, "revision", completeRevisions)
	completeFlag(cmd, "before", completeRevisions)
	return cli.AddOutput(addAdmin(cmd), "table", "revision")
}

func (p *program) history(cmd *cobra.Command, args []string) error {
	request := &api.ListRevisionsRequest{}
	var err error
	if request.Kind, request.Name, err = oneResource(args); err != nil {
		return err
	}
	request.Limit, _ = cmd.Flags().GetUint32("limit")
	request.Before, _ = cmd.Flags().GetUint64("before")
	request.Revision, _ = cmd.Flags().GetUint64("revision")
	if cmd.Flags().Changed("limit") && (request.Limit == 0 || request.Limit > 1000) {
		return cli.BadInput(fmt.Errorf("--limit %d: 1 to 1000 is wanted", request.Limit))
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.ListRevisions(ctx, request)
		if err != nil {
			return err
		}
		if cli.OutputOf(cmd) == "revision" {
			for _, one := range r.GetRevisions() {
				fmt.Fprintln(p.Out, one.GetRevision())
			}
			return nil
		}
		v, err := viewRevisions(r)
		if err != nil {
			return err
		}
		return p.Show(cmd, v, func() error { return p.writeRevisions(r) })
	})
}

func (p *program) writeRevisions(r *api.ListRevisionsResponse) error {
	var rows [][]string
	for _, one := range r.GetRevisions() {
		rows = append(rows, []string{fmt.Sprint(one.GetRevision()), cli.When(one.GetWrittenAt()), one.GetActor(), orDash(one.GetOwner()), whatOf(one)})
	}
	if err := p.Table("REVISION|AT|BY|OWNER|WHAT", rows); err != nil {
		return err
	}
	var b strings.Builder
	for _, one := range r.GetRevisions() {
		for _, a := range one.GetWrote() {
			fmt.Fprintf(&b, "%s %s %s%s\n", a.GetKind(), a.GetName(), a.GetAction(), takenFrom(a))
			p.difference(&b, a.GetBefore(), a.GetAfter())
		}
		if one.GetNoBefore() {
			fmt.Fprintln(&b, "It is the oldest that is kept: what stood before it is not.")
		}
	}
	_, err := fmt.Fprint(p.Out, b.String())
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// whatOf says in a line what a revision did.
func whatOf(r *api.ListRevisionsResponse_Revision) string {
	var parts []string
	for _, one := range []struct {
		n    uint32
		what string
	}{{r.GetCreated(), "created"}, {r.GetChanged(), "changed"}, {r.GetDeleted(), "deleted"}} {
		if one.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", one.n, one.what))
		}
	}
	some := strings.Join(r.GetSome(), ", ")
	if int(r.GetCreated()+r.GetChanged()+r.GetDeleted()) > len(r.GetSome()) {
		some += ", ..."
	}
	return fmt.Sprintf("%s: %s (%s)", r.GetAct(), strings.Join(parts, ", "), some)
}

type revisionsView struct {
	Revisions []revisionView `json:"revisions"`
	Oldest    uint64         `json:"oldest"` // that is kept
}

type revisionView struct {
	Revision uint64        `json:"revision"`
	At       cli.Moment    `json:"at"`
	By       string        `json:"by"`
	Owner    string        `json:"owner"` // empty: several owners'
	Act      string        `json:"act"`
	Created  uint32        `json:"created"`
	Changed  uint32        `json:"changed"`
	Deleted  uint32        `json:"deleted"`
	Some     []string      `json:"some"`  // of what it wrote
	Wrote    []appliedView `json:"wrote"` // all of it, of one that was asked for
}

func viewRevisions(r *api.ListRevisionsResponse) (revisionsView, error) {
	v := revisionsView{Revisions: []revisionView{}, Oldest: r.GetOldest()}
	for _, one := range r.GetRevisions() {
		wrote, err := viewApplied(one.GetWrote())
		if err != nil {
			return v, err
		}
		v.Revisions = append(v.Revisions, revisionView{
			one.GetRevision(), cli.Moment(one.GetWrittenAt()), one.GetActor(), one.GetOwner(), one.GetAct(),
			one.GetCreated(), one.GetChanged(), one.GetDeleted(), list(one.GetSome()), wrote,
		})
	}
	return v, nil
}

func (p *program) policyRollbackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rollback [KIND NAME] --revision N", Short: "Write what stood at a revision again",
		Long: `Rollback makes the broker hold what it held at a revision, which history lists:
all resources, those of one owner, or one resource. It shows the plan first, checks it
as apply would, and writes it under a new revision: nothing is forgotten, and it can be
taken back like any change. More than a tenth of the resources it deletes only with
--yes. It is refused (2) where what stood then names what is not there any more, or was
not taken today. With --dry-run it changes nothing, and exits 1 where there is something
to do.`,
		Example: `  was=$(credence history --limit 1 -o revision)
  credence apply -f - <<'EOF'
  kind: Deny
  name: incident-3
  match: [{node.name: build-9}]
  EOF
  credence rollback deny incident-3 --revision "$was"`,
		Args: cobra.MaximumNArgs(2), ValidArgsFunction: completeResource,
		RunE: p.policyRollback,
	}
	cmd.Flags().Uint64("revision", 0, "the revision to go back to")
	_ = cmd.MarkFlagRequired("revision")
	cmd.Flags().String("owner", "", "go back for this owner's resources alone")
	cmd.Flags().Bool("dry-run", false, "show the plan and change nothing")
	cmd.Flags().Bool("yes", false, "delete also more than a tenth of the resources")
	completeFlag(cmd, "owner", completeOwners)
	completeFlag(cmd, "revision", completeRevisions)
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) policyRollback(cmd *cobra.Command, args []string) error {
	request := &api.RollbackRequest{DryRun: true}
	var err error
	if request.Kind, request.Name, err = oneResource(args); err != nil {
		return err
	}
	request.Revision, _ = cmd.Flags().GetUint64("revision")
	request.Owner, _ = cmd.Flags().GetString("owner")
	request.Yes, _ = cmd.Flags().GetBool("yes")
	if cmd.Flags().Changed("owner") && request.Owner == "" {
		return cli.BadInput(errors.New("--owner: a name is wanted"))
	}
	dry, _ := cmd.Flags().GetBool("dry-run")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		r, err := c.Rollback(ctx, request)
		if err != nil {
			return err
		}
		if form := cli.OutputOf(cmd); dry || form == "table" {
			v, err := viewApply(r, true)
			if err == nil {
				err = p.Show(cmd, v, func() error { return p.writeOutcome(r, true) })
			}
			if err != nil || dry {
				return errors.Join(err, differs(r, true))
			}
		}
		// What is done is what was shown.
		request.DryRun, request.Base = false, r.GetRevision()
		if r, err = c.Rollback(ctx, request); err != nil {
			return err
		}
		p.warn(r)
		v, err := viewApply(r, false)
		if err != nil {
			return err
		}
		return p.Say(cmd, v, strings.TrimSpace(summary(r, false)))
	})
}
