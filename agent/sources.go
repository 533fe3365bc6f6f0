package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// idleSource is how long a session that nobody asks for is kept fresh.
const idleSource = time.Hour

// sourceKey tells sessions apart: by all that a Target says, its account,
// region, tenant, audience, scopes and session policy, whatever its revision
// claims.
type sourceKey struct {
	id     spiffeid.ID
	target string
	says   [sha256.Size]byte
}

// digest is of all that the broker told of a Target.
func (t Target) digest() [sha256.Size]byte {
	return sha256.Sum256([]byte(joined(t.Name, strconv.FormatUint(t.Revision, 10), t.Flow, string(t.Settings))))
}

// joined puts a length before each text, so that no two lists read alike.
func joined(texts ...string) string {
	b := binary.AppendUvarint(nil, uint64(len(texts)))
	for _, text := range texts {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	return string(b)
}

// source is one session with a provider, for all workloads of this node with
// the same SPIFFE ID.
type source struct {
	*exchangers.Source
	flow string

	// Guarded by sources.mu.
	set      *set // whose facts the next exchange is made on: the last caller's
	lastUsed time.Time
}

type sources struct {
	agent   *Agent
	closing sync.WaitGroup

	mu    sync.Mutex // guards all and ended
	all   map[sourceKey]*source
	ended bool
}

func (s *sources) init(a *Agent) {
	s.agent, s.all = a, make(map[sourceKey]*source)
}

// remove erases the sources that match. It doesn't wait for exchanges under
// way: their results reach nobody.
func (s *sources) remove(match func(sourceKey, *source) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, src := range s.all {
		if match(k, src) {
			s.discard(k, src)
		}
	}
}

// discard must be called with mu held.
func (s *sources) discard(k sourceKey, src *source) {
	delete(s.all, k)
	src.Drop()
	s.closing.Go(src.Close)
	s.agent.sets.release(src.set, s.agent.cfg.Now())
}

// look has all sessions see what is due by the wall clock.
func (s *sources) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, src := range s.all {
		src.Look()
	}
}

// sessions are all, by target and then SPIFFE ID.
func (s *sources) sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Session, 0, len(s.all))
	for k, src := range s.all {
		all = append(all, Session{k.target, src.flow, k.id, src.Session()})
	}
	slices.SortFunc(all, func(x, y Session) int {
		return cmp.Or(cmp.Compare(x.Target, y.Target), cmp.Compare(x.ID.String(), y.ID.String()))
	})
	return all
}

// drop erases the credentials that are kept fresh on a set of facts; an empty
// id means all.
func (s *sources) drop(set []byte) {
	s.remove(func(_ sourceKey, src *source) bool { return len(set) == 0 || string(src.set.id[:]) == string(set) })
}

// end drops everything for good, and returns when no exchange is under way.
func (s *sources) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.drop(nil)
	s.closing.Wait()
}

// sweep drops the sessions that nobody has asked for in a while.
func (s *sources) sweep(now time.Time) {
	s.remove(func(_ sourceKey, src *source) bool { return now.Sub(src.lastUsed) > idleSource })
}

// retain erases the credentials of a set whose identities no longer list their
// target, or list another revision of it.
func (s *sources) retain(set [sha256.Size]byte, svids []*SVID) {
	s.remove(func(k sourceKey, src *source) bool {
		return src.set.id == set && !slices.ContainsFunc(svids, func(v *SVID) bool {
			t, ok := v.target(k.target)
			return ok && v.ID == k.id && t.digest() == k.says
		})
	})
}

func (v *SVID) target(name string) (Target, bool) {
	i := slices.IndexFunc(v.Targets, func(t Target) bool { return t.Name == name })
	if i < 0 {
		return Target{}, false
	}
	return v.Targets[i], true
}

// Credential exchanges a caller's SVID, attested afresh, for what a target
// gives: at once where one is held. The error is ErrDenied where no identity
// of the caller lists the target, else usually an *exchangers.Error.
func (a *Agent) Credential(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, error) {
	got, err := a.Exchange(ctx, p, target, "")
	return got.Credential, err
}

func (a *Agent) credential(ctx context.Context, p *caller.Process, target, claims string) (Exchanged, error) {
	st, u, err := a.granted(ctx, p)
	if err != nil {
		return Exchanged{}, err
	}
	defer func() { a.sets.release(st, a.cfg.Now()) }()
	credential, v, err := a.exchange(ctx, st, u, target, claims)
	if err != nil {
		return Exchanged{}, err
	}
	if err := p.Check(); err != nil {
		a.reports.refused(st, notTheSame, target)
		return Exchanged{}, errChanged()
	}
	t, _ := v.target(target) // it gave the credential
	return Exchanged{credential, t, v.ID}, nil
}

