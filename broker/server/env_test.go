package server_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/kubernetes"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/keys/keystest"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/storetest"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// settings are those of a flow that these tests make up.
type settings struct {
	Aud string `json:"aud" yaml:"aud"`
}

func (s *settings) Audience() string { return s.Aud }
func (s *settings) Validate() error {
	if s.Aud == "" {
		return errors.New("aud: is required")
	}
	return nil
}

// mtlsSettings are those of a flow that presents the X509-SVID.
type mtlsSettings struct {
	Role string `json:"role" yaml:"role"`
}

func (*mtlsSettings) Audience() string { return "" }
func (*mtlsSettings) Validate() error  { return nil }
func (*mtlsSettings) Limits() exchangers.Limits {
	return exchangers.Limits{Provider: "The cloud", WantsRDN: "any"}
}

// documents are what the peers' endpoints give, by URL.
type documents struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (d *documents) Fetch(_ context.Context, r federation.Request) (federation.Response, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	document, ok := d.m[r.URL]
	if !ok {
		return federation.Response{}, errors.New("nobody answers at " + r.URL)
	}
	return federation.Response{Document: document}, nil
}

func (d *documents) set(url string, document []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.m[url] = document
}

// env is a broker with all its edges, on loopback and in one process.
type env struct {
	t         testing.TB
	dir       string
	database  string                             // that it shares; empty: its own, in dir
	name      string                             // among those that share it
	snapshot  bool                               // it keeps one to start from
	keys      string                             // directory of keys that they share
	ahead     atomic.Int64                       // by which its clock is ahead
	building  sync.Mutex                         // guards clusters
	leaving   atomic.Pointer[context.CancelFunc] // hangs up the next operator
	recording atomic.Pointer[func()]             // called at the next record
	panicking atomic.Bool                        // instead of naming the caller
	issuer    string
	polled    bool // peers can poll its bundle
	places    []string
	limits    server.Limits
	joinStart time.Duration
	headEvery time.Duration
	recorder  func(broker.Recorder) broker.Recorder // in place of the record that package broker writes to
	recordAll bool                                  // what the clock does to keys and bundles, too
	joinTime  time.Duration
	handshake time.Duration
	peers     *documents
	method    func(join.Rule) join.Method // of the rules' method fake
	trust     func(server.Authority) server.Authority
	exchanger func(broker.Target, time.Duration, []string) (exchangers.Exchanger, error)
	login     *server.Login
	roles     []server.Role
	clusters  map[uint64]*kubernetes.Cluster // by the rule's revision; nil: no rule is of one
	store     *store.Store
	audit     *audit.Log
	authority *authority.Authority
	broker    *broker.Broker
	server    *server.Server
	config    server.Config
	listeners server.Listeners
	webCA     *x509.CertPool
	log       *logBuffer
	stop      context.CancelFunc
	stopped   chan struct{}
	failed    error // of Run, once stopped
}

type logBuffer struct {
	mu      sync.Mutex // guards b
	b       bytes.Buffer
	panicAt atomic.Pointer[string] // panics once instead of logging this
}

