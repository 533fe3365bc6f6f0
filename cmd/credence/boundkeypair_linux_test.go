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

// A machine makes its key, its operator registers what that prints, and it joins. A
// copy of it joins by the state of its last join, is found out when it joins next, and
// both are shut out; without its state it is let in as often as the rule says.
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
	rule := s.credence("", "agent", "key", "create", s.path("node.key"), "--node", "build-7")
	s.credence(strings.Replace(rule, "limit: 1", "limit: 0", 1), "apply", "-f", "-")
	joins("n1").kill()
	state, err := os.ReadFile(s.path("n1", "bound_keypair.state"))
	if err := errors.Join(err, os.Mkdir(s.path("copy"), 0o700), os.RemoveAll(s.path("n1", "node"))); err != nil { // its SVID has ended, say
		t.Fatal(err)
	}
	s.write("copy/bound_keypair.state", string(state))
	copied := joins("copy")
	ends("n1", "two machines have this node's key")
	if _, err := copied.await("(?i)evicted", 0); err != nil {
		t.Fatal(err)
	}
	var v struct {
		State  string
		Reason string `json:"evict_reason"`
		Joins  int
	}
	if err := json.Unmarshal([]byte(s.credence("", "node", "show", "build-7", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if v.State != "evicted" || !strings.Contains(v.Reason, "two machines") || v.Joins != 2 {
		t.Errorf("node %+v", v)
	}
	copied.kill()
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
	if out := s.credence("", "audit", "tail", "-n", "100", "-o", "json"); !regexp.MustCompile(`"(?s:evict".*two machines|two machines.*"evict")`).MatchString(out) {
		t.Errorf("record:\n%s", out)
	}
}