// exchange is Exchange on what a set holds.
func (a *Agent) exchange(ctx context.Context, st *set, u Update, target, claims string) (exchangers.Credential, *SVID, error) {
	v, t, err := a.listed(st, u, target)
	if err != nil {
		return exchangers.Credential{}, nil, err
	}
	src, err := a.sources.get(st, v, t)
	if err != nil {
		return exchangers.Credential{}, nil, err
	}
	var credential exchangers.Credential
	ctx, end := a.span(ctx, t)
	if claims == "" {
		credential, err = src.Credential(ctx)
	} else {
		credential, err = src.Answer(ctx, claims)
	}
	end(credential, err)
	a.observe(Event{What: EventDelivered, Subject: t.Name, Detail: t.Flow, Outcome: outcomeOf(err)})
	if err != nil {
		return exchangers.Credential{}, nil, fmt.Errorf("exchanging at %s as %s: %w", target, v.ID, err)
	}
	return credential, v, nil
}

// listed is findTarget, or a denial, which the broker's record is told of.
func (a *Agent) listed(st *set, u Update, target string) (*SVID, Target, error) {
	v, t, ok := findTarget(u.SVIDs, target)
	if !ok {
		a.reports.refused(st, notListedHere, target)
		return nil, Target{}, &Denied{Code: TargetNotListed, Meta: map[string]string{"target": target},
			Reason: fmt.Sprintf("no identity of %s lists the target %q (it lists: %s); the operator adds it to targets: of its Identity", bearer(st.workload), target, listTargets(u.SVIDs))}
	}
	return v, t, nil
}

// findTarget returns the first identity that lists a target.
func findTarget(svids []*SVID, name string) (*SVID, Target, bool) {
	for _, v := range svids {
		if t, ok := v.target(name); ok {
			return v, t, true
		}
	}
	return nil, Target{}, false
}

func listTargets(svids []*SVID) string {
	var names []string
	for _, v := range svids {
		for _, t := range v.Targets {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// get returns the session of an identity with a target, from now on kept fresh
// on the facts of st.
func (s *sources) get(st *set, v *SVID, t Target) (*source, error) {
	k := sourceKey{v.ID, t.Name, t.digest()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, fmt.Errorf("%w: it stops", ErrUnavailable)
	}
	src, ok := s.all[k]
	if !ok {
		var err error
		if src, err = s.open(v, t); err != nil {
			return nil, err
		}
		for other, old := range s.all { // of the Target as it was
			if other.id == k.id && other.target == k.target {
				s.discard(other, old)
			}
		}
		s.all[k] = src
	}
	if src.set != st {
		s.agent.sets.hold(st)
		if src.set != nil {
			s.agent.sets.release(src.set, s.agent.cfg.Now())
		}
		src.set = st
	}
	src.lastUsed = s.agent.cfg.Now()
	return src, nil
}

func (s *sources) open(v *SVID, t Target) (*source, error) {
	cfg := s.agent.cfg
	if cfg.Exchanger == nil {
		return nil, fmt.Errorf("%w: this agent exchanges nothing", ErrUnavailable)
	}
	exchanger, err := cfg.Exchanger(t)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	src := &source{flow: t.Flow}
	identity := v.Identity
	src.Source = exchangers.NewSource(exchangers.SourceConfig{
		Target: t.Name, Exchanger: exchanger, SVIDs: presented{s, src, v.ID, t.Name},
		Ready: s.agent.reports.room, Keep: traced,
		Report: func(ctx context.Context, e exchangers.Event) error {
			s.agent.observe(Event{What: EventExchanged, Subject: t.Name, Detail: t.Flow, Outcome: classOf(e)})
			return s.agent.reports.exchange(ctx, e, identity)
		},
		Log: cfg.Log, Now: cfg.Now,
	})
	return src, nil
}

// presented is what an exchange may show: the identity's present SVID, or a
// fresh token for the target.
type presented struct {
	sources *sources
	source  *source
	id      spiffeid.ID
	target  string
}

func (p presented) set() *set {
	p.sources.mu.Lock()
	defer p.sources.mu.Unlock()
	return p.source.set
}

// ID is whom the exchange is for.
func (p presented) ID() spiffeid.ID { return p.id }

// X509 is the SVID now held.
func (p presented) X509(context.Context) (*x509svid.SVID, error) {
	u, held, err := p.sources.agent.look(p.set(), 0)
	if err != nil {
		return nil, err
	}
	if !held {
		return nil, fmt.Errorf("%w: no SVID of %s is held", ErrUnavailable, p.id)
	}
	for _, v := range u.SVIDs {
		if _, listed := v.target(p.target); listed && v.ID == p.id {
			return &x509svid.SVID{ID: v.ID, Hint: v.Hint, Certificates: v.Certificates, PrivateKey: v.Key}, nil
		}
	}
	return nil, &Denied{Reason: "the identity is no longer granted", Code: Withdrawn}
}

// JWT asks the broker for a token for the target.
func (p presented) JWT(ctx context.Context) (string, error) {
	got, err := p.sources.agent.issueJWT(ctx, &api.IssueJWTRequest{
		Workload: p.sources.agent.asks(ctx, p.set()), Target: p.target, SpiffeId: p.id.String(),
	}, nil)
	if err != nil {
		return "", err
	}
	return got.svids[0].Token, nil
}
