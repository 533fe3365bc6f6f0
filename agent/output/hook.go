package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Bounds of hooks.
const (
	DefaultTimeout = 30 * time.Second
	MaxTimeout     = 10 * time.Minute
	maxSaid        = 512 // bytes of what a command says that reach the log
)

// CommandConfig is a program to run after something was written. Argv is
// required.
type CommandConfig struct {
	Output  string   // its name, for the program
	Argv    []string // the program's absolute path, and its arguments: no shell reads them
	UID     uint32   // as whom; a program that runs as another than the agent gets no group but GID
	GID     uint32
	Timeout time.Duration // 0: DefaultTimeout; then it is killed with what it started
}

// Check refuses what could not be run.
func (c CommandConfig) Check() error {
	if len(c.Argv) == 0 {
		return errors.New("a program and its arguments are wanted")
	}
	if err := CheckPath(c.Argv[0]); err != nil {
		return fmt.Errorf("the program: %w", err)
	}
	if c.Timeout < 0 || c.Timeout > MaxTimeout {
		return fmt.Errorf("a timeout of at most %s is wanted", MaxTimeout)
	}
	return nil
}

// Command returns a hook that runs a program, without a shell, in / and with an
// environment of PATH, CREDENCE_OUTPUT and CREDENCE_GENERATION. Where it runs as
// root or as the agent, nobody else may be able to change the program.
func Command(cfg CommandConfig) (Hook, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	return cfg.run, nil
}

func (c CommandConfig) run(ctx context.Context, w Written) error {
	if c.UID == 0 || c.UID == uint32(os.Geteuid()) {
		if err := checkProgram(c.Argv[0]); err != nil {
			return fmt.Errorf("running %s: %w", c.Argv[0], err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	said := &limited{most: maxSaid}
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = "/", said, said, time.Second
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"CREDENCE_OUTPUT=" + c.Output, "CREDENCE_GENERATION=" + strconv.FormatUint(w.Generation, 10),
	}
	confine(cmd, c.UID, c.GID)
	err := cmd.Run()
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("running %s: it was killed after %s", c.Argv[0], c.Timeout)
	case err != nil:
		return fmt.Errorf("running %s: %w: %s", c.Argv[0], err, said)
	}
	return nil
}

// limited keeps the beginning of what is written to it, as one line.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(b []byte) (int, error) {
	_, _ = l.Buffer.Write(b[:min(len(b), l.most-l.Len())]) // a Buffer takes everything
	return len(b), nil
}

func (l *limited) String() string {
	return strconv.Quote(strings.TrimSpace(l.Buffer.String()))
}

var unitName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,240}\.(service|socket|target)$`)

// CheckUnit refuses what cannot be the name of a unit that is reloaded.
func CheckUnit(unit string) error {
	if !unitName.MatchString(unit) {
		return fmt.Errorf("%q: a unit's full name is wanted, such as nginx.service", unit)
	}
	return nil
}

// Reload returns a hook that has systemd reload a unit, as the agent's own
// user: root, or one whom polkit permits it.
func Reload(output, unit string) (Hook, error) {
	if err := CheckUnit(unit); err != nil {
		return nil, err
	}
	return func(ctx context.Context, w Written) error {
		systemctl := "/usr/bin/systemctl"
		if _, err := os.Stat(systemctl); err != nil {
			systemctl = "/bin/systemctl"
		}
		return CommandConfig{
			Output: output, Argv: []string{systemctl, "--no-ask-password", "reload", "--", unit},
			UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Timeout: DefaultTimeout,
		}.run(ctx, w)
	}, nil
}
