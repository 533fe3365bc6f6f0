package workloadapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/workloadapi"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation/federationtest"
)

// calls are all methods, each asking for something that would be granted.
var calls = map[string]func(context.Context, workloadpb.SpiffeWorkloadAPIClient) error{
	"FetchX509SVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
		return first(s, err)
	},
	"FetchX509Bundles": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
		return first(s, err)
	},
	"FetchJWTSVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		_, err := c.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"reports"}})
		return err
	},
	"FetchJWTBundles": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
		return first(s, err)
	},
	"ValidateJWTSVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		_, err := c.ValidateJWTSVID(ctx, &workloadpb.ValidateJWTSVIDRequest{Audience: "reports", Svid: "x"})
		if status.Code(err) == codes.InvalidArgument && strings.Contains(err.Error(), "is not valid") {
			return nil // it was judged
		}
		return err
	},
}

func first[M any](s interface{ Recv() (M, error) }, err error) error {
	if err != nil {
		return err
	}
	_, err = s.Recv()
	return err
}

func TestSecurityHeader(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	client, _ := raw(t, socket)
	for name, test := range map[string]struct {
		values []string
		want   codes.Code
	}{
		"true":    {[]string{"true"}, codes.OK},
		"missing": {nil, codes.InvalidArgument},
		"True":    {[]string{"True"}, codes.InvalidArgument},
		"TRUE":    {[]string{"TRUE"}, codes.InvalidArgument},
		"1":       {[]string{"1"}, codes.InvalidArgument},
		"empty":   {[]string{""}, codes.InvalidArgument},
		"twice":   {[]string{"true", "true"}, codes.InvalidArgument},
	} {
		for method, call := range calls {
			ctx, cancel := context.WithCancel(t.Context())
			for _, v := range test.values {
				ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", v)
			}
			if got := status.Code(call(ctx, client)); got != test.want {
				t.Errorf("%s, %s: %s, want %s", method, name, got, test.want)
			}
			cancel()
		}
	}
}

func TestReflectionNeedsNoHeader(t *testing.T) { // D-23
	t.Parallel()
	_, socket := serve(t, true)
	_, conn := raw(t, socket)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	must(t, err)
	must(t, stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
	m, err := stream.Recv()
	must(t, err)
	var names []string
	for _, s := range m.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	if !strings.Contains(strings.Join(names, " "), "SpiffeWorkloadAPI") {
		t.Errorf("services: %v", names)
	}
}

// gRPC's health service needs none either; what only looks like it does.
func TestHealthNeedsNoHeader(t *testing.T) {
	t.Parallel()
	for method, needs := range map[string]bool{
		"/grpc.health.v1.Health/Check": false, "/grpc.health.v1.Healthy/Check": true, "/credence.agent.v1.Credentials/Fetch": true, "/SpiffeWorkloadAPI/FetchX509SVID": true,
	} {
		if err := workloadapi.CheckMetadata(t.Context(), method); (err != nil) != needs {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// Options see all calls, and how they end: those that lack the header too.
func TestOptions(t *testing.T) {
	t.Parallel()
	seen := make(chan error, 1)
	g := workloadapi.New(workloadapi.Config{Options: []grpc.ServerOption{grpc.ChainUnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			answer, err := next(ctx, req)
			seen <- err
			return answer, err
		})}}).GRPC()
	defer g.Stop()
	dir, err := os.MkdirTemp("", "w")
	must(t, err)
	defer os.RemoveAll(dir)
	l, err := caller.Listen(filepath.Join(dir, "w.sock"), 0o666)
	must(t, err)
	go func() { _ = g.Serve(l) }()
	client, _ := raw(t, l.Addr().String())
	if _, err := client.FetchJWTSVID(t.Context(), &workloadpb.JWTSVIDRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
	if err := <-seen; status.Code(err) != codes.InvalidArgument {
		t.Errorf("seen: %v", err)
	}
}

func TestNoIdentity(t *testing.T) {
	t.Parallel()
	_, socket := serve(t, true)
	client, _ := raw(t, socket)
	for method, call := range calls {
		err := call(header(t.Context()), client)
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), agenttest.Record) {
			t.Errorf("%s: %v, want PermissionDenied with the record", method, err)
		}
	}
}

func TestBeforeTheNodeHasJoined(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, false)
	client, _ := raw(t, socket)
	if err := calls["FetchX509SVID"](header(t.Context()), client); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
	b.Decide(granted(grant("/a")))
	b.Start()
	b.Await("it has joined", func() bool { return b.Watching() == 1 })
	must(t, calls["FetchX509SVID"](header(t.Context()), client))
}

