package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
)

// Bounds of what agents send.
const (
	maxRounds     = 4
	maxPublicKey  = 1 << 10
	maxUnknown    = 64
	maxReports    = 256
	maxReportText = 256
	maxAudience   = 1 << 10
)

type nodeService struct {
	api.UnsafeNodeServer
	s *Server
}

func (n nodeService) fail(ctx context.Context, err error) error {
	return statusOf(ctx, n.s.cfg.Log, false, err)
}

// Join takes the start, puts challenges for as long as the method asks, and
// answers with the node's SVID and the whole bundle.
func (n nodeService) Join(stream grpc.BidiStreamingServer[api.JoinRequest, api.JoinResponse]) error {
	ctx, cancel := context.WithTimeout(stream.Context(), 2*joinTime)
	defer cancel()
	source := sourceOfCall(ctx)
	if wait, ok := n.s.settings.Load().rates.joins.take(source); !ok {
		return tooMany(wait)
	}
	done, err := calling(ctx)
	if err != nil {
		return err
	}
	defer done()
	leave, err := n.s.joins.enter(ctx, source)
	if err != nil {
		return n.fail(ctx, err)
	}
	defer leave()
	defer judging(ctx)()
	first, err := n.start(ctx, stream)
	if err != nil {
		return n.fail(ctx, err)
	}
	start := first.GetStart()
	if start == nil {
		return n.fail(ctx, fmt.Errorf("%w: a join begins with start", broker.ErrRequest))
	}
	key, err := publicKey(start.GetPublicKey())
	if err != nil {
		return n.fail(ctx, err)
	}
	rounds := 0
	ask := func(ctx context.Context, challenge []byte) ([]byte, error) {
		if rounds++; rounds > maxRounds {
			return nil, fmt.Errorf("%w: more than %d rounds", broker.ErrRequest, maxRounds)
		}
		if err := stream.Send(&api.JoinResponse{Step: &api.JoinResponse_Challenge{Challenge: challenge}}); err != nil {
			return nil, err
		}
		m, err := recv(ctx, stream)
		if err != nil {
			return nil, err
		}
		if len(m.GetAnswer()) == 0 || len(m.GetAnswer()) > broker.MaxEvidence {
			return nil, fmt.Errorf("%w: an answer has 1 to %d bytes", broker.ErrRequest, broker.MaxEvidence)
		}
		return m.GetAnswer(), nil
	}
	known, err := n.s.node(ctx)
	if err != nil {
		known = broker.Node{} // a stranger
	}
	joined, err := n.s.cfg.Broker.Join(ctx, broker.JoinRequest{
		Method: start.GetMethod(), Rule: start.GetRule(), Evidence: start.GetEvidence(),
		PublicKey: key, Version: start.GetAgentVersion(), Ask: ask, Known: known,
	})
	if err != nil {
		return n.fail(ctx, err)
	}
	return stream.Send(&api.JoinResponse{Step: &api.JoinResponse_Joined{Joined: n.joined(joined)}})
}

// start receives the first message. A place among the joins is not held open
// for a stranger who says nothing.
func (n nodeService) start(ctx context.Context, stream grpc.BidiStreamingServer[api.JoinRequest, api.JoinResponse]) (*api.JoinRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, n.s.cfg.JoinStart)
	defer cancel()
	return recv(ctx, stream)
}

// joinTime bounds a join from the outside; the broker bounds it tighter.
const joinTime = 10 * time.Second

