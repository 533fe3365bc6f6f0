package agent

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

type sourceKey struct {
	id     spiffeid.ID
	target string
}

// source is one session with a provider, for all workloads of this node with
// the same SPIFFE ID.
type source struct {
	*exchangers.Source
	revision uint64 // of the Target
	set      *set   // whose facts the exchange is made on
}

type sources struct {
	agent *Agent
	mu    sync.Mutex // guards all
	all   map[sourceKey]*source
}

func (s *sources) init(a *Agent) {
	s.agent, s.all = a, make(map[sourceKey]*source)
}

// remove closes the sources that match.
func (s *sources) remove(match func(sourceKey, *source) bool) {
	s.mu.Lock()
	var gone []*source
	for k, src := range s.all {
		if match(k, src) {
			gone = append(gone, src)
			delete(s.all, k)
		}
	}
	s.mu.Unlock()
	for _, src := range gone {
		src.Drop()
		src.Close()
	}
}

// drop erases the credentials that were obtained on a set of facts; an empty
// id means all.
func (s *sources) drop(set []byte) {
	s.remove(func(_ sourceKey, src *source) bool { return len(set) == 0 || string(src.set.id[:]) == string(set) })
}

func (s *sources) dropAll() { s.drop(nil) }
func (s *sources) close()   { s.drop(nil) }

// retain erases the credentials of a set whose identities no longer list their
// target, or list another revision of it.
func (s *sources) retain(set [sha256.Size]byte, svids []*SVID) {
	s.remove(func(k sourceKey, src *source) bool {
		if src.set.id != set {
			return false
		}
		_, t, ok := findTarget(svids, k.target)
		return !ok || t.Revision != src.revision
	})
}

func findTarget(svids []*SVID, name string) (*SVID, Target, bool) {
	for _, v := range svids {
		if i := slices.IndexFunc(v.Targets, func(t Target) bool { return t.Name == name }); i >= 0 {
			return v, v.Targets[i], true
		}
	}
	return nil, Target{}, false
}

// Credential exchanges a caller's SVID, attested afresh, for what a target
// gives: at once where one is held. The error is ErrDenied where no identity
// of the caller lists the target, else usually an *exchangers.Error.
func (a *Agent) Credential(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, error) {
	st, u, err := a.granted(ctx, p)
	if err != nil {
		return exchangers.Credential{}, err
	}
	defer a.sets.release(st, a.cfg.Now())
	v, t, ok := findTarget(u.SVIDs, target)
	if !ok {
		return exchangers.Credential{}, &Denied{Reason: fmt.Sprintf("no identity of this process lists the target %q (it lists: %s); the operator adds it to targets: of its Identity", target, listTargets(u.SVIDs))}
	}
	src, err := a.source(st, v, t)
	if err != nil {
		return exchangers.Credential{}, err
	}
	credential, err := src.Credential(ctx)
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("exchanging at %s as %s: %w", target, v.ID, err)
	}
	if err := p.Check(); err != nil {
		return exchangers.Credential{}, &Denied{Reason: "the calling process is not the one that connected"}
	}
	return credential, nil
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

func (a *Agent) source(st *set, v *SVID, t Target) (*source, error) {
	k := sourceKey{v.ID, t.Name}
	s := &a.sources
	s.mu.Lock()
	defer s.mu.Unlock()
	if src, ok := s.all[k]; ok && src.revision == t.Revision {
		return src, nil
	}
	if a.cfg.Exchanger == nil {
		return nil, fmt.Errorf("%w: this agent exchanges nothing", ErrUnavailable)
	}
	exchanger, err := a.cfg.Exchanger(t)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	if old, ok := s.all[k]; ok {
		old.Drop()
		go old.Close() // it waits for a call under way, which ends by its own limit
	}
	src := &source{revision: t.Revision, set: st}
	src.Source = exchangers.NewSource(exchangers.SourceConfig{
		Target: t.Name, Exchanger: exchanger, SVIDs: presented{a, st, v.ID, t.Name},
		Report: func(e exchangers.Event) { a.spool.exchange(e, v.Identity) },
		Log:    a.cfg.Log, Now: a.cfg.Now,
	})
	s.all[k] = src
	return src, nil
}

// presented is what an exchange may show: the identity's present SVID, or a
// fresh token for the target.
type presented struct {
	agent  *Agent
	set    *set
	id     spiffeid.ID
	target string
}

// ID is whom the exchange is for.
func (p presented) ID() spiffeid.ID { return p.id }

// X509 is the SVID now held.
func (p presented) X509(context.Context) (*x509svid.SVID, error) {
	u, state, err := p.agent.look(p.set)
	if err != nil {
		return nil, err
	}
	if state != held {
		return nil, fmt.Errorf("%w: no SVID of %s is held", ErrUnavailable, p.id)
	}
	for _, v := range u.SVIDs {
		if v.ID == p.id {
			return &x509svid.SVID{ID: v.ID, Hint: v.Hint, Certificates: v.Certificates, PrivateKey: v.Key}, nil
		}
	}
	return nil, &Denied{Reason: "the identity is no longer granted"}
}

// JWT asks the broker for a token for the target.
func (p presented) JWT(ctx context.Context) (string, error) {
	svids, _, err := p.agent.issueJWT(ctx, &api.IssueJWTRequest{Workload: p.set.workload, Target: p.target, SpiffeId: p.id.String()})
	if err != nil {
		return "", err
	}
	return svids[0].Token, nil
}
