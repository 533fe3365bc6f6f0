// Package agenttest has a broker for tests of agents: it speaks the broker's
// protocol over TLS 1.3, with an authority of its own, and decides what the
// test says. It trusts the test; no program links it.
package agenttest

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/api"
)

// A Broker serves agents on a loopback port. Its exported fields are set
// before Start.
type Broker struct {
	api.UnimplementedNodeServer
	*CA
	Shows   *tls.Certificate // nil: /credence/broker with the root at the end
	NodeTTL time.Duration    // 0: an hour
	Token   string           // that joins, once
	// Challenge is put to who joins by another method; Answered has what came. Empty: none.
	Challenge []byte
	Answered  func(start *api.JoinRequest_Start, answer []byte)
	// Heard is told each message that comes. Release is what the broker knows of the
	// protocol; nil: what this program does.
	Heard   func(method string, m proto.Message)
	Release *Release

	t       testing.TB
	address string

	mu       sync.Mutex // guards what follows
	stop     func()
	name     string // the node's
	decide   func(*api.Workload) []Grant
	before   map[string]func(context.Context) error
	calls    map[string]int
	joined   []*api.JoinRequest_Start
	serials  []string                     // of the node's SVID, the last two
	leaves   map[string]*x509.Certificate // by ID, see Grant.Cheap
	reports  []*api.Exchange
	refusals []*api.Refusal
	gaps     []*api.Gap
	handOuts []*api.HandOut
	acked    uint64
	bundles  []*api.Bundle
	wanted   []string
	cutoffs  []*api.Cutoff
	refresh  func(td, keyID string) bool
	onJWT    func(*api.IssueJWTRequest)
	streams  map[chan *api.WatchResponse]bool
	gone     chan struct{} // closed to end all Watch streams
	reason   error
	changed  chan struct{}
}

// NewBroker returns a broker of a trust domain that grants nothing.
func NewBroker(t testing.TB, td string) *Broker {
	t.Helper()
	b := &Broker{
		CA: NewCA(t, td), Token: "token-1", t: t, name: "n1", decide: func(*api.Workload) []Grant { return nil },
		leaves: make(map[string]*x509.Certificate),
		before: make(map[string]func(context.Context) error), calls: make(map[string]int),
		streams: make(map[chan *api.WatchResponse]bool), gone: make(chan struct{}), changed: make(chan struct{}),
	}
	b.bundles = []*api.Bundle{{TrustDomain: td, Document: b.Document()}}
	return b
}

// NodeID is the only node's.
func (b *Broker) NodeID() spiffeid.ID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nodeID()
}

// nodeID must be called with mu held.
func (b *Broker) nodeID() spiffeid.ID {
	return spiffeid.RequireFromPath(b.TrustDomain, "/credence/node/"+b.name)
}

// Name has the node that joins next be this one.
func (b *Broker) Name(node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.name = node
}

// Admit has another token join, and the node's SVID live for ttl from then on.
func (b *Broker) Admit(token string, ttl time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Token, b.NodeTTL = token, ttl
}

// Start listens, on the same port as before if it is started again.
func (b *Broker) Start() *Broker {
	b.t.Helper()
	l, err := listen(b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.Shows == nil {
		b.Shows = b.Certificate(spiffeid.RequireFromPath(b.TrustDomain, "/credence/broker"))
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{*b.Shows}, VerifyPeerCertificate: b.verify,
	})), grpc.UnaryInterceptor(b.unary), grpc.StreamInterceptor(b.stream))
	api.RegisterNodeServer(server, b)
	served := make(chan struct{})
	stop := func() {
		server.Stop()
		<-served // only then is the port free: Stop may come before Serve
	}
	b.mu.Lock()
	b.address, b.stop = l.Addr().String(), stop
	b.mu.Unlock()
	go func() { _ = server.Serve(l); close(served) }()
	b.t.Cleanup(stop)
	return b
}

// Certificate is one of the trust domain, with the root at its end. It outlives
// what clocks do in tests.
func (b *Broker) Certificate(id spiffeid.ID) *tls.Certificate {
	key := newKey()
	leaf := b.Sign(id, key.Public(), time.Now().Add(20*time.Hour))
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, b.Root.Raw}, PrivateKey: key, Leaf: leaf}
}

// Stop is the broker being away.
func (b *Broker) Stop() {
	b.mu.Lock()
	stop := b.stop
	b.mu.Unlock()
	stop()
}

// Address is where agents find it.
func (b *Broker) Address() string { return b.address }

// Decide sets what is granted from now on; nothing is a denial.
func (b *Broker) Decide(decide func(*api.Workload) []Grant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.decide = decide
}

// Grant has every workload granted the same.
func (b *Broker) Grant(grants ...Grant) { b.Decide(func(*api.Workload) []Grant { return grants }) }

// Before has f called at the start of each call of a method, such as
// "IssueX509"; its error is the answer. A nil f ends that.
func (b *Broker) Before(method string, f func(context.Context) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before[method] = f
}

