package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/store/postgrestest"
)

// TestBrokerWithoutDatabase stops PostgreSQL under a broker, and starts the broker
// again meanwhile: the joined node's workloads see nothing of it, what must be
// written is refused with what to do, and a Deny and an eviction hold here and then
// everywhere.
func TestBrokerWithoutDatabase(t *testing.T) {
	t.Parallel()
	server := postgrestest.Start(t)
	url := server.Database(t)
	s := newSide(t, "example.org", func(s *side) {
		kek := s.write("kek", strings.Repeat("k", 31)+"\n")
		s.more = fmt.Sprintf("store: %s\nkeys: {disk: {kek_file: %s}}\n", url, kek)
	})
	s.credence(fmt.Sprintf("kind: Identity\nname: job\nspiffe_id: /job\nmatch: [{node.name: n1, workload.unix.uid: %d}]\n", os.Getuid()), "apply", "-f", "-")
	socket := s.node("n1")
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("credence", args...)
		cmd.Env = append(os.Environ(), "CREDENCE_ADMIN="+s.path("broker", "run", "admin.sock"), "SPIFFE_ENDPOINT_SOCKET="+socket)
		return cmd
	}
	run := func(want int, args ...string) string {
		t.Helper()
		cmd := command(args...)
		var all bytes.Buffer
		cmd.Stdout, cmd.Stderr = &all, &all
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("%q: exit code %d, want %d: %s", args, code, want, &all)
		}
		return all.String()
	}
	says := func(text, want string) {
		t.Helper()
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in: %s", want, text)
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for late := time.After(time.Minute); !ok(); {
			select {
			case <-late:
				t.Fatalf("waited in vain until %s", what)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	again := func() {
		t.Helper()
		s.broker.kill()
		s.startBroker()
	}
	snapshot := s.path("broker", "snapshot.sealed")
	if err := os.Remove(snapshot); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	again() // it makes one with the node in it
	until("there is a snapshot", func() bool { _, err := os.Stat(snapshot); return err == nil })

	for _, restarted := range []bool{false, true} {
		if !restarted {
			server.Stop()
		} else {
			again()
		}
		until("an SVID is made", func() bool { // the agent may be on its way back to the broker
			out, err := command("svid", "x509", "--ttl", "15m").Output()
			return err == nil && strings.Contains(string(out), "spiffe://example.org/job")
		})
		says(run(3, "token", "create", "--node", "n2"), "the database is away")
	}
	deny := s.write("deny.yaml", "kind: Deny\nname: incident\nmatch: [{node.name: n1}]\n")
	says(run(3, "apply", "-f", deny), "apply --here")
	says(run(0, "apply", "--here", "-f", deny), "on this broker alone")
	run(4, "svid", "x509", "--ttl", "15m")
	says(run(3, "node", "evict", "n1", "--reason", "a drill"), "evict --here")
	says(run(0, "node", "evict", "n1", "--here", "--reason", "a drill"), "on this broker alone")
	says(run(0, "node", "show", "n1"), "evicted")
	server.Run(t)
	until("it can be written again", func() bool {
		return command("token", "create", "--node", "n3").Run() == nil
	})
	until("the database has the eviction", func() bool {
		text, err := os.ReadFile(s.path("broker", "revoked.jsonl"))
		return err == nil && !bytes.Contains(text, []byte(`"kind":"evict"`)) && (!bytes.Contains(text, []byte(`"kind":"deny"`)) || bytes.Contains(text, []byte(`"revision":`)))
	})
	says(run(0, "node", "show", "n1"), "evicted")
	says(run(0, "get", "deny"), "incident")
}
