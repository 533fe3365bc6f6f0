// Command credence is the whole program: the operator's verbs, the broker, the
// agent, and dev, which runs the main job on one machine without a network.
//
// It is the only place that names drivers: a plain switch per kind builds the
// one that a configuration asks for. What each part does is left to its
// package.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
)

// Exit codes.
const (
	exitNo          = 1 // done, and the answer is no
	exitInput       = 2 // bad input
	exitUnreachable = 3 // broker or agent not reached
	exitDenied      = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// program is what every verb has.
type program struct {
	in      io.Reader
	out     io.Writer // results
	err     io.Writer // everything else
	color   string    // auto, always, never
	started time.Time
	now     func() time.Time // for certificates and everything that is kept
}

// run is the program, for main and for tests.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	return runAt(ctx, time.Now, args, in, out, errs)
}

// runAt is the program by some clock.
func runAt(ctx context.Context, now func() time.Time, args []string, in io.Reader, out, errs io.Writer) int {
	p := &program{in: in, out: out, err: errs, started: time.Now(), now: now}
	root := p.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var c coded
	if !errors.As(err, &c) || c.err != nil {
		fmt.Fprintf(errs, "credence: %s\n", strings.TrimSpace(explainStatus(err)))
	}
	return exitCode(err)
}

// coded is an error that knows its exit code; without an error it has been
// told already.
type coded struct {
	code int
	err  error
}

func (c coded) Error() string {
	if c.err == nil {
		return fmt.Sprintf("exit %d", c.code)
	}
	return c.err.Error()
}

func (c coded) Unwrap() error { return c.err }

// input marks an error as the user's to mend.
func input(err error) error {
	if err == nil {
		return nil
	}
	return coded{exitInput, err}
}

func exitCode(err error) int {
	var c coded
	if errors.As(err, &c) {
		return c.code
	}
	if errors.Is(err, agent.ErrDenied) {
		return exitDenied
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return exitUnreachable
	case codes.PermissionDenied, codes.Unauthenticated:
		return exitDenied
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition:
		return exitInput
	}
	return exitNo
}

// explainStatus is a gRPC error without its wrapping.
func explainStatus(err error) string {
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.OK {
		return err.Error()
	}
	text := err.Error()
	if i := strings.Index(text, "rpc error: "); i >= 0 {
		return text[:i] + s.Message()
	}
	return text
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "credence",
		Short: "Identities for workloads, and what clouds and peers give for them",
		Long: `Credence gives a workload that proves what it is a SPIFFE identity (an SVID),
lets peers in other trust domains verify it, and exchanges it for credentials
of AWS, GCP and Azure. No stored secret anywhere.

To see all of it on this machine, without a network or an account, run
"credence dev". It prints the two addresses that every other example needs:
CREDENCE_ADMIN, the broker's admin socket, for the operator's verbs, and
SPIFFE_ENDPOINT_SOCKET, the agent's, for the workload's.

Exit codes: 0 done; 1 done, and the answer is no; 2 bad input; 3 broker or agent
not reached; 4 denied. exec: the command's own, 125 if exec itself fails.`,
		Example:       "  credence dev --once",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.PersistentFlags().StringVar(&p.color, "color", "auto", "auto: on a terminal, unless NO_COLOR is set; always; never")
	_ = root.RegisterFlagCompletionFunc("color", cobra.FixedCompletions([]string{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = p.checkColor
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return input(fmt.Errorf("%w; see: %s --help", err, cmd.CommandPath()))
	})
	root.AddCommand(
		p.devCommand(), p.brokerCommand(), p.agentCommand(),
		p.applyCommand(), p.planCommand(), p.getCommand(), p.deleteCommand(), p.validateCommand(),
		p.tokenCommand(), p.nodeCommand(), p.explainCommand(), p.peerCommand(), p.bundleCommand(), p.authorityCommand(),
		p.svidCommand(), p.targetCommand(), p.credentialsCommand(), p.execCommand(), p.sandboxCommand(),
		p.auditCommand(), p.statusCommand(), p.versionCommand(),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = knownTopic
		case "completion":
			shells(c)
		}
	}
	checkArgs(root)
	return root
}

// shells gives the completion of each shell an example, and drops the one that
// no Unix needs.
func shells(completion *cobra.Command) {
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // not runnable, it would ignore an unknown shell
	for _, c := range completion.Commands() {
		switch c.Name() {
		case "bash":
			c.Example = "  source <(credence completion bash)"
		case "zsh":
			c.Example = "  credence completion zsh > _credence       # into a directory of $fpath"
		case "fish":
			c.Example = "  credence completion fish > credence.fish  # into ~/.config/fish/completions"
		default:
			completion.RemoveCommand(c)
		}
	}
}

// knownTopic refuses help about what is no command.
func knownTopic(cmd *cobra.Command, args []string) error {
	_, rest, err := cmd.Root().Find(args)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("unknown command %q", strings.Join(args, " "))
	}
	return err
}

// checkArgs makes an unknown verb, a wrong number of arguments and a missing
// flag bad input.
func checkArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			if err != nil {
				return input(fmt.Errorf("%w; see: %s --help", err, cmd.CommandPath()))
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		checkArgs(sub)
	}
}

// version is the module's, or the revision that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}

func (p *program) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Long: `Version prints the version of this program, or the revision that it was built
from. It asks nobody.`,
		Example: "  credence version\n  credence version -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": version(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}
			return p.show(cmd, v, func() error {
				_, err := fmt.Fprintln(p.out, "credence", version())
				return err
			})
		},
	}
	return addOutput(cmd)
}
