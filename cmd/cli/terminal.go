package cli

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

// Paint colours the text under a heading by what it says.
func Paint(head, text string) string {
	colour := ""
	switch strings.ToUpper(head) {
	case "STATE", "OK", "GRANTED":
		colour = map[string]string{"no": red, "evicted": red, "denied": red, "ok": green, "connected": green, "active": green}[text]
	case "PROBLEM":
		colour = red
	case "KEY", "SERIAL", "RECORD", "HUNK":
		colour = dim
	case "ADDED":
		colour = green
	case "REMOVED":
		colour = red
	}
	if colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// Colours says whether what is written there may be coloured: on a terminal
// that knows how, unless the person has said otherwise (NO_COLOR, --color).
func (p *Program) Colours(w io.Writer) bool {
	switch p.color {
	case "always":
		return true
	case "never":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && IsTerminal(w)
}

func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// checkColor refuses what --color doesn't know.
func (p *Program) checkColor(*cobra.Command, []string) error {
	switch p.color {
	case "auto", "always", "never":
		return nil
	}
	return BadInput(fmt.Errorf("--color %s: auto, always or never is wanted", p.color))
}

// Progress is a line on a terminal that says what takes so long. It appears
// after a second and is gone when the work is done; elsewhere there is none.
type Progress struct {
	mu    sync.Mutex // guards what follows
	w     io.Writer  // nil: nobody looks
	shown bool
	done  chan struct{}
	ended sync.WaitGroup
}

// StartProgress begins to watch over work; the caller stops it.
func (p *Program) StartProgress(what string) *Progress {
	if !IsTerminal(p.Err) || os.Getenv("TERM") == "dumb" {
		return NewProgress(nil, what)
	}
	return NewProgress(p.Err, what)
}

func NewProgress(w io.Writer, what string) *Progress {
	g := &Progress{w: w, done: make(chan struct{})}
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

func (g *Progress) draw(text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fmt.Fprintf(g.w, "\r\x1b[K%s", text)
	g.shown = true
}

// Print runs something that writes to the same terminal, on a clean line.
func (g *Progress) Print(write func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shown {
		fmt.Fprint(g.w, "\r\x1b[K")
		g.shown = false
	}
	write()
}

// Stop ends it and clears its line.
func (g *Progress) Stop() {
	close(g.done)
	g.ended.Wait()
	g.Print(func() {})
}