func (l *logBuffer) Write(p []byte) (int, error) {
	if at := l.panicAt.Load(); at != nil && strings.Contains(string(p), *at) && l.panicAt.CompareAndSwap(at, nil) {
		panic("log")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// line is the line that holds a text.
func (l *logBuffer) line(text string) string {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (e *env) now() time.Time { return time.Now().Add(time.Duration(e.ahead.Load())) }

// newEnv starts a broker. Each change is made to the env before its parts are.
func newEnv(t testing.TB, changes ...func(*env)) *env {
	t.Helper()
	dir, err := os.MkdirTemp("", "credence") // t.TempDir's are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	e := &env{t: t, dir: dir, name: "broker", keys: filepath.Join(dir, "keys"), peers: &documents{m: map[string][]byte{}}, log: &logBuffer{}}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e.listen()
	for _, change := range changes {
		change(e)
	}
	e.open()
	e.run()
	return e
}

// withIssuer lets it sign JWT-SVIDs. Making their keys takes most of a test.
func withIssuer(e *env) { e.issuer = "https://" + e.listeners.Web.Addr().String() + "/td" }

func (e *env) listen() {
	var err error
	for _, l := range []*net.Listener{&e.listeners.Agents, &e.listeners.SPIFFE, &e.listeners.Web} {
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			e.t.Fatal(err)
		}
	}
	if e.listeners.Admin, err = caller.Listen(filepath.Join(e.dir, "admin.sock"), 0o666); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		for _, l := range []net.Listener{e.listeners.Agents, e.listeners.SPIFFE, e.listeners.Web, e.listeners.Admin} {
			if l != nil {
				l.Close()
			}
		}
	})
}

// open puts the broker together.
func (e *env) open() {
	t, ctx := e.t, e.t.Context()
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(e.log, e.t.Output()), &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	from := store.Config{Dir: e.dir, URL: e.database, Now: e.now, Clock: e.now}
	if e.snapshot {
		from.Snapshot = &store.Snapshot{Path: filepath.Join(e.dir, "snapshot.sealed"), TrustDomain: td.Name(), Keys: [][]byte{[]byte("a secret of the test")}}
	}
	if e.database == "" {
		storetest.Prepare(t, e.dir)
	}
	e.store, err = store.Open(ctx, from)
	check(err)
	var keeper *store.Keeper
	if e.snapshot {
		keeper = &store.Keeper{Store: e.store, Snapshot: *from.Snapshot, Now: e.now}
	}
	since := e.store.Seen()
	_, away := e.store.Away()
	if !away {
		since, err = e.store.Revision(ctx)
		check(err)
	}
	var replica *store.Replica
	if e.database != "" {
		replica = &store.Replica{Name: e.name, Instance: e.dir, Version: "test", StartedAt: e.now()}
		if !away {
			check(e.store.Claim(ctx, *replica))
		}
	}
	e.audit, err = audit.Open(audit.Config{Dir: e.auditDir(), Now: e.auditNow})
	check(err)
	keys, err := disk.New(disk.Config{Dir: e.keys})
	check(err)
	records, bundles := authority.Records(e.store), federation.Store(e.store)
	if e.recordAll {
		records, bundles = server.RecordAuthorities(e.store, e.audit), server.RecordPeers(e.store, e.audit)
	}
	var leases authority.Leases
	if e.database != "" {
		leases = e.store
	}
	e.authority, err = authority.Open(ctx, authority.Config{
		TrustDomain: td, Issuer: e.issuer, Broker: e.name, Records: records, Keys: keystest.Ready(t, e.keys, keys), Leases: leases, Now: e.now, Log: log,
	})
	check(err)
	peers, err := federation.New(federation.Config{TrustDomain: td, Fetcher: e.peers, Store: bundles, Now: e.now, Log: log})
	check(err)
	policy := identity.Config{TrustDomain: td, JWT: e.issuer != "", DNSSuffixes: []string{"example.org"}}
	empty, err := identity.NewSet(policy, identity.Resources{})
	check(err)
	recorder := broker.Recorder(e.audit)
	if e.recorder != nil {
		recorder = e.recorder(recorder)
	}
	e.broker, err = broker.New(ctx, broker.Config{
		TrustDomain: td, Method: e.methodOf, Issuer: e.authority, Store: e.store, Audit: recorder,
		Policy: &broker.Policy{Set: empty}, Log: log, Now: e.now, JoinTime: e.joinTime,
		Record: e.audit, Index: e.store, CRLs: server.Lists{Authority: e.authority}, Origin: e.name, DenyFile: filepath.Join(e.dir, "revoked.jsonl"),
	})
	check(err)
	var discovery http.Handler
	if e.issuer != "" {
		discovery, err = oidc.New(oidc.Config{Issuer: e.issuer, Keys: e.authority.OIDCKeys})
		check(err)
	}
	web, pool := webCertificate(t)
	e.webCA = pool
	e.config = server.Config{
		TrustDomain: td, Issuer: e.issuer, Version: "test", Broker: e.broker, Authority: e.authority, Store: e.store,
		Audit: e.audit, AuditDir: e.auditDir(), Peers: peers, Policy: policy, Resources: registry(), OIDC: discovery,
		RefreshHint: 300 * time.Second, AgentsAddress: e.listeners.Agents.Addr().String(),
		Listen:           map[string]string{"agents": e.listeners.Agents.Addr().String()},
		AdminCredentials: caller.CredentialsFor(caller.RequireUID(uint32(os.Getuid()))),
		AdminActor:       e.actor,
		WebCertificate:   func() (*tls.Certificate, error) { return web, nil },
		AuditHolds:       func(context.Context) ([]audit.Hold, error) { return nil, nil },
		JoinStart:        e.joinStart, HeadEvery: e.headEvery, Limits: e.limits, Handshake: e.handshake, Log: log, Now: e.now,
		Since: since, Replica: replica, Keeper: keeper,
	}
	e.config.Places, e.config.Exchanger = e.places, e.exchanger
	e.config.Login, e.config.Roles = e.login, e.roles
	if e.clusters != nil {
		e.config.Proofs = e.pod
	}
	if e.polled {
		e.config.Listen["spiffe"] = e.listeners.SPIFFE.Addr().String()
	}
	if e.trust != nil {
		e.config.Authority = e.trust(e.authority)
	}
	e.server, err = server.New(ctx, e.config)
	check(err)
}

