package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
