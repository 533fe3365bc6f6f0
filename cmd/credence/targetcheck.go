package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation/fetch"
)

func (p *program) targetCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check TARGET", Short: "Say what keeps a cloud from taking our SVIDs, and which field to change",
		Args: cobra.ExactArgs(1), ValidArgsFunction: completeFirst(completeNamed("Target")),
		Long: `Check walks an exchange and ends with the first thing that the cloud would
refuse, the field to change and, of what it compares byte for byte, the byte (1).
What may be refused, or is only for a sandbox, is a warning (0).

First what is known here: the Target, the Identities that list it, and the keys
and certificates that are live at the broker. Give what you see in the cloud's
console as --registered-issuer, --registered-subject and --registered-audience,
and it is compared. Then, for JWT-SVIDs, the discovery document and the keys as
the cloud fetches them, from this machine: run it where the internet is seen.

Last the exchange itself, by the agent of this machine, whatever it holds, where
this process, as the user that runs it, has an Identity that lists the Target;
else the last exchange that a node reported is told. --call makes only this
last step and needs no admin socket, so the workload's user can do it.`,
		Example: `  credence target check aws-web-identity
  credence target check gcp --identity demo -o json
  credence target check azure --registered-subject spiffe://dev.example/demo/workload
  credence target check aws-roles-anywhere --call`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.targetCheck(cmd, args[0]) },
	}
	cmd.Flags().String("identity", "", "walk with this one of the Identities that list the Target (default all)")
	cmd.Flags().String("registered-issuer", "", "the issuer, as the cloud's console has it")
	cmd.Flags().String("registered-subject", "", "the subject (SPIFFE ID), as the cloud's console has it")
	cmd.Flags().StringArray("registered-audience", nil, "an audience, as the cloud's console has it; may be repeated")
	cmd.Flags().Bool("call", false, "make only the exchange")
	cmd.Flags().String("socket", "", "the agent's workload socket (default $"+cli.WorkloadVariable+")")
	completeFlag(cmd, "identity", completeNamed("Identity"))
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) targetCheck(cmd *cobra.Command, target string) error {
	if only, _ := cmd.Flags().GetBool("call"); only {
		for _, flag := range []string{"identity", "registered-issuer", "registered-subject", "registered-audience", "admin"} {
			if cmd.Flags().Changed(flag) {
				return cli.BadInput(fmt.Errorf("--%s and --call: with --call only the exchange is made", flag))
			}
		}
		w := &exchangers.Walk{Question: exchangers.Question{Facts: exchangers.Facts{Target: exchangers.Target{Name: target}}}}
		return p.writeTargetFindings(cmd, w, p.tryCall(cmd, w, nil))
	}
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		q, err := p.targetQuestion(cmd, ctx, c, target)
		if err != nil {
			return err
		}
		checker, ok := q.Target.Settings.(exchangers.Checker)
		if !ok {
			return fmt.Errorf("target %s: flow %s cannot be checked", target, q.Target.Flow)
		}
		w := &exchangers.Walk{Question: q, Findings: checker.Check(q)}
		if w.Failed() || q.Target.Settings.Audience() != "" && !lookAtIssuer(ctx, w, fetch.Config{Now: p.Now}) {
			return p.writeTargetFindings(cmd, w, nil)
		}
		return p.writeTargetFindings(cmd, w, p.tryCall(cmd, w, c))
	})
}

// targetQuestion is what the broker says, and what the flags do.
func (p *program) targetQuestion(cmd *cobra.Command, ctx context.Context, c api.AdminClient, target string) (q exchangers.Question, err error) {
	if q.Facts, err = targetFacts(ctx, c, target, "", p.Now()); err != nil {
		return q, err
	}
	q.Identity, _ = cmd.Flags().GetString("identity")
	q.Registered.Issuer, _ = cmd.Flags().GetString("registered-issuer")
	q.Registered.Subject, _ = cmd.Flags().GetString("registered-subject")
	q.Registered.Audiences, _ = cmd.Flags().GetStringArray("registered-audience")
	if q.Target.Settings.Audience() == "" && (q.Registered.Issuer != "" || len(q.Registered.Audiences) > 0) {
		return q, cli.BadInput(fmt.Errorf("target %s takes X509-SVIDs, which have no issuer and no audience: --registered-subject alone is compared", target))
	}
	return q, nil
}

type targetCheckView struct {
	Name     string              `json:"name"`
	OK       bool                `json:"ok"`
	Change   string              `json:"change"` // the one thing
	Findings []targetFindingView `json:"findings"`
}

type targetFindingView struct {
	Step   string `json:"step"`
	State  string `json:"state"` // done, warning or problem
	Code   string `json:"code"`
	Field  string `json:"field"`
	Byte   int    `json:"byte"`
	Found  string `json:"found"`
	Change string `json:"change"`
}

// writeTargetFindings prints a walk, and says by the exit code how it ended.
// Where not reaching the agent ended it, that is why.
func (p *program) writeTargetFindings(cmd *cobra.Command, w *exchangers.Walk, failed error) error {
	v, rows := targetCheckView{Name: w.Target.Name, OK: failed == nil, Findings: []targetFindingView{}}, [][]string{}
	states := map[exchangers.State]string{exchangers.Done: "ok", exchangers.Warning: "warn", exchangers.Problem: "no"}
	var after []string
	for _, f := range w.Findings {
		if f.State == exchangers.Problem {
			v.OK, v.Change = false, f.Change
			if after = append(after, "change: "+f.Change); f.Shown != "" {
				after = append([]string{f.Shown}, after...)
			}
		}
		v.Findings = append(v.Findings, targetFindingView{f.Step, string(f.State), f.Code, f.Field, f.Byte, f.Found, f.Change})
		text := f.Found
		if f.State == exchangers.Warning {
			text += "; " + f.Change
		}
		rows = append(rows, []string{states[f.State], f.Step, text})
	}
	err := p.Show(cmd, v, func() error {
		if err := p.Table("OK|CHECK|FOUND", rows); err != nil || len(after) == 0 {
			return err
		}
		_, err := fmt.Fprintln(p.Out, strings.Join(after, "\n"))
		return err
	})
	switch {
	case err != nil || failed != nil:
		return errors.Join(err, failed)
	case !v.OK:
		return cli.Coded{Code: cli.ExitNo}
	}
	return nil
}
