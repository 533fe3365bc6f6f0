package agent_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/agenttest"
)

// listening takes connections and does something with each.
func listening(t *testing.T, do func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
			do(c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range open {
			c.Close()
		}
	})
	return l.Addr().String()
}

// Whatever ails the first broker of the list, the next one is taken.
func TestTheNextBrokerIsTaken(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func(*testing.T, *agenttest.Broker) string{
		"down": func(t *testing.T, b *agenttest.Broker) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return l.Addr().String()
		},
		"silent": func(t *testing.T, _ *agenttest.Broker) string { return listening(t, func(net.Conn) {}) },
		"refusing TLS": func(t *testing.T, _ *agenttest.Broker) string {
			return listening(t, func(c net.Conn) { c.Close() })
		},
		"another trust domain's": func(t *testing.T, _ *agenttest.Broker) string {
			return agenttest.NewBroker(t, "other.example").Start().Address()
		},
		"unavailable": func(t *testing.T, b *agenttest.Broker) string {
			sick := agenttest.NewBroker(t, domain)
			sick.CA = b.CA
			sick.Start()
			sick.Before("Join", func(context.Context) error { return status.Error(codes.Unavailable, "no store") })
			return sick.Address()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agenttest.NewBroker(t, domain).Start()
			b.Grant(grant("/a"))
			cfg := config(t, b)
			cfg.Broker = []string{first(t, b), b.Address()}
			a := run(t, cfg)
			select {
			case <-a.Ready():
			case <-a.done:
				t.Fatalf("it ended: %v", a.err)
			case <-time.After(time.Minute):
				t.Fatal("it is not served")
			}
			a.view(t).next()
			if b.Watching() != 1 || b.Calls("IssueX509") == 0 {
				t.Error("stream and calls are not at one broker")
			}
		})
	}
}