// actor names the caller; one that is leaving has left when it returns.
func (e *env) actor(ctx context.Context) string {
	if e.panicking.Load() {
		panic("actor")
	}
	if hangUp := e.leaving.Swap(nil); hangUp != nil {
		e.recording.Store(new(func() { (*hangUp)(); <-ctx.Done() }))
	}
	p, _ := caller.FromContext(ctx)
	return fmt.Sprintf("uid:%d", p.UID())
}

// auditNow is the clock that the record reads when it writes.
func (e *env) auditNow() time.Time {
	if do := e.recording.Swap(nil); do != nil {
		(*do)()
	}
	return e.now()
}

func (e *env) auditDir() string { return filepath.Join(e.dir, "audit") }

// noSettings are those of a method that has none.
type noSettings struct{}

func (*noSettings) Validate() error { return nil }

func registry() resource.Registry {
	return resource.Registry{
		Methods: map[string]func() join.Settings{"fake": func() join.Settings { return new(noSettings) }, "kubernetes": func() join.Settings { return new(kubernetes.Settings) }},
		Flows:   map[string]func() exchangers.Settings{"cloud": func() exchangers.Settings { return new(settings) }, "mtls": func() exchangers.Settings { return new(mtlsSettings) }},
	}
}

// methodOf is the switch that a program has.
func (e *env) methodOf(r join.Rule) (join.Method, error) {
	if r.Method == "fake" && e.method != nil {
		return e.method(r), nil
	}
	if s, ok := r.Settings.(*kubernetes.Settings); ok {
		return e.cluster(r.Revision, s)
	}
	return tokenMethod(e.store, e.now)(r)
}

// tokenMethod is the switch of a program that has join tokens alone.
func tokenMethod(s *store.Store, now func() time.Time) func(join.Rule) (join.Method, error) {
	return func(r join.Rule) (join.Method, error) {
		if r.Method != token.Method {
			return nil, fmt.Errorf("%w: no method %q", broker.ErrRequest, r.Method)
		}
		return token.NewMethod(token.Config{
			Spend:   s.SpendToken,
			Refused: func(err error) bool { return errors.Is(err, broker.ErrSpent) || errors.Is(err, broker.ErrNotFound) },
			Now:     now,
		}), nil
	}
}

