// Package azure is the join method of Azure's machines: a node shows a token of its
// managed identity, made for us, and a document that Azure signs about the machine for
// a challenge of ours (attested data). Instance metadata gives both to every process
// there. A rule wants both unless it says otherwise.
//
// The token is trusted by the keys that the tenant's issuer publishes; the rule names
// the tenants, and no token chooses whom we ask. It must be for the rule's audience
// alone, of an application rather than a person, and of a managed identity: only these
// name the resource that has them. Any program of the tenant may have a token for an
// audience, so that alone is nothing.
//
// The document is trusted by its signer: the certificate that the signature was made
// with, not any that the message carries, has to be valid for Azure's metadata service
// by name and end in the rule's roots. Nothing that it links is fetched. Its nonce
// holds our trust domain, our challenge and the key that the node joins with: recorded
// or passed on, it is nothing, here and elsewhere.
//
// What is bound to what: the document names the machine by an ID that no other gets,
// and its subscription, but no name; the token names the resource and its group, but
// not that ID. Only the subscription stands in both, and a token of an identity that
// is no machine's own need not even have that. So a token that is stolen from one
// machine might be shown with the document of another: of the same subscription, or,
// where it names no machine, of any (allow by subscription, which is the document's).
// Three things stand against it: a token is for us alone, one that names a machine is
// taken from one node only, and a machine's own identity (system-assigned) is held by
// the first machine that joins with it, for good. With an identity that several share
// (user-assigned), who steals a token first has it. A rule that wants the token alone
// trusts whoever has it until it ends, a day perhaps, for Azure gives the same one
// again; one that wants the document alone knows subscription and machine.
//
// A node is banned by its machine's ID, or without a document by the resource. It
// comes back by itself.
package azure

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
)

// Method is the method's name, and its facts are node.azure.*.
const Method = "azure"

const (
	prefix = "node." + Method
	// heldFor is how long a machine's own identity is that machine's: longer than
	// they live.
	heldFor = 10 * 365 * 24 * time.Hour
	// warnBefore a certificate ends.
	warnBefore = 90 * 24 * time.Hour
)

// A Hold gives what a digest stands for to a holder, for whom it succeeds again and
// again until it ends. An error for which Config.Taken holds means that another has it.
type Hold func(ctx context.Context, digest [sha256.Size]byte, holder string, ends, now time.Time) error

// Config is the wiring of a method. All fields are required unless noted.
type Config struct {
	Settings    *Settings
	TrustDomain string
	Get         bearer.Get // asks an issuer
	Hold        Hold
	Taken       func(error) bool
	Now         func() time.Time
	Log         *slog.Logger // is told of certificates that end soon; nil discards
}

type method struct {
	cfg     Config
	issuers map[string]issuer // by what tokens say; empty: the rule wants none
	signers *signers          // nil: the rule wants no document

	mu     sync.Mutex // guards warned
	warned time.Time  // of certificates that end
}

