package main_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// rotations is how often both sides' SVIDs are replaced while they talk.
const rotations = 30

// TestMTLSOverRotations has two programs of two nodes talk by go-spiffe's own
// means while everything is signed anew, again and again: a new connection for
// each request, and one that stays. None fails.
func TestMTLSOverRotations(t *testing.T) {
	t.Parallel()
	s := newSide(t, "example.org")
	s.credence(fmt.Sprintf(`kind: Identity
name: server
spiffe_id: /server
match: [{node.name: n1, workload.unix.uid: %[1]d}]
---
kind: Identity
name: client
spiffe_id: /client
match: [{node.name: n2, workload.unix.uid: %[1]d}]
`, os.Getuid()), "apply", "-f", "-")
	server := start(t, "workload", "serve", s.node("n1"), "spiffe://example.org/client")
	address, err := server.await(`^serving on (.*)$`, 0)
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, "workload", "call", s.node("n2"), address[1], "spiffe://example.org/server", strconv.Itoa(rotations))
	for i := range rotations {
		if _, err := client.await(fmt.Sprintf(`^rotation %d:`, i), 0); err != nil {
			t.Fatal(err)
		}
		s.credence("", "ca", "replace", "issuing", "--reason", "a test")
	}
	summary, err := client.await(`^(\d+) requests over \d+ rotations of both sides, (\d+) failed$`, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(summary[0])
	if summary[2] != "0" {
		text, _ := client.printed()
		t.Errorf("failed:\n%s", text)
	}
}
