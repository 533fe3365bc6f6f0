//go:build unix

package workloadcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/cmd/cli"
)

// credentialsClient connects to the agent's credential service on the
// workload socket.
func credentialsClient(cmd *cobra.Command) (agentapi.CredentialsClient, io.Closer, error) {
	conn, _, err := Dial(cmd)
	if err != nil {
		return nil, nil, err
	}
	return agentapi.NewCredentialsClient(Conn(conn)), conn, nil
}

// Dial connects to the workload socket that --socket or the environment names,
// and says where that is. Conn makes calls of it.
func Dial(cmd *cobra.Command) (conn *grpc.ClientConn, where string, err error) {
	where = workloadSocket(cmd)
	if where == "" {
		return nil, "", cli.BadInput(fmt.Errorf("which agent? set %s to unix:///path of its workload socket, or give --socket", cli.WorkloadVariable))
	}
	conn, err = cli.DialSocket(where)
	return conn, where, err
}

func workloadSocket(cmd *cobra.Command) string {
	if where, _ := cmd.Flags().GetString("socket"); where != "" {
		return where
	}
	return os.Getenv(cli.WorkloadVariable)
}

// Conn adds to each call the metadata that the workload socket demands (SPIFFE
// Workload Endpoint §4.1).
func Conn(c *grpc.ClientConn) grpc.ClientConnInterface { return workloadConn{c} }

type workloadConn struct{ *grpc.ClientConn }

func (c workloadConn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.ClientConn.NewStream(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), d, method, opts...)
}

func (c workloadConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.ClientConn.Invoke(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), method, args, reply, opts...)
}

// The forms of a credential.
const (
	formProcess    = "process"    // of credential_process (AWS)
	formToken      = "token"      // the access token
	formJWT        = "jwt"        // the JWT-SVID to exchange
	formExecutable = "executable" // of an executable source (GCP), with the JWT-SVID
)

func (p *verbs) credentialsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credentials TARGET",
		Short: "Exchange this process's SVID, and print what a target's tools want",
		Long: `Credentials exchanges the SVID of this process, this program as the user that
runs it, at a target that its identity lists. For AWS it prints what a
credential_process prints; for GCP, Azure and oauth the token. The agent makes
the exchange and keeps the credential until half its life is over. Where a cloud
has not yet seen what was set up, it waits up to 3 min and says so on standard
error. A target that is not granted, and a cloud that refuses, end it with 4.

In ~/.aws/config:

  [profile orders]
  credential_process = ` + p.name + ` credentials aws-web-identity

--format jwt prints the JWT-SVID that the target takes, for programs that make
the exchange themselves; --format executable the same as an executable source of
Google's libraries wants it. There a refusal is said in JSON too, and with 0:
they read nothing else.

--claims answers a claims challenge of Azure's continuous access: the credential
that is held is replaced.`,
		Example: "  " + p.name + " credentials aws-roles-anywhere\n  " + p.name + " credentials gcp --format jwt",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.targets,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conn, err := credentialsClient(cmd)
			if err != nil {
				return err
			}
			defer conn.Close()
			form, _ := cmd.Flags().GetString("format")
			switch form {
			case "", formProcess, formToken:
				claims, _ := cmd.Flags().GetString("claims")
				return p.credential(cmd.Context(), client, &agentapi.FetchRequest{Target: args[0], Claims: claims}, form)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 45*time.Second)
			defer cancel()
			switch form {
			case formJWT:
				return p.targetToken(ctx, client, args[0])
			case formExecutable:
				return p.executable(ctx, client, args[0])
			}
			return cli.BadInput(fmt.Errorf("--format %q: it is one of process, token, jwt and executable", form))
		},
	}
	cmd.Flags().String("socket", "", "the agent's workload socket (default $"+cli.WorkloadVariable+")")
	cmd.Flags().String("format", "", "process, token, jwt or executable (default process for AWS, else token)")
	cmd.Flags().String("claims", "", "a claims challenge (JSON) of a resource that refused the credential")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{formProcess, formToken, formJWT, formExecutable}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// final makes the provider's no, which is final, a denial.
func final(err error) error {
	if status.Code(err) == codes.FailedPrecondition {
		return cli.WithCode(cli.ExitDenied, errors.New(status.Convert(err).Message()))
	}
	return cli.Reached("agent", "its workload socket", err)
}

func (p *verbs) credential(ctx context.Context, client agentapi.CredentialsClient, r *agentapi.FetchRequest, form string) error {
	got, err := p.waitFor(ctx, client, r)
	if err != nil {
		return final(err)
	}
	token, keys := got.GetBearer().GetToken(), got.GetAws()
	switch {
	case token != "" && form != formProcess:
		_, err := fmt.Fprintln(p.Out, token)
		return err
	case keys != nil && form != formToken:
		return cli.WriteJSON(p.Out, map[string]any{
			"Version": 1, "AccessKeyId": keys.GetAccessKeyId(), "SecretAccessKey": keys.GetSecretAccessKey(),
			"SessionToken": keys.GetSessionToken(), "Expiration": time.Unix(got.GetExpires(), 0).UTC().Format(time.RFC3339),
		})
	}
	return cli.BadInput(fmt.Errorf("--format %s: target %s is of flow %s, whose credential has another form", form, r.GetTarget(), got.GetFlow()))
}

func (p *verbs) targetToken(ctx context.Context, client agentapi.CredentialsClient, target string) error {
	got, err := client.Token(ctx, &agentapi.TokenRequest{Target: target})
	if err != nil {
		return final(err)
	}
	_, err = fmt.Fprintln(p.Out, got.GetToken())
	return err
}

// executable answers as Google's libraries expect: they read JSON from a
// program that ends with 0, and take its failures from there.
func (p *verbs) executable(ctx context.Context, client agentapi.CredentialsClient, target string) error {
	const kind = "urn:ietf:params:oauth:token-type:jwt"
	got, err := client.Token(ctx, &agentapi.TokenRequest{Target: target})
	if err == nil && got.GetFlow() != "gcp" {
		err = status.Errorf(codes.InvalidArgument, "target %s is of flow %s: gcp is wanted", target, got.GetFlow())
	}
	if asked := os.Getenv("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE"); err == nil && asked != "" && asked != kind {
		err = status.Errorf(codes.InvalidArgument, "subject_token_type: %s is wanted", kind)
	}
	if err != nil {
		s := status.Convert(err)
		fmt.Fprintln(p.Err, p.name+":", s.Message())
		return cli.WriteJSON(p.Out, map[string]any{"version": 1, "success": false, "code": s.Code().String(), "message": s.Message()})
	}
	return cli.WriteJSON(p.Out, map[string]any{
		"version": 1, "success": true, "token_type": kind, "id_token": got.GetToken(), "expiration_time": got.GetExpires(),
	})
}