func TestArgumentsRefused(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	client, _ := raw(t, socket)
	for name, r := range map[string]*workloadpb.JWTSVIDRequest{
		"no audience":       {},
		"an empty audience": {Audience: []string{"a", ""}},
		"a long audience":   {Audience: []string{strings.Repeat("a", 1025)}},
		"many audiences":    {Audience: strings.Split(strings.Repeat("a", 17), "")},
		"a bad SPIFFE ID":   {Audience: []string{"a"}, SpiffeId: "https://example.org/a"},
	} {
		if _, err := client.FetchJWTSVID(header(t.Context()), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	for name, r := range map[string]*workloadpb.ValidateJWTSVIDRequest{
		"no token": {Audience: "a"}, "no audience": {Svid: "x"}, "neither": {},
	} {
		if _, err := client.ValidateJWTSVID(header(t.Context()), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	_, err := client.FetchJWTSVID(header(t.Context()), &workloadpb.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://example.org/b"})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("somebody else's ID: %v, want PermissionDenied", err)
	}
}

// TestRequestedIDVectors are the vectors of section A as the spiffe_id of a
// request. No identity has them: what is an ID is denied, the rest is refused.
func TestRequestedIDVectors(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/nobody")))
	client, _ := raw(t, socket)
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			want := codes.InvalidArgument
			if v.Valid() {
				want = codes.PermissionDenied
			}
			if v.Input == "" {
				return // then none is asked for
			}
			_, err := client.FetchJWTSVID(header(t.Context()), &workloadpb.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: v.Input})
			if status.Code(err) != want {
				t.Errorf("%.80q: %v, want %v: %s", v.Input, err, want, v.Reason)
			}
		})
	}
}

func TestUnknownMethodsAndProfiles(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	_, conn := raw(t, socket)
	for _, method := range []string{"FetchWITSVID", "FetchWITBundles", "FetchNothing"} {
		stream, err := conn.NewStream(header(t.Context()), &grpc.StreamDesc{ServerStreams: true}, "/SpiffeWorkloadAPI/"+method)
		must(t, err)
		must(t, stream.SendMsg(&workloadpb.X509SVIDRequest{}))
		must(t, stream.CloseSend())
		if err := stream.RecvMsg(&workloadpb.X509SVIDResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want Unimplemented", method, err)
		}
	}
}

// TestEncodings looks at the bytes (SPIFFE Workload API §5.1).
func TestEncodings(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	peer, other := agenttest.NewCA(t, "peer.example"), agenttest.NewCA(t, "other.example")
	for _, ca := range []*agenttest.CA{peer, other} {
		b.AddBundle(ca.TrustDomain.Name(), ca.Document())
	}
	first := grant("/a")
	first.FederatesWith, first.Hint = []string{"peer.example", "absent.example"}, "main"
	b.Decide(granted(first, grant("/b")))
	client, _ := raw(t, socket)
	ctx, cancel := context.WithCancel(header(t.Context()))
	defer cancel()
	stream, err := client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	m, err := stream.Recv()
	must(t, err)
	if diff := cmp.Diff(map[string][]byte{"spiffe://peer.example": peer.Root.Raw}, m.GetFederatedBundles()); diff != "" {
		t.Errorf("federated bundles: %s", diff)
	}
	if len(m.GetSvids()) != 2 || m.GetSvids()[0].GetHint() != "main" || m.GetSvids()[1].GetHint() != "" {
		t.Fatalf("SVIDs: %v", m.GetSvids())
	}
	for n, want := range []string{"spiffe://example.org/a", "spiffe://example.org/b"} {
		svid := m.GetSvids()[n]
		chain, err := x509.ParseCertificates(svid.GetX509Svid())
		must(t, err)
		key, err := x509.ParsePKCS8PrivateKey(svid.GetX509SvidKey())
		must(t, err)
		if svid.GetSpiffeId() != want || chain[0].URIs[0].String() != want || !key.(*ecdsa.PrivateKey).PublicKey.Equal(chain[0].PublicKey) {
			t.Errorf("SVID %d is %s", n, svid.GetSpiffeId())
		}
		if diff := cmp.Diff(b.Root.Raw, svid.GetBundle()); diff != "" {
			t.Errorf("bundle: %s", diff)
		}
		// XC-88 to XC-90: the key is the leaf's, in PKCS #8, and all is DER.
		if _, err := x509svid.ParseRaw(svid.GetX509Svid(), svid.GetX509SvidKey()); err != nil {
			t.Error(err)
		}
	}
}

