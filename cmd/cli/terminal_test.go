package cli_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/cmd/cli"
)

// TestProgress: a line appears after a second, makes room for what else is
// printed, and is gone in the end; nobody looking, there is none.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var screen bytes.Buffer
		g := cli.NewProgress(&screen, "starting")
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		g.Print(func() { // not beside its own writing
			if screen.Len() > 0 {
				t.Errorf("before a second has gone by: %q", screen.String())
			}
		})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		g.Print(func() { screen.WriteString("a step\n") })
		g.Stop()
		const want = "\r\x1b[Kstarting... 1 s\r\x1b[Kstarting... 2 s\r\x1b[Ka step\n"
		if screen.String() != want {
			t.Errorf("on the screen: %q; want %q", screen.String(), want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		quick := new(bytes.Buffer)
		cli.NewProgress(quick, "quick").Stop()
		none := cli.NewProgress(nil, "unseen")
		time.Sleep(5 * time.Second)
		none.Print(func() { quick.WriteString("a step\n") })
		none.Stop()
		if quick.String() != "a step\n" {
			t.Errorf("written: %q", quick.String())
		}
	})
}
