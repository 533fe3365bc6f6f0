package kubernetes_test

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/kubernetes"
	"github.com/credence-id/credence/broker/join/kubernetes/clustertest"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const audience = "credence://example.org/join"

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

// pod is of a DaemonSet on a node.
var pod = clustertest.Pod{
	Namespace: "credence", Account: "agent", AccountUID: "11111111-1111-4111-8111-111111111111",
	Name: "agent-x7k2p", UID: "22222222-2222-4222-8222-222222222222",
	Node: "ip-10-0-0-1.eu-west-1.compute.internal", NodeUID: "33333333-3333-4333-8333-333333333333",
}

// other is one beside it.
func other() clustertest.Pod {
	p := pod
	p.Name, p.UID = "agent-8mzq4", "44444444-4444-4444-8444-444444444444"
	return p
}

// A clock is one that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A world is a cluster, a clock and where tokens are spent: any number of times,
// unless a test says otherwise.
type world struct {
	*clustertest.Cluster
	*clock
	t     testing.TB
	spend kubernetes.Spend
}

// key is another than the cluster's: making one is slow.
var key = sync.OnceValue(func() *rsa.PrivateKey { return issuertest.NewRSA(2048) })

func newWorld(t testing.TB) *world {
	t.Helper()
	c := &clock{t: start}
	w := &world{clustertest.New(t, "prod", c.now), c, t, func(context.Context, [32]byte, string, time.Time, time.Time) error { return nil }}
	w.Start(pod)
	return w
}

// ways are the three to judge tokens.
func (w *world) ways() map[string]*kubernetes.Settings {
	return map[string]*kubernetes.Settings{
		"issuer":       w.settings(fmt.Sprintf("{cluster: prod, issuer: %q}", w.Issuer)),
		"jwks":         w.settings(fmt.Sprintf("{cluster: prod, jwks: %q}", w.Keys())),
		"token_review": w.settings(fmt.Sprintf("{cluster: prod, token_review: {url: %q, ca: %q, token_file: %q}}", w.URL, w.CA, w.TokenFile)),
	}
}

// settings are what a user writes.
func (w *world) settings(text string) *kubernetes.Settings {
	w.t.Helper()
	return settings(w.t, text)
}

