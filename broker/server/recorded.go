package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"strconv"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// The kinds of record of what comes about without an operator, too.
const (
	RecordAuthority = "authority.state" // a key that signs got another state
	RecordPeer      = "peer.bundle"     // a peer's bundle is believed, held or forgotten
)

// theClock stands for who did what nobody asked for.
const theClock = "clock"

type actorKey struct{}

// as names who is behind what is done under a context.
func as(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

func actorOf(ctx context.Context) string {
	if actor, ok := ctx.Value(actorKey{}).(string); ok {
		return actor
	}
	return theClock
}

// about records events, does what they are about, and if that fails records that
// too. What cannot be recorded is not done.
func about(ctx context.Context, record broker.Recorder, events []audit.Event, do func() error) error {
	if len(events) == 0 {
		return do()
	}
	if _, err := record.Append(ctx, events...); err != nil {
		return err
	}
	err := do()
	if err == nil {
		return nil
	}
	failed := make([]audit.Event, len(events))
	for i, e := range events {
		failed[i] = e
		failed[i].OK, failed[i].Reason = false, clipText(err.Error(), maxReason)
	}
	_, unrecorded := record.Append(context.WithoutCancel(ctx), failed...)
	return errors.Join(err, unrecorded)
}

// authorityRecords are authorities each of whose states is recorded before it is
// kept, whether an operator or the clock is behind it.
type authorityRecords struct {
	authority.Records
	record broker.Recorder

	mu     sync.Mutex // guards states
	states map[string]authority.State
}

// RecordAuthorities makes what changes in r a record.
func RecordAuthorities(r authority.Records, record broker.Recorder) authority.Records {
	return &authorityRecords{Records: r, record: record, states: make(map[string]authority.State)}
}

func (a *authorityRecords) Authorities(ctx context.Context) ([]authority.Record, authority.Publication, error) {
	all, p, err := a.Records.Authorities(ctx)
	if err == nil {
		a.know(all)
	}
	return all, p, err
}

func (a *authorityRecords) know(all []authority.Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range all {
		a.states[r.ID] = r.State
	}
}

func (a *authorityRecords) SaveAuthorities(ctx context.Context, c authority.Change) (saved authority.Saved, err error) {
	err = about(ctx, a.record, a.events(ctx, c), func() error {
		saved, err = a.Records.SaveAuthorities(ctx, c)
		return err
	})
	if err == nil {
		a.know(c.Records)
	}
	return saved, err
}

// events are those of the authorities whose state changes.
func (a *authorityRecords) events(ctx context.Context, c authority.Change) (events []audit.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range c.Records {
		from, known := a.states[r.ID]
		if known && from == r.State {
			continue
		}
		detail := map[string]string{"use": string(r.Use), "alg": r.Alg, "from": string(from), "broker": r.Broker}
		maps.DeleteFunc(detail, func(_, value string) bool { return value == "" })
		events = append(events, audit.Event{
			Kind: RecordAuthority, OK: true, Code: string(r.State), Authority: r.ID, NotAfter: r.NotAfter, Actor: actorOf(ctx), Reason: clipText(r.Reason, maxReason), Detail: detail,
		})
	}
	return events
}

// peerBundles are peers' bundles of which each other document is recorded before
// it is kept.
type peerBundles struct {
	federation.Store
	record broker.Recorder

	mu   sync.Mutex // guards have
	have map[spiffeid.TrustDomain]peerKept
}

type peerKept struct{ document, held [sha256.Size]byte }

// RecordPeers makes what changes in s a record.
func RecordPeers(s federation.Store, record broker.Recorder) federation.Store {
	return &peerBundles{Store: s, record: record, have: make(map[spiffeid.TrustDomain]peerKept)}
}

func keptOf(s federation.Stored) peerKept {
	return peerKept{sha256.Sum256(s.Document), sha256.Sum256(s.Held)}
}

func (p *peerBundles) Bundles(ctx context.Context) ([]federation.Stored, error) {
	all, err := p.Store.Bundles(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range all {
		p.have[s.TrustDomain] = keptOf(s)
	}
	return all, err
}

func (p *peerBundles) SaveBundle(ctx context.Context, s federation.Stored) error {
	next := keptOf(s)
	p.mu.Lock()
	before, known := p.have[s.TrustDomain]
	p.mu.Unlock()
	var events []audit.Event
	event := func(code string, digest [sha256.Size]byte) {
		events = append(events, audit.Event{
			Kind: RecordPeer, OK: true, Code: code, Digest: hex.EncodeToString(digest[:]), Actor: actorOf(ctx),
			Detail: map[string]string{"trust_domain": s.TrustDomain.Name(), "sequence": strconv.FormatUint(s.Sequence, 10)},
		})
	}
	if !known || before.document != next.document {
		event("believed", next.document)
	}
	if len(s.Held) > 0 && (!known || before.held != next.held) {
		event("held", next.held)
	}
	err := about(ctx, p.record, events, func() error { return p.Store.SaveBundle(ctx, s) })
	if err == nil {
		p.mu.Lock()
		p.have[s.TrustDomain] = next
		p.mu.Unlock()
	}
	return err
}

func (p *peerBundles) DeleteBundle(ctx context.Context, td spiffeid.TrustDomain) error {
	p.mu.Lock()
	_, known := p.have[td]
	p.mu.Unlock()
	var events []audit.Event
	if known {
		events = []audit.Event{{Kind: RecordPeer, OK: true, Code: "forgotten", Actor: actorOf(ctx), Detail: map[string]string{"trust_domain": td.Name()}}}
	}
	err := about(ctx, p.record, events, func() error { return p.Store.DeleteBundle(ctx, td) })
	if err == nil {
		p.mu.Lock()
		delete(p.have, td)
		p.mu.Unlock()
	}
	return err
}