// Hold makes calls of a method wait until release: entered tells of each.
func (b *Broker) Hold(method string) (entered <-chan struct{}, release func()) {
	in, out := make(chan struct{}, 64), make(chan struct{})
	b.Before(method, func(ctx context.Context) error {
		select {
		case in <- struct{}{}:
		default: // nobody counts that far
		}
		select {
		case <-out:
		case <-ctx.Done():
		}
		return nil
	})
	return in, sync.OnceFunc(func() { close(out) })
}

// Calls is how often a method was called.
func (b *Broker) Calls(method string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[method]
}

// Joins are the starts of all joins.
func (b *Broker) Joins() []*api.JoinRequest_Start {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.joined)
}

// Reports are those handed in.
func (b *Broker) Reports() []*api.Exchange {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.reports)
}

// Refusals are those reported.
func (b *Broker) Refusals() []*api.Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.refusals)
}

// HandOuts are those reported.
func (b *Broker) HandOuts() []*api.HandOut {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.handOuts)
}

// Gaps are those reported.
func (b *Broker) Gaps() []*api.Gap {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.gaps)
}

// Forget has the broker know no node any more.
func (b *Broker) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serials = nil
}

// Want sets which costly facts the next first message of a Watch names.
func (b *Broker) Want(names ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted = names
}

// Revoke sets what JWT-SVIDs are held against from now on.
func (b *Broker) Revoke(all ...*api.Cutoff) {
	b.mu.Lock()
	b.cutoffs = all
	b.mu.Unlock()
	b.Push(&api.WatchResponse{Revision: 3, Cutoffs: all, CutoffsSet: true})
}

// AddBundle tells agents of a trust domain's bundle, also those that connect
// later.
func (b *Broker) AddBundle(td string, document []byte) {
	b.tell(&api.Bundle{TrustDomain: td, Document: document})
}

// AddCRLs tells agents of our own bundle with these CRLs.
func (b *Broker) AddCRLs(lists ...*api.CRL) {
	b.tell(&api.Bundle{TrustDomain: b.TrustDomain.Name(), Document: b.Document(), Crls: lists})
}

func (b *Broker) tell(in *api.Bundle) {
	td := in.TrustDomain
	b.mu.Lock()
	b.bundles = append(slices.DeleteFunc(b.bundles, func(o *api.Bundle) bool { return o.TrustDomain == td }), in)
	b.mu.Unlock()
	b.Push(&api.WatchResponse{Revision: 2, Bundles: []*api.Bundle{in}})
}

// OnRefresh says what becomes of a wish for a peer's new key: whether the broker
// has it then.
func (b *Broker) OnRefresh(f func(td, keyID string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refresh = f
}

// OnJWT has f called with each request for JWT-SVIDs.
func (b *Broker) OnJWT(f func(*api.IssueJWTRequest)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onJWT = f
}

// Explain implements api.NodeServer: of who is denied an Identity is near.
func (b *Broker) Explain(_ context.Context, r *api.NodeExplainRequest) (*api.NodeExplainResponse, error) {
	code := "denied"
	if grants := b.granted(r.GetWorkload()); len(grants) > 0 {
		if len(r.GetAudiences()) == 0 && r.GetTarget() == "" {
			return &api.NodeExplainResponse{Granted: true}, nil
		}
		code = b.refusal(&api.IssueJWTRequest{Workload: r.GetWorkload(), Audiences: r.GetAudiences(), Target: r.GetTarget()})
	}
	return &api.NodeExplainResponse{
		Denial: &api.Denial{Record: Record, Code: code},
		Near:   []*api.NodeExplainResponse_Near{{Identity: "near", Missing: []string{"workload.unix.uid"}}},
	}, nil
}

// RefreshBundle implements api.NodeServer.
func (b *Broker) RefreshBundle(_ context.Context, r *api.RefreshBundleRequest) (*api.RefreshBundleResponse, error) {
	b.mu.Lock()
	refresh := b.refresh
	b.mu.Unlock()
	return &api.RefreshBundleResponse{Known: refresh != nil && refresh(r.GetTrustDomain(), r.GetKeyId())}, nil
}

// Push sends a message on all open Watch streams.
func (b *Broker) Push(m *api.WatchResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for stream := range b.streams {
		stream <- m
	}
}

// EndWatch ends all open Watch streams.
func (b *Broker) EndWatch(reason error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reason = reason
	close(b.gone)
	b.gone = make(chan struct{})
}

// Await blocks until something that agents did makes ok true; ok is called
// with nothing held.
func (b *Broker) Await(what string, ok func() bool) {
	b.t.Helper()
	late := time.After(10 * time.Second)
	for {
		b.mu.Lock()
		changed := b.changed
		b.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-late:
			b.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// note must be called with mu held.
func (b *Broker) note() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Watching is how many Watch streams are open.
func (b *Broker) Watching() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.streams)
}

// Acknowledged is the last revision that an agent said it serves.
func (b *Broker) Acknowledged() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acked
}

