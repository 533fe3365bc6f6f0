package main

import (
	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) targetCommand() *cobra.Command {
	return cli.Group("target", "Clouds and servers that SVIDs are exchanged at", p.targetSetupCommand(), p.targetCheckCommand())
}
