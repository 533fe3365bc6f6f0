package output_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/output"
)

func command(t *testing.T, cfg output.CommandConfig) output.Hook {
	t.Helper()
	cfg.Output = "web"
	h, err := output.Command(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func own(argv ...string) output.CommandConfig {
	return output.CommandConfig{Argv: argv, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

func TestCommand(t *testing.T) {
	t.Setenv("CREDENCE_CANARY", "1") // no variable of the agent's is passed on
	said := filepath.Join(place(t), "said")
	h := command(t, own("/bin/sh", "-c", `(env; pwd; echo "$1") > `+said, "sh", "$(id); *"))
	if err := h(t.Context(), output.Written{Generation: 7}); err != nil {
		t.Fatal(err)
	}
	got := read(t, said)
	for _, want := range []string{"CREDENCE_OUTPUT=web\n", "CREDENCE_GENERATION=7\n", "\n/\n", "\n$(id); *\n"} {
		if !strings.Contains("\n"+got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if strings.Contains(got, "CANARY") {
		t.Errorf("the agent's environment: %s", got)
	}
}

func TestCommandFails(t *testing.T) {
	t.Parallel()
	h := command(t, own("/bin/sh", "-c", "echo broken; exit 3"))
	if err := h(t.Context(), output.Written{}); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Error(err)
	}
	cfg := own("/bin/sh", "-c", "sleep 60 & sleep 60")
	cfg.Timeout = 50 * time.Millisecond
	began := time.Now()
	if err := command(t, cfg)(t.Context(), output.Written{}); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("killed after %s", took)
	}
}

func TestCommandRunsAs(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs programs as another")
	}
	dir := place(t)
	chmod(t, dir, 0o777|os.ModeSticky)
	h := command(t, output.CommandConfig{Argv: []string{"/bin/sh", "-c", "id -u > " + dir + "/id; id -G >> " + dir + "/id"}, UID: 4242, GID: 4243})
	if err := h(t.Context(), output.Written{}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, dir, "id"); got != "4242\n4243\n" {
		t.Errorf("it ran as %q", got)
	}
}

// What somebody else could change doesn't run as us.
func TestCommandOfOthers(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, dir, program string){
		"writable by all":     func(t *testing.T, _, program string) { chmod(t, program, 0o777) },
		"in a directory open": func(t *testing.T, dir, _ string) { chmod(t, dir, 0o777) },
		"another's":           func(t *testing.T, _, program string) { chown(t, program, 4242, 4242) },
		"a link of another's": func(t *testing.T, dir, program string) {
			swap(t, dir, program)
			lchown(t, program)
		},
		"no program": func(t *testing.T, _, program string) { chmod(t, program, 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := place(t)
			program, ran := filepath.Join(dir, "program"), filepath.Join(dir, "ran")
			if err := os.WriteFile(program, []byte("#!/bin/sh\ntouch "+ran+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			h := command(t, own(program))
			if err := h(t.Context(), output.Written{}); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(ran); err != nil {
				t.Fatal(err)
			}
			spoil(t, dir, program)
			if err := h(t.Context(), output.Written{}); err == nil {
				t.Error("it ran")
			}
			if _, err := os.Stat(ran); err == nil {
				t.Error("it ran")
			}
		})
	}
}

// A waiting process tells which signal it got.
func waiting(t *testing.T) (cmd *exec.Cmd, got func() string) {
	t.Helper()
	cmd = exec.Command("/bin/sh", "-c", `trap 'echo USR1; exit' USR1; echo ready; while :; do sleep 0.05; done`) // HUP is ignored under nohup
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line := func() string {
		b := make([]byte, 16)
		n, _ := out.Read(b) // nothing: it ended
		return strings.TrimSpace(string(b[:n]))
	}
	if first := line(); first != "ready" {
		t.Fatalf("the process says %q", first)
	}
	return cmd, line
}

func pidFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(place(t), "pid")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func signal(t *testing.T, file string) error {
	t.Helper()
	h, err := output.Signal(file, "USR1")
	if err != nil {
		t.Fatal(err)
	}
	return h(t.Context(), output.Written{})
}

func TestSignal(t *testing.T) {
	t.Parallel()
	cmd, got := waiting(t)
	if err := signal(t, pidFile(t, fmt.Sprintf("%d\nmore\n", cmd.Process.Pid))); err != nil {
		t.Fatal(err)
	}
	if line := got(); line != "USR1" {
		t.Errorf("it got %q", line)
	}
}

// A number that was given away, or that somebody else could have written, is
// no process of ours.
//
// Regression: spiffe-helper #250
func TestSignalRefuses(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, file string){
		"older than the process": func(t *testing.T, file string) {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(file, old, old); err != nil {
				t.Fatal(err)
			}
		},
		"writable by all":     func(t *testing.T, file string) { chmod(t, file, 0o666) },
		"in a directory open": func(t *testing.T, file string) { chmod(t, filepath.Dir(file), 0o777) },
		"of another than the process": func(t *testing.T, file string) {
			chown(t, file, 4242, 4242)
		},
		"a link": func(t *testing.T, file string) { swap(t, filepath.Dir(file), file) },
		"two names": func(t *testing.T, file string) {
			if err := os.Link(file, file+".too"); err != nil {
				t.Fatal(err)
			}
		},
		"gone": func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, got := waiting(t)
			file := pidFile(t, strconv.Itoa(cmd.Process.Pid))
			spoil(t, file)
			if err := signal(t, file); err == nil {
				t.Errorf("sent; the process says %q", got())
			}
		})
	}
	for _, text := range []string{"", "0", "1", "-1", "x", "99999999999999999999", strings.Repeat("1", 64)} {
		if err := signal(t, pidFile(t, text)); err == nil {
			t.Errorf("sent to %q", text)
		}
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for unit, good := range map[string]bool{"nginx.service": true, "postgresql@15-main.service": true, "--force.service": false, "nginx": false, "a b.service": false, "a/b.service": false, "": false} {
		if _, err := output.Reload("web", unit); (err == nil) != good {
			t.Errorf("%q: %v", unit, err)
		}
	}
}
