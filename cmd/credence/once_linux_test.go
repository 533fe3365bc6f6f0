package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An agent for one command: it joins, the command has the node's sockets, ends it by
// its own exit code, and nothing is left. What can't join runs nothing.
func TestAgentForACommand(t *testing.T) {
	t.Parallel()
	s := newSide(t, "example.org")
	s.credence(fmt.Sprintf("kind: Identity\nname: job\nspiffe_id: /job\nmatch: [{node.name: job, workload.unix.uid: %d}]\n", os.Getuid()), "apply", "-f", "-")
	text, err := os.ReadFile(s.agentFile("job", ""))
	if err != nil {
		t.Fatal(err)
	}
	config := s.write("once.yaml", strings.Replace(string(text), "data: "+s.path("job"), "ephemeral: true", 1))
	tmp := s.path("tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	once := func(want int, config string, command ...string) string {
		t.Helper()
		cmd := exec.Command("credence", append([]string{"agent", "run", "-c", config}, command...)...)
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		out, err := cmd.CombinedOutput()
		var failed *exec.ExitError
		if code := cmd.ProcessState.ExitCode(); code != want || err != nil && !errors.As(err, &failed) {
			t.Fatalf("%q: exit code %d, %v: %s", command, code, err, out)
		}
		if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
			t.Errorf("%q leaves %s", command, left)
		}
		return string(out)
	}
	killed := filepath.Join(tmp, "credence-ephemeral-agent-killed") // what one left that could remove nothing
	if err := os.Mkdir(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(killed, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	out := once(7, config, "--", "sh", "-c", "credence svid x509 -o json && credence agent status >&2; exit 7")
	if !strings.Contains(out, "spiffe://example.org/job") || !strings.Contains(out, "spiffe://example.org/credence/node/job") {
		t.Error(out)
	}
	for _, out := range []string{
		once(125, config, "--", "echo", "it ran"), // the token is spent, and nothing was kept
		once(2, config, "echo", "it ran"),
		once(2, config, "--"),
	} {
		if strings.Contains(out, "it ran") {
			t.Error(out)
		}
	}
}

// A signal is the command's once there is one, and ends the agent before; it leaves
// nothing either way.
func TestAgentForACommandIsSignalled(t *testing.T) {
	t.Parallel()
	hangups := make(chan os.Signal, 1) // caught here, they are not ignored below, as under nohup
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	s := newSide(t, "example.org")
	tmp := s.path("tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, broker, wait, script string
		signal                     syscall.Signal
		code                       int
	}{
		{"passed", s.ports[0], "it runs", "trap 'exit 9' TERM; echo it runs; while :; do sleep 0.05; done", syscall.SIGTERM, 9},
		{"hung", s.ports[0], "it runs", "echo it runs; exec sleep 60", syscall.SIGHUP, 129},
		{"early", "1", "broker", "echo it runs", syscall.SIGTERM, 125},
		{"lost", "1", "broker", "echo it runs", syscall.SIGHUP, 125},
	} {
		text, err := os.ReadFile(s.agentFile(row.name, ""))
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.NewReplacer("data: "+s.path(row.name), "ephemeral: true", "127.0.0.1:"+s.ports[0], "127.0.0.1:"+row.broker).Replace(string(text)))
		cmd := exec.Command("credence", "agent", "run", "-c", s.write(row.name+"-once.yaml", string(text)), "--", "sh", "-c", row.script)
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		running := startCmd(t, cmd)
		if _, err := running.await(row.wait, 0); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if err := cmd.Process.Signal(row.signal); err != nil {
			t.Fatal(err)
		}
		code, err := running.wait()
		printed, _ := running.printed()
		if err != nil || code != row.code {
			t.Errorf("%s: exit code %d, %v: %s", row.name, code, err, printed)
		}
		if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
			t.Errorf("%s leaves %s", row.name, left)
		}
	}
}
