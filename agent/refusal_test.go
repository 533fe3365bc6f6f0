package agent_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// Each refusal says which it is, by one code: to a caller nothing more than the
// record to quote, but for what the caller could see by itself.
func TestEachRefusalHasItsCode(t *testing.T) {
	t.Parallel()
	x509 := func(t *testing.T, a *running) error {
		_, err := a.view(t).try(10 * time.Second)
		return err
	}
	failed := func(err error) func(*agent.Config) {
		return func(c *agent.Config) { c.Attestors["workload.docker"] = &facts{err: err} }
	}
	grants := func(all ...agenttest.Grant) func(*agenttest.Broker) {
		return func(b *agenttest.Broker) { b.Grant(all...) }
	}
	type meta = map[string]string
	for _, row := range []struct {
		name   string
		config func(*agent.Config)
		broker func(*agenttest.Broker)
		ask    func(*testing.T, *running) error
		code   codes.Code
		want   string
		meta   meta
		says   string
	}{
		{name: "no identity", ask: x509, code: codes.PermissionDenied, want: agent.NoIdentity, meta: meta{"record": agenttest.Record}, says: "credence explain"},
		{name: "an attestor failed", config: failed(fs.ErrPermission), ask: x509, code: codes.PermissionDenied, want: agent.AttestorFailed,
			meta: meta{"record": agenttest.Record, "attestor": "workload.docker", "why": "it may not ask"}, says: "attestor docker failed (it may not ask)"},
		{name: "an attestor failed with words of its own", config: failed(errors.New("GET https://10.0.0.7/pods: token of robot-7")), ask: x509,
			code: codes.PermissionDenied, want: agent.AttestorFailed,
			meta: meta{"record": agenttest.Record, "attestor": "workload.docker", "why": "the agent's log says why"}},
		{name: "a malformed fact", config: func(c *agent.Config) {
			c.Attestors = map[string]agent.Attestor{"workload.test": &facts{all: map[string][]string{"workload.test.malformed": {"x"}}}}
		}, ask: x509, code: codes.PermissionDenied, want: agent.RequestRefused, says: "a fact that no broker takes"},
		{name: "a key", broker: func(b *agenttest.Broker) {
			b.Before("IssueX509", func(context.Context) error {
				return agent.WithInfo(codes.InvalidArgument, "no such key", agent.KeyRefused, nil)
			})
		}, ask: x509, code: codes.PermissionDenied, want: agent.KeyRefused, says: "no such key"},
		{name: "an audience", broker: grants(grant("/a")), ask: func(t *testing.T, a *running) error {
			_, err := jwt(t, a, spiffeid.ID{}, "orders")
			return err
		}, code: codes.PermissionDenied, want: agent.AudienceNotListed, meta: meta{"record": agenttest.Record}, says: "jwt.audiences"},
		{name: "another's ID", broker: grants(listed("/a")), ask: func(t *testing.T, a *running) error {
			_, err := jwt(t, a, spiffeid.RequireFromPath(a.TrustDomain(), "/b"), "orders")
			return err
		}, code: codes.PermissionDenied, want: agent.SPIFFEIDNotGranted, meta: meta{"record": agenttest.Record}},
		{name: "a target", broker: grants(grant("/a")), ask: func(t *testing.T, a *running) error {
			_, _, err := a.TargetToken(t.Context(), process(t), "gcp", false)
			return err
		}, code: codes.PermissionDenied, want: agent.TargetNotListed, meta: meta{"target": "gcp"}, says: "targets:"},
		{name: "a broker that fails", broker: func(b *agenttest.Broker) {
			b.Before("IssueX509", func(context.Context) error {
				return agent.WithInfo(codes.Unavailable, "the broker cannot record", "RECORD_UNAVAILABLE", nil)
			})
		}, ask: x509, code: codes.Unavailable, want: agent.BrokerFailed, meta: meta{"broker": "RECORD_UNAVAILABLE"}, says: "cannot record"},
		{name: "a full agent", ask: func(t *testing.T, a *running) error {
			a.end()
			return x509(t, a)
		}, code: codes.Unavailable, want: agent.AgentUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			changes := []func(*agent.Config){}
			if row.config != nil {
				changes = append(changes, row.config)
			}
			b, a := started(t, changes...)
			if row.broker != nil {
				row.broker(b)
			}
			err := agent.StatusOf(t.Context(), slog.New(slog.DiscardHandler), row.ask(t, a))
			info := agent.InfoOf(err)
			if status.Code(err) != row.code || info.GetDomain() != "credence" || info.GetReason() != row.want || !strings.Contains(err.Error(), row.says) {
				t.Errorf("got %v with %v", err, info)
			}
			if diff := cmp.Diff(row.meta, info.GetMetadata()); diff != "" && len(row.meta)+len(info.GetMetadata()) > 0 {
				t.Error(diff)
			}
			if text := err.Error() + info.String(); strings.Contains(text, "robot-7") || strings.Contains(text, "10.0.0.7") {
				t.Errorf("it tells of the node: %s", text)
			}
		})
	}
}

