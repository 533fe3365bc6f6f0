package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
)

func (p *program) authorityCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "List the keys that sign, and what becomes of them", Args: cobra.NoArgs,
		Long: `Show asks the broker for its authorities: the root, the issuing CA and the JWT
keys, each with its state, how many SVIDs that it signed have not ended, and
what happens to it next and when. All of them replace themselves in time.`,
		Example: "  credence authority show\n  credence ca show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.ListAuthorities(ctx, &api.ListAuthoritiesRequest{})
				if err != nil {
					return err
				}
				views, rows := []authorityView{}, [][]string{}
				for _, a := range r.GetAuthorities() {
					views = append(views, viewAuthority(a))
					rows = append(rows, []string{a.GetUse(), a.GetAlg(), a.GetState(), a.GetId(), when(a.GetNotAfter()), fmt.Sprint(a.GetOutstanding()), a.GetNext(), when(a.GetNextAt())})
				}
				return p.show(cmd, views, func() error { return p.table("KIND|ALG|STATE|KEY|ENDS|SVIDS|NEXT|AT", rows) })
			})
		},
	}
	cmd := group("authority", "Signing authorities", addOutput(addAdmin(show)), p.revokeCommand())
	cmd.Aliases = []string{"ca"}
	return cmd
}

func (p *program) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the broker does", Args: cobra.NoArgs,
		Long: `Status asks the broker for its trust domain, addresses, policy revision and
numbers. It exits 1 where the broker reports a problem, which the last line
tells.`,
		Example: "  credence status\n  credence status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Status(ctx, &api.StatusRequest{})
				if err != nil {
					return err
				}
				v := viewStatus(r)
				if err := p.show(cmd, v, func() error { return p.fields(v.fields()) }); err != nil {
					return err
				}
				if v.Problem != "" {
					return coded{code: exitNo}
				}
				return nil
			})
		},
	}
	return addOutput(addAdmin(cmd))
}