func settings(t testing.TB, text string) *kubernetes.Settings {
	t.Helper()
	s := new(kubernetes.Settings)
	if err := yaml.UnmarshalWithOptions([]byte(text), s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) method(s *kubernetes.Settings) join.Method {
	w.t.Helper()
	m, err := kubernetes.New(kubernetes.Config{
		Settings: s, Audience: audience, Get: w.Get, Spend: w.spend,
		Spent: func(err error) bool { return errors.Is(err, broker.ErrSpent) }, Patience: time.Minute, Now: w.now,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func noChallenge(context.Context, []byte) ([]byte, error) {
	return nil, errors.New("a challenge was put")
}

func joinBy(t testing.TB, m join.Method, token string) (join.Proof, error) {
	return m.Join(t.Context(), []byte(token), noChallenge)
}

func TestJoin(t *testing.T) {
	noNode, nodeWithoutUID := pod, pod
	noNode.Node, noNode.NodeUID, nodeWithoutUID.NodeUID = "", "", ""
	for _, way := range []string{"issuer", "jwks", "token_review"} {
		for name, row := range map[string]struct {
			pod                     clustertest.Pod
			name, durable, instance string
			without                 []string // facts
		}{
			"of a node":        {pod, pod.Node, `["prod","node","` + pod.NodeUID + `"]`, pod.UID, nil},
			"without one":      {noNode, pod.Name, `["prod","pod","` + pod.UID + `"]`, pod.UID, []string{"node", "node_uid"}},
			"of one by a name": {nodeWithoutUID, pod.Name, `["prod","pod","` + pod.UID + `"]`, pod.UID, []string{"node_uid"}},
		} {
			t.Run(way+" "+name, func(t *testing.T) {
				w := newWorld(t)
				w.Start(row.pod)
				proof, err := joinBy(t, w.method(w.ways()[way]), w.Token(row.pod, audience))
				if err != nil {
					t.Fatal(err)
				}
				if proof.Name != row.name || proof.DurableKey != row.durable || proof.Instance != row.instance {
					t.Errorf("name %s, durable key %s, instance %s", proof.Name, proof.DurableKey, proof.Instance)
				}
				want := map[string][]string{}
				for name, value := range map[string]string{
					"cluster": "prod", "namespace": pod.Namespace, "service_account": pod.Account, "service_account_uid": pod.AccountUID,
					"pod": pod.Name, "pod_uid": pod.UID, "node": pod.Node, "node_uid": pod.NodeUID,
				} {
					want["node.kubernetes."+name] = []string{value}
				}
				for _, name := range row.without {
					delete(want, "node.kubernetes."+name)
				}
				if d := cmp.Diff(want, proof.Facts.Map()); d != "" {
					t.Error(d)
				}
			})
		}
	}
}

// Two pods of one node don't take each other's place, and are banned together.
func TestTwoPodsOfANode(t *testing.T) {
	w := newWorld(t)
	w.Start(other())
	m := w.method(w.ways()["issuer"])
	one, err := joinBy(t, m, w.Token(pod, audience))
	if err != nil {
		t.Fatal(err)
	}
	two, err := joinBy(t, m, w.Token(other(), audience))
	if err != nil {
		t.Fatal(err)
	}
	if one.DurableKey != two.DurableKey || one.Instance == two.Instance {
		t.Errorf("%+v and %+v", one, two)
	}
}

// The same token is taken again where it yields the same node, and nowhere else.
func TestAgain(t *testing.T) {
	for _, way := range []string{"issuer", "jwks", "token_review"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t)
			kept, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { kept.Close() })
			w.spend = kept.SpendEvidenceFor
			s := w.ways()[way]
			m, token := w.method(s), w.Token(pod, audience)
			first, err := joinBy(t, m, token)
			if err != nil {
				t.Fatal(err)
			}
			w.add(30 * time.Minute)
			for range 2 {
				again, err := joinBy(t, w.method(s), token) // the broker may have been restarted
				if err != nil {
					t.Fatal(err)
				}
				if again.DurableKey != first.DurableKey || again.Instance != first.Instance {
					t.Errorf("%+v, then %+v", first, again)
				}
			}
			elsewhere := *s
			elsewhere.Cluster = "staging"
			for range 2 {
				if p, err := joinBy(t, w.method(&elsewhere), token); !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), "another node") {
					t.Errorf("by a rule of another cluster: %+v, %v", p, err)
				}
			}
			next, err := joinBy(t, m, w.Token(pod, audience)) // as the kubelet replaces it
			if err != nil || next.Instance != first.Instance {
				t.Errorf("the next token: %+v, %v", next, err)
			}
			w.add(31*time.Minute + time.Second)
			if _, err := joinBy(t, m, token); !errors.Is(err, join.ErrEvidence) {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}

// What another method took once is not taken here.
func TestSpentElsewhere(t *testing.T) {
	w := newWorld(t)
	refuse := errors.New("spent")
	var holders []string
	m, err := kubernetes.New(kubernetes.Config{
		Settings: w.ways()["jwks"], Audience: audience, Get: w.Get, Now: w.now, Spent: func(err error) bool { return errors.Is(err, refuse) },
		Spend: func(_ context.Context, digest [32]byte, holder string, ends, now time.Time) error {
			if digest == [32]byte{} || !ends.Equal(start.Add(time.Hour+time.Minute)) || !now.Equal(start) {
				t.Errorf("%x is spent until %s at %s", digest, ends, now)
			}
			if holders = append(holders, holder); len(holders) > 1 {
				return errors.New("disk full")
			}
			return refuse
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := joinBy(t, m, w.Token(pod, audience)); !errors.Is(err, join.ErrEvidence) {
		t.Error(err)
	}
	if _, err := joinBy(t, m, w.Token(pod, audience)); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a store that is away: %v", err)
	}
	if _, err := joinBy(t, m, w.Token(pod, "x")); !errors.Is(err, join.ErrEvidence) || len(holders) != 2 {
		t.Errorf("a bad one is spent: %v", err)
	}
}

func TestHostile(t *testing.T) {
	claims := func(w *world, changes map[string]any) string {
		return w.Sign(issuertest.With(w.Claims(pod, audience), changes))
	}
	inner := func(w *world, changes map[string]any) string {
		c := w.Claims(pod, audience)
		c["kubernetes.io"] = issuertest.With(c["kubernetes.io"].(map[string]any), changes)
		return w.Sign(c)
	}
	for name, make := range map[string]func(*world) string{
		"no pod":               func(w *world) string { return inner(w, map[string]any{"pod": nil}) },
		"a pod without a UID":  func(w *world) string { return inner(w, map[string]any{"pod": map[string]any{"name": "a"}}) },
		"a pod without a name": func(w *world) string { return inner(w, map[string]any{"pod": map[string]any{"uid": pod.UID}}) },
		"a pod that is a text": func(w *world) string { return inner(w, map[string]any{"pod": "a"}) },
		"a pod with a path for a name": func(w *world) string {
			return inner(w, map[string]any{"pod": map[string]any{"name": "../a", "uid": pod.UID}})
		},
		"a pod with a path for a UID": func(w *world) string {
			return inner(w, map[string]any{"pod": map[string]any{"name": "a", "uid": "../" + pod.UID}})
		},
		"a pod whose UID is a number": func(w *world) string { return inner(w, map[string]any{"pod": map[string]any{"name": "a", "uid": 1}}) },
		"a node without a name":       func(w *world) string { return inner(w, map[string]any{"node": map[string]any{"uid": pod.NodeUID}}) },
		"a node with another's UID": func(w *world) string {
			return inner(w, map[string]any{"node": map[string]any{"name": "a", "uid": "b"}})
		},
		"a node that is a list": func(w *world) string { return inner(w, map[string]any{"node": []string{"a"}}) },
		"bound to a node alone": func(w *world) string {
			return inner(w, map[string]any{"pod": nil, "node": map[string]any{"name": "a", "uid": pod.NodeUID}})
		},
		"bound to a Secret": func(w *world) string {
			return inner(w, map[string]any{"pod": nil, "secret": map[string]any{"name": "a", "uid": pod.UID}})
		},
		"a subject of another account": func(w *world) string { return claims(w, map[string]any{"sub": "system:serviceaccount:credence:admin"}) },
		"a subject of another namespace": func(w *world) string {
			return claims(w, map[string]any{"sub": "system:serviceaccount:kube-system:agent"})
		},
		"a subject that is no account": func(w *world) string { return claims(w, map[string]any{"sub": "system:node:a"}) },
		"claims of another account": func(w *world) string {
			return inner(w, map[string]any{"serviceaccount": map[string]any{"name": "admin", "uid": pod.AccountUID}})
		},
		"claims of another namespace": func(w *world) string { return inner(w, map[string]any{"namespace": "kube-system"}) },
		"a namespace with a colon":    func(w *world) string { return inner(w, map[string]any{"namespace": "credence:agent"}) },
		"a namespace with a path": func(w *world) string {
			c := w.Claims(pod, audience)
			c["kubernetes.io"].(map[string]any)["namespace"], c["sub"] = "../a", "system:serviceaccount:../a:agent"
			return w.Sign(c)
		},
		"no namespace": func(w *world) string { return inner(w, map[string]any{"namespace": nil}) },
		"an account without a UID": func(w *world) string {
			return inner(w, map[string]any{"serviceaccount": map[string]any{"name": "agent"}})
		},
		"no account":                         func(w *world) string { return inner(w, map[string]any{"serviceaccount": nil}) },
		"no claims of Kubernetes":            func(w *world) string { return claims(w, map[string]any{"kubernetes.io": nil}) },
		"claims of Kubernetes that are text": func(w *world) string { return claims(w, map[string]any{"kubernetes.io": "credence"}) },
		"of a Secret, without an end": func(w *world) string {
			return w.Sign(map[string]any{
				"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:credence:agent", "kubernetes.io/serviceaccount/namespace": "credence",
				"kubernetes.io/serviceaccount/secret.name": "agent-token-1", "kubernetes.io/serviceaccount/service-account.name": "agent",
				"kubernetes.io/serviceaccount/service-account.uid": pod.AccountUID,
			})
		},
		"of the issuer of Secrets": func(w *world) string { return claims(w, map[string]any{"iss": "kubernetes/serviceaccount"}) },
		"of no issuer":             func(w *world) string { return claims(w, map[string]any{"iss": ""}) },
		"of another cluster": func(w *world) string {
			b := clustertest.New(w.t, "staging", w.now)
			b.Rotate("staging-1", key())
			b.Start(pod)
			return b.Token(pod, audience)
		},
		"of another cluster, that says it is ours": func(w *world) string {
			b := clustertest.New(w.t, "staging", w.now)
			b.Rotate("prod-1", key())
			return b.Sign(issuertest.With(b.Claims(pod, audience), map[string]any{"iss": w.Issuer}))
		},
		"for the API server":       func(w *world) string { return w.Token(pod, "https://kubernetes.default.svc") },
		"for a workload":           func(w *world) string { return w.Token(pod, "credence://example.org/workload") },
		"for another trust domain": func(w *world) string { return w.Token(pod, "credence://example.com/join") },
		"for us and the API server": func(w *world) string {
			return claims(w, map[string]any{"aud": []string{audience, "https://kubernetes.default.svc"}})
		},
		"for nobody": func(w *world) string { return claims(w, map[string]any{"aud": []string{}}) },
		"expired": func(w *world) string {
			return claims(w, map[string]any{"exp": start.Add(-time.Minute - time.Second).Unix()})
		},
		"without an end": func(w *world) string { return claims(w, map[string]any{"exp": nil}) },
		"too old": func(w *world) string {
			return claims(w, map[string]any{"iat": start.Add(-time.Hour - 61*time.Second).Unix(), "nbf": start.Add(-time.Hour - 61*time.Second).Unix()})
		},
		"without age":          func(w *world) string { return claims(w, map[string]any{"iat": nil}) },
		"issued in the future": func(w *world) string { return claims(w, map[string]any{"iat": start.Add(61 * time.Second).Unix()}) },
		"alg none": func(w *world) string {
			return issuertest.Sign(w.t, issuertest.RSA(), "none", map[string]any{"kid": "prod-1"}, w.Claims(pod, audience))
		},
		"its own key in the header": func(w *world) string {
			return issuertest.Sign(w.t, key(), "RS256", map[string]any{"kid": "prod-1", "jwk": issuertest.JWK("prod-1", key().Public())}, w.Claims(pod, audience))
		},
		"truncated": func(w *world) string { token := claims(w, nil); return token[:len(token)-8] },
		"oversized": func(w *world) string { return claims(w, map[string]any{"x": strings.Repeat("a", 17<<10)}) },
		"empty":     func(*world) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			token := make(w)
			for way, s := range w.ways() {
				if p, err := joinBy(t, w.method(s), token); !errors.Is(err, join.ErrEvidence) {
					t.Errorf("%s: it is taken as %+v, or refused for another reason: %v", way, p, err)
				} else if i := strings.LastIndexByte(token, '.'); i > 0 && strings.Contains(err.Error(), token[i:]) {
					t.Errorf("%s: the refusal quotes the token: %v", way, err)
				}
			}
			if _, err := joinBy(t, w.method(w.ways()["issuer"]), w.Token(pod, audience)); err != nil {
				t.Errorf("the honest one: %v", err)
			}
		})
	}
}

// Beside keys that were given, an issuer that is named counts.
func TestNamedIssuer(t *testing.T) {
	for _, way := range []string{"issuer", "jwks", "token_review"} {
		w := newWorld(t)
		s := w.ways()[way]
		s.Issuer = "https://example.com/other"
		if _, err := joinBy(t, w.method(s), w.Token(pod, audience)); err == nil {
			t.Errorf("%s: a token of %s is taken for one of %s", way, w.Issuer, s.Issuer)
		}
		s.Issuer = w.Issuer
		if _, err := joinBy(t, w.method(s), w.Token(pod, audience)); err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
}

func TestUnbound(t *testing.T) {
	for _, way := range []string{"issuer", "jwks", "token_review"} {
		w := newWorld(t)
		s := w.ways()[way]
		s.Unbound = true
		free := pod
		free.Name, free.UID, free.Node, free.NodeUID = "", "", "", ""
		p, err := joinBy(t, w.method(s), w.Token(free, audience))
		if err != nil {
			t.Errorf("%s: %v", way, err)
			continue
		}
		if p.Name != "agent" || p.DurableKey != `["prod","service_account","`+pod.AccountUID+`"]` || p.Instance != "" || p.Facts.Get("node.kubernetes.pod") != nil {
			t.Errorf("%s: %+v", way, p)
		}
		half := w.Claims(pod, audience)
		delete(half["kubernetes.io"].(map[string]any)["pod"].(map[string]any), "uid")
		if p, err := joinBy(t, w.method(s), w.Sign(half)); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%s: one of a pod without a UID: %+v, %v", way, p, err)
		}
		if p, err := joinBy(t, w.method(s), w.Token(pod, audience)); err != nil || p.Instance != pod.UID {
			t.Errorf("%s: one of a pod: %+v, %v", way, p, err)
		}
	}
}

// After a rotation keys that were given are those of yesterday, until they are
// given anew; an issuer is asked.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	given, asked, reviewed := w.method(w.ways()["jwks"]), w.method(w.ways()["issuer"]), w.method(w.ways()["token_review"])
	for _, m := range []join.Method{given, asked, reviewed} {
		if _, err := joinBy(t, m, w.Token(pod, audience)); err != nil {
			t.Fatal(err)
		}
	}
	old := w.Token(pod, audience)
	w.Rotate("prod-2", key())
	w.add(time.Minute)
	token := w.Token(pod, audience)
	if _, err := joinBy(t, given, token); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("by old keys: %v", err)
	}
	for way, m := range map[string]join.Method{"issuer": asked, "review": reviewed, "new keys": w.method(w.ways()["jwks"])} {
		if _, err := joinBy(t, m, token); err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
	w.add(5 * time.Minute)
	for way, m := range map[string]join.Method{"issuer": asked, "review": reviewed, "new keys": w.method(w.ways()["jwks"])} {
		if _, err := joinBy(t, m, old); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("a token by the old key: %s: %v", way, err)
		}
	}
}
