package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
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
		return input(fmt.Errorf("which broker? set %s to its admin socket (broker run and dev print it), or give --admin", adminVariable))
	}
	conn, err := dialSocket(where)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := do(cmd.Context(), conn); err != nil {
		return reached("broker", where, err)
	}
	return nil
}

// dialSocket opens a gRPC connection to a Unix socket. The kernel tells the
// other side who we are: nothing is encrypted, nothing leaves the machine.
func dialSocket(where string) (*grpc.ClientConn, error) {
	path, err := socketPath(where)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, coded{exitUnreachable, fmt.Errorf("no socket at %s: is it running, and is that the right path?", path)}
	}
	return grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

// reached says who was not reached.
func reached(who, where string, err error) error {
	var c coded
	if errors.As(err, &c) {
		return err
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return coded{exitUnreachable, fmt.Errorf("the %s at %s is not available: %s", who, where, status.Convert(err).Message())}
	case codes.PermissionDenied, codes.Unauthenticated:
		return coded{exitDenied, errors.New(status.Convert(err).Message())}
	}
	return err
}

func addAdmin(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("admin", "", "the broker's admin socket: a path or unix:///path (default $"+adminVariable+")")
	return cmd
}
