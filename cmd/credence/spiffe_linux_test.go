package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A machine joins by the SVID that another trust domain's agent gives it, over the
// Workload API; what the rule doesn't list stays out, and so does what is no peer's
// any more. An SVID of ours counts while it is not revoked.
func TestSPIFFEJoins(t *testing.T) {
	t.Parallel()
	partner, s := newSide(t, "partner.example"), newSide(t, "example.org")
	uid := os.Getuid()
	partner.credence(fmt.Sprintf("kind: Identity\nname: vm\nspiffe_id: /vm/web-1\nmatch: [{node.name: there, workload.unix.uid: %d}]\n", uid), "apply", "-f", "-")
	partner.node("there")
	var shown struct{ Fingerprint string }
	if err := json.Unmarshal([]byte(partner.credence("", "bundle", "show", "-o", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	s.credence("", "peer", "add", "partner.example", "https://127.0.0.1:"+partner.ports[1]+"/bundle", "--fingerprint", shown.Fingerprint, "--allow-private")
	s.credence(fmt.Sprintf(`kind: JoinRule
name: partners
spiffe: {trust_domains: [partner.example]}
allow: [{node.spiffe.path: /vm/*}]
---
kind: JoinRule
name: ours
spiffe: {trust_domains: [example.org]}
allow: [{node.spiffe.path: /vm/*}]
---
kind: Identity
name: vm
spiffe_id: /vm/web-2
match: [{node.name: here, workload.unix.uid: %d}]
`, uid), "apply", "-f", "-")
	here := s.node("here")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	machine := func(name, join string) *exec.Cmd {
		return exec.Command("credence", "agent", "run", "-c", s.write(name+".yaml", fmt.Sprintf(
			"trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: spiffe, %s}\n", s.path(name), s.ports[0], pin[1], join)))
	}
	files := func() string {
		cmd := exec.Command("credence", "svid", "x509", "--socket", here, "--out", s.path("svid"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return fmt.Sprintf("rule: ours, cert: %s, key: %s", s.path("svid", "svid.pem"), s.path("svid", "svid_key.pem"))
	}
	socket := "socket: " + partner.socket("there")
	for name, join := range map[string]string{"foreign": "rule: partners, " + socket, "own": files()} {
		if _, err := startCmd(t, machine(name, join)).await("joined", 0); err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]string{}
	var nodes []struct{ ID, Name, Method string }
	if err := json.Unmarshal([]byte(s.credence("", "node", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		names[n.Name] = n.ID
	}
	if len(nodes) != 3 || names["partner.example-vm-web-1"] == "" || names["example.org-vm-web-2"] == "" {
		t.Fatalf("nodes %+v", nodes)
	}
	out := func(name, join string) {
		t.Helper()
		if said, err := machine(name, join).CombinedOutput(); err == nil || strings.Contains(string(said), "joined") {
			t.Errorf("%s: %s", name, said)
		}
	}
	out("unlisted", "rule: ours, "+socket)
	out("another", "rule: partners, "+strings.TrimPrefix(files(), "rule: ours, "))
	s.credence("", "ca", "revoke", "--spiffe-id", "spiffe://example.org/vm/web-2")
	out("revoked", fmt.Sprintf("rule: ours, cert: %s, key: %s", s.path("svid", "svid.pem"), s.path("svid", "svid_key.pem")))
	s.credence("", "node", "evict", names["partner.example-vm-web-1"])
	out("evicted", "rule: partners, "+socket)
	s.credence("", "node", "allow", names["partner.example-vm-web-1"])
	back := startCmd(t, machine("allowed", "rule: partners, "+socket))
	if _, err := back.await("joined", 0); err != nil {
		t.Fatal(err)
	}
	back.kill()
	s.credence("", "peer", "remove", "partner.example")
	out("no peer", "rule: partners, "+socket)
}
