package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/federation"
)

// handshake connects by bare TLS.
func handshake(t testing.TB, address string, config *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	config.InsecureSkipVerify = true
	if config.NextProtos == nil {
		config.NextProtos = []string{"h2"}
	}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	// A server refuses a TLS 1.3 client's certificate after the client is done.
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1)) // the server's settings
	return conn.ConnectionState(), err
}

func TestAgentsListenerShowsTheBrokerAndItsAnchor(t *testing.T) {
	e := newEnv(t)
	asked := false
	state, err := handshake(t, e.listeners.Agents.Addr().String(), &tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			return &tls.Certificate{}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	chain := state.PeerCertificates
	if state.Version != tls.VersionTLS13 || !asked {
		t.Errorf("version %x, client certificate asked for: %v", state.Version, asked)
	}
	anchor := chain[len(chain)-1]
	if got := federation.Fingerprint(anchor); got != e.authority.Pin() {
		t.Errorf("the chain ends with %s, the pin is %s", got, e.authority.Pin())
	}
	pinned, err := federation.PinnedBundle(td, chain, e.authority.Pin())
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := federation.VerifyX509(chain, pinned, e.now())
	if err != nil || id.String() != "spiffe://example.org/credence/broker" {
		t.Errorf("it shows %s, %v", id, err)
	}
	if own := e.server.SVID(); len(own.Certificate) != len(chain)-1 {
		t.Errorf("its own SVID has %d certificates, of %d shown", len(own.Certificate), len(chain))
	}
}

func TestAgentsListenerSpeaksNothingOlder(t *testing.T) {
	e := newEnv(t)
	if state, err := handshake(t, e.listeners.Agents.Addr().String(), &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Errorf("version %x was spoken", state.Version)
	}
}

// Regression: SPIRE #6715
func TestAgentsListenerGivesNoTickets(t *testing.T) {
	e := newEnv(t)
	cache := tls.NewLRUClientSessionCache(1)
	for range 2 {
		state, err := handshake(t, e.listeners.Agents.Addr().String(), &tls.Config{ClientSessionCache: cache, ServerName: "broker"})
		if err != nil || state.DidResume {
			t.Errorf("resumed: %v, %v", state.DidResume, err)
		}
	}
}

// Regression: CVE-2024-2048
func TestCertificatesThatAreNotOursEndTheHandshake(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	address := e.listeners.Agents.Addr().String()
	if _, err := handshake(t, address, &tls.Config{Certificates: []tls.Certificate{*n.cert}}); err != nil {
		t.Fatalf("a node of ours: %v", err)
	}
	long := *n.cert
	for range 4 {
		long.Certificate = append(long.Certificate[:len(long.Certificate):len(long.Certificate)], n.cert.Certificate[1])
	}
	for name, id := range map[string]string{
		"another trust domain's":       "spiffe://other.example/credence/node/n1",
		"ours, by another's authority": n.id,
	} {
		t.Run(name, func(t *testing.T) {
			cert, _ := foreignSVID(t, id)
			if _, err := handshake(t, address, &tls.Config{Certificates: []tls.Certificate{*cert}}); err == nil {
				t.Error("it was let in")
			}
		})
	}
	if _, err := handshake(t, address, &tls.Config{Certificates: []tls.Certificate{long}}); err == nil {
		t.Error("a chain of six was let in")
	}
	t.Run("a peer's, whose bundle we have", func(t *testing.T) {
		cert, root := foreignSVID(t, "spiffe://partner.example/credence/node/n1")
		e.peers.set("https://partner.example/bundle", bundleOf(t, root))
		e.apply("kind: Peer\nname: partner.example\nurl: https://partner.example/bundle\nhttps_web: {}\n")
		if _, ok := e.config.Peers.Set().Get(partner); !ok {
			t.Fatal("the peer's bundle is not there")
		}
		if _, err := handshake(t, address, &tls.Config{Certificates: []tls.Certificate{*cert}}); err == nil {
			t.Error("it was let in")
		}
	})
}

// calls are the node service's, but for Join.
func calls(t *testing.T, c api.NodeClient) map[string]error {
	t.Helper()
	ctx := t.Context()
	all := map[string]error{}
	_, all["Renew"] = c.Renew(ctx, &api.RenewRequest{PublicKey: spki(t, newKey(t).Public())})
	_, all["IssueX509"] = c.IssueX509(ctx, &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: process("1")}}})
	_, all["IssueJWT"] = c.IssueJWT(ctx, &api.IssueJWTRequest{Workload: process("1"), Audiences: []string{"a"}})
	_, all["Report"] = c.Report(ctx, &api.ReportRequest{})
	stream, err := c.Watch(ctx)
	if err == nil {
		// A stream that was refused takes nothing: why, Recv says.
		_ = stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}})
		_, err = stream.Recv()
	}
	all["Watch"] = err
	return all
}

