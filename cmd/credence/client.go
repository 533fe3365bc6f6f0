package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

const adminVariable = "CREDENCE_ADMIN"

// adminClient connects to the broker's admin socket and calls do.
func adminClient(cmd *cobra.Command, do func(context.Context, api.AdminClient) error) error {
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error { return do(ctx, api.NewAdminClient(conn)) })
}

func adminConn(cmd *cobra.Command, do func(context.Context, *grpc.ClientConn) error) error {
	where, _ := cmd.Flags().GetString("admin")
	if where == "" {
		where = os.Getenv(adminVariable)
	}
	if where == "" {
		return cli.BadInput(fmt.Errorf("which broker? set %s to its admin socket (broker run and dev print it), or give --admin", adminVariable))
	}
	conn, err := cli.DialSocket(where)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := do(cmd.Context(), conn); err != nil {
		return cli.Reached("broker", where, err)
	}
	return nil
}

func addAdmin(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("admin", "", "the broker's admin socket: a path or unix:///path (default $"+adminVariable+")")
	return cmd
}
