//go:build unix

package workloadcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/tracing"
)

// exitExec is exec's exit code for a failure of its own.
const exitExec = 125

func (p *verbs) execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec --target NAME[,NAME...] -- COMMAND [ARG...]",
		Short: "Run a command with fresh credentials in reach of its SDKs",
		Long: `Exec runs a command whose cloud SDKs find credentials of the targets by
themselves, as they are: at endpoints on loopback, with secrets that only the
command is handed, and in files that only its user can read. They are refreshed
for as long as the command runs; signals are passed on, the exit code is the
command's (125 if exec itself fails), and nothing is left.

The first target of each cloud is the default there:

  AWS     the container endpoint. Every AWS target is a profile of its name too
          (AWS_PROFILE=NAME), beside those of your own config; NAME.web is one
          that has the SDK exchange the token itself.
  GCP     GOOGLE_APPLICATION_CREDENTIALS. Others: NAME.json in the same directory,
          NAME.file.json, NAME.executable.json.
  Azure   a federated token file and, under any authority, the App Service
          endpoint, which gives the scopes of all Azure targets named here. To
          take that: AZURE_TOKEN_CREDENTIALS=ManagedIdentityCredential.
  Vault   VAULT_TOKEN, VAULT_ADDR, VAULT_NAMESPACE, VAULT_CACERT; OpenBao reads
          them too. That token is not refreshed: about a third of the role's
          token_ttl is left at least when the command begins.

Every oauth target, and ID tokens of GCP: a file that is kept fresh, in
CREDENCE_TOKEN_FILE_NAME (upper case, _ for - and .). Where a target has a
ca_file, the command trusts it beside the system's roots (SSL_CERT_FILE,
AWS_CA_BUNDLE, NODE_EXTRA_CA_CERTS and the like).

The agent attests this program, not the command: uid, gid, groups and cgroup are
the same, but path and sha256 are those of ` + p.name + `. An Identity that names the
command's own path or sha256 does not match here.

With the AWS CLI at hand:

  ` + p.name + ` exec --target aws-web-identity,gcp,azure -- aws sts get-caller-identity`,
		Example: "  " + p.name + " exec --target aws-web-identity,gcp,azure -- env",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			targets, _ := cmd.Flags().GetStringSlice("target")
			code, err := p.exec(cmd, targets, args)
			if err != nil {
				return cli.WithCode(exitExec, fmt.Errorf("exec: %w", err))
			}
			if code != 0 {
				return cli.Coded{Code: code}
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringSlice("target", nil, "targets that the identity lists")
	cmd.Flags().String("socket", "", "the agent's workload socket (default $"+cli.WorkloadVariable+")")
	_ = cmd.MarkFlagRequired("target")
	_ = cmd.RegisterFlagCompletionFunc("target", p.targets)
	return cmd
}

func (p *verbs) exec(cmd *cobra.Command, targets, args []string) (code int, err error) {
	client, conn, err := credentialsClient(cmd)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	dir, err := NewScratch("credence-exec-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dir.Remove()) }()
	// Until there is a command to pass signals to, they end us, tidily.
	opening, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	where := workloadSocket(cmd)
	source := &agentSource{client: client, socket: where, wait: func(target string) (*agentapi.FetchResponse, error) {
		return p.waitFor(opening, client, &agentapi.FetchRequest{Target: target})
	}}
	s, err := local.Open(opening, local.Config{
		Dir: dir.Path, UID: os.Getuid(), GID: os.Getgid(), Targets: targets, Source: source,
		Command: []string{self, "credentials", "--socket", where}, Environ: os.Environ(), Trace: tracing.Carry, Now: p.Now,
	})
	if err != nil { // a refusal is told now, not by the command's SDK
		return 0, cli.Reached("agent", "its workload socket", err)
	}
	source.opened.Store(true)
	// An interrupt is the command's to heed: files stay fresh until it ends.
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	defer func() {
		cancel()
		running.Wait()
		_ = s.Close() // the directory goes whole
	}()
	return Child(opening, p.Program, args, s.Apply(os.Environ()))
}

// agentSource asks the agent, as this process.
type agentSource struct {
	client agentapi.CredentialsClient
	socket string
	wait   func(target string) (*agentapi.FetchResponse, error)
	opened atomic.Bool // from then on an SDK waits, which has a patience of its own
}

func (a *agentSource) Fetch(ctx context.Context, target string) (*agentapi.FetchResponse, error) {
	if !a.opened.Load() {
		return a.wait(target)
	}
	return a.client.Fetch(tracing.Onward(ctx), &agentapi.FetchRequest{Target: target})
}

func (a *agentSource) Token(ctx context.Context, target string, toFile bool) (*agentapi.TokenResponse, error) {
	return a.client.Token(tracing.Onward(ctx), &agentapi.TokenRequest{Target: target, ToFile: toFile})
}

func (a *agentSource) X509(ctx context.Context, id string) (chain, key []byte, err error) {
	path, err := cli.SocketPath(a.socket)
	if err != nil {
		return nil, nil, err
	}
	all, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr("unix://"+path))
	if err != nil {
		return nil, nil, err
	}
	for _, svid := range all {
		if svid.ID.String() == id {
			return svid.Marshal()
		}
	}
	return nil, nil, status.Errorf(codes.PermissionDenied, "the X509-SVID of %s is not granted any more", id)
}

// A Scratch is a directory in $TMPDIR that is locked for as long as this process
// lives.
type Scratch struct {
	Path string
	lock *os.File
}

const scratchRest = time.Minute // between making a directory and locking it

// NewScratch makes one whose name begins so, and removes those of this user that
// were left when their process was killed: the locks of such are free.
func NewScratch(name string) (*Scratch, error) {
	if old, err := filepath.Glob(filepath.Join(os.TempDir(), name+"*")); err == nil {
		for _, path := range old {
			sweep(path)
		}
	}
	path, err := os.MkdirTemp("", name)
	if err != nil {
		return nil, err
	}
	d := &Scratch{Path: path}
	if d.lock, err = lockDir(path); err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	return d, nil
}

func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Remove takes it away, with all that is in it.
func (d *Scratch) Remove() error {
	return errors.Join(os.RemoveAll(d.Path), d.lock.Close())
}

// sweep removes what nobody holds any more. What can't be judged stays.
func sweep(path string) {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 || time.Since(info.ModTime()) < scratchRest {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Getuid() {
		return
	}
	lock, err := lockDir(path)
	if err != nil {
		return
	}
	d := &Scratch{path, lock}
	_ = d.Remove() // the next one tries again
}

// Child runs a command until it ends, passing signals on, and returns its exit code
// as a shell tells it. It is not begun once opening has ended.
func Child(opening context.Context, p *cli.Program, args, env []string) (int, error) {
	child := exec.Command(args[0], args[1:]...)
	child.Env, child.Stdin, child.Stdout, child.Stderr = env, p.In, p.Out, p.Err
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	if err := context.Cause(opening); err != nil {
		return 0, err
	}
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