// recv receives one message, but not for longer than ctx lasts: the stream's
// own context ends only with the stream.
func recv(ctx context.Context, stream grpc.BidiStreamingServer[api.JoinRequest, api.JoinResponse]) (*api.JoinRequest, error) {
	type got struct {
		m   *api.JoinRequest
		err error
	}
	c := make(chan got, 1)
	go func() {
		m, err := stream.Recv()
		c <- got{m, err}
	}()
	select {
	case g := <-c:
		return g.m, g.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n nodeService) joined(j broker.Joined) *api.Joined {
	document, _ := n.s.cfg.Authority.Document()
	return &api.Joined{Chain: rawChain(j.Chain), Bundle: document, NodeId: j.Node.ID}
}

func rawChain(chain []*x509.Certificate) [][]byte {
	var raw [][]byte
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	return raw
}

// Renew signs the node's own SVID anew.
func (n nodeService) Renew(ctx context.Context, r *api.RenewRequest) (*api.Joined, error) {
	key, err := publicKey(r.GetPublicKey())
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	joined, err := n.s.cfg.Broker.Renew(ctx, callerNode(ctx), key)
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	return n.joined(joined), nil
}

// IssueX509 issues the X509-SVIDs of up to 64 workloads.
func (n nodeService) IssueX509(ctx context.Context, r *api.IssueX509Request) (*api.IssueX509Response, error) {
	if len(r.GetItems()) > broker.MaxItems {
		return nil, n.fail(ctx, fmt.Errorf("%w: %d items, at most %d are taken", broker.ErrRequest, len(r.GetItems()), broker.MaxItems))
	}
	items := make([]broker.X509Item, len(r.GetItems()))
	var proofs []shown
	for i, m := range r.GetItems() {
		item, err := x509Item(m)
		if err != nil {
			return nil, n.fail(ctx, fmt.Errorf("item %d: %w", i, err))
		}
		items[i] = item
		proofs = append(proofs, shows(&items[i].Workload, m.GetWorkload())...)
	}
	if err := n.prove(ctx, proofs...); err != nil {
		return nil, n.fail(ctx, err)
	}
	results, err := n.s.cfg.Broker.IssueX509(ctx, callerNode(ctx), items)
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	response := &api.IssueX509Response{}
	for _, result := range results {
		response.Results = append(response.Results, x509Result(result))
	}
	return response, nil
}

func x509Item(m *api.IssueX509Request_Item) (broker.X509Item, error) {
	w, set, err := workload(m.GetWorkload())
	if err != nil {
		return broker.X509Item{}, err
	}
	ttl, err := seconds(m.GetTtl())
	if err != nil {
		return broker.X509Item{}, err
	}
	item := broker.X509Item{Workload: w, Set: set, TTL: ttl}
	if len(m.GetPublicKeys()) > broker.MaxKeys {
		return broker.X509Item{}, fmt.Errorf("%w: %d keys, at most %d are taken", broker.ErrRequest, len(m.GetPublicKeys()), broker.MaxKeys)
	}
	for _, der := range m.GetPublicKeys() {
		key, err := publicKey(der)
		if err != nil {
			return broker.X509Item{}, err
		}
		item.Keys = append(item.Keys, key)
	}
	for _, h := range m.GetHeld() {
		if len(h.GetDigest()) != sha256.Size {
			return broker.X509Item{}, fmt.Errorf("%w: a held digest of %d bytes", broker.ErrRequest, len(h.GetDigest()))
		}
		item.Held = append(item.Held, broker.Held{Identity: h.GetIdentity(), Digest: [sha256.Size]byte(h.GetDigest()), NotAfter: time.Unix(h.GetNotAfter(), 0)})
	}
	return item, nil
}

func x509Result(r broker.X509Result) *api.IssueX509Response_Result {
	m := &api.IssueX509Response_Result{KeysNeeded: uint32(r.KeysNeeded), PolicyRevision: r.Revision, Denial: denial(r.Denial)}
	for _, svid := range r.SVIDs {
		out := &api.X509SVID{
			Identity: svid.Identity, SpiffeId: svid.ID.String(), Hint: svid.Hint, Chain: rawChain(svid.Chain),
			PublicKey: uint32(svid.PublicKey), Digest: svid.Digest[:], FederatesWith: svid.FederatesWith,
			Depends: values(svid.Depends),
		}
		for _, a := range svid.JWTAudiences {
			out.JwtAudiences = append(out.JwtAudiences, a.Pattern)
			if a.Use != identity.UseDefault {
				out.JwtUses = append(out.JwtUses, &api.AudienceUse{Audience: a.Pattern, Use: string(a.Use)})
			}
		}
		for _, t := range svid.Targets {
			out.Targets = append(out.Targets, &api.Target{Name: t.Name, Revision: t.Revision, Provider: t.Flow, Settings: t.Settings})
		}
		m.Svids = append(m.Svids, out)
	}
	return m
}

// IssueJWT issues JWT-SVIDs for the Workload API, or for one exchange.
func (n nodeService) IssueJWT(ctx context.Context, r *api.IssueJWTRequest) (*api.IssueJWTResponse, error) {
	w, set, err := workload(r.GetWorkload())
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	ttl, err := seconds(r.GetTtl())
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	var id spiffeid.ID
	if r.GetSpiffeId() != "" {
		if id, err = identity.ParseID(r.GetSpiffeId()); err != nil {
			return nil, n.fail(ctx, fmt.Errorf("%w: %w", broker.ErrRequest, err))
		}
	}
	if err := n.prove(ctx, shows(&w, r.GetWorkload())...); err != nil {
		return nil, n.fail(ctx, err)
	}
	svids, refused, err := n.s.cfg.Broker.IssueJWT(ctx, callerNode(ctx), broker.JWTRequest{
		Workload: w, Set: set, Audiences: r.GetAudiences(), SPIFFEID: id, Target: r.GetTarget(), ToFile: r.GetToFile(), TTL: ttl,
	})
	if err != nil {
		return nil, n.fail(ctx, err)
	}
	response := &api.IssueJWTResponse{Denial: denial(refused)}
	for _, svid := range svids {
		out := &api.JWTSVID{
			Identity: svid.Identity, SpiffeId: svid.ID.String(), Hint: svid.Hint, Token: svid.Token,
			Expires: svid.Expires.Unix(), Depends: values(svid.Depends), SingleUse: svid.Use == identity.UseSingle,
		}
		if svid.Use == identity.UseAudited {
			// From an agent that would not report them, each call is here.
			out.Use, out.SingleUse = string(svid.Use), !r.GetAudits()
		}
		response.Svids = append(response.Svids, out)
	}
	return response, nil
}

// Report takes what happened on the node into the record, as the node's word,
// each report once.
func (n nodeService) Report(ctx context.Context, r *api.ReportRequest) (*api.ReportResponse, error) {
	if len(r.GetExchanges())+len(r.GetRefusals())+len(r.GetGaps())+len(r.GetHandOuts()) > maxReports {
		return nil, n.fail(ctx, fmt.Errorf("%w: more than %d reports", broker.ErrRequest, maxReports))
	}
	node := callerNode(ctx)
	in := reports{node: node.ID}
	for _, e := range r.GetExchanges() {
		event := audit.Event{
			Kind: broker.RecordExchange, OK: e.GetOk(), SPIFFEID: bounded(e.GetSpiffeId()), Identity: bounded(e.GetIdentity()),
			Target: bounded(e.GetTarget()), Code: bounded(e.GetCode()), NotAfter: optionalTime(e.GetExpires()),
			Detail: map[string]string{"class": bounded(e.GetClass()), "request_id": bounded(e.GetRequestId())},
		}
		if shown := e.GetShown(); len(shown) > 0 { // the records of these SVIDs have the same serial
			event.Serial = bounded(shown[0])
			if len(shown) > 1 {
				event.Detail["shown"] = bounded(strings.Join(shown[:min(len(shown), 8)], " "))
			}
		}
		in.add(e.GetId(), e.GetTime(), event)
	}
	for _, f := range r.GetRefusals() {
		facts, err := identity.NewFacts("workload", plain(f.GetFacts()))
		if err != nil {
			return nil, n.fail(ctx, fmt.Errorf("%w: %w", broker.ErrRequest, err))
		}
		in.add(f.GetId(), f.GetTime(), audit.Event{
			Kind: broker.RecordRefusal, Code: bounded(f.GetCode()), Target: bounded(f.GetTarget()), Facts: facts.Map(), Count: f.GetCount(),
			Detail: map[string]string{},
		})
	}
	for _, h := range r.GetHandOuts() {
		event, err := handOut(h)
		if err != nil {
			return nil, n.fail(ctx, err)
		}
		in.add(h.GetId(), h.GetTime(), event)
	}
	for _, g := range r.GetGaps() {
		in.add(g.GetId(), g.GetSince(), audit.Event{
			Kind: broker.RecordGap, Code: bounded(g.GetWhy()), Count: g.GetLost(),
			Detail: map[string]string{"lost_in_all": strconv.FormatUint(g.GetTotal(), 10)},
		})
	}
	if in.err != nil {
		return nil, n.fail(ctx, in.err)
	}
	if len(in.all) > 0 {
		if _, err := n.s.cfg.Broker.Report(ctx, node, in.spool, in.all); err != nil {
			return nil, n.fail(ctx, err)
		}
	}
	return &api.ReportResponse{Accepted: uint64(len(in.all))}, nil
}

// handOut is the record of one audited JWT-SVID that was handed out.
func handOut(h *api.HandOut) (audit.Event, error) {
	facts, err := identity.NewFacts("workload", plain(h.GetFacts()))
	switch {
	case err != nil:
		return audit.Event{}, fmt.Errorf("%w: %w", broker.ErrRequest, err)
	case len(h.GetAudiences()) == 0 || len(h.GetAudiences()) > broker.MaxAudiences || len(h.GetDigest()) != sha256.Size || len(h.GetSet()) != sha256.Size:
		return audit.Event{}, fmt.Errorf("%w: a hand-out of %d audiences, with digests of %d and %d bytes", broker.ErrRequest, len(h.GetAudiences()), len(h.GetDigest()), len(h.GetSet()))
	}
	e := audit.Event{
		Kind: broker.RecordHandOut, OK: true, SPIFFEID: bounded(h.GetSpiffeId()), Identity: bounded(h.GetIdentity()),
		Serial: bounded(h.GetTokenId()), NotAfter: optionalTime(h.GetExpires()), Digest: hex.EncodeToString(h.GetDigest()),
		Facts: facts.Map(), Detail: map[string]string{"set": hex.EncodeToString(h.GetSet())},
	}
	for _, a := range h.GetAudiences() {
		e.Audiences = append(e.Audiences, a[:min(len(a), maxAudience)])
	}
	return e, nil
}

// reports gathers those of one request.
type reports struct {
	node, spool string
	all         []broker.Report
	err         error
}

func (r *reports) add(id string, at int64, e audit.Event) {
	spool, number, err := broker.ParseReportID(id)
	if err == nil && r.spool != "" && spool != r.spool {
		err = fmt.Errorf("%w: reports of two spools", broker.ErrRequest)
	}
	r.err, r.spool = errors.Join(r.err, err), spool
	e.Node = r.node
	e.Detail[broker.ReportDetail], e.Detail["reported_at"] = id, reportedTime(at).Format(time.RFC3339)
	r.all = append(r.all, broker.Report{Number: number, Event: e})
}

func optionalTime(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return reportedTime(unix)
}

// reportedTime keeps a node's word within the years that the record can write.
func reportedTime(unix int64) time.Time {
	const year1, year9999 = -62135596800, 253402300799
	return time.Unix(min(max(unix, year1), year9999), 0).UTC()
}

// bounded keeps a node's words short in the record.
func bounded(s string) string {
	if len(s) > maxReportText {
		return s[:maxReportText]
	}
	return s
}

func denial(d *broker.Denial) *api.Denial {
	if d == nil {
		return nil
	}
	return &api.Denial{Record: d.Record, Code: d.Code, LeastTtl: int64((d.Least + time.Second - 1) / time.Second), MostTtl: int64(d.Most / time.Second)}
}

// workload reads what a node attested. Facts about the node are never taken
// from a request.
func workload(m *api.Workload) (broker.Workload, [sha256.Size]byte, error) {
	facts, err := identity.NewFacts("workload", plain(m.GetFacts()))
	if err != nil {
		return broker.Workload{}, [sha256.Size]byte{}, fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	if err := checkProofs(m); err != nil {
		return broker.Workload{}, [sha256.Size]byte{}, err
	}
	if len(m.GetUnknown()) > maxUnknown {
		return broker.Workload{}, [sha256.Size]byte{}, fmt.Errorf("%w: more than %d unknown", broker.ErrRequest, maxUnknown)
	}
	for _, name := range m.GetUnknown() {
		if name == "workload" {
			continue
		}
		if err := identity.CheckFactName(name); err != nil {
			return broker.Workload{}, [sha256.Size]byte{}, fmt.Errorf("%w: unknown: %w", broker.ErrRequest, err)
		}
	}
	return broker.Workload{Facts: facts, Unknown: m.GetUnknown()}, api.WorkloadDigest(m), nil
}

// prove has proofs verified by the policy as it is now.
func (n nodeService) prove(ctx context.Context, all ...shown) error {
	return n.s.proofs.prove(ctx, callerNode(ctx), n.s.state.Load().policy, all...)
}

func plain(m map[string]*api.Values) map[string][]string {
	facts := make(map[string][]string, len(m))
	for name, v := range m {
		facts[name] = v.GetValues()
	}
	return facts
}

func values(m map[string][]string) map[string]*api.Values {
	out := make(map[string]*api.Values, len(m))
	for name, v := range m {
		out[name] = &api.Values{Values: v}
	}
	return out
}

func seconds(n int64) (time.Duration, error) {
	if n < 0 || n > int64((365*24*time.Hour)/time.Second) {
		return 0, fmt.Errorf("%w: a life of %d seconds", broker.ErrRequest, n)
	}
	return time.Duration(n) * time.Second, nil
}

// publicKey parses a key and holds it against what may be certified: P-256,
// P-384, RSA of 2048 to 4096 bits. The authority judges again.
func publicKey(der []byte) (crypto.PublicKey, error) {
	if len(der) == 0 || len(der) > maxPublicKey {
		return nil, fmt.Errorf("%w: a public key of %d bytes", broker.ErrRequest, len(der))
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: parsing a public key: %w", broker.ErrRequest, err)
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096 {
			return key, nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: a public key of another kind: P-256, P-384 and RSA of 2048 to 4096 bits are taken", broker.ErrRequest)
}
