package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the broker does", Args: cobra.NoArgs,
		Long: `Status asks the broker for its trust domain, addresses, policy revision and
numbers. It exits 1 where there is a problem that somebody must see to, which the
last line tells: an authority that is not renewed, a peer that is stale, held or
closed.`,
		Example: "  credence status\n  credence status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Status(ctx, &api.StatusRequest{})
				if err != nil {
					return err
				}
				v := viewStatus(r)
				if err := p.Show(cmd, v, func() error { return p.Fields(v.fields()) }); err != nil {
					return err
				}
				if v.Problem != "" {
					return cli.Coded{Code: cli.ExitNo}
				}
				return nil
			})
		},
	}
	return cli.AddOutput(addAdmin(cmd))
}
