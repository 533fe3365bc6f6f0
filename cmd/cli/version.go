package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release is the version that a release was built as (-ldflags -X).
var release string

// Version is the release's, the module's, or the revision that it was built from.
func Version() string {
	if release != "" {
		return release
	}
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

func (p *Program) VersionCommand(name string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Long: `Version prints the version of this program, or the revision that it was built
from. It asks nobody.`,
		Example: "  " + name + " version\n  " + name + " version -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": Version(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}
			return p.Show(cmd, v, func() error {
				_, err := fmt.Fprintln(p.Out, name, Version())
				return err
			})
		},
	}
	return AddOutput(cmd)
}
