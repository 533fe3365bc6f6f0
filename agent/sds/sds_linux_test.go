package sds_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/sds"
)

func fetch(names ...string) *discovery.DiscoveryRequest {
	return &discovery.DiscoveryRequest{Node: envoy(38), TypeUrl: typeURL, ResourceNames: names}
}

func TestNames(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a", "/b"), newViews()
	peer := agenttest.NewCA(t, "peer.example")
	w.peers = []*agenttest.CA{peer}
	u := w.update()
	v.set(u, nil)
	client, _, _ := serve(t, v, nil)
	own, foreign := map[string]string{"example.org": pemOf(w.own)}, map[string]string{"peer.example": pemOf(peer)}
	both := map[string]string{"example.org": pemOf(w.own), "peer.example": pemOf(peer)}
	for name, test := range map[string]struct {
		svid  *agent.SVID
		roots map[string]string
	}{
		"default":                {svid: u.SVIDs[0]},
		"spiffe://example.org/a": {svid: u.SVIDs[0]},
		"spiffe://example.org/b": {svid: u.SVIDs[1]},
		"ROOTCA":                 {roots: own},
		"spiffe://example.org":   {roots: own},
		"spiffe://peer.example":  {roots: foreign},
		"ALL":                    {roots: both},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := client.FetchSecrets(t.Context(), fetch(name))
			must(t, err)
			got := secrets(t, m.GetResources()...)[name]
			if got == nil || len(m.GetResources()) != 1 {
				t.Fatalf("got %v", m)
			}
			if test.svid != nil {
				if !leaf(t, got).Equal(test.svid.Certificates[0]) {
					t.Error("another certificate")
				}
				return
			}
			if diff := cmp.Diff(test.roots, roots(t, got)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, names := range map[string][]string{"no name": nil, "a star": {"*"}} {
		m, err := client.FetchSecrets(t.Context(), fetch(names...))
		must(t, err)
		want := []string{"spiffe://example.org", "spiffe://example.org/a", "spiffe://example.org/b", "spiffe://peer.example"}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(secrets(t, m.GetResources()...)))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestOtherNamesByConfiguration(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, func(c *sds.Config) { c.Names = sds.Names{SVID: "mine", Bundle: "null", AllBundles: "ROOTCA"} })
	m, err := client.FetchSecrets(t.Context(), fetch("mine", "ROOTCA", "null"))
	must(t, err)
	got := secrets(t, m.GetResources()...)
	if leaf(t, got["mine"]) == nil || len(roots(t, got["ROOTCA"])) != 1 || len(roots(t, got["null"])) != 1 {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"default", "ALL"} {
		if _, err := client.FetchSecrets(t.Context(), fetch(name)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}

// TestPlainRoots: the SPIFFE certificate validator is only for who knows it and
// has it not switched off.
func TestPlainRoots(t *testing.T) {
	t.Parallel()
	says := func(minor uint32, value *structpb.Value) *core.Node {
		n := envoy(minor)
		n.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"disable_spiffe_cert_validation": value}}
		return n
	}
	for name, test := range map[string]struct {
		node     *core.Node
		disabled bool
		plain    bool
	}{
		"Envoy 1.38":                  {node: envoy(38)},
		"Envoy 1.18":                  {node: envoy(18)},
		"Envoy 1.17":                  {node: envoy(17), plain: true},
		"who doesn't say":             {node: &core.Node{Id: "x"}, plain: true},
		"no node":                     {plain: true},
		"switched off":                {node: envoy(38), disabled: true, plain: true},
		"off, and on by metadata":     {node: says(38, structpb.NewBoolValue(false)), disabled: true},
		"off by metadata":             {node: says(38, structpb.NewBoolValue(true)), plain: true},
		"off by a word in metadata":   {node: says(38, structpb.NewStringValue("true")), plain: true},
		"metadata that says nothing":  {node: says(38, structpb.NewNumberValue(1))},
		"on by metadata, but too old": {node: says(17, structpb.NewBoolValue(false)), plain: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, v := newWorld(t, "/a"), newViews()
			v.set(w.update(), nil)
			client, _, _ := serve(t, v, func(c *sds.Config) { c.DisableSPIFFECertValidation = test.disabled })
			q := fetch("ROOTCA")
			q.Node = test.node
			m, err := client.FetchSecrets(t.Context(), q)
			must(t, err)
			got := secrets(t, m.GetResources()...)["ROOTCA"]
			if !test.plain {
				roots(t, got)
			} else if c := got.GetValidationContext(); string(c.GetTrustedCa().GetInlineBytes()) != pemOf(w.own) || c.GetCustomValidatorConfig() != nil {
				t.Errorf("got %v", c)
			}
			q.ResourceNames = []string{"ALL"}
			want := codes.OK
			if test.plain {
				want = codes.FailedPrecondition
			}
			if _, err := client.FetchSecrets(t.Context(), q); status.Code(err) != want {
				t.Errorf("ALL: %v, want %v", err, want)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	w.wants = []string{"away.example"}
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	long := strings.Repeat("a", 2049)
	many := make([]string, 257)
	for i := range many {
		many[i] = strings.Repeat("n", i+1)
	}
	for name, test := range map[string]struct {
		names []string
		kind  string
		want  codes.Code
		says  string
	}{
		"an unknown name":             {names: []string{"defualt"}, want: codes.InvalidArgument, says: `"defualt" is given to this process: it may ask for default, ROOTCA, ALL, spiffe://example.org/a`},
		"one of two":                  {names: []string{"default", "x"}, want: codes.InvalidArgument},
		"somebody else's ID":          {names: []string{"spiffe://example.org/b"}, want: codes.InvalidArgument},
		"a trust domain not ours":     {names: []string{"spiffe://peer.example"}, want: codes.InvalidArgument},
		"one without its bundle":      {names: []string{"spiffe://away.example"}, want: codes.Unavailable},
		"upper case":                  {names: []string{"spiffe://EXAMPLE.ORG"}, want: codes.InvalidArgument},
		"an empty name":               {names: []string{""}, want: codes.InvalidArgument},
		"a long name":                 {names: []string{long}, want: codes.InvalidArgument},
		"many names":                  {names: many, want: codes.InvalidArgument, says: "256"},
		"another type":                {names: []string{"default"}, kind: "type.googleapis.com/envoy.config.cluster.v3.Cluster", want: codes.InvalidArgument},
		"the type of the old version": {names: []string{"default"}, kind: "type.googleapis.com/envoy.api.v2.auth.Secret", want: codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			kind := typeURL
			if test.kind != "" {
				kind = test.kind
			}
			q := fetch(test.names...)
			q.TypeUrl = kind
			_, err := client.FetchSecrets(t.Context(), q)
			if status.Code(err) != test.want || !strings.Contains(err.Error(), test.says) {
				t.Errorf("fetch: %v, want %v", err, test.want)
			}
			stream, err := client.StreamSecrets(t.Context())
			must(t, err)
			must(t, stream.Send(q))
			if _, err = stream.Recv(); status.Code(err) != test.want {
				t.Errorf("stream: %v, want %v", err, test.want)
			}
			changes, err := client.DeltaSecrets(t.Context())
			must(t, err)
			must(t, changes.Send(&discovery.DeltaDiscoveryRequest{Node: envoy(38), TypeUrl: kind, ResourceNamesSubscribe: test.names}))
			if _, err = changes.Recv(); status.Code(err) != test.want {
				t.Errorf("delta: %v, want %v", err, test.want)
			}
		})
	}
	q := fetch("default")
	q.ResourceLocators = []*discovery.ResourceLocator{{Name: "default"}}
	if _, err := client.FetchSecrets(t.Context(), q); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a locator: %v, want InvalidArgument", err)
	}
	q = fetch("default")
	q.TypeUrl = ""
	if _, err := client.FetchSecrets(t.Context(), q); err != nil {
		t.Errorf("no type: %v", err)
	}
}

// TestRotation is a stream's life: all at once, what has changed when it has,
// nothing else.
func TestRotation(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	first := w.update()
	v.set(first, nil)
	client, _, _ := serve(t, v, nil)
	svid, all := openWhole(t, client, "default"), openWhole(t, client, "ALL")
	if got := svid.next(); !leaf(t, got["default"]).Equal(first.SVIDs[0].Certificates[0]) {
		t.Error("another certificate")
	}
	all.next()
	before := svid.last

	second := w.update()
	v.set(second, nil)
	if got := svid.next(); !leaf(t, got["default"]).Equal(second.SVIDs[0].Certificates[0]) {
		t.Error("not the new certificate")
	}
	if svid.last.GetVersionInfo() == before.GetVersionInfo() {
		t.Error("the same version for another certificate")
	}

	// A peer comes: ALL alone has changed, and is the next response there.
	w.peers = append(w.peers, agenttest.NewCA(t, "peer.example"))
	third := w.update()
	third.SVIDs = second.SVIDs
	v.set(third, nil)
	if got := roots(t, all.next()["ALL"]); len(got) != 2 {
		t.Errorf("trust domains: %v", got)
	}
	fourth := w.update()
	v.set(fourth, nil)
	if got := svid.next(); !leaf(t, got["default"]).Equal(fourth.SVIDs[0].Certificates[0]) {
		t.Error("a response between, though nothing of it had changed")
	}

	// It goes, and leaves ALL at once.
	w.peers = nil
	v.set(w.update(), nil)
	if got := roots(t, all.next()["ALL"]); len(got) != 1 {
		t.Errorf("trust domains: %v", got)
	}
}

// TestRefusedResponse: what a caller doesn't take is logged, once and bounded,
// and not sent again.
func TestRefusedResponse(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, log := serve(t, v, nil)
	s := openWhole(t, client, "default")
	s.receive()
	why := errors.New("Failed to load certificate chain\nlevel=ERROR " + strings.Repeat("x", 5000))
	for range 5 {
		s.request(why)
	}
	log.await(t, "secrets refused")
	next := w.update()
	v.set(next, nil)
	if got := s.next(); !leaf(t, got["default"]).Equal(next.SVIDs[0].Certificates[0]) {
		t.Error("what was refused came again")
	}
	text := log.String()
	if n := strings.Count(text, "secrets refused"); n != 1 {
		t.Errorf("logged %d times: %s", n, text)
	}
	if !strings.Contains(text, "Failed to load certificate chain") || len(text) > 1500 || strings.Count(text, "\n") != 1 {
		t.Errorf("log: %q", text)
	}
}

// TestRefusalsAreCounted: no caller fills the log.
func TestRefusalsAreCounted(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	now := time.Now()
	client, _, log := serve(t, v, func(c *sds.Config) { c.Now = func() time.Time { return now } })
	s := openWhole(t, client, "default")
	for n := range 30 {
		s.receive()
		s.request(errors.New("no"))
		s.names = [][]string{{"ROOTCA"}, {"default"}}[n%2] // what is asked for anew comes anew
		s.request(nil)
	}
	if n := strings.Count(log.String(), "secrets refused"); n != 10 {
		t.Errorf("logged %d times", n)
	}
	if n := strings.Count(log.String(), "further refusals"); n != 1 {
		t.Errorf("said %d times that there are more", n)
	}
}

func TestOtherNames(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a", "/b"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	s := openWhole(t, client, "default")
	s.next()
	names := func() []string { return slices.Sorted(maps.Keys(s.next())) }

	s.names = []string{"ROOTCA", "default"}
	s.request(nil)
	if diff := cmp.Diff([]string{"ROOTCA", "default"}, names()); diff != "" {
		t.Errorf("one more: %s", diff)
	}
	// Fewer names have no answer; the next one is for the names that are left.
	s.names = []string{"ROOTCA"}
	s.request(nil)
	s.names = []string{"spiffe://example.org/b"}
	s.request(nil)
	if diff := cmp.Diff([]string{"spiffe://example.org/b"}, names()); diff != "" {
		t.Errorf("another one: %s", diff)
	}
	// A request that answers an older response is out of date.
	old := s.last.GetNonce()
	v.set(w.update(), nil)
	names()
	must(t, s.stream.Send(&discovery.DiscoveryRequest{ResourceNames: []string{"nobody's"}, ResponseNonce: old}))
	v.set(w.update(), nil)
	if diff := cmp.Diff([]string{"spiffe://example.org/b"}, names()); diff != "" {
		t.Errorf("after an old request: %s", diff)
	}
	// No names any more: nothing is sent, until there are some again.
	s.names = nil
	s.request(nil)
	s.names = []string{"default"}
	s.request(nil)
	if diff := cmp.Diff([]string{"default"}, names()); diff != "" {
		t.Errorf("after none: %s", diff)
	}
	s.names = []string{"default", "nobody's"}
	s.request(nil)
	if err := s.ends(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown name later: %v", err)
	}
}

// TestWithdrawn: an identity that goes ends the stream that asked for it alone,
// and no other.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a", "/b"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	alone, among := openWhole(t, client, "spiffe://example.org/b"), openWhole(t, client, "spiffe://example.org/b", "default")
	alone.next()
	among.next()
	w.ids = []string{"/a"}
	v.set(w.update(), nil)
	if err := alone.ends(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("alone: %v, want PermissionDenied", err)
	}
	if got := slices.Collect(maps.Keys(among.next())); !slices.Equal(got, []string{"default"}) {
		t.Errorf("among others: %v", got)
	}
	w.ids = []string{"/a", "/b"}
	v.set(w.update(), nil)
	if got := among.next(); len(got) != 2 {
		t.Errorf("it is back: %v", got)
	}
}

func TestDenied(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	s := openWhole(t, client, "default")
	s.next()
	changes := openDelta(t, client, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}})
	changes.next()
	v.set(agent.Update{}, &agent.Denied{Record: "r-1"})
	for name, err := range map[string]error{"stream": s.ends(), "delta": changes.ends()} {
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "r-1") {
			t.Errorf("%s: %v, want PermissionDenied with the record", name, err)
		}
	}
	if _, err := client.FetchSecrets(t.Context(), fetch("default")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("fetch: %v, want PermissionDenied", err)
	}
	if err := openWhole(t, client, "default").ends(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a new stream: %v, want PermissionDenied", err)
	}
	v.set(agent.Update{}, agent.ErrUnavailable)
	if err := openWhole(t, client, "default").ends(); status.Code(err) != codes.Unavailable {
		t.Errorf("the broker is away: %v, want Unavailable", err)
	}
}

