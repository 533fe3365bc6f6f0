package broker

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/attribute"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// ErrEvicted says that a node was evicted.
var ErrEvicted = errors.New("it is evicted")

// ErrLeaving says that a node is being evicted at this moment: whether it is
// out, or has to join again, is known in an instant.
var ErrLeaving = errors.New("it is being evicted")

// ErrUnsure says that a node, or its SVID, is not known here, and the store cannot
// be asked whether another broker gave it.
var ErrUnsure = errors.New("whether another broker gave its SVID is not known now")

// MaxEvidence bounds the evidence of a join, in bytes.
const MaxEvidence = 16 << 10

// tokenMethod is the one method that needs no JoinRule: to make a token is the
// permission.
const tokenMethod = "token"

// A JoinRequest is a machine's wish to become a node.
type JoinRequest struct {
	Method    string
	Rule      string // JoinRule; empty where the method has one rule, or is token
	Evidence  []byte
	PublicKey crypto.PublicKey
	Version   string // of the agent, for the record
	Ask       join.Challenge
	// Known is the node that asks, as Node returned it, where it shows its SVID: it
	// stays that node if what it proves is banned by the same. Zero: a stranger.
	Known Node
}

// Joined is what a node gets.
type Joined struct {
	Node  Node
	Chain []*x509.Certificate // leaf first, without the root
}

// Join lets a machine become a node, or become it again. An error wrapping
// join.ErrEvidence means that what it showed is bad; one wrapping
// identity.ErrDenied, that what it proved may not join.
func (b *Broker) Join(ctx context.Context, r JoinRequest) (Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.JoinTime)
	defer cancel()
	began := b.cfg.Now()
	ctx, end := b.span(ctx, spanJoin, "")
	joined, err := b.join(ctx, r)
	method, outcome := b.joinOutcome(r, err)
	end(err, attribute.String("credence.join_method", method), attribute.String("credence.outcome", outcome))
	b.observe(Event{What: EventJoined, Subject: method, Outcome: outcome, Took: b.cfg.Now().Sub(began)})
	if err != nil {
		b.strangers.Add(method + ": " + outcome)
		return Joined{}, fmt.Errorf("joining by %.40q: %w", r.Method, err)
	}
	return joined, nil
}

// joinOutcome names a join in few enough words that strangers cannot fill the
// record, or the metrics, with some of their own making.
func (b *Broker) joinOutcome(r JoinRequest, err error) (method, outcome string) {
	method = "unknown method"
	if r.Method == tokenMethod || slices.ContainsFunc(b.policy.Load().Rules, func(rule join.Rule) bool { return rule.Method == r.Method }) {
		method = r.Method
	}
	switch {
	case err == nil:
		return method, OutcomeOK
	case errors.Is(err, join.ErrCloned):
		return method, "cloned"
	case errors.Is(err, join.ErrRecovery):
		return method, "no recovery left"
	case errors.Is(err, join.ErrEvidence):
		return method, "evidence refused"
	case errors.Is(err, identity.ErrDenied):
		return method, "not allowed"
	case errors.Is(err, ErrConflict):
		return method, "banned, or another's name"
	case errors.Is(err, ErrRequest):
		return method, "bad request"
	}
	return method, "not judged"
}