// run serves until the test ends, or close is called.
func (e *env) run() {
	ctx, cancel := context.WithCancel(context.Background())
	e.stop, e.stopped = cancel, make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { e.authority.Run(ctx) })
	running.Go(func() { e.config.Peers.Run(ctx) })
	running.Go(func() { e.broker.Run(ctx) })
	running.Go(func() { e.failed = e.server.Run(ctx, e.listeners); cancel() })
	go func() { running.Wait(); close(e.stopped) }()
	e.t.Cleanup(e.close)
}

func (e *env) close() {
	if e.stop == nil {
		return
	}
	e.stop()
	<-e.stopped
	e.stop = nil
	for _, err := range []error{e.failed, e.broker.Close(), e.audit.Close(), e.store.Close()} {
		if err != nil && !errors.Is(err, audit.ErrClosed) {
			e.t.Log("closing: ", err)
		}
	}
}

// ready waits for the keys that sign JWT-SVIDs.
func (e *env) ready() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	if err := e.authority.Ready(ctx); err != nil {
		e.t.Fatal(err)
	}
}

// admin is an operator's client.
func (e *env) admin() api.AdminClient { return api.NewAdminClient(e.adminConn()) }

func (e *env) adminConn() *grpc.ClientConn {
	e.t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(e.dir, "admin.sock"), append(bounded, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

// callTime is more than any call of a test takes: one that hangs fails the test,
// and not all of them by their time's end.
const callTime = 5 * time.Minute

// bounded ends calls at the client alone: the server is told no deadline.
var bounded = []grpc.DialOption{
	grpc.WithUnaryInterceptor(func(ctx context.Context, method string, in, out any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer time.AfterFunc(callTime, cancel).Stop()
		return call(ctx, method, in, out, conn, options...)
	}),
	grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
		ctx, cancel := context.WithCancel(ctx)
		late := time.AfterFunc(callTime, cancel)
		context.AfterFunc(ctx, func() { late.Stop() })
		return open(ctx, d, conn, method, options...)
	}),
}

func (e *env) apply(yaml string) *api.ApplyResponse {
	e.t.Helper()
	r, err := e.admin().Apply(e.t.Context(), &api.ApplyRequest{Yaml: []byte(yaml), File: "test.yaml"})
	if err != nil {
		e.t.Fatal(err)
	}
	return r
}

func (e *env) token(node string) string {
	e.t.Helper()
	conn := e.adminConn()
	defer conn.Close()
	r, err := api.NewAdminClient(conn).CreateToken(e.t.Context(), &api.CreateTokenRequest{Node: node, Labels: map[string]string{"site": "a"}})
	if err != nil {
		e.t.Fatal(err)
	}
	return r.GetToken()
}

// dial connects to the agents' listener, showing a certificate or none, and
// takes nobody but /credence/broker at the other end.
func (e *env) dial(show *tls.Certificate, more ...grpc.DialOption) *grpc.ClientConn {
	e.t.Helper()
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // the SVID is verified below, the host name is nothing
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			chain, err := x509.ParseCertificates(bytes.Join(raw[:len(raw)-1], nil))
			if err != nil {
				return err
			}
			id, _, err := federation.VerifyX509(chain, e.authority, e.now())
			if err == nil && id.String() != "spiffe://example.org/credence/broker" {
				err = errors.New("it is " + id.String())
			}
			return err
		},
	}
	if show != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return show, nil }
	}
	conn, err := grpc.NewClient(e.listeners.Agents.Addr().String(), slices.Concat(bounded, more, []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config))})...)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

func (e *env) stranger() api.NodeClient { return api.NewNodeClient(e.dial(nil)) }

// A node is one that joined.
type node struct {
	api.NodeClient
	id   string
	cert *tls.Certificate
	got  *api.Joined
}

