package main_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
	credence "github.com/credence-id/credence/cmd/credence"
)

// leaves are the verbs that do something.
func leaves(c *cobra.Command) (all []*cobra.Command) {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	for _, sub := range c.Commands() {
		if sub.Name() != "help" {
			all = append(all, leaves(sub)...)
		}
	}
	return all
}

// agentRoot is the tree of credence-agent.
func agentRoot() *cobra.Command {
	return agentcmd.Root(&cli.Program{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
}

// TestHelp: each verb says what it asks of whom, and shows how.
func TestHelp(t *testing.T) {
	all := leaves(credence.Commands())
	if len(all) < 25 {
		t.Fatalf("only %d verbs are found", len(all))
	}
	all = append(all, leaves(agentRoot())...)
	for _, c := range all {
		t.Run(c.CommandPath(), func(t *testing.T) {
			if len(c.Long) < 80 || c.Example == "" || c.Short == "" {
				t.Errorf("its help is thin: short %q, long %q, example %q", c.Short, c.Long, c.Example)
			}
			if c.Parent().Name() == "completion" {
				return // the texts are the library's
			}
			for line := range strings.Lines(c.Long + "\n" + c.Example) {
				if len(strings.TrimRight(line, "\n")) > 100 {
					t.Errorf("a line too long for a terminal: %s", line)
				}
			}
		})
	}
}

// daemons don't end by themselves, nor what waits for a person, so their examples
// don't either. Each is run
// as its help has it by the test that is named here.
var daemons = map[string]string{
	"credence dev":         "TestDev, TestDevOnce and TestExamples itself",
	"credence broker run":  "TestScripts/machine",
	"credence agent run":   "TestScripts/machine",
	"credence sandbox run": "TestSandboxRun",
	"credence-agent run":   "TestScripts/node",
	"credence login":       "TestLogin: a person signs in",
}

// last are the verbs that are tried after all others: they take away what
// others need.
var last = []string{"credence node evict", "credence node allow"}

// TestExamples types every example of every verb's help into a shell, as a
// newcomer would who has started dev and set what it prints.
func TestExamples(t *testing.T) {
	dir := tempDir(t)
	cmd := exec.Command("credence", "dev", "--data", "./state")
	cmd.Dir = dir
	dev := startCmd(t, cmd)
	if _, err := dev.await("It stays up until Ctrl-C", 0); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), devEnvironment(t, filepath.Join(dir, "state"))...)
	byPath := map[string]*cobra.Command{}
	for _, c := range append(leaves(credence.Commands()), leaves(agentRoot())...) {
		path := c.CommandPath()
		byPath[path] = c
		if daemons[path] == "" && path != last[0] && path != last[1] {
			t.Run(path, func(t *testing.T) { runExample(t, dir, env, c.Example) })
		}
	}
	for path := range daemons {
		if byPath[path] == nil {
			t.Errorf("%s is no verb any more", path)
		}
	}
	for _, path := range last {
		t.Run(path, func(t *testing.T) { runExample(t, dir, env, byPath[path].Example) })
	}
	if _, err := dev.await("allowed back and joins again", 0); err != nil {
		t.Error(err)
	}
	if code, err := dev.stop(); err != nil || code != 0 {
		t.Errorf("dev did not outlive the examples: exit code %d, %v", code, err)
	}
}

// devEnvironment is what dev tells a person to export.
func devEnvironment(t *testing.T, state string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(state, "dev.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var env []string
	for name, key := range map[string]string{
		"SPIFFE_ENDPOINT_SOCKET": "workload_socket", "CREDENCE_ADMIN": "admin_socket", "CREDENCE_AGENT_ADMIN": "agent_admin_socket", "CREDENCE_SANDBOX": "sandbox_socket",
	} {
		value, _ := d[key].(string)
		if value == "" {
			t.Fatalf("dev.json has no %s:\n%s", key, text)
		}
		env = append(env, name+"="+value)
	}
	return env
}

func runExample(t *testing.T, dir string, env []string, example string) {
	t.Helper()
	var script strings.Builder
	for line := range strings.Lines(example) {
		script.WriteString(strings.TrimPrefix(line, "  ")) // as printed, without the margin
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-o", "pipefail", "-c", script.String())
	cmd.Dir, cmd.Env = dir, env
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, script.String(), text)
	}
}