// Who finds no broker is told since when there is none.
func TestAnUnreachableBrokerHasATime(t *testing.T) {
	t.Parallel()
	began := time.Now().Truncate(time.Second)
	b, a := started(t)
	b.Stop()
	_, err := a.view(t).try(10 * time.Second)
	info := agent.InfoOf(agent.StatusOf(t.Context(), slog.New(slog.DiscardHandler), err))
	since, bad := time.Parse(time.RFC3339, info.GetMetadata()["since"])
	if info.GetReason() != agent.BrokerUnreachable || bad != nil || since.Before(began) || since.After(time.Now()) || !strings.Contains(err.Error(), info.GetMetadata()["since"]) {
		t.Errorf("got %v with %v", err, info)
	}
}

// An evicted node's callers are told so.
func TestAnEvictedNodeSaysSo(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.EndWatch(status.Error(codes.PermissionDenied, "this node has been evicted"))
	_ = a.ended()
	_, err := a.view(t).try(time.Second)
	if info := agent.InfoOf(agent.StatusOf(t.Context(), slog.New(slog.DiscardHandler), err)); info.GetReason() != agent.NodeEvicted {
		t.Errorf("got %v with %v", err, info)
	}
}

// syncBuffer is a log that many write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// What attestors prove may be secret: a label, a variable. None of it is in the
// log at the level that is on by default, whatever becomes of the caller.
func TestNoFactIsLogged(t *testing.T) {
	t.Parallel()
	log := &syncBuffer{}
	secret := map[string][]string{
		"workload.docker.labels.owner": {"label-s3cret"}, "workload.docker.env.PASSWORD": {"variable-s3cret"}, "workload.docker.id": {"id-s3cret"},
	}
	b, a := started(t, func(c *agent.Config) {
		c.Log = slog.New(slog.NewTextHandler(log, nil))
		c.Attestors["workload.docker"] = &facts{all: secret, unknown: []string{"workload.docker.image"}}
		c.Attestors["workload.broken"] = &facts{err: errors.New("it broke"), all: secret}
	})
	ask := func() {
		_, _ = a.view(t).try(5 * time.Second)
		_, _ = jwt(t, a, spiffeid.ID{}, "orders")
		_, err := a.Credential(t.Context(), process(t), "gcp")
		_ = agent.StatusOf(t.Context(), slog.New(slog.NewTextHandler(log, nil)), err)
	}
	ask() // denied
	b.Grant(grant("/a"))
	ask() // granted
	b.Before("IssueX509", func(context.Context) error { return status.Error(codes.InvalidArgument, "bad") })
	b.Push(&api.WatchResponse{Revision: 2, Changes: []*api.Change{{Erase: true}}})
	ask() // refused
	b.Stop()
	ask() // away
	a.end()
	text := log.String()
	if !strings.Contains(text, "it broke") {
		t.Errorf("the failure is not in the log:\n%s", text)
	}
	if strings.Contains(text, "s3cret") {
		t.Errorf("the log tells of facts:\n%s", text)
	}
}
