package sds_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/sds"
	"github.com/credence-id/credence/agent/workloadapi"
)

const typeURL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// TestMain runs this binary as another process too.
func TestMain(m *testing.M) {
	if socket := os.Getenv(helperEnv); socket != "" {
		_ = lend(socket)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// views is an agent whose callers all have the same, as the test says.
type views struct {
	mu      sync.Mutex // guards what follows
	update  agent.Update
	err     error
	age     int
	changed chan struct{}
	open    int
}

func newViews() *views { return &views{changed: make(chan struct{})} }

func (v *views) set(u agent.Update, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.update, v.err = u, err
	v.age++
	close(v.changed)
	v.changed = make(chan struct{})
}

// opened is how many views are.
func (v *views) opened() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.open
}

type view struct {
	of  *views
	age int
}

func (v *views) view(*caller.Process) sds.View {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open++
	return &view{of: v}
}

func (v *view) Close() {
	v.of.mu.Lock()
	defer v.of.mu.Unlock()
	v.of.open--
}

func (v *view) Next(ctx context.Context) (agent.Update, error) {
	for {
		v.of.mu.Lock()
		u, err, age, changed := v.of.update, v.of.err, v.of.age, v.of.changed
		v.of.mu.Unlock()
		if age > v.age {
			v.age = age
			return u, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return agent.Update{}, ctx.Err()
		}
	}
}

// world is what callers may have: authorities, and who has which SVIDs.
type world struct {
	own   *agenttest.CA
	peers []*agenttest.CA
	ids   []string
	wants []string // trust domains federated with, here or not
	ends  time.Time
}

func newWorld(t testing.TB, ids ...string) *world {
	return &world{own: agenttest.NewCA(t, "example.org"), ids: ids, ends: time.Now().Add(time.Hour)}
}

// update is all of it with SVIDs made anew.
func (w *world) update() agent.Update {
	u := agent.Update{Bundles: map[spiffeid.TrustDomain]*agent.Bundle{}}
	for _, ca := range append([]*agenttest.CA{w.own}, w.peers...) {
		u.Bundles[ca.TrustDomain] = &agent.Bundle{TrustDomain: ca.TrustDomain, X509Authorities: []*x509.Certificate{ca.Root}}
	}
	for _, path := range w.ids {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			panic(err)
		}
		id := spiffeid.RequireFromPath(w.own.TrustDomain, path)
		u.SVIDs = append(u.SVIDs, &agent.SVID{
			Identity: path[1:], ID: id, Certificates: []*x509.Certificate{w.own.Sign(id, key.Public(), w.ends)}, Key: key, KeyDER: der, FederatesWith: w.wants,
		})
	}
	return u
}

// logs is what was logged.
type logs struct {
	mu      sync.Mutex // guards what follows
	text    bytes.Buffer
	changed chan struct{}
}

func newLogs() *logs { return &logs{changed: make(chan struct{})} }

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await blocks until something is logged.
func (l *logs) await(t testing.TB, text string) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		l.mu.Lock()
		has, changed := strings.Contains(l.text.String(), text), l.changed
		l.mu.Unlock()
		if has {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%q is not logged: %s", text, l)
		}
	}
}

// serve has views served on a socket, beside the Workload API as in an agent.
func serve(t testing.TB, v *views, change func(*sds.Config)) (client secret.SecretDiscoveryServiceClient, socket string, log *logs) {
	t.Helper()
	log = newLogs()
	cfg := sds.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Identities: v.view, Log: slog.New(slog.NewTextHandler(log, nil))}
	if change != nil {
		change(&cfg)
	}
	dir, err := os.MkdirTemp("", "s") // short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "w.sock")
	l, err := caller.Listen(socket, 0o666)
	must(t, err)
	server := workloadapi.New(workloadapi.Config{}).GRPC()
	secret.RegisterSecretDiscoveryServiceServer(server, sds.New(cfg))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		must(t, <-served)
	})
	return dial(t, socket), socket, log
}

func dial(t testing.TB, socket string) secret.SecretDiscoveryServiceClient {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return secret.NewSecretDiscoveryServiceClient(conn)
}

// envoy is what one says of itself.
func envoy(minor uint32) *core.Node {
	return &core.Node{Id: "envoy-1", Cluster: "web", UserAgentName: "envoy", UserAgentVersionType: &core.Node_UserAgentBuildVersion{
		UserAgentBuildVersion: &core.BuildVersion{Version: &typepb.SemanticVersion{MajorNumber: 1, MinorNumber: minor}},
	}}
}

