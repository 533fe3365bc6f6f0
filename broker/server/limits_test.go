package server_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/server"
)

func TestLimits(t *testing.T) {
	now := time.Now()
	take := server.NewLimits(2, 1, func() time.Time { return now })
	for n, want := range []bool{true, true, false} {
		if _, ok := take("a"); ok != want {
			t.Errorf("the %dth: %v", n+1, ok)
		}
	}
	if wait, _ := take("a"); wait != time.Second {
		t.Errorf("wait %s", wait)
	}
	now = now.Add(time.Second)
	if _, ok := take("a"); !ok {
		t.Error("none after a second")
	}
	now = now.Add(-time.Hour) // a clock set back gives nothing
	if _, ok := take("a"); ok {
		t.Error("one before its time")
	}
	served := 0
	for n := range 3 * server.MaxBuckets { // strangers share what is left
		if _, ok := take(fmt.Sprint(n)); ok {
			served++
		}
	}
	if served > server.MaxBuckets+2 {
		t.Errorf("%d served", served)
	}
	now = now.Add(time.Minute)
	if _, ok := take("new"); !ok {
		t.Error("nobody new is served once they have gone")
	}
}

// Nodes that all come back at once take nobody's calls: each has its own.
func TestNodesShareNoCalls(t *testing.T) {
	now := time.Now()
	take := server.NodeCalls(server.Limits{Connections: 2 * server.MaxBuckets, NodeCalls: 1}, func() time.Time { return now })
	for n := range 2 * server.MaxBuckets {
		if _, ok := take(fmt.Sprint(n)); !ok {
			t.Fatalf("node %d of %d is told to wait", n+1, 2*server.MaxBuckets)
		}
	}
}

func TestSourceOf(t *testing.T) {
	for name, row := range map[string]struct {
		remote    string
		forwarded []string
		proxied   bool
		want      string
	}{
		"v4":                        {"192.0.2.1:5", nil, false, "192.0.2.1"},
		"a v6 network":              {"[2001:db8:1:2:3::4]:5", nil, false, "2001:db8:1:2::/64"},
		"v4 in v6":                  {"[::ffff:192.0.2.1]:5", nil, false, "192.0.2.1"},
		"a header that nobody asks": {"192.0.2.1:5", []string{"198.51.100.7"}, false, "192.0.2.1"},
		"by a proxy":                {"127.0.0.1:5", []string{"198.51.100.7"}, true, "198.51.100.7"},
		"what the caller forged":    {"127.0.0.1:5", []string{"203.0.113.1, 198.51.100.7"}, true, "198.51.100.7"},
		"in two headers":            {"127.0.0.1:5", []string{"203.0.113.1", "198.51.100.7"}, true, "198.51.100.7"},
		"a proxy that says nothing": {"127.0.0.1:5", nil, true, "proxy"},
		"or nonsense":               {"127.0.0.1:5", []string{"unknown"}, true, "proxy"},
	} {
		r := &http.Request{RemoteAddr: row.remote, Header: http.Header{"X-Forwarded-For": row.forwarded}}
		if got := server.SourceOf(r, row.proxied); got != row.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Where strangers have all buckets, those that are full again leave soon: who comes
// then shares none.
func TestBucketsOfManyComeBack(t *testing.T) {
	now := time.Now()
	take := server.NewLimits(2, 1000, func() time.Time { return now })
	for round := range 10 {
		for n := range 2 * server.MaxBuckets {
			take(fmt.Sprint(round, n))
		}
		now = now.Add(50 * time.Millisecond)
		for n := range 8 {
			take(fmt.Sprint("another", n))
		}
		for range 2 {
			if _, ok := take(fmt.Sprint("honest", round)); !ok {
				t.Fatal("it shares with strangers")
			}
		}
		now = now.Add(50 * time.Millisecond)
	}
}
