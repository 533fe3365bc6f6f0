package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Colours: few, and never the only bearer of a meaning.
const (
	red   = "31"
	green = "32"
	dim   = "2"
)

// paint colours the text under a heading by what it says.
func paint(head, text string) string {
	colour := ""
	switch strings.ToUpper(head) {
	case "STATE", "OK", "GRANTED":
		colour = map[string]string{"no": red, "evicted": red, "denied": red, "ok": green, "connected": green, "active": green}[text]
	case "PROBLEM":
		colour = red
	case "KEY", "SERIAL", "RECORD":
		colour = dim
	}
	if colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// colours says whether what is written there may be coloured: on a terminal
// that knows how, unless the person has said otherwise (NO_COLOR, --color).
func (p *program) colours(w io.Writer) bool {
	switch p.color {
	case "always":
		return true
	case "never":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// checkColor refuses what --color doesn't know.
func (p *program) checkColor(*cobra.Command, []string) error {
	switch p.color {
	case "auto", "always", "never":
		return nil
	}
	return input(fmt.Errorf("--color %s: auto, always or never is wanted", p.color))
}

// progress is a line on a terminal that says what takes so long. It appears
// after a second and is gone when the work is done; elsewhere there is none.
type progress struct {
	mu    sync.Mutex // guards what follows
	w     io.Writer  // nil: nobody looks
	shown bool
	done  chan struct{}
	ended sync.WaitGroup
}

// startProgress begins to watch over work; the caller stops it.
func (p *program) startProgress(what string) *progress {
	if !isTerminal(p.err) || os.Getenv("TERM") == "dumb" {
		return newProgress(nil, what)
	}
	return newProgress(p.err, what)
}

func newProgress(w io.Writer, what string) *progress {
	g := &progress{w: w, done: make(chan struct{})}
	if w == nil {
		return g
	}
	g.ended.Go(func() {
		began := time.Now()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-g.done:
				return
			case <-tick.C:
				g.draw(fmt.Sprintf("%s... %d s", what, time.Since(began)/time.Second))
			}
		}
	})
	return g
}

func (g *progress) draw(text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fmt.Fprintf(g.w, "\r\x1b[K%s", text)
	g.shown = true
}

// print runs something that writes to the same terminal, on a clean line.
func (g *progress) print(write func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shown {
		fmt.Fprint(g.w, "\r\x1b[K")
		g.shown = false
	}
	write()
}

// stop ends it and clears its line.
func (g *progress) stop() {
	close(g.done)
	g.ended.Wait()
	g.print(func() {})
}