// whole is a stream in the form Envoy uses: the names in every request, the
// version last taken, the nonce last received.
type whole struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[discovery.DiscoveryRequest, discovery.DiscoveryResponse]
	names  []string
	taken  string // version
	last   *discovery.DiscoveryResponse
}

func openWhole(t testing.TB, c secret.SecretDiscoveryServiceClient, names ...string) *whole {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := c.StreamSecrets(ctx)
	must(t, err)
	w := &whole{t: t, stream: stream, names: names, last: &discovery.DiscoveryResponse{}}
	w.request(nil)
	return w
}

func (w *whole) request(refuse error) {
	w.t.Helper()
	q := &discovery.DiscoveryRequest{Node: envoy(38), TypeUrl: typeURL, ResourceNames: w.names, ResponseNonce: w.last.GetNonce(), VersionInfo: w.taken}
	if refuse != nil {
		q.ErrorDetail = status.New(codes.Internal, refuse.Error()).Proto()
	}
	must(w.t, w.stream.Send(q))
}

// next receives and acknowledges.
func (w *whole) next() map[string]*tlspb.Secret {
	w.t.Helper()
	got := w.receive()
	w.taken = w.last.GetVersionInfo()
	w.request(nil)
	return got
}

func (w *whole) receive() map[string]*tlspb.Secret {
	w.t.Helper()
	m, err := w.stream.Recv()
	must(w.t, err)
	if m.GetNonce() == w.last.GetNonce() || m.GetTypeUrl() != typeURL {
		w.t.Errorf("nonce %q after %q, type %q", m.GetNonce(), w.last.GetNonce(), m.GetTypeUrl())
	}
	w.last = m
	return secrets(w.t, m.GetResources()...)
}

// ends is how the stream ends.
func (w *whole) ends() error {
	w.t.Helper()
	m, err := w.stream.Recv()
	if err == nil {
		w.t.Fatalf("a response instead of the end: %v", m.GetVersionInfo())
	}
	return err
}

// secrets are resources by name, each complete.
func secrets(t testing.TB, all ...*anypb.Any) map[string]*tlspb.Secret {
	t.Helper()
	if len(all) == 0 {
		t.Error("an empty response")
	}
	out := map[string]*tlspb.Secret{}
	for _, a := range all {
		s := &tlspb.Secret{}
		must(t, a.UnmarshalTo(s))
		must(t, s.ValidateAll())
		if out[s.GetName()] != nil {
			t.Errorf("%q twice", s.GetName())
		}
		out[s.GetName()] = s
		must(t, complete(s))
	}
	return out
}

// complete refuses a secret that is empty or doesn't fit together.
func complete(s *tlspb.Secret) error {
	if c := s.GetTlsCertificate(); c != nil {
		_, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
		if block, _ := pem.Decode(c.GetPrivateKey().GetInlineBytes()); err == nil && block.Type != "PRIVATE KEY" {
			return errors.New("a key that is not PKCS #8")
		}
		return err
	}
	return nonempty(s)
}

func nonempty(s *tlspb.Secret) error {
	if len(s.GetValidationContext().GetTrustedCa().GetInlineBytes()) == 0 && s.GetValidationContext().GetCustomValidatorConfig() == nil {
		return errors.New("a validation context that verifies nothing")
	}
	return nil
}

// leaf is the certificate of a secret.
func leaf(t testing.TB, s *tlspb.Secret) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	if block == nil {
		t.Fatalf("%q has no certificate", s.GetName())
	}
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

// roots are what the SPIFFE certificate validator holds each trust domain
// against.
func roots(t testing.TB, s *tlspb.Secret) map[string]string {
	t.Helper()
	c := s.GetValidationContext().GetCustomValidatorConfig()
	if c.GetName() != "envoy.tls.cert_validator.spiffe" || s.GetValidationContext().GetTrustedCa() != nil {
		t.Fatalf("%q: validator %q, trusted_ca %v", s.GetName(), c.GetName(), s.GetValidationContext().GetTrustedCa())
	}
	config := &tlspb.SPIFFECertValidatorConfig{}
	must(t, c.GetTypedConfig().UnmarshalTo(config))
	must(t, config.ValidateAll())
	out := map[string]string{}
	for _, td := range config.GetTrustDomains() {
		out[td.GetName()] = string(td.GetTrustBundle().GetInlineBytes())
	}
	return out
}

func pemOf(ca *agenttest.CA) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}))
}
