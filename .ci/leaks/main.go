// Leaks reads the output of go test -json and fails where a secret stands in
// it: what the sandbox mints and marks, a compact JWT, a private key in PEM.
// Tests fail it as well. It prints the output of what failed, and a line for
// each package.
//
// A program whose result is a token prints it to standard output: scripts may
// show that, and nothing else.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// canary is in every credential that the sandbox mints (exchangers/sandbox).
const canary = "SandboxCanary"

// scripts are the tests whose logs show what programs wrote, and where to.
var scripts = regexp.MustCompile(`^TestScripts/`)

var shapes = []*regexp.Regexp{
	regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}`), // RFC 7519
	regexp.MustCompile(`-----BEGIN ([A-Z0-9 ]+ )?PRIVATE KEY-----`),
	regexp.MustCompile("(?i)" + strings.Join(forms(canary), "|")),
}

// forms are how a text may stand in an output: as it is, in hex and in base64,
// wherever it begins.
func forms(text string) []string {
	all := []string{regexp.QuoteMeta(text), hex.EncodeToString([]byte(text))}
	for shift := range 3 {
		encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat(".", shift) + text + "..."))
		first := (8*shift + 5) / 6 // the digits that hold bits of what stands before
		last := (8 * (shift + len(text))) / 6
		all = append(all, regexp.QuoteMeta(encoded[first:last]))
	}
	return all
}

// A line is one of go test -json (test2json).
type line struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// A checker holds what a run has printed so far.
type checker struct {
	out    io.Writer
	said   map[string][]string // by package and test
	stream map[string]string   // of a script's log, by the same
	leaks  int
	failed bool
}

func (c *checker) read(in io.Reader) error {
	lines := bufio.NewReaderSize(in, 1<<20)
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			c.take(text)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *checker) take(text string) {
	var l line
	if json.Unmarshal([]byte(text), &l) != nil { // of a build that failed, or of a panic
		c.search("", "", text)
		fmt.Fprint(c.out, text)
		return
	}
	key := l.Package + " " + l.Test
	switch l.Action {
	case "output", "build-output":
		c.said[key] = append(c.said[key], l.Output)
		c.search(l.Package, l.Test, l.Output)
		if l.Action == "build-output" {
			fmt.Fprint(c.out, l.Output)
		}
	case "fail", "build-fail":
		c.failed = true
		c.tell(key)
		if l.Test == "" { // what had not ended: it may be why
			for _, other := range slices.Sorted(maps.Keys(c.said)) {
				if strings.HasPrefix(other, key) {
					c.tell(other)
				}
			}
		}
	case "pass", "skip":
		if l.Test == "" {
			fmt.Fprintf(c.out, "%s\t%s\t%.1fs\n", l.Action, l.Package, l.Elapsed)
		}
		delete(c.said, key)
		delete(c.stream, key)
	}
}

func (c *checker) tell(key string) {
	for _, text := range c.said[key] {
		fmt.Fprint(c.out, text)
	}
	delete(c.said, key)
}

// search looks for secrets in one line of a test's output.
func (c *checker) search(pkg, test, text string) {
	key := pkg + " " + test
	switch trimmed := strings.TrimSpace(text); {
	case strings.HasPrefix(trimmed, "> "), strings.HasPrefix(trimmed, "# "):
		c.stream[key] = ""
	case trimmed == "[stdout]", trimmed == "[stderr]":
		c.stream[key] = trimmed
	}
	if scripts.MatchString(test) && c.stream[key] == "[stdout]" {
		return
	}
	for _, shape := range shapes {
		at := shape.FindStringIndex(text)
		if at == nil {
			continue
		}
		c.leaks++
		// The place, and no more of the secret than tells which it is.
		fmt.Fprintf(c.out, "LEAK %s %s: %s...\n", pkg, test, strings.TrimSpace(text[:min(at[0]+12, at[1])]))
	}
}

func run(in io.Reader, out io.Writer) int {
	c := &checker{out: out, said: map[string][]string{}, stream: map[string]string{}}
	if err := c.read(in); err != nil {
		fmt.Fprintln(out, "leaks:", err)
		return 2
	}
	if c.leaks > 0 {
		fmt.Fprintf(out, "leaks: %d lines of the tests' output hold a secret\n", c.leaks)
	}
	if c.leaks > 0 || c.failed {
		return 1
	}
	return 0
}

func main() { os.Exit(run(os.Stdin, os.Stdout)) }