func TestBundleStreams(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	g := grant("/a")
	g.FederatesWith = []string{"peer.example", "plain.example"}
	b.Decide(granted(g))
	client, _ := raw(t, socket)
	ctx, cancel := context.WithCancel(header(t.Context()))
	defer cancel()
	xs, err := client.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
	must(t, err)
	js, err := client.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
	must(t, err)
	own := "spiffe://example.org"
	x, err := xs.Recv()
	must(t, err)
	if diff := cmp.Diff(map[string][]byte{own: b.Root.Raw}, x.GetBundles()); diff != "" {
		t.Errorf("X.509 bundles: %s", diff)
	}
	j, err := js.Recv()
	must(t, err)
	set, err := jwtbundle.Parse(b.TrustDomain, j.GetBundles()[own])
	must(t, err)
	if _, ok := set.FindJWTAuthority(b.JWTKeyID); !ok || len(set.JWTAuthorities()) != 1 || strings.Contains(string(j.GetBundles()[own]), "x509") {
		t.Errorf("JWT bundle: %s", j.GetBundles()[own])
	}
	// A peer without JWT authorities changes the X.509 stream alone.
	plain := agenttest.NewCA(t, "plain.example")
	bundle := plain.Bundle()
	bundle.RemoveJWTAuthority(plain.JWTKeyID)
	document, err := bundle.Marshal()
	must(t, err)
	b.AddBundle("plain.example", document)
	x, err = xs.Recv()
	must(t, err)
	if diff := cmp.Diff(map[string][]byte{own: b.Root.Raw, "spiffe://plain.example": plain.Root.Raw}, x.GetBundles()); diff != "" {
		t.Errorf("X.509 bundles: %s", diff)
	}
	peer := agenttest.NewCA(t, "peer.example")
	b.AddBundle("peer.example", peer.Document())
	j, err = js.Recv()
	must(t, err)
	if len(j.GetBundles()) != 2 || j.GetBundles()["spiffe://peer.example"] == nil {
		t.Errorf("JWT bundles: %v", j.GetBundles())
	}
}

// count is how many messages a stream has had, and its end.
func count[M any](s interface{ Recv() (M, error) }) (messages <-chan M, end <-chan error) {
	all, ended := make(chan M, 64), make(chan error, 1)
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				ended <- err
				return
			}
			all <- m
		}
	}()
	return all, ended
}

// TestCRLs: those of our own CAs are in what names X509-SVIDs or verifies them,
// each by itself in DER, and a newer one comes on streams that are open; rows
// WAPI-05, WAPI-07, WAPI-15. Clients that read none are served all the same.
func TestCRLs(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	client, _ := raw(t, socket)
	ctx, cancel := context.WithTimeout(header(t.Context()), 20*time.Second)
	defer cancel()
	svids, err := client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	bundles, err := client.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
	must(t, err)
	check := func(want ...[]byte) {
		t.Helper()
		s, err := svids.Recv()
		must(t, err)
		x, err := bundles.Recv()
		must(t, err)
		if d := cmp.Diff(want, s.GetCrl(), cmpopts.EquateEmpty()); d != "" || len(s.GetSvids()) != 1 {
			t.Errorf("%d SVIDs, %s", len(s.GetSvids()), d)
		}
		if d := cmp.Diff(want, x.GetCrl(), cmpopts.EquateEmpty()); d != "" || len(x.GetBundles()) != 1 {
			t.Errorf("%d bundles, %s", len(x.GetBundles()), d)
		}
		for _, der := range s.GetCrl() {
			list, err := x509.ParseRevocationList(der)
			must(t, err)
			must(t, list.CheckSignatureFrom(b.Root))
		}
	}
	check()
	for number := range int64(2) { // also what is made anew at half of its life
		l := b.CRL(number+1, time.Now().Add(time.Hour), big.NewInt(1))
		b.AddCRLs(l)
		check(l.GetDer())
		c, err := spiffe.New(t.Context(), spiffe.WithAddr("unix://"+socket))
		must(t, err)
		if _, err := c.FetchX509Context(t.Context()); err != nil {
			t.Error(err)
		}
		must(t, c.Close())
	}
}

