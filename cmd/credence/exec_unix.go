//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/local"
)

// exitExec is exec's exit code for a failure of its own.
const exitExec = 125

// credentialsClient connects to the agent's credential service on the
// workload socket.
func credentialsClient(cmd *cobra.Command) (agentapi.CredentialsClient, io.Closer, error) {
	where, _ := cmd.Flags().GetString("socket")
	if where == "" {
		where = os.Getenv(workloadVariable)
	}
	if where == "" {
		return nil, nil, input(fmt.Errorf("which agent? set %s to unix:///path of its workload socket, or give --socket", workloadVariable))
	}
	conn, err := dialSocket(where)
	if err != nil {
		return nil, nil, err
	}
	return agentapi.NewCredentialsClient(workloadConn{conn}), conn, nil
}

// workloadConn adds the metadata that the workload socket demands.
type workloadConn struct{ *grpc.ClientConn }

func (c workloadConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.ClientConn.Invoke(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), method, args, reply, opts...)
}

func (p *program) credentialsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credentials TARGET",
		Short: "Exchange this process's SVID, and print what a target's tools want",
		Long: `Credentials exchanges the SVID of this process, this program as the user that
runs it, at a target that its identity lists. For AWS it prints what a
credential_process prints; for GCP, Azure and oauth the token. The agent makes
the exchange and keeps the credential until half its life is over. A target that
is not granted, and a cloud that refuses, end it with 4.

In ~/.aws/config:

  [profile orders]
  credential_process = credence credentials aws-web-identity`,
		Example: "  credence credentials aws-roles-anywhere\n  credence credentials gcp",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeFirst(completeNamed("Target")),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conn, err := credentialsClient(cmd)
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), 45*time.Second)
			defer cancel()
			claims, _ := cmd.Flags().GetString("claims")
			r, err := client.Fetch(ctx, &agentapi.FetchRequest{Target: args[0], Claims: claims})
			if status.Code(err) == codes.FailedPrecondition { // the provider's no is final
				return coded{exitDenied, errors.New(status.Convert(err).Message())}
			}
			if err != nil {
				return reached("agent", "its workload socket", err)
			}
			if token := r.GetBearer().GetToken(); token != "" {
				_, err := fmt.Fprintln(p.out, token)
				return err
			}
			return writeJSON(p.out, map[string]any{
				"Version": 1, "AccessKeyId": r.GetAws().GetAccessKeyId(), "SecretAccessKey": r.GetAws().GetSecretAccessKey(),
				"SessionToken": r.GetAws().GetSessionToken(), "Expiration": time.Unix(r.GetExpires(), 0).UTC().Format(time.RFC3339),
			})
		},
	}
	cmd.Flags().String("socket", "", "the agent's workload socket (default $"+workloadVariable+")")
	cmd.Flags().String("claims", "", "a claims challenge (JSON) of a resource that refused the credential; the answer replaces it")
	return cmd
}

func (p *program) execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec --target NAME -- COMMAND [ARG...]",
		Short: "Run a command with fresh credentials in reach of its SDK",
		Long: `Exec runs a command whose AWS SDK finds credentials of a target by itself: at a
container endpoint on loopback, with a secret that only the command is handed.
They are refreshed for as long as the command runs; signals are passed on, the
exit code is the command's (125 if exec itself fails), and nothing is left.

For a target of oauth's vault_jwt and vault_cert it sets VAULT_TOKEN, VAULT_ADDR
and, where the target has them, VAULT_NAMESPACE and VAULT_CACERT; OpenBao reads
them too. That token is not refreshed: when the command begins, about a third of
the role's token_ttl is left at least. For the tokens of GCP, Azure and other
OAuth servers no variable is agreed on: see credence credentials.

The agent attests this program, not the command: uid, gid, groups and cgroup are
the same, but path and sha256 are those of credence. An Identity that names the
command's own path or sha256 does not match here.

With the AWS CLI at hand:

  credence exec --target aws-web-identity -- aws sts get-caller-identity`,
		Example: "  credence exec --target aws-web-identity -- env",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, _ := cmd.Flags().GetString("target")
			code, err := p.exec(cmd, target, args)
			if err != nil {
				return coded{exitExec, fmt.Errorf("exec: %w", err)}
			}
			if code != 0 {
				return coded{code: code}
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().String("target", "", "a target that the identity lists, of AWS or Vault")
	cmd.Flags().String("socket", "", "the agent's workload socket (default $"+workloadVariable+")")
	_ = cmd.MarkFlagRequired("target")
	completeFlag(cmd, "target", completeNamed("Target"))
	return cmd
}