func (b *Broker) join(ctx context.Context, r JoinRequest) (Joined, error) {
	if len(r.Evidence) == 0 || len(r.Evidence) > MaxEvidence {
		return Joined{}, fmt.Errorf("%w: evidence of %d bytes, 1 to %d are taken", ErrRequest, len(r.Evidence), MaxEvidence)
	}
	key, err := identity.DigestKey(r.PublicKey)
	if err != nil {
		return Joined{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	policy := b.policy.Load()
	rule, err := joinRule(policy, r)
	if err != nil {
		return Joined{}, err
	}
	method, err := b.cfg.Method(rule)
	if err != nil {
		return Joined{}, err
	}
	proving, end := b.span(ctx, spanEvidence, "")
	proof, err := method.Join(join.WithKey(proving, key), r.Evidence, r.Ask)
	if end(err); err != nil {
		return Joined{}, b.suspect(ctx, rule, proof, err)
	}
	if err := allowed(rule, proof); err != nil {
		return Joined{}, err
	}
	node, err := b.newNode(rule, proof, r.Known)
	if err != nil {
		return Joined{}, err
	}
	if known, ok := b.node(node.ID); ok && !known.EvictedAt.IsZero() {
		return Joined{}, fmt.Errorf("%w: %s was evicted at %s", ErrConflict, node.ID, known.EvictedAt.UTC().Format(time.RFC3339))
	}
	return b.admit(ctx, node, key, r.PublicKey, audit.Event{
		Kind: "join", Detail: joinDetail(r, rule, proof),
	})
}

func joinDetail(r JoinRequest, rule join.Rule, proof join.Proof) map[string]string {
	detail := map[string]string{"method": r.Method, "rule": rule.Name, "agent": fmt.Sprintf("%.64s", r.Version)}
	if s := proof.Step; s != nil {
		detail["join"] = strconv.FormatUint(s.To.Joins, 10)
		if s.To.Recoveries > s.From.Recoveries {
			detail["recovery"] = strconv.FormatUint(s.To.Recoveries, 10)
		}
	}
	return detail
}

// suspect does what is due where a node has its key, but is not known to be the one
// that joined by it last, and returns err. Two that have one key are shut out. A
// refused recovery is recorded once, until the next join.
func (b *Broker) suspect(ctx context.Context, rule join.Rule, proof join.Proof, err error) error {
	cloned := errors.Is(err, join.ErrCloned)
	if !cloned && !errors.Is(err, join.ErrRecovery) {
		return err
	}
	made, failed := b.newNode(rule, proof, Node{})
	if failed != nil {
		return failed
	}
	node, ok := b.node(made.ID)
	if !ok || !node.EvictedAt.IsZero() {
		return err
	}
	// Whoever asked may be gone: what follows is not for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.JoinTime)
	defer cancel()
	if cloned {
		_, failed = b.Evict(ctx, node.ID, identity.BrokerID(b.cfg.TrustDomain).String(), err.Error())
	} else if node.Joins.RefusedAt.IsZero() {
		failed = b.refuseRecovery(ctx, node, err)
	}
	return errors.Join(err, failed)
}

func (b *Broker) refuseRecovery(ctx context.Context, node Node, why error) error {
	_, err := b.cfg.Audit.Append(ctx, fit(audit.Event{Kind: "join.refused", Node: node.ID, Reason: why.Error(), Facts: node.Facts.Map()}))
	if err != nil {
		return fmt.Errorf("recording that %s was refused: %w", node.ID, err)
	}
	saved, err := b.cfg.Store.RefuseJoin(ctx, node.ID, b.cfg.Now())
	if errors.Is(err, ErrNotFound) { // it joined meanwhile, or was refused at the same time
		return nil
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(saved)
	return nil
}

// joinRule finds the rule to judge by.
func joinRule(p *Policy, r JoinRequest) (join.Rule, error) {
	if r.Method == tokenMethod {
		if r.Rule != "" {
			return join.Rule{}, fmt.Errorf("%w: a join token needs no rule", ErrRequest)
		}
		return join.Rule{Method: tokenMethod}, nil
	}
	var found []join.Rule
	for _, rule := range p.Rules {
		if rule.Method == r.Method && (r.Rule == "" || r.Rule == rule.Name) {
			found = append(found, rule)
		}
	}
	if len(found) != 1 {
		return join.Rule{}, fmt.Errorf("%w: %d join rules for this method and name", identity.ErrDenied, len(found))
	}
	return found[0], nil
}

// allowed holds a proof against the rule's allow terms. A token carries its
// permission itself; for everything else an empty list refuses.
func allowed(rule join.Rule, p join.Proof) error {
	if rule.Method == tokenMethod {
		return nil
	}
	if len(rule.Allow) == 0 {
		return fmt.Errorf("%w: join rule %s allows nobody", identity.ErrDenied, rule.Name)
	}
	ok, err := identity.Matches(rule.Allow, p.Facts)
	if err != nil {
		return fmt.Errorf("join rule %s: %w", rule.Name, err)
	}
	if !ok {
		return fmt.Errorf("%w: join rule %s allows no such node", identity.ErrDenied, rule.Name)
	}
	return nil
}

// newNode makes the node that a proof stands for: the same durable key, and
// instance, is always the same node; and a known one is who it was, though it
// shows another instance's.
func (b *Broker) newNode(rule join.Rule, p join.Proof, known Node) (Node, error) {
	if p.DurableKey == "" || p.Name == "" {
		return Node{}, fmt.Errorf("join method %s proved no durable key or name", rule.Method)
	}
	id := p.Name
	if rule.Method != tokenMethod {
		sum := sha256.Sum256([]byte(p.DurableKey))
		if p.Instance != "" {
			sum = sha256.Sum256(append(sum[:], p.Instance...))
		}
		id = rule.Method + "-" + hex.EncodeToString(sum[:12])
		if known.DurableKey == rule.Method+":"+p.DurableKey && known.JoinRule == rule.Name {
			id = path.Base(known.ID)
		}
	}
	spiffeID, err := identity.NodeID(b.cfg.TrustDomain, id)
	if err != nil {
		return Node{}, err
	}
	for name := range p.Facts.All() { // no driver speaks for another
		if !strings.HasPrefix(name, "node."+rule.Method+".") {
			return Node{}, fmt.Errorf("join method %s proved %q, which is not its to prove", rule.Method, name)
		}
	}
	own := map[string][]string{
		"node.method": {rule.Method}, "node.id": {id}, "node.name": {p.Name},
	}
	if rule.Name != "" {
		own["node.join_rule"] = []string{rule.Name}
	}
	facts, err := identity.NewFacts("node", own)
	if err != nil {
		return Node{}, err
	}
	if facts, err = facts.Join(p.Facts); err != nil {
		return Node{}, err
	}
	return Node{
		ID: spiffeID.String(), Name: p.Name, Method: rule.Method, JoinRule: rule.Name,
		DurableKey: rule.Method + ":" + p.DurableKey, Facts: facts, JoinedAt: b.cfg.Now(), Step: p.Step,
	}, nil
}

// Renew signs the SVID of a node anew that joined by a token; its facts stay as
// they were proven. Every other node proves itself anew, by Join: what it was
// need not be what it is. The node is as Node returned it: if it was evicted or
// joined anew since then, the error wraps ErrConflict.
func (b *Broker) Renew(ctx context.Context, node Node, pub crypto.PublicKey) (Joined, error) {
	if node.Method != tokenMethod {
		return Joined{}, fmt.Errorf("renewing %s: %w: it joined by %s, and proves itself anew to go on", node.ID, ErrRequest, node.Method)
	}
	key, err := identity.DigestKey(pub)
	if err != nil {
		return Joined{}, fmt.Errorf("renewing %s: %w: %w", node.ID, ErrRequest, err)
	}
	joined, err := b.admit(ctx, node, key, pub, audit.Event{Kind: "renew"})
	b.observe(Event{What: EventRenewed, Outcome: outcomeOf(err)})
	if err != nil {
		return Joined{}, fmt.Errorf("renewing %s: %w", node.ID, err)
	}
	return joined, nil
}

// admit signs a node's SVID, records it, keeps the node, and only then lets
// the SVID go.
func (b *Broker) admit(ctx context.Context, node Node, key identity.KeyDigest, pub crypto.PublicKey, event audit.Event) (Joined, error) {
	known, ok := b.node(node.ID)
	if ok && !known.EvictedAt.IsZero() { // the store holds this too; here nothing is signed or recorded first
		return Joined{}, fmt.Errorf("%w: it was evicted at %s", ErrConflict, known.EvictedAt.UTC().Format(time.RFC3339))
	}
	if at, out := b.outHere(node.DurableKey); out {
		return Joined{}, fmt.Errorf("%w: it was evicted at %s", ErrConflict, at.UTC().Format(time.RFC3339))
	}
	if err := b.cfg.Away(); err != nil { // before anything is signed and recorded that could not be kept
		return Joined{}, err
	}
	shown := node
	if event.Kind == "join" {
		node.Serial, node.Key, node.IssuedAt, node.Authority = known.Serial, known.Key, known.IssuedAt, known.Authority
	}
	now := b.cfg.Now()
	id, err := spiffeid.FromString(node.ID)
	if err != nil {
		return Joined{}, err
	}
	grant, err := identity.ForNode(b.cfg.TrustDomain, path.Base(id.Path()), key, now, now.Add(b.cfg.NodeTTL))
	if err != nil {
		return Joined{}, err
	}
	signing, end := b.span(ctx, spanSign, KindX509)
	chain, err := b.cfg.Issuer.SignX509(signing, grant, pub)
	if end(err); err != nil {
		return Joined{}, err
	}
	node.PreviousSerial, node.Serial = node.Serial, chain[0].SerialNumber.Bytes()
	node.PreviousKey, node.Key = node.Key, key[:]
	node.PreviousIssuedAt, node.IssuedAt = node.IssuedAt, now
	node.PreviousAuthority, node.Authority = node.Authority, authorityOf(chain)
	node.ExpiresAt = chain[0].NotAfter
	event.OK, event.Node, event.SPIFFEID, event.Identity = true, node.ID, node.ID, "node"
	event.Serial, event.NotAfter = serialText(chain[0].SerialNumber), chain[0].NotAfter
	event.Authority, event.Issued = node.Authority, now
	event.Digest, event.Facts = digestText(chain[0].Raw), node.Facts.Map()
	if err := b.recorded(ctx, fit(event)); err != nil {
		return Joined{}, fmt.Errorf("recording: %w", err)
	}
	saved, err := b.cfg.Store.SaveNode(ctx, node)
	if err != nil {
		return Joined{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(saved)
	// An SVID that was revoked meanwhile must not have made itself a new one.
	if err := b.good(saved); err != nil {
		return Joined{}, err
	}
	if err := b.good(shown); err != nil && event.Kind != "join" {
		return Joined{}, err
	}
	if event.Kind == "join" { // it may have proved other facts
		for _, s := range b.sessions[saved.ID] {
			s.reconsider(b.ground(saved.ID), nil, saved, now)
		}
	}
	return Joined{saved, chain}, nil
}

// keep takes over what the store has, unless what is known is newer: two calls
// may return from the store in another order than they were in it. The caller
// holds mu.
func (b *Broker) keep(n Node) {
	if n.Revision > b.nodes[n.ID].Revision {
		b.nodes[n.ID] = b.marked(n)
	}
}

// Node returns the node that may act under a certificate: it stands in the
// table, is not evicted, and serial number and public key are those of its last
// SVID or the last but one. The error wraps ErrNotFound otherwise, and ErrEvicted
// or ErrLeaving where that is why. It asks the store once where the node is not
// known, or not by this SVID: another broker may have given it.
//
// The Serial of the returned node is the one shown, for Renew: an agent that
// never got its last SVID keeps the one it has, however often answers are
// lost.
func (b *Broker) Node(ctx context.Context, id spiffeid.ID, serial *big.Int, key identity.KeyDigest) (Node, error) {
	n, err := b.showing(id, serial)
	if errors.Is(err, errUnknown) {
		if failed := b.learn(ctx, id.String(), serial); failed != nil {
			return Node{}, fmt.Errorf("node %s: %w: %w", id, ErrUnsure, failed)
		}
		n, err = b.showing(id, serial)
	}
	if err != nil {
		return Node{}, fmt.Errorf("node %s: %w", id, err)
	}
	if len(n.Key) > 0 && !slices.Equal(n.Key, key[:]) {
		return Node{}, fmt.Errorf("node %s: %w: its SVID has the serial number of one of ours and another key: somebody else can sign as our issuing CA %s", id, ErrNotFound, n.Authority)
	}
	if err := b.good(n); err != nil {
		return Node{}, err
	}
	return n, nil
}

// errUnknown is an ErrNotFound of what another broker may know.
var errUnknown = fmt.Errorf("%w", ErrNotFound)

// showing is the node that stands under an ID, as it was when it got an SVID of
// that serial number.
func (b *Broker) showing(id spiffeid.ID, serial *big.Int) (Node, error) {
	b.mu.RLock()
	n, ok := b.nodes[id.String()]
	leaving := b.leaving[id.String()] > 0
	b.mu.RUnlock()
	switch shown := serial.Bytes(); {
	case !ok:
		return Node{}, fmt.Errorf("%w: it has not joined", errUnknown)
	case !n.EvictedAt.IsZero():
		return Node{}, fmt.Errorf("%w: %w", ErrNotFound, ErrEvicted)
	case leaving: // told that its SVID is revoked, it would join again
		return Node{}, fmt.Errorf("%w: %w", ErrNotFound, ErrLeaving)
	case len(shown) == 0: // or it would equal a previous one that there is not
		return Node{}, fmt.Errorf("%w: its SVID has no serial", ErrNotFound)
	case slices.Equal(n.Serial, shown):
	case slices.Equal(n.PreviousSerial, shown):
		n.Serial, n.PreviousSerial = n.PreviousSerial, n.Serial
		n.Key, n.PreviousKey = n.PreviousKey, n.Key
		n.IssuedAt, n.PreviousIssuedAt = n.PreviousIssuedAt, n.IssuedAt
		n.Authority, n.PreviousAuthority = n.PreviousAuthority, n.Authority
	default:
		return Node{}, fmt.Errorf("%w: its SVID has been replaced twice", errUnknown)
	}
	return n, nil
}

// good refuses a node whose SVID, the one that it showed, is revoked.
func (b *Broker) good(n Node) error {
	if cut, hit := b.cuts.Load().hitNode(n); hit {
		return fmt.Errorf("node %s: %w: what was issued before %s is revoked; it joins again", n.ID, ErrNotFound, cut.Before.UTC().Format(time.RFC3339))
	}
	return nil
}

// own is the node's SVID as the index has it.
func (n Node) own() Issued {
	return Issued{Kind: KindX509, SPIFFEID: n.ID, Node: n.ID, Authority: n.Authority, IssuedAt: n.IssuedAt}
}

// standing refuses a node that was evicted, or whose SVID was revoked, while
// its request was on its way.
func (b *Broker) standing(node Node) error {
	n, ok := b.node(node.ID)
	if !ok || !n.EvictedAt.IsZero() {
		return fmt.Errorf("node %s: %w: it has not joined, or is evicted", node.ID, ErrNotFound)
	}
	return b.good(node)
}

func (b *Broker) node(id string) (Node, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n, ok := b.nodes[id]
	return n, ok
}

// Nodes returns all nodes, by ID.
func (b *Broker) Nodes() []Node {
	b.mu.RLock()
	defer b.mu.RUnlock()
	nodes := make([]Node, 0, len(b.nodes))
	for _, n := range b.nodes {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(x, y Node) int { return strings.Compare(x.ID, y.ID) })
	return nodes
}

// Evict shuts a node out: all that was issued to it, its open streams and, by
// its durable key, its return; and all nodes that have that key too. The record
// is durable when it returns. Where the store is away what was issued is revoked
// all the same, and the error says that the node may join again.
func (b *Broker) Evict(ctx context.Context, id, actor, reason string) (Node, error) {
	n, ok := b.node(id)
	if !ok {
		return Node{}, fmt.Errorf("evicting %s: %w", id, ErrNotFound)
	}
	return b.evictAll(ctx, n, actor, reason, b.evict)
}

// evictAll evicts a node, and those that have its durable key.
func (b *Broker) evictAll(ctx context.Context, n Node, actor, reason string, evict func(ctx context.Context, id, actor, reason string) (Node, error)) (Node, error) {
	id, others := n.ID, b.sharing(n)
	n, err := evict(ctx, id, actor, reason)
	for _, other := range others {
		_, failed := evict(ctx, other, actor, "as "+id+": "+reason)
		err = errors.Join(err, failed)
	}
	return n, err
}

// sharing are the other nodes of a durable key that are not evicted.
func (b *Broker) sharing(n Node) (ids []string) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for id, other := range b.nodes {
		if id != n.ID && other.DurableKey == n.DurableKey && other.EvictedAt.IsZero() {
			ids = append(ids, id)
		}
	}
	return ids
}

func (b *Broker) evict(ctx context.Context, id, actor, reason string) (Node, error) {
	defer b.leave(id)()
	now := b.cfg.Now()
	c := Cutoff{Kind: CutNode, Value: id, Reason: clip(reason, maxCutReason), Actor: clip(actor, maxCutActor), MadeAt: now}
	standing, kept := b.cut(c, false) // its sessions are told of the eviction, which says more
	n, err := b.cfg.Store.EvictNode(ctx, id, now)
	if err != nil {
		b.mu.Lock()
		b.tellCut(standing)
		b.mu.Unlock()
		return Node{}, errors.Join(fmt.Errorf("evicting %s: what it holds is revoked, but it may join again: %w", id, err), kept)
	}
	if err := errors.Join(kept, b.saveCutoffs(ctx)); err != nil {
		b.cfg.Log.WarnContext(ctx, "what an evicted node holds is revoked, but that is not kept everywhere yet", "node", id, "error", err)
	}
	b.mu.Lock()
	b.keep(n)
	for _, s := range b.sessions[id] {
		s.evict()
	}
	b.mu.Unlock()
	return n, b.recordEvicted(ctx, id, actor, reason, nil)
}

func (b *Broker) recordEvicted(ctx context.Context, id, actor, reason string, detail map[string]string) error {
	_, err := b.cfg.Audit.Append(ctx, audit.Event{Kind: "evict", OK: true, Node: id, Actor: actor, Reason: reason, Detail: detail})
	if err != nil {
		return fmt.Errorf("evicting %s: it is out, but that is not recorded: %w", id, err)
	}
	return nil
}

// EvictReason is why a node is out, as far as it is remembered: the record knows it
// for longer than what the node held could be in use.
func (b *Broker) EvictReason(n Node) string {
	if n.EvictedAt.IsZero() {
		return ""
	}
	return b.cuts.Load().all[cutKey{CutNode, n.ID}].Reason
}

// leave notes that a node is being evicted, until the returned function is
// called.
func (b *Broker) leave(id string) (done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaving[id]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.leaving[id]--; b.leaving[id] == 0 {
			delete(b.leaving, id)
		}
	}
}

// clip keeps what is to be kept within bounds; the record has all of it.
func clip(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

func digestText(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// serialText is a serial as openssl prints it.
func serialText(n *big.Int) string { return hex.EncodeToString(n.Bytes()) }
