package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// A machine makes its key, its operator registers what that prints, and it joins; it
// joins again by the state of its last join. A copy of it is found out, and shuts it
// out; without its state it is let in as often as the rule says.
func TestJoinByABoundKey(t *testing.T) {
	s := newSide(t, "example.org")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	config := func(name string) string {
		return s.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: bound_keypair, key: %s}\n",
			s.path(name), s.ports[0], pin[1], s.path("node.key")))
	}
	run := func(name string) *exec.Cmd { return exec.Command("credence", "agent", "run", "-c", config(name)) }
	ends := func(name, why string) {
		t.Helper()
		if out, err := run(name).CombinedOutput(); err == nil || !strings.Contains(string(out), why) {
			t.Fatalf("%s: %v, want %q\n%s", name, err, why, out)
		}
	}
	joins := func(name string) *process {
		t.Helper()
		p := startCmd(t, run(name))
		if _, err := p.await("msg=joined", 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ends("n1", "credence agent key create") // it makes none by itself
	rule := s.credence("", "agent", "key", "create", s.path("node.key"), "--node", "build-7")
	s.credence(strings.Replace(rule, "limit: 1", "limit: 0", 1), "apply", "-f", "-")
	joins("n1").kill()
	forget := func(name string) { // its SVID has ended, say
		t.Helper()
		if err := os.RemoveAll(s.path(name, "node")); err != nil {
			t.Fatal(err)
		}
	}
	forget("n1")
	state, err := os.ReadFile(s.path("n1", "bound_keypair.state"))
	if err := errors.Join(err, os.Mkdir(s.path("copy"), 0o700)); err != nil {
		t.Fatal(err)
	}
	s.write("copy/bound_keypair.state", string(state))
	node := joins("n1")
	ends("copy", "two machines have this node's key")
	if _, err := node.await("(?i)evicted", 0); err != nil {
		t.Fatal(err)
	}
	shown := func() (v struct {
		State      string
		Reason     string `json:"evict_reason"`
		Joins      int
		Recoveries int
	}) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.credence("", "node", "show", "build-7", "-o", "json")), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := shown(); v.State != "evicted" || !strings.Contains(v.Reason, "two machines") || v.Joins != 2 {
		t.Errorf("node %+v", v)
	}
	s.credence("", "node", "allow", "build-7", "--reason", "the copy is gone")
	joins("n1").kill()

	if err := os.RemoveAll(s.path("n1")); err != nil { // with its state
		t.Fatal(err)
	}
	ends("n1", "credence node allow")
	if out := s.credence("", "node", "show", "build-7"); !regexp.MustCompile(`state +refused(?s:.*)refused +\S+.*, a recovery; credence node allow build-7`).MatchString(out) {
		t.Errorf("node:\n%s", out)
	}
	s.credence("", "node", "allow", "build-7")
	joins("n1").kill()
	if v := shown(); v.Joins != 4 || v.Recoveries != 0 {
		t.Errorf("node %+v", v)
	}
	if out := s.credence("", "audit", "tail", "-n", "100", "-o", "json"); !regexp.MustCompile(`"(?s:evict".*two machines|two machines.*"evict")`).MatchString(out) {
		t.Errorf("record:\n%s", out)
	}
}