// join lets a node of this name in, by a token.
func (e *env) join(name string) *node {
	e.t.Helper()
	key := newKey(e.t)
	conn := e.dial(nil)
	defer conn.Close()
	got, err := joinOnce(e.t.Context(), api.NewNodeClient(conn), &api.JoinRequest_Start{Method: "token", Evidence: []byte(e.token(name)), PublicKey: spki(e.t, key.Public())})
	if err != nil {
		e.t.Fatal(err)
	}
	return e.node(got, key)
}

func (e *env) node(got *api.Joined, key crypto.Signer) *node {
	e.t.Helper()
	cert := &tls.Certificate{Certificate: got.GetChain(), PrivateKey: key}
	return &node{api.NewNodeClient(e.dial(cert)), got.GetNodeId(), cert, got}
}

func joinOnce(ctx context.Context, c api.NodeClient, start *api.JoinRequest_Start, answers ...[]byte) (*api.Joined, error) {
	stream, err := c.Join(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Start_{Start: start}}); err != nil && !errors.Is(err, io.EOF) { // why it ended, Recv says
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.GetJoined() != nil {
			return m.GetJoined(), nil
		}
		if len(answers) == 0 {
			return nil, errors.New("challenged once more than there are answers")
		}
		if err := stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Answer{Answer: answers[0]}}); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		answers = answers[1:]
	}
}

// issue asks for the X509-SVIDs of the process of a uid.
func (n *node) issue(ctx context.Context, t testing.TB, uid string) (*api.IssueX509Response_Result, crypto.Signer, error) {
	t.Helper()
	key := newKey(t)
	r, err := n.IssueX509(ctx, &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{
		Workload: process(uid), PublicKeys: [][]byte{spki(t, key.Public())},
	}}})
	if err != nil {
		return nil, nil, err
	}
	return r.GetResults()[0], key, nil
}

func process(uid string) *api.Workload {
	return &api.Workload{Facts: map[string]*api.Values{"workload.unix.uid": {Values: []string{uid}}}}
}

// web is an Identity of the process with uid 33 on the node n1.
const web = `kind: Identity
name: web
spiffe_id: /web
match: [{node.name: n1, workload.unix.uid: 33}]
jwt: {audiences: [orders]}
`

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func spki(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t testing.TB, raw [][]byte) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	return chain
}

// foreignSVID is a well-made X509-SVID of an ID, under an authority that is
// not ours.
func foreignSVID(t testing.TB, id string) (*tls.Certificate, *x509.Certificate) {
	t.Helper()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootKey, key := newKey(t), newKey(t)
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, URIs: []*url.URL{uri}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, parse(t, [][]byte{rootDER})[0]
}

var partner = spiffeid.RequireTrustDomainFromString("partner.example")

// bundleOf is a SPIFFE bundle document of one authority.
func bundleOf(t testing.TB, roots ...*x509.Certificate) []byte {
	t.Helper()
	b := spiffebundle.New(partner)
	for _, root := range roots {
		b.AddX509Authority(root)
	}
	document, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return document
}

func webCertificate(t testing.TB) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(3), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parse(t, [][]byte{der})[0])
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// wantCode fails the test if err is of another code, and returns its text.
func wantCode(t testing.TB, err error, code codes.Code) string {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("error %v, wanted %v", err, code)
	}
	return status.Convert(err).Message()
}

// wantSilence fails the test if a text says something of the inside.
func wantSilence(t *testing.T, text string, inside ...string) {
	t.Helper()
	for _, s := range inside {
		if strings.Contains(text, s) {
			t.Errorf("%q tells %q", text, s)
		}
	}
}

// records are all that stands in the record.
func (e *env) records() []audit.Record {
	e.t.Helper()
	var all []audit.Record
	for r, err := range audit.Read(e.t.Context(), e.auditDir(), 0) {
		if err != nil {
			e.t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}
