package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/logincmd"
)

// What says which broker, where no flag does.
const (
	adminVariable  = "CREDENCE_ADMIN"
	brokerVariable = "CREDENCE_BROKER"
)

// adminClient connects to the broker, and calls do.
func adminClient(cmd *cobra.Command, do func(context.Context, api.AdminClient) error) error {
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error { return do(ctx, api.NewAdminClient(conn)) })
}

func adminConn(cmd *cobra.Command, do func(context.Context, *grpc.ClientConn) error) error {
	conn, where, err := dialAdmin(cmd.Context(), cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := do(cmd.Context(), conn); err != nil {
		return cli.Reached("broker", where, err)
	}
	return nil
}

// dialAdmin connects to the broker that flags or else variables name: by its admin
// socket, or by its agents' listener and an SVID that has a role.
func dialAdmin(ctx context.Context, cmd *cobra.Command) (conn *grpc.ClientConn, where string, err error) {
	socket, _ := cmd.Flags().GetString("admin") // exec and credentials have none of these
	remote, _ := cmd.Flags().GetString("broker")
	dir, _ := cmd.Flags().GetString("svid")
	if socket != "" && remote != "" {
		return nil, "", cli.BadInput(fmt.Errorf("--admin %s or --broker %s: one of the two", socket, remote))
	}
	if socket == "" && remote == "" {
		if socket = os.Getenv(adminVariable); socket == "" {
			remote = os.Getenv(brokerVariable)
		}
	}
	switch {
	case remote != "":
		conn, err = logincmd.Remote(ctx, remote, dir, time.Now)
		return conn, remote, err
	case dir != "":
		return nil, "", cli.BadInput(fmt.Errorf("--svid %s: is for a broker elsewhere: give --broker HOST:PORT, or set %s", dir, brokerVariable))
	case socket == "":
		return nil, "", cli.BadInput(fmt.Errorf("which broker? set %s to its admin socket (broker run and dev print it), or give --admin; one elsewhere: --broker", adminVariable))
	}
	conn, err = cli.DialSocket(socket)
	return conn, socket, err
}

func addAdmin(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("admin", "", "the broker's admin socket: a path or unix:///path (default $"+adminVariable+")")
	cmd.Flags().String("broker", "", "or HOST:PORT of its agents' listener, for a role (default $"+brokerVariable+")")
	cmd.Flags().String("svid", "", "for --broker: a directory of svid x509 --out (default: credence login's, then the Workload API's)")
	_ = cmd.MarkFlagDirname("svid")
	return cmd
}
