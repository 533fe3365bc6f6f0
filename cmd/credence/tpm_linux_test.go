package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
)

// A machine whose TPM was registered by what credence agent tpm prints there joins by
// it, again from an empty disk; another machine does not.
func TestJoinByTPM(t *testing.T) {
	here, there := tpmtest.Start(t), tpmtest.Start(t)
	s := newSide(t, "example.org")
	rule := s.credence("", "agent", "tpm", "--device", here, "--ek", "ecc", "--node", "rack-7")
	s.credence(rule, "apply", "-f", "-")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	machine := func(name, device string) *exec.Cmd {
		return exec.Command("credence", "agent", "run", "-c", s.write(name+".yaml", fmt.Sprintf(
			"trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: tpm, device: %s, ek: ecc}\n",
			s.path(name), s.ports[0], pin[1], device)))
	}
	for range 2 {
		p := startCmd(t, machine("here", here))
		if _, err := p.await("msg=joined", 0); err != nil {
			t.Fatal(err)
		}
		p.kill()
		if err := os.RemoveAll(s.path("here")); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := machine("there", there).CombinedOutput(); err == nil || !strings.Contains(string(out), "joining: ") {
		t.Errorf("another machine: %v, %s", err, out)
	}
	var nodes []struct {
		Name  string              `json:"name"`
		Facts map[string][]string `json:"facts"`
	}
	if err := json.Unmarshal([]byte(s.credence("", "node", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 1 || nodes[0].Name != "rack-7" || !strings.Contains(rule, nodes[0].Facts["node.tpm.ek_hash"][0]) {
		t.Errorf("nodes %+v", nodes)
	}
}