// New returns the method of a rule. It keeps the issuers' keys, so one rule has one
// method for as long as it stands.
func New(cfg Config) (join.Method, error) {
	s := cfg.Settings
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" {
		return nil, errors.New("joining by azure: a trust domain is required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &method{cfg: cfg}
	var err error
	if s.wantsToken() {
		if m.issuers, err = newIssuers(cfg); err != nil {
			return nil, err
		}
	}
	if s.wantsDocument() {
		m.signers, err = s.signers()
	}
	return m, err
}

// Join verifies a token, then a document for a challenge, then that they agree.
func (m *method) Join(ctx context.Context, evidence []byte, ask join.Challenge) (join.Proof, error) {
	m.warn(ctx, m.cfg.Now())
	shown, err := readEvidence(evidence)
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	var t *token
	if m.issuers != nil {
		if t, err = m.token(ctx, shown); err != nil {
			return join.Proof{}, fmt.Errorf("the managed identity's token: %w", err)
		}
	}
	var d *document
	if m.signers != nil {
		if d, err = m.document(ctx, ask); err != nil {
			return join.Proof{}, fmt.Errorf("the attested document: %w", err)
		}
	}
	proof, err := prove(t, d)
	if err != nil {
		return join.Proof{}, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return proof, m.hold(ctx, t, d, proof.DurableKey)
}

// readEvidence reads what a node shows first: {"token": ...}, or {} where it has
// none.
func readEvidence(text []byte) (token []byte, err error) {
	all, err := bearer.Object(text)
	if err != nil {
		return nil, err
	}
	shown, ok := all["token"].(string)
	if ok && len(all) == 1 || len(all) == 0 {
		return []byte(shown), nil
	}
	return nil, errors.New("a token is wanted, and nothing else")
}

// document asks the node for one, for this challenge and the key that it joins with.
func (m *method) document(ctx context.Context, ask join.Challenge) (*document, error) {
	key, ok := join.Key(ctx)
	if !ok {
		return nil, errors.New("there is no key to bind it to")
	}
	challenge := make([]byte, 32)
	rand.Read(challenge) // never fails: crypto/rand ends the program instead
	answer, err := ask(ctx, challenge)
	if err != nil {
		return nil, err
	}
	d, err := m.signers.read(answer, nonce(m.cfg.TrustDomain, challenge, key), m.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return d, nil
}

// prove is what a token, a document or both prove.
func prove(t *token, d *document) (join.Proof, error) {
	facts, key, name := map[string][]string{}, []string(nil), ""
	put := func(name, value string) {
		if value != "" {
			facts[prefix+"."+name] = []string{value}
		}
	}
	if t != nil {
		t.facts(put)
		key, name = []string{"resource", t.machine.String()}, t.machine.name
	}
	switch {
	case d == nil && !t.machine.single():
		return join.Proof{}, errors.New("the token names no single machine, and the rule wants no document, which would")
	case d != nil && t != nil && t.machine.subscription != "" && t.machine.subscription != d.subscription:
		return join.Proof{}, fmt.Errorf("the token is of a machine in subscription %s, and the document of one in %s", t.machine.subscription, d.subscription)
	case d != nil:
		put("subscription", d.subscription)
		put("vm_id", d.machine)
		key = []string{"machine", d.subscription, d.machine}
	}
	if name == "" || !t.machine.single() {
		name = d.machine
	}
	p := join.Proof{Name: join.NodeName(name), DurableKey: join.Durable(key...)}
	var err error
	p.Facts, err = identity.NewFacts(prefix, facts)
	return p, err
}

// hold gives what names one machine to the node that shows it: a machine's own
// identity for good, and first, so that who may not have that can't keep the token
// from whom it belongs to; and a token until it ends.
func (m *method) hold(ctx context.Context, t *token, d *document, holder string) error {
	if t == nil || !t.machine.single() {
		return nil
	}
	now := m.cfg.Now()
	if t.identity.kind == virtualMachine && d != nil {
		digest := sha256.Sum256([]byte(strings.Join([]string{"join " + Method, t.tenant, t.object}, "\x00")))
		if err := m.cfg.Hold(ctx, digest, holder, now.Add(heldFor), now); err != nil {
			return m.taken(err, "another machine holds the identity of "+t.machine.name)
		}
	}
	if err := m.cfg.Hold(ctx, t.digest, holder, t.expires.Add(bearer.Skew), now); err != nil {
		return m.taken(err, "the token made another node before")
	}
	return nil
}

func (m *method) taken(err error, why string) error {
	if m.cfg.Taken(err) {
		return errors.Join(join.ErrEvidence, errors.New(why))
	}
	return err
}

// warn tells once a day of certificates that end soon, or have ended.
func (m *method) warn(ctx context.Context, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.signers == nil || now.Sub(m.warned) < 24*time.Hour {
		return
	}
	m.warned = now
	for _, e := range m.cfg.Settings.Endings() {
		if e.At.Before(now.Add(warnBefore)) {
			m.cfg.Log.WarnContext(ctx, "a certificate by which Azure's machines join ends: give their JoinRule the next one", "certificate", e.What, "ends", e.At)
		}
	}
}