func wantRefused(t *testing.T, c api.NodeClient) {
	t.Helper()
	wantRefusals(t, c, false)
}

func wantRefusals(t *testing.T, c api.NodeClient, evicted bool) {
	t.Helper()
	for name, err := range calls(t, c) {
		t.Run(name, func(t *testing.T) {
			if evicted && name == "Watch" { // on that the agent erases what it holds
				wantCode(t, err, codes.PermissionDenied)
				return
			}
			text := wantCode(t, err, codes.Unauthenticated)
			wantSilence(t, text, "serial", "evict", "replaced", "table", "joined it")
		})
	}
}

func TestOnlyNodesThatStandAreServed(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	e.apply(web)
	for name, err := range calls(t, n) {
		if err != nil {
			t.Fatalf("%s by a node: %v", name, err)
		}
	}
	t.Run("nobody", func(t *testing.T) { wantRefused(t, e.stranger()) })
	t.Run("a workload's good SVID", func(t *testing.T) {
		got, key, err := n.issue(t.Context(), t, "33")
		if err != nil || len(got.GetSvids()) != 1 {
			t.Fatal(got, err)
		}
		cert := &tls.Certificate{Certificate: got.GetSvids()[0].GetChain(), PrivateKey: key}
		wantRefused(t, api.NewNodeClient(e.dial(cert)))
		if !strings.Contains(e.log.String(), "not a node: spiffe://example.org/web") {
			t.Error("only the node table kept it out")
		}
	})
	t.Run("the broker's own SVID", func(t *testing.T) { wantRefused(t, api.NewNodeClient(e.dial(e.server.SVID()))) })
	t.Run("an evicted node", func(t *testing.T) {
		out := e.join("n2")
		if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n2", Reason: "lost"}); err != nil {
			t.Fatal(err)
		}
		wantRefusals(t, out, true)
		_, err := joinOnce(t.Context(), e.stranger(), &api.JoinRequest_Start{Method: "token", Evidence: []byte(e.token("n2")), PublicKey: spki(t, newKey(t).Public())})
		wantCode(t, err, codes.FailedPrecondition)
		if _, err := e.admin().AllowNode(t.Context(), &api.AllowNodeRequest{Id: "n2"}); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, out) // its former SVID stays without effect
		e.join("n2")
		_, err = e.admin().AllowNode(t.Context(), &api.AllowNodeRequest{Id: "n2"})
		wantCode(t, err, codes.NotFound) // it is not evicted
	})
}

func TestANodeThatIsNotInTheTableIsRefused(t *testing.T) {
	e := newEnv(t)
	// Signed by our authority, and never joined here.
	key := newKey(t)
	digest, err := identity.DigestKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	grant, err := identity.ForNode(td, "ghost", digest, e.now(), e.now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := e.authority.SignX509(t.Context(), grant, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	wantRefused(t, api.NewNodeClient(e.dial(cert)))
}

func TestTheLastSVIDButOneStillServes(t *testing.T) {
	e := newEnv(t)
	first := e.join("n1")
	renew := func(n *node) *node {
		key := newKey(t)
		got, err := n.Renew(t.Context(), &api.RenewRequest{PublicKey: spki(t, key.Public())})
		if err != nil {
			t.Fatal(err)
		}
		return e.node(got, key)
	}
	second := renew(first)
	if _, _, err := first.issue(t.Context(), t, "1"); err != nil {
		t.Errorf("the last but one: %v", err)
	}
	third := renew(second)
	wantRefused(t, first)
	for _, n := range []*node{second, third} {
		if _, _, err := n.issue(t.Context(), t, "1"); err != nil {
			t.Error(err)
		}
	}
}

func TestAnSVIDEndsUnderAnOpenConnection(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	if _, _, err := n.issue(t.Context(), t, "1"); err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(n.cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	e.ahead.Store(int64(time.Until(leaf.NotAfter.Add(2 * time.Minute))))
	wantRefused(t, n)
}
