package logincmd

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/credence-id/credence/cmd/cli"
)

// show prints the URL that the person has to open and, if wanted, has their
// browser open it.
func show(p *cli.Program, url string, browser bool) {
	fmt.Fprintf(p.Err, "sign in here: %s\n", url)
	if !browser {
		return
	}
	opener := "xdg-open"
	switch {
	case runtime.GOOS == "darwin":
		opener = "open"
	case os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "":
		return
	}
	cmd := exec.Command(opener, url)
	if cmd.Start() == nil {
		_ = cmd.Process.Release() // it goes on as long as it likes, and tells us nothing
	}
}
