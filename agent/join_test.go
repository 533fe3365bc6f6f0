package agent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation/federationtest"
)

func TestFirstContactByPin(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	if got, want := a.NodeID(), b.NodeID().String(); got != want {
		t.Errorf("the node is %q, want %q", got, want)
	}
	joins := b.Joins()
	if len(joins) != 1 || joins[0].GetMethod() != "token" || string(joins[0].GetEvidence()) != "token-1" {
		t.Errorf("joins: %v", joins)
	}
}

func TestFirstContactByBundle(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]func(*agenttest.Broker) []byte{
		"SPIFFE JSON": func(b *agenttest.Broker) []byte { return b.Document() },
		"PEM": func(b *agenttest.Broker) []byte {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Root.Raw})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agenttest.NewBroker(t, domain).Start()
			cfg := config(t, b)
			cfg.CAPins, cfg.Bundle = nil, text(b)
			run(t, cfg).ready()
		})
	}
}

// shows is a certificate under b's root, with these URI SANs byte for byte.
func shows(t *testing.T, b *agenttest.Broker, edit func(*x509.Certificate), uris ...string) *tls.Certificate {
	root := &federationtest.CA{Cert: b.Root, Key: b.Key, Now: time.Now()}
	cert := root.Issue(t, edit, uris...)
	return &cert
}

// TestBrokerCertificateVectors are the vectors of section B, shown by a server
// that says it is the broker.
func TestBrokerCertificateVectors(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, v := range federationtest.X509Vectors(t, now, "/credence/broker") {
		t.Run(v.Name, func(t *testing.T) {
			var shown []*x509.Certificate
			for _, der := range v.Shown {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					return // crypto/tls refuses it
				}
				shown = append(shown, c)
			}
			if len(shown) == 0 {
				return // crypto/tls too
			}
			err := agent.VerifyBroker(shown, v.Bundle, now)
			want := v.Peer && v.Own && v.ID == v.Bundle.TrustDomain().IDString()+"/credence/broker"
			if (err == nil) != want {
				t.Errorf("error %v, want accepted = %v", err, want)
			}
		})
	}
}

func TestServersThatAreNoBroker(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		broker func(b *agenttest.Broker)
		agent  func(b *agenttest.Broker, c *agent.Config)
		says   string
	}{
		"another root than the pinned": {
			agent: func(_ *agenttest.Broker, c *agent.Config) { c.CAPins = []string{"sha256:" + strings.Repeat("0", 64)} },
			says:  "credence token create",
		},
		"a workload of the same trust domain": {
			broker: func(b *agenttest.Broker) {
				b.Shows = b.Certificate(spiffeid.RequireFromPath(b.TrustDomain, "/shop/checkout"))
			},
			says: "not spiffe://example.org/credence/broker",
		},
		"XC-38 an ID that is the broker's but for an empty fragment": {
			broker: func(b *agenttest.Broker) { b.Shows = shows(t, b, nil, "spiffe://example.org/credence/broker#") },
			says:   "not a broker",
		},
		"XC-55 a signing certificate": {
			broker: func(b *agenttest.Broker) {
				b.Shows = shows(t, b, func(c *x509.Certificate) { c.IsCA = true }, "spiffe://example.org/credence/broker")
			},
			says: "not a broker",
		},
		"a node of the same trust domain": {
			broker: func(b *agenttest.Broker) { b.Shows = b.Certificate(b.NodeID()) },
			says:   "not spiffe://example.org/credence/broker",
		},
		"the broker of another trust domain, whose pin is right": {
			agent: func(_ *agenttest.Broker, c *agent.Config) {
				c.TrustDomain = spiffeid.RequireTrustDomainFromString("other.example")
			},
			says: "not spiffe://other.example/credence/broker",
		},
		"a right name under another root, by bundle": {
			agent: func(b *agenttest.Broker, c *agent.Config) {
				c.CAPins, c.Bundle = nil, agenttest.NewCA(t, domain).Document()
			},
			says: "does not verify under our trust bundle",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agenttest.NewBroker(t, domain)
			if test.broker != nil {
				test.broker(b)
			}
			b.Start()
			cfg := config(t, b)
			if test.agent != nil {
				test.agent(b, &cfg)
			}
			err := run(t, cfg).ended()
			if !errors.Is(err, agent.ErrFatal) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want ErrFatal that says %q", err, test.says)
			}
			if n := b.Calls("Join"); n != 0 {
				t.Errorf("the evidence was sent %d times", n)
			}
		})
	}
}

