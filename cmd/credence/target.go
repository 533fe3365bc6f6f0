package main

import "github.com/spf13/cobra"

func (p *program) targetCommand() *cobra.Command {
	return group("target", "Clouds and servers that SVIDs are exchanged at", p.targetSetupCommand(), p.targetCheckCommand())
}