func TestNoMessageWithoutAChange(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	client, _ := raw(t, socket)
	ctx, cancel := context.WithCancel(header(t.Context()))
	defer cancel()
	stream, err := client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	messages, end := count(stream)
	<-messages
	// A new JWT key, a stranger's bundle and a decision that comes to the same
	// tell nothing to this stream.
	bundle := b.Bundle()
	must(t, bundle.AddJWTAuthority("k-2", agenttest.NewCA(t, "x.example").JWTKey.Public()))
	document, err := bundle.Marshal()
	must(t, err)
	b.AddBundle("example.org", document)
	b.AddBundle("stranger.example", agenttest.NewCA(t, "stranger.example").Document())
	asked := b.Calls("IssueX509")
	b.Push(&api.WatchResponse{Revision: 3, Changes: []*api.Change{{}}})
	b.Await("it was decided again", func() bool { return b.Calls("IssueX509") > asked })
	b.Decide(granted())
	b.Push(&api.WatchResponse{Revision: 4, Changes: []*api.Change{{Erase: true}}})
	if err := <-end; status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v, want PermissionDenied", err)
	}
	if len(messages) != 0 {
		t.Errorf("%d messages without a change", len(messages))
	}
}

func TestInterop(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	peer := agenttest.NewCA(t, "peer.example")
	b.AddBundle("peer.example", peer.Document())
	g := grant("/a")
	g.FederatesWith = []string{"peer.example"}
	b.Decide(granted(g))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	address := spiffe.WithClientOptions(spiffe.WithAddr("unix://" + socket))

	source, err := spiffe.NewX509Source(ctx, address)
	must(t, err)
	defer source.Close()
	svid, err := source.GetX509SVID()
	must(t, err)
	if _, _, err := x509svid.Verify(svid.Certificates, source); err != nil {
		t.Error(err)
	}
	if _, err := source.GetX509BundleForTrustDomain(peer.TrustDomain); err != nil {
		t.Error(err)
	}

	tokens, err := spiffe.NewJWTSource(ctx, address)
	must(t, err)
	defer tokens.Close()
	token, err := tokens.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "reports", ExtraAudiences: []string{"more"}})
	must(t, err)
	parsed, err := jwtsvid.ParseAndValidate(token.Marshal(), tokens, []string{"reports"})
	must(t, err)
	if diff := cmp.Diff([]string{"reports", "more"}, parsed.Audience); diff != "" {
		t.Errorf("audiences: %s", diff)
	}

	client, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+socket))
	must(t, err)
	defer client.Close()
	valid, err := client.ValidateJWTSVID(ctx, token.Marshal(), "more")
	must(t, err)
	if valid.ID != spiffeid.RequireFromString("spiffe://example.org/a") || valid.Claims["jti"] == nil {
		t.Errorf("validated: %v", valid)
	}
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "other"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("for another audience: %v", err)
	}
	x, err := client.FetchX509Bundles(ctx)
	must(t, err)
	j, err := client.FetchJWTBundles(ctx)
	must(t, err)
	if x.Len() != 2 || j.Len() != 2 {
		t.Errorf("%d X.509 and %d JWT bundles", x.Len(), j.Len())
	}
	foreign := peer.JWT(map[string]any{"sub": "spiffe://peer.example/x", "aud": "reports", "exp": time.Now().Add(time.Minute).Unix()})
	if _, err := client.ValidateJWTSVID(ctx, foreign, "reports"); err != nil {
		t.Errorf("a peer's token: %v", err)
	}

	b.Revoke(&api.Cutoff{Kind: "id", Value: "spiffe://example.org/a", Before: time.Now().UnixMilli()})
	b.Await("the agent knows what is revoked", func() bool { return b.Acknowledged() >= 3 })
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "more"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
	b.Revoke(&api.Cutoff{Kind: "moon"})
	b.Push(&api.WatchResponse{Revision: 4})
	b.Await("the agent has read it", func() bool { return b.Acknowledged() >= 4 })
	if _, err := client.ValidateJWTSVID(ctx, foreign, "reports"); status.Code(err) != codes.Unavailable {
		t.Errorf("while what is revoked cannot be read: %v", err)
	}
}

