package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// What the tests start: the program in a process of its own, or in theirs.
var (
	Main = main
	Run  = run

	RunAt = runAt // by a clock that is off

	NewAgentAdmin = newAgentAdmin
)

// What they look at by itself.
var (
	WriteYAML   = writeYAML
	NewProgress = newProgress
)

func (g *progress) Stop()              { g.stop() }
func (g *progress) Print(write func()) { g.print(write) }

// Commands is the tree of all verbs.
func Commands() *cobra.Command {
	return (&program{in: strings.NewReader(""), out: io.Discard, err: io.Discard}).root()
}
