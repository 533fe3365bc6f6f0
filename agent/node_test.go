package agent_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation/federationtest"
)

func TestRestartTakesUpTheKeptSVID(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	run(t, cfg).ready().end()
	cfg.CAPins = []string{"sha256:" + strings.Repeat("0", 64)} // the kept bundle replaces it
	cfg.Join.Evidence = func(context.Context) ([]byte, error) {
		t.Error("evidence was made")
		return nil, errors.New("none")
	}
	a := run(t, cfg).ready()
	if a.NodeID() != b.NodeID().String() || len(b.Joins()) != 1 {
		t.Errorf("the node is %q after %d joins", a.NodeID(), len(b.Joins()))
	}
}

func TestRestartWithAnExpiredSVIDJoinsAgain(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	run(t, cfg).ready().end()
	b.Token, b.NodeTTL = "token-2", 4*time.Hour
	cfg.Join.Evidence = func(context.Context) ([]byte, error) { return []byte("token-2"), nil }
	cfg.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	run(t, cfg).ready()
	if n := len(b.Joins()); n != 2 {
		t.Errorf("%d joins", n)
	}
}

func TestKeptFiles(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	run(t, cfg).ready().end()
	info, err := os.Stat(cfg.Data)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory: %v %v", info.Mode(), err)
	}
	for _, name := range []string{"node.pem", "bundle.json", "spool/id", "spool/lost", "spool/000000000001.seg"} {
		info, err := os.Stat(filepath.Join(cfg.Data, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

func TestAKeptSVIDOfAnotherTrustDomainIsRefused(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	run(t, cfg).ready().end()
	cfg.TrustDomain = agenttest.NewCA(t, "other.example").TrustDomain
	if _, err := agent.New(cfg); err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Errorf("got %v", err)
	}
}

// TestKeptSVIDVectors are the vectors of section B for an SVID of our own, as
// it is loaded.
func TestKeptSVIDVectors(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	run(t, cfg).ready().end()
	load := func(t *testing.T, svid []byte) error {
		cfg := cfg
		cfg.Data = t.TempDir()
		if err := os.WriteFile(filepath.Join(cfg.Data, "node.pem"), svid, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := agent.New(cfg)
		return err
	}
	pemOf := func(key []byte, kind string, chain ...[]byte) (text []byte) {
		for _, der := range chain {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		return append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: key})...)
	}
	pkcs8 := func(t *testing.T, key crypto.PrivateKey) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	cert := b.Certificate(b.NodeID())
	key := cert.PrivateKey.(*ecdsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		svid []byte
		ok   bool
	}{
		{"a node's", pemOf(pkcs8(t, key), "PRIVATE KEY", cert.Certificate...), true},
		{"XC-88 another's key", pemOf(pkcs8(t, federationtest.NewKey(t)), "PRIVATE KEY", cert.Certificate...), false},
		{"XC-89 key in SEC1", pemOf(sec1, "EC PRIVATE KEY", cert.Certificate...), false},
		{"XC-89 key in SEC1 that says PKCS 8", pemOf(sec1, "PRIVATE KEY", cert.Certificate...), false},
		{"XC-90 the other encoding", slices.Concat(cert.Certificate[0], pkcs8(t, key)), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := load(t, row.svid); (err == nil) != row.ok {
				t.Errorf("error %v, want loaded = %v", err, row.ok)
			}
		})
	}
	for _, v := range federationtest.X509Vectors(t, time.Now(), "/credence/node/n1") {
		t.Run(v.Name, func(t *testing.T) {
			if len(v.Shown) == 0 {
				return // there is no node.pem then
			}
			// A time that is not now is no fault of what is kept: the node joins again.
			want := v.Own && v.Bundle.TrustDomain() == b.TrustDomain || v.Name == "expired" || v.Name == "XC-67 valid in a minute"
			if err := load(t, pemOf(pkcs8(t, v.Key), "PRIVATE KEY", v.Shown...)); (err == nil) != want {
				t.Errorf("error %v, want loaded = %v", err, want)
			}
		})
	}
}

