package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/join/kubernetes/clustertest"
)

// Pods of a cluster join by its API server's word: an agent that loses all that it
// has is the same node again by the same token, two pods of a machine are two
// nodes, and are banned together.
func TestPodsJoin(t *testing.T) {
	s := newSide(t, "pods.example", func(s *side) { s.more = "allow_networks: [127.0.0.0/8]\n" })
	c := clustertest.New(t, "prod", time.Now)
	c.Issuer = c.URL
	pod := clustertest.Pod{
		Namespace: "credence", Account: "agent", AccountUID: "11111111-1111-4111-8111-111111111111",
		Name: "agent-a", UID: "22222222-2222-4222-8222-222222222222", Node: "machine-1", NodeUID: "33333333-3333-4333-8333-333333333333",
	}
	beside := pod
	beside.Name, beside.UID = "agent-b", "44444444-4444-4444-8444-444444444444"
	c.Start(pod)
	c.Start(beside)
	rule := s.write("rule.yaml", fmt.Sprintf(`kind: JoinRule
name: prod
kubernetes:
  cluster: prod
  token_review: {url: %q, ca: %q, token_file: %s}
  max_age: 2h
allow: [{node.kubernetes.namespace: credence, node.kubernetes.service_account: agent}]
---
kind: JoinRule
name: asked
kubernetes: {cluster: asked, issuer: %[1]q, ca: %[2]q}
allow: [{node.kubernetes.cluster: asked, node.kubernetes.namespace: credence}]
`, c.URL, c.CA, c.TokenFile))
	s.credence("", "validate", rule)
	s.credence("", "apply", "-f", rule)
	held := s.credence("", "get", "joinrule", "prod", "-o", "yaml")
	if plan := s.credence(held, "plan", "-f", "-"); !strings.Contains(plan, "JoinRule prod stays") {
		t.Errorf("what get gives back is another rule: %s", plan)
	}
	var made struct {
		CAPin string `json:"ca_pin"`
	}
	if err := json.Unmarshal([]byte(s.credence("", "token", "create", "--node", "unused", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	agent := func(name, rule string, p clustertest.Pod) *process {
		file := s.write(name+".token", c.Token(p, "credence://pods.example/join")+"\n")
		config := s.write(name+".yaml", fmt.Sprintf("trust_domain: pods.example\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: kubernetes, rule: %s, token_file: %s}\n",
			s.path(name), s.ports[0], made.CAPin, rule, file))
		s.credence("", "validate", config)
		return start(t, "credence", "agent", "run", "-c", config)
	}
	joined := func(p *process) {
		t.Helper()
		if _, err := p.await("joined", 0); err != nil {
			t.Fatal(err)
		}
	}
	type node struct {
		ID      string              `json:"id"`
		Name    string              `json:"name"`
		Evicted string              `json:"evicted_at"`
		Facts   map[string][]string `json:"facts"`
	}
	nodes := func() (all []node) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.credence("", "node", "list", "-o", "json")), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	first := agent("a", "prod", pod)
	joined(first)
	before := nodes()
	first.kill()
	if err := os.RemoveAll(s.path("a")); err != nil {
		t.Fatal(err)
	}
	again := start(t, "credence", "agent", "run", "-c", s.path("a.yaml"))
	joined(again)
	if len(before) != 1 || before[0].Name != "machine-1" {
		t.Fatalf("nodes: %+v", before)
	}
	if d := cmp.Diff(before[0].ID, nodes()[0].ID); d != "" {
		t.Errorf("the same pod is another node: %s", d)
	}
	joined(agent("b", "prod", beside))
	if all := nodes(); len(all) != 2 {
		t.Errorf("nodes: %+v", all)
	}
	s.credence("", "node", "evict", before[0].ID, "--reason", "stolen")
	third := pod
	third.Name, third.UID = "agent-c", "55555555-5555-4555-8555-555555555555"
	c.Start(third)
	if _, err := agent("c", "prod", third).await("(?i)refus|denied|evicted|conflict", 0); err != nil {
		t.Errorf("a new pod of a machine that was banned: %v", err)
	}
	for _, n := range nodes() {
		if n.Evicted == "" {
			t.Errorf("%s is not banned", n.ID)
		}
	}
	joined(agent("d", "asked", pod)) // by another rule another node, which is not banned: its cluster has another name
	if all := nodes(); len(all) != 3 {
		t.Errorf("nodes: %+v", all)
	}
}
