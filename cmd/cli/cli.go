// Package cli is what the programs' verbs share: exit codes, output for people
// and for programs, terminals, local sockets, and configuration files, read
// strictly.
//
// It trusts the person who types, and the files that they name only within
// bounds. It links nothing that signs and no database, for the agent's program
// has it too.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// CompleteFiles has a flag completed by files that end so.
func CompleteFiles(cmd *cobra.Command, flag string, ends ...string) {
	_ = cmd.MarkFlagFilename(flag, ends...)
}

// A Program is what every verb has.
type Program struct {
	In    io.Reader
	Out   io.Writer        // results
	Err   io.Writer        // everything else
	Now   func() time.Time // for certificates and everything that is kept
	color string           // auto, always, never
}

// Execute runs a whole program and tells its exit code.
func (p *Program) Execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var c Coded
	if !errors.As(err, &c) || c.Err != nil {
		fmt.Fprintf(p.Err, "%s: %s\n", root.Name(), strings.TrimSpace(ExplainStatus(err)))
	}
	return exitCode(err)
}

// Furnish gives a whole program what all of its verbs have.
func (p *Program) Furnish(root *cobra.Command) {
	root.SilenceUsage, root.SilenceErrors = true, true
	root.Args, root.RunE = cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.Err)
	root.PersistentFlags().StringVar(&p.color, "color", "auto", "auto: on a terminal, unless NO_COLOR is set; always; never")
	_ = root.RegisterFlagCompletionFunc("color", cobra.FixedCompletions([]string{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = p.checkColor
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return BadInput(fmt.Errorf("%w; see: %s --help", err, cmd.CommandPath()))
	})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = knownTopic
		case "completion":
			shells(c, root.Name())
		}
	}
	checkArgs(root)
}

// shells gives the completion of each shell an example, and drops the one that
// no Unix needs.
func shells(completion *cobra.Command, name string) {
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // not runnable, it would ignore an unknown shell
	for _, c := range completion.Commands() {
		switch c.Name() {
		case "bash":
			c.Example = "  source <(" + name + " completion bash)"
		case "zsh":
			c.Example = "  " + name + " completion zsh > _" + name + "  # into a directory of $fpath"
		case "fish":
			c.Example = "  " + name + " completion fish > " + name + ".fish  # into ~/.config/fish/completions"
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
				return BadInput(fmt.Errorf("%w; see: %s --help", err, cmd.CommandPath()))
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		checkArgs(sub)
	}
}

// Group is a noun: its verbs are below it.
func Group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(verbs...)
	return cmd
}

// Logger writes beside the results.
func (p *Program) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(p.Err, nil))
}
