package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

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
	if err := do(cmd.Context(), api.NewAdminClient(conn)); err != nil {
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

// addOutput gives a verb -o; the first form is the default.
func addOutput(cmd *cobra.Command, forms ...string) *cobra.Command {
	cmd.Flags().StringP("output", "o", forms[0], "one of "+strings.Join(forms, ", "))
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		got, _ := cmd.Flags().GetString("output")
		for _, f := range forms {
			if got == f {
				return nil
			}
		}
		return input(fmt.Errorf("-o %s: %s writes %s", got, cmd.CommandPath(), strings.Join(forms, ", ")))
	}
	return cmd
}

func outputOf(cmd *cobra.Command) string {
	form, _ := cmd.Flags().GetString("output")
	return form
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows under a head.
func table(w io.Writer, head string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, "|", "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return time.Unix(unix, 0).UTC().Format("2006-01-02 15:04:05Z")
}