func (p *program) exec(cmd *cobra.Command, target string, args []string) (code int, err error) {
	client, conn, err := credentialsClient(cmd)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	fetch := func(ctx context.Context) (*agentapi.FetchResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
		defer cancel()
		return client.Fetch(ctx, &agentapi.FetchRequest{Target: target})
	}
	first, err := fetch(cmd.Context()) // a refusal is told now, not by the command's SDK
	if err != nil {
		return 0, reached("agent", "its workload socket", err)
	}
	if first.GetBearer().GetVaultAddress() != "" {
		return p.child(args, vaultEnv(os.Environ(), first))
	}
	if first.GetAws() == nil {
		return 0, fmt.Errorf("target %s is of flow %s: exec hands out AWS credentials and Vault tokens, no variable is agreed on for another; credence credentials %s prints its token", target, first.GetFlow(), target)
	}
	env, done, err := serveContainer(fetch)
	if err != nil {
		return 0, err
	}
	defer done()
	return p.child(args, childEnv(os.Environ(), first, env))
}

// serveContainer serves the container endpoint for one child, and returns the
// environment that leads there.
func serveContainer(fetch func(context.Context) (*agentapi.FetchResponse, error)) (env []string, done func(), err error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails (crypto/rand.Read)
	text := base64.RawURLEncoding.EncodeToString(secret)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	handler, err := local.NewContainer(local.ContainerConfig{Host: l.Addr().String(), Secret: text, Fetch: fetch})
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	dir, err := os.MkdirTemp("", "credence-exec-")
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil { // without a newline: SDKs send the bytes as they are
		return nil, nil, errors.Join(err, l.Close(), os.RemoveAll(dir))
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // it ends by Close
	}()
	return []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://" + l.Addr().String() + "/", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=" + file}, func() {
		_ = server.Close()
		<-served
		_ = os.RemoveAll(dir)
	}, nil
}

// before are the variables by which an SDK would find other credentials before
// ours, or ours elsewhere.
var before = []string{
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN",
	"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
}

// childEnv is the environment with the way to the credentials in it, and to
// the target's own endpoint where it has one.
func childEnv(env []string, r *agentapi.FetchResponse, more []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(before, name)
	})
	if r.GetAws().GetRegion() != "" {
		env = append(env, "AWS_REGION="+r.GetAws().GetRegion())
	}
	if r.GetEndpoint() != "" && r.GetFlow() == "aws_web_identity" {
		env = append(env, "AWS_ENDPOINT_URL_STS="+r.GetEndpoint())
	}
	if r.GetCaFile() != "" {
		env = append(env, "AWS_CA_BUNDLE="+r.GetCaFile())
	}
	return append(env, more...)
}

// vaultNames are what tells tools of Vault and, with BAO_ for VAULT_, of
// OpenBao, which reads its own first, who they are, where to go and whom to
// believe.
var vaultNames = []string{
	"TOKEN", "ADDR", "AGENT_ADDR", "NAMESPACE", "CACERT", "CACERT_BYTES", "CAPATH", "SKIP_VERIFY", "TLS_SERVER_NAME",
	"CLIENT_CERT", "CLIENT_KEY",
}

// vaultEnv is the environment with a Vault token, and what leads to its server.
func vaultEnv(env []string, r *agentapi.FetchResponse) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		name, vault := strings.CutPrefix(name, "VAULT_")
		name, bao := strings.CutPrefix(name, "BAO_")
		return (vault || bao) && slices.Contains(vaultNames, name)
	})
	b := r.GetBearer()
	env = append(env, "VAULT_TOKEN="+b.GetToken(), "VAULT_ADDR="+b.GetVaultAddress())
	if b.GetVaultNamespace() != "" {
		env = append(env, "VAULT_NAMESPACE="+b.GetVaultNamespace())
	}
	if r.GetCaFile() != "" {
		env = append(env, "VAULT_CACERT="+r.GetCaFile())
	}
	return env
}

// child runs the command until it ends, passing signals on.
func (p *program) child(args, env []string) (int, error) {
	child := exec.Command(args[0], args[1:]...)
	child.Env, child.Stdin, child.Stdout, child.Stderr = env, p.in, p.out, p.err
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	if err := child.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	for {
		select {
		case s := <-signals:
			// A terminal sends these to the command itself: it must not see them twice.
			if (s == os.Interrupt || s == syscall.SIGQUIT) && term.IsTerminal(int(os.Stdin.Fd())) {
				continue
			}
			_ = child.Process.Signal(s) // an error: it has just ended
		case err := <-ended:
			var failed *exec.ExitError
			if err == nil || errors.As(err, &failed) {
				return exitOf(child.ProcessState), nil
			}
			return 0, err
		}
	}
}

// exitOf is the code as a shell tells it: 128 and the signal for a command
// that a signal ended.
func exitOf(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}
