package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers"
)

var setupForms = []string{"terraform", "cli", "json"}

func (p *program) targetSetupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "setup TARGET", Short: "Write what a cloud must be told, to be run there",
		Args: cobra.ExactArgs(1), ValidArgsFunction: completeFirst(completeNamed("Target")),
		Long: `Setup writes all that a Target's cloud must hold for it to work, from the Target,
the Identities that list it, and the keys and certificates that are live at the
broker: for Terraform, as a shell script of the cloud's own command, or as JSON.
Roles, pools and credentials name exactly those Identities' SPIFFE IDs. It asks
the broker alone and changes nothing, here or there.

Apply the Target first, with the account, region and names that you want. What
the cloud chooses itself is left at zeros: the UUIDs of a Roles Anywhere trust
anchor and profile, the client_id of an Azure app. What is written then ends with
the finished Target. What only a person can decide, such as what the role may do,
stands in it as notes. credence sandbox run takes the JSON, to try it out.`,
		Example: `  credence target setup aws-roles-anywhere > main.tf
  credence target setup gcp -o cli --identity demo
  credence target setup azure -o json`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.targetSetup(cmd, args[0]) },
	}
	cmd.Flags().StringP("output", "o", setupForms[0], "one of "+strings.Join(setupForms, ", "))
	cmd.Flags().String("identity", "", "let in this one of the Identities that list the Target (default all)")
	cmd.Flags().String("managed-identity", "", "azure: resource ID of the user-assigned identity that client_id is of (default: an app)")
	cmd.Flags().Bool("upload-keys", false, "gcp: hand over the issuer's keys, which Google then does not fetch")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(setupForms, cobra.ShellCompDirectiveNoFileComp))
	completeFlag(cmd, "identity", completeNamed("Identity"))
	return addAdmin(cmd)
}

func (p *program) targetSetup(cmd *cobra.Command, target string) error {
	form := cli.OutputOf(cmd)
	if !slices.Contains(setupForms, form) {
		return cli.BadInput(fmt.Errorf("-o %s: %s writes %s", form, cmd.CommandPath(), strings.Join(setupForms, ", ")))
	}
	identity, _ := cmd.Flags().GetString("identity")
	var choices exchangers.Choices
	choices.ManagedIdentity, _ = cmd.Flags().GetString("managed-identity")
	choices.UploadKeys, _ = cmd.Flags().GetBool("upload-keys")
	return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
		facts, err := targetFacts(ctx, c, target, identity, p.Now())
		if err != nil {
			return err
		}
		text, err := setupText(facts, choices, form)
		if err != nil {
			return cli.BadInput(fmt.Errorf("setting target %s up: %w", target, err))
		}
		_, err = fmt.Fprint(p.Out, text)
		return err
	})
}

// setupText plans, and writes the plan in a form.
func setupText(facts exchangers.Facts, choices exchangers.Choices, form string) (string, error) {
	planner, ok := facts.Target.Settings.(exchangers.Planner)
	if !ok {
		return "", fmt.Errorf("what flow %s needs is not known", facts.Target.Flow)
	}
	plan, err := planner.Setup(facts, choices)
	if err != nil {
		return "", err
	}
	plan.Notes = once(plan.Notes)
	if plan.Resources == nil {
		plan.Resources = []exchangers.Made{}
	}
	switch form {
	case "terraform":
		return terraform(plan)
	case "cli":
		return script(plan), nil
	}
	var text strings.Builder
	err = cli.WriteJSON(&text, plan)
	return text.String(), err
}

// once leaves out what stands before already.
func once(all []string) []string {
	out := []string{}
	for _, one := range all {
		if !slices.Contains(out, one) {
			out = append(out, one)
		}
	}
	return out
}

// script writes a plan as a POSIX shell script. What is there already stays, or
// is brought up to date.
func script(plan exchangers.Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#!/bin/sh\n# What target %s needs. It can be run again. It was written by credence target setup.\n", plan.Target)
	for _, note := range plan.Notes {
		b.WriteString("#\n")
		for _, line := range wrap(note, 95) {
			fmt.Fprintf(&b, "# %s\n", line)
		}
	}
	if len(plan.Resources) == 0 {
		return b.String()
	}
	b.WriteString("set -eu\ndir=$(mktemp -d)\ntrap 'rm -rf \"$dir\"' EXIT\n")
	for _, line := range plan.Guard {
		fmt.Fprintln(&b, line)
	}
	for _, m := range plan.Resources {
		fmt.Fprintf(&b, "\n# %s %s\n", m.Type, m.Label)
		for _, line := range m.Script {
			fmt.Fprintln(&b, line)
		}
	}
	if len(plan.Apply) > 0 {
		fmt.Fprintf(&b, "\n# the Target, as it must be now\n%s\n", exchangers.ShellInput("credence apply -f -", plan.Apply))
	}
	return b.String()
}