func TestSpentToken(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	run(t, config(t, b)).ready().end()
	err := run(t, config(t, b)).ended()
	if !errors.Is(err, agent.ErrFatal) || !strings.Contains(err.Error(), "credence token create") {
		t.Errorf("got %v, want ErrFatal with the way out", err)
	}
}

func TestJoinWaitsForTheBroker(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	b.Stop()
	a := run(t, config(t, b))
	v := a.view(t)
	if _, err := v.try(5 * time.Second); !errors.Is(err, agent.ErrUnavailable) {
		t.Errorf("before the node has joined: %v, want ErrUnavailable", err)
	}
	b.Start()
	a.ready()
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	ca := agenttest.NewCA(t, domain)
	good := agent.Config{
		TrustDomain: ca.TrustDomain, Broker: []string{"127.0.0.1:1"}, CAPins: []string{ca.Pin()},
		Join: agent.Join{Evidence: func(context.Context) ([]byte, error) { return nil, nil }},
	}
	for name, test := range map[string]struct {
		change func(*agent.Config)
		files  map[string]string
		says   string
	}{
		"no way to know the broker": {change: func(c *agent.Config) { c.CAPins = nil }, says: "any server could pose as the broker"},
		"a pin in upper case":       {change: func(c *agent.Config) { c.CAPins[0] = strings.ToUpper(c.CAPins[0]) }, says: "64 lower-case hex digits"},
		"a short pin":               {change: func(c *agent.Config) { c.CAPins[0] = c.CAPins[0][:70] }, says: "64 lower-case hex digits"},
		"a bundle that is a key": {change: func(c *agent.Config) {
			c.Bundle = []byte("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n")
		}, says: "give CA certificates only"},
		"an empty bundle":                 {change: func(c *agent.Config) { c.Bundle = []byte("\n") }, says: "the trust bundle: parsing the bundle"},
		"no broker":                       {change: func(c *agent.Config) { c.Broker = nil }, says: "required"},
		"a kept SVID that is torn":        {files: map[string]string{"node.pem": "x"}, says: "remove it to join again"},
		"a kept bundle that is torn":      {files: map[string]string{"bundle.json": "{"}, says: "bundle.json"},
		"nothing amiss but a torn report": {files: map[string]string{"spool/000000000001.seg": "1 r 0000"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			cfg.CAPins = []string{ca.Pin()}
			cfg.Data = t.TempDir()
			for file, text := range test.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(cfg.Data, file)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(cfg.Data, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if test.change != nil {
				test.change(&cfg)
			}
			_, err := agent.New(cfg)
			if test.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error that says %q", err, test.says)
			}
		})
	}
}

// A method that binds its answer to the node's key is told the key that the join
// began with.
func TestAnAnswerForTheKey(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	b.Challenge = []byte("challenge")
	var bound bool
	b.Answered = func(start *api.JoinRequest_Start, answer []byte) {
		bound = len(start.GetPublicKey()) > 0 && string(answer) == "challenge"+string(start.GetPublicKey())
	}
	cfg := config(t, b.Start())
	cfg.Join = agent.Join{Method: "bound", Evidence: cfg.Join.Evidence, AnswerFor: func(_ context.Context, challenge, publicKey []byte) ([]byte, error) {
		return append(challenge, publicKey...), nil
	}}
	run(t, cfg).ready()
	if !bound {
		t.Error("it is another key's")
	}
}

// Told to stop while a broker judges its token, an agent waits for what the token
// bought: it could not join by it again.
func TestStoppedWhileItJoins(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	entered, release := b.Hold("Join")
	cfg := config(t, b)
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	<-entered
	cancel()
	release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	run(t, cfg).ready()
}