func (b *Broker) verify(raw [][]byte, _ [][]*x509.Certificate) error {
	if len(raw) == 0 {
		return nil
	}
	leaf, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(b.Root)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// enter counts a call, finds out who calls, and asks the test.
func (b *Broker) enter(ctx context.Context, full string) error {
	method := full[strings.LastIndexByte(full, '/')+1:]
	b.mu.Lock()
	b.calls[method]++
	b.note()
	before := b.before[method]
	known := slices.Contains(b.serials, callerSerial(ctx))
	b.mu.Unlock()
	if method != "Join" && !known {
		return status.Error(codes.Unauthenticated, "a node's SVID is required; join first")
	}
	if before != nil {
		return before(ctx)
	}
	return b.Release.Knows(full)
}

func callerSerial(ctx context.Context) string {
	p, _ := peer.FromContext(ctx)
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	if len(info.State.PeerCertificates) == 0 {
		return "none"
	}
	return info.State.PeerCertificates[0].SerialNumber.String()
}

func (b *Broker) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := b.enter(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	b.hear(info.FullMethod, req)
	response, err := next(ctx, req)
	if err == nil {
		response = proto.Clone(response.(proto.Message))
		b.Release.forget(response)
	}
	return response, err
}

func (b *Broker) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := b.enter(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, heard{stream, b, info.FullMethod})
}

// Join takes the token once; of another method it takes any evidence.
func (b *Broker) Join(stream grpc.BidiStreamingServer[api.JoinRequest, api.JoinResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if len(b.Challenge) > 0 && m.GetStart().GetMethod() != "token" {
		if err := stream.Send(&api.JoinResponse{Step: &api.JoinResponse_Challenge{Challenge: b.Challenge}}); err != nil {
			return err
		}
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		b.Answered(m.GetStart(), answer.GetAnswer())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joined = append(b.joined, m.GetStart())
	if m.GetStart().GetMethod() == "token" {
		if b.Token == "" || string(m.GetStart().GetEvidence()) != b.Token {
			return status.Error(codes.Unauthenticated, "the evidence was refused")
		}
		b.Token = ""
	}
	joined, err := b.admit(m.GetStart().GetPublicKey())
	if err != nil {
		return err
	}
	return stream.Send(&api.JoinResponse{Step: &api.JoinResponse_Joined{Joined: joined}})
}

// Renew signs the node's SVID anew.
func (b *Broker) Renew(_ context.Context, r *api.RenewRequest) (*api.Joined, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.admit(r.GetPublicKey())
}

// admit must be called with mu held.
func (b *Broker) admit(der []byte) (*api.Joined, error) {
	key, err := publicKey(der)
	if err != nil {
		return nil, err
	}
	ttl := b.NodeTTL
	if ttl == 0 {
		ttl = time.Hour
	}
	leaf := b.Sign(b.nodeID(), key, time.Now().Add(ttl))
	b.serials = append(b.serials, leaf.SerialNumber.String())
	b.serials = b.serials[max(0, len(b.serials)-2):]
	b.note()
	return &api.Joined{Chain: [][]byte{leaf.Raw}, Bundle: b.Document(), NodeId: b.nodeID().String()}, nil
}

func publicKey(der []byte) (crypto.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return key, nil
}

// Watch tells all bundles, and then what the test pushes.
func (b *Broker) Watch(stream grpc.BidiStreamingServer[api.WatchRequest, api.WatchResponse]) error {
	if m, err := stream.Recv(); err != nil || m.GetSince() == nil {
		return fmt.Errorf("a watch begins with since: %v %v", m, err)
	}
	push := make(chan *api.WatchResponse, 64)
	b.mu.Lock()
	first := &api.WatchResponse{Revision: 1, Bundles: slices.Clone(b.bundles), WantedFacts: b.wanted, WantedSet: true, Cutoffs: b.cutoffs, CutoffsSet: true}
	gone := b.gone
	b.streams[push] = true
	b.note()
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.streams, push)
		b.note()
		b.mu.Unlock()
	}()
	go b.acknowledgements(stream)
	if err := stream.Send(first); err != nil {
		return err
	}
	for {
		select {
		case m := <-push:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-gone:
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.reason
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (b *Broker) acknowledgements(stream grpc.BidiStreamingServer[api.WatchRequest, api.WatchResponse]) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.acked = max(b.acked, m.GetAcknowledged())
		b.note()
		b.mu.Unlock()
	}
}

// Report keeps what an agent reports.
func (b *Broker) Report(_ context.Context, r *api.ReportRequest) (*api.ReportResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reports = append(b.reports, r.GetExchanges()...)
	b.refusals = append(b.refusals, r.GetRefusals()...)
	b.gaps = append(b.gaps, r.GetGaps()...)
	b.handOuts = append(b.handOuts, r.GetHandOuts()...)
	b.note()
	return &api.ReportResponse{Accepted: uint64(len(r.GetExchanges()) + len(r.GetRefusals()) + len(r.GetGaps()))}, nil
}

// listen listens where the broker did before, or on a port below those that
// the system gives to clients: one of these could take it while the broker is
// away, even an agent that dials it, by connecting to itself.
func listen(address string) (l net.Listener, err error) {
	if address != "" {
		return net.Listen("tcp", address)
	}
	for range 100 {
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(18000))); err == nil {
			return l, nil
		}
	}
	return nil, err
}