// TestExpiredIsNotServed: what ended since it was told is not given to a later
// request.
func TestExpiredIsNotServed(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	late, looked, ended := make(chan struct{}), make(chan struct{}, 64), w.ends
	client, _, _ := serve(t, v, func(c *sds.Config) {
		c.Now = func() time.Time {
			select {
			case <-late:
				looked <- struct{}{}
				return ended
			default:
				return time.Now()
			}
		}
	})
	s := openWhole(t, client, "default")
	s.next()
	close(late)
	s.names = []string{"default", "ROOTCA"}
	s.request(nil)
	select { // it is no race then which comes first, the request or what is new
	case <-looked:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody looked at the time")
	}
	w.ends = w.ends.Add(time.Hour)
	fresh := w.update()
	v.set(fresh, nil)
	if got := s.next(); !leaf(t, got["default"]).Equal(fresh.SVIDs[0].Certificates[0]) {
		t.Error("the SVID that had ended was served")
	}
}

// TestViewsAreClosed: a stream that ends lets its caller's set go, and one that
// asks for nothing has none.
func TestViewsAreClosed(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := client.StreamSecrets(ctx)
	must(t, err)
	s := openWhole(t, client, "default")
	s.next()
	if n := v.opened(); n != 1 {
		t.Errorf("%d views are open, want 1", n)
	}
	must(t, s.stream.CloseSend())
	if err := s.ends(); err.Error() != "EOF" {
		t.Errorf("the end: %v", err)
	}
	if n := v.opened(); n != 0 {
		t.Errorf("%d views are open, want none", n)
	}
}