func TestNodeRenewsAtHalfOfItsLife(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 3 * time.Second // renewed after a bit more than one
	b.Start()
	b.Grant(grant("/a"))
	a := run(t, config(t, b)).ready()
	v := a.view(t)
	v.next()
	b.Await("two renewals", func() bool { return b.Calls("Renew") >= 2 })
	// The first certificate is no longer taken by now: what works is the new
	// connection.
	b.Await("a new stream each time", func() bool { return b.Calls("Watch") >= 3 && b.Watching() >= 1 })
	if len(b.Joins()) != 1 {
		t.Errorf("%d joins", len(b.Joins()))
	}
	b.Grant(grant("/b"))
	b.Push(change(nil, false))
	if got := paths(v.next()); len(got) != 1 || got[0] != "/b" {
		t.Errorf("after renewals: %v", got)
	}
}

// A node renews at once when the authority that signed for it is revoked.
func TestNodeRenewsWhenItsAuthorityIsRevoked(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Revoke(&api.Cutoff{Kind: "authority", Value: "another", Before: time.Now().Add(time.Hour).UnixMilli()})
	b.Await("another's revocation", func() bool { return b.Acknowledged() >= 3 })
	if n := b.Calls("Renew"); n != 0 {
		t.Errorf("%d renewals for another's revocation", n)
	}
	signer := a.NodeSigner()
	b.Revoke(&api.Cutoff{Kind: "authority", Value: signer, Before: time.Now().Add(-time.Hour).UnixMilli()})
	b.Await("a revocation from before", func() bool { return b.Calls("Watch") == 1 && b.Watching() == 1 })
	if n := b.Calls("Renew"); n != 0 {
		t.Errorf("%d renewals of what is from after the cut-off", n)
	}
	// Issued and revoked within a second, and the next SVID is by the same CA.
	b.Revoke(&api.Cutoff{Kind: "authority", Value: signer, Before: time.Now().UnixMilli()})
	b.Await("a renewal", func() bool { return b.Calls("Renew") == 1 })
	b.Await("a stream under it", func() bool { return b.Calls("Watch") == 2 && b.Acknowledged() >= 3 })
	if n := b.Calls("Renew"); n != 1 {
		t.Errorf("%d renewals for one revocation", n)
	}
}

func TestNodeWhoseSVIDEndedJoinsAgain(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 2 * time.Second
	b.Start()
	cfg := config(t, b)
	cfg.Patience = 8 * time.Second
	joined := make(chan struct{})
	cfg.Join.Evidence = func(context.Context) ([]byte, error) {
		select {
		case <-joined:
			return []byte("token-2"), nil
		default:
			close(joined)
			return []byte("token-1"), nil
		}
	}
	b.Before("Renew", func(context.Context) error { return status.Error(codes.Unavailable, "no") })
	a := run(t, cfg).ready()
	ends := time.Now().Add(b.NodeTTL)
	b.Stop() // for longer than the SVID lives: no TLS server takes it then
	select {
	case <-time.After(time.Until(ends)):
	case <-a.done:
	}
	b.Token = "token-2"
	b.Grant(grant("/a"))
	b.Start()
	a.view(t).next() // a caller ends the long pause
	if len(b.Joins()) != 2 {
		t.Errorf("%d joins", len(b.Joins()))
	}
}

func TestEviction(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	b.Grant(grant("/a"))
	cfg := config(t, b)
	a := run(t, cfg).ready()
	v := a.view(t)
	v.next()
	b.EndWatch(status.Error(codes.PermissionDenied, "this node has been evicted"))
	if err := a.ended(); !errors.Is(err, agent.ErrFatal) || !strings.Contains(err.Error(), "credence node allow") {
		t.Errorf("got %v", err)
	}
	if _, err := v.try(time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("an open stream of an evicted node: %v, want ErrDenied", err)
	}
	if _, err := a.view(t).try(time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("a new stream of an evicted node: %v, want ErrDenied", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, "node.pem")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the node's SVID is still there: %v", err)
	}
}

func TestWatchReconnects(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	// What changed while the stream was away is learnt by asking again.
	b.Grant(grant("/b"))
	b.EndWatch(status.Error(codes.Unavailable, "restarting"))
	if got := paths(v.next()); len(got) != 1 || got[0] != "/b" {
		t.Errorf("got %v", got)
	}
}