// watcher takes a go-spiffe client's updates.
type watcher struct {
	updates chan *spiffe.X509Context
	errs    chan error
}

func (w watcher) OnX509ContextUpdate(c *spiffe.X509Context) { w.updates <- c }
func (w watcher) OnX509ContextWatchError(err error) {
	select {
	case w.errs <- err:
	default:
	}
}

func TestRotationAndDenialArePushed(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	short, long := grant("/a"), grant("/b")
	short.TTL = 2 * time.Second
	b.Decide(granted(short, long))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+socket))
	must(t, err)
	defer client.Close()
	w := watcher{make(chan *spiffe.X509Context, 16), make(chan error, 1)}
	ended := make(chan error, 1)
	go func() { ended <- client.WatchX509Context(ctx, w) }()
	before, after := <-w.updates, <-w.updates
	if len(after.SVIDs) != 2 || after.SVIDs[0].ID != before.SVIDs[0].ID || after.SVIDs[1].ID != before.SVIDs[1].ID {
		t.Errorf("the order changed: %v", after.SVIDs)
	}
	if after.SVIDs[0].Certificates[0].Equal(before.SVIDs[0].Certificates[0]) {
		t.Error("not rotated")
	}
	b.Decide(granted())
	b.Push(&api.WatchResponse{Revision: 5, Changes: []*api.Change{{Erase: true}}})
	if err := <-w.errs; status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v, want PermissionDenied", err)
	}
	cancel()
	<-ended
}

func TestAnotherUIDGetsNothing(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another uid")
	}
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	if got := as(t, "fetch", socket, 0); got != "got spiffe://example.org/a" {
		t.Errorf("we got %q", got)
	}
	if got := as(t, "fetch", socket, 65534); !strings.HasPrefix(got, "error: PermissionDenied") {
		t.Errorf("uid 65534 got %q", got)
	}
}

// Regression: SPIRE #886
func TestAProgramThatInheritedTheSocketGetsNothing(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a"))) // by uid, which both programs have
	if got := as(t, "exec", socket, uint32(os.Getuid()), "EXEC="+copyOf(t)); !strings.HasPrefix(got, "error: Unavailable") && !strings.HasPrefix(got, "error: PermissionDenied") {
		t.Errorf("the program got %q", got)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	b, socket := serve(t, true)
	b.Decide(granted(grant("/a")))
	limiter := workloadapi.NewLimiter(3, 2)
	server := grpc.NewServer(grpc.Creds(limiter))
	workloadpb.RegisterSpiffeWorkloadAPIServer(server, workloadpb.UnimplementedSpiffeWorkloadAPIServer{})
	path := strings.TrimSuffix(socket, "w.sock") + "l.sock"
	l, err := caller.Listen(path, 0o666)
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-served })
	open := func() (*grpc.ClientConn, error) {
		conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		_, err = workloadpb.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(t.Context(), &workloadpb.JWTSVIDRequest{})
		return conn, err
	}
	one, err := open()
	if status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if _, err := open(); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if _, err := open(); status.Code(err) != codes.Unavailable {
		t.Errorf("the third connection: %v", err)
	}
	one.Close()
	for try := 0; ; try++ { // the server sees the end a little later
		if _, err = open(); status.Code(err) == codes.Unimplemented {
			break
		}
		if try == 1000 {
			t.Fatalf("after one was closed: %v", err)
		}
	}
	if _, _, err := limiter.ServerHandshake(nil); err == nil {
		t.Error("a connection without a caller was taken")
	}
}
