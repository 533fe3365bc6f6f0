package main_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal is a pseudo-terminal: what a person looks at, and where a
// program writes.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return person, program
}

// onTerminal runs credence on a terminal and returns what a person sees.
func onTerminal(t *testing.T, env []string, args ...string) string {
	t.Helper()
	person, program := openTerminal(t)
	cmd := exec.CommandContext(t.Context(), "credence", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	program.Close()
	text, err := io.ReadAll(person) // it ends with EIO when the program has
	if err != nil && !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code is others' concern
	return string(text)
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;]*m`)

// TestColours: they stand on terminals that want them, and change no text.
func TestColours(t *testing.T) {
	dir := tempDir(t)
	file := dir + "/broker.yaml"
	// One check holds and one does not: the port of another's listener is taken.
	text := "trust_domain: example.org\ndata: " + dir + "/d\nadmin: " + dir + "/" + strings.Repeat("a", 120) + "\nlisten: {agents: \"127.0.0.1:0\", spiffe: none}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := []string{"broker", "check", "-c", file}
	_, plain, _ := credenceCmd(t, "", check...)
	_, always, _ := credenceCmd(t, "", append(check, "--color", "always")...)
	for name, c := range map[string]struct {
		got     string
		colours bool
	}{
		"a pipe":                          {plain, false},
		"a pipe, always":                  {always, true},
		"a terminal":                      {onTerminal(t, []string{"TERM=xterm", "NO_COLOR="}, check...), true},
		"a terminal, NO_COLOR":            {onTerminal(t, []string{"TERM=xterm", "NO_COLOR=1"}, check...), false},
		"a terminal without any":          {onTerminal(t, []string{"TERM=dumb", "NO_COLOR="}, check...), false},
		"a terminal, never":               {onTerminal(t, []string{"TERM=xterm", "NO_COLOR="}, append(check, "--color", "never")...), false},
		"a terminal, NO_COLOR but always": {onTerminal(t, []string{"TERM=xterm", "NO_COLOR=1"}, append(check, "--color=always")...), true},
		"JSON on a terminal":              {onTerminal(t, []string{"TERM=xterm", "NO_COLOR="}, append(check, "-o", "json")...), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := escapes.MatchString(c.got); got != c.colours {
				t.Errorf("coloured: %v, want %v:\n%q", got, c.colours, c.got)
			}
			if c.colours && (!strings.Contains(c.got, "\x1b[32mok\x1b[0m  ") || !strings.Contains(c.got, "\x1b[31mno\x1b[0m  ")) {
				t.Errorf("ok is not green or no is not red:\n%q", c.got)
			}
			if bare := strings.ReplaceAll(escapes.ReplaceAllString(c.got, ""), "\r", ""); !strings.Contains(name, "JSON") && bare != plain {
				t.Errorf("without the colours it reads\n%s\nand in a pipe\n%s", bare, plain)
			}
		})
	}
}