func TestBundlesOfTheBroker(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	g := grant("/a")
	g.FederatesWith = []string{"peer.example", "absent.example"}
	b.Grant(g)
	v := a.view(t)
	if u := v.next(); len(u.Bundles) != 1 {
		t.Errorf("bundles before the peer's is known: %v", u.Bundles)
	}
	peer, stranger := agenttest.NewCA(t, "peer.example"), agenttest.NewCA(t, "stranger.example")
	b.AddBundle("stranger.example", stranger.Document())
	v.quiet()
	b.AddBundle("peer.example", peer.Document())
	u := v.next()
	if got := u.Bundles[peer.TrustDomain]; len(u.Bundles) != 2 || got == nil || !got.X509Authorities[0].Equal(peer.Root) {
		t.Errorf("bundles: %v", u.Bundles)
	}
	b.AddBundle("peer.example", peer.Document())
	v.quiet()
	// A malformed bundle neither replaces the good one nor keeps the rest of
	// its message from being heeded.
	b.Push(&api.WatchResponse{
		Bundles: []*api.Bundle{{TrustDomain: "peer.example", Document: []byte("{")}, {TrustDomain: domain, Document: []byte(`{"keys":[]}`)}},
		Removed: []string{"stranger.example", domain}, Changes: []*api.Change{{Set: digest(uid("1000"))}},
	})
	v.quiet()
	b.Push(&api.WatchResponse{Removed: []string{"peer.example"}})
	if u := v.next(); len(u.Bundles) != 1 || u.Bundles[b.TrustDomain] == nil {
		t.Errorf("bundles after the peer's was removed: %v", u.Bundles)
	}
}

func TestANewJWTKeyUnderAnOldNameIsTold(t *testing.T) {
	t.Parallel()
	b, a := started(t)
	b.Grant(grant("/a"))
	v := a.view(t)
	v.next()
	other := agenttest.NewCA(t, domain)
	bundle := b.Bundle()
	if err := bundle.AddJWTAuthority(b.JWTKeyID, other.JWTKey.Public()); err != nil {
		t.Fatal(err)
	}
	document, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b.AddBundle(domain, document)
	v.next()
}

func TestTheBundleKeptIsTheBrokersLast(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain).Start()
	cfg := config(t, b)
	a := run(t, cfg).ready()
	bundle := b.Bundle()
	bundle.AddX509Authority(agenttest.NewCA(t, domain).Root)
	document, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b.AddBundle(domain, document)
	b.Await("it is acknowledged", func() bool { return b.Acknowledged() == 2 })
	a.end()
	kept, err := os.ReadFile(filepath.Join(cfg.Data, "bundle.json"))
	if err != nil || string(kept) != string(document) {
		t.Errorf("kept %s: %v", kept, err)
	}
}

// Who did not join by a token proves itself anew instead, and stays who it is by
// the SVID that it shows: open streams go on.
func TestNodeProvesItselfAnew(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	b.NodeTTL = 3 * time.Second
	b.Start()
	b.Grant(grant("/a"))
	c := config(t, b)
	made := 0
	c.Join = agent.Join{Method: "github", Rule: "acme", Evidence: func(context.Context) ([]byte, error) {
		made++ // one at a time
		return fmt.Appendf(nil, "token-%d", made), nil
	}}
	a := run(t, c).ready()
	v := a.view(t)
	v.next()
	b.Await("two joins more", func() bool { return len(b.Joins()) >= 3 })
	b.Await("a new stream each time", func() bool { return b.Calls("Watch") >= 3 && b.Watching() >= 1 })
	for n, j := range b.Joins() {
		if j.GetMethod() != "github" || j.GetRule() != "acme" || string(j.GetEvidence()) != fmt.Sprintf("token-%d", n+1) {
			t.Errorf("join %d: %v", n, j)
		}
	}
	if n := b.Calls("Renew"); n != 0 {
		t.Errorf("%d renewals", n)
	}
	b.Grant(grant("/b"))
	b.Push(change(nil, false))
	if got := paths(v.next()); len(got) != 1 || got[0] != "/b" {
		t.Errorf("after joins: %v", got)
	}
}
