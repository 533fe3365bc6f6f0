package broker

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
)

// maxLogin bounds how many SVIDs a person gets at once.
const maxLogin = 16

// A Login is what a provider said of a person, once, for one key. Whoever makes
// one has found it good.
type Login struct {
	User    identity.Facts    // user.*
	Unknown []string          // user.* facts that may be there
	Once    [sha256.Size]byte // by which it is spent
	Expires time.Time         // of what the provider gave
	Key     crypto.PublicKey  // that it is for
	TTL     time.Duration     // asked for; 0: the identities'
}

// Login gives a person the X509-SVIDs of the identities that their facts give
// them, all for the one key. It spends the login, and records it and what was
// issued before any of it is released. Where nothing is granted, or the login was
// spent before, it returns a Denial and no error.
func (b *Broker) Login(ctx context.Context, l Login) ([]X509SVID, *Denial, error) {
	done := b.issuing(AskedLogin)
	ctx, end := b.span(ctx, spanLogin, "")
	svids, err := b.login(ctx, l)
	denial, err := b.denyLogin(ctx, l, err)
	end(err, outcome(denial, err))
	done(len(svids), []*Denial{denial}, err)
	if denial != nil || err != nil {
		return nil, denial, err
	}
	return svids, nil, nil
}

func (b *Broker) login(ctx context.Context, l Login) ([]X509SVID, error) {
	key, err := identity.DigestKey(l.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if l.User.Len() == 0 || l.Once == [sha256.Size]byte{} || l.Expires.IsZero() {
		return nil, errors.New("a login of nobody, or without that by which it is spent")
	}
	set := b.policy.Load().Set
	request := identity.Request{User: l.User, Unknown: l.Unknown, TTL: l.TTL, Time: b.cfg.Now()}
	_, end := b.span(ctx, spanDecide, KindX509)
	decisions, err := decideLogin(set, request, key)
	if end(err); err != nil {
		return nil, err
	}
	err = b.cfg.Store.SpendEvidence(ctx, l.Once, l.Expires.Add(spentAfter), request.Time)
	if errors.Is(err, ErrSpent) {
		return nil, refused(DeniedSpent, "its ID token was used before")
	}
	if err != nil {
		return nil, err
	}
	events := []audit.Event{fit(audit.Event{Kind: "login", OK: true, Facts: l.User.Map(), Detail: loginDetail(l)})}
	var svids []X509SVID
	for _, d := range decisions {
		signing, end := b.span(ctx, spanSign, KindX509)
		chain, err := b.cfg.Issuer.SignX509(signing, d.Grant, l.Key)
		if end(err); err != nil {
			return nil, err
		}
		svids = append(svids, X509SVID{Decision: d, Chain: chain})
		events = append(events, issued("issue.x509", Node{}, request, d, signed{
			serial: serialText(chain[0].SerialNumber), authority: authorityOf(chain), notAfter: chain[0].NotAfter, raw: chain[0].Raw,
		}))
	}
	if err := b.recorded(ctx, events...); err != nil {
		return nil, fmt.Errorf("recording it: %w", err)
	}
	cuts := b.cuts.Load()
	for _, e := range events[1:] {
		if cut, hit := cuts.hit(Issued{SPIFFEID: e.SPIFFEID, Identity: e.Identity, Authority: e.Authority, IssuedAt: e.Issued}); hit {
			return nil, fmt.Errorf("%w: %s %s", errMeanwhile, cut.Kind, cut.Value)
		}
	}
	return svids, nil
}

// decideLogin decides for one key, of each SPIFFE ID that is granted: where
// several Identities grant one, the first by name.
func decideLogin(set *identity.Set, r identity.Request, key identity.KeyDigest) ([]identity.Decision, error) {
	all, err := set.Decide(r)
	if err != nil {
		return nil, err
	}
	var ids []spiffeid.ID
	for _, d := range all {
		if !slices.Contains(ids, d.ID) {
			ids = append(ids, d.ID)
		}
	}
	if len(ids) > maxLogin {
		return nil, refused(DeniedAmbiguous, "%d SPIFFE IDs are granted, at most %d are given", len(ids), maxLogin)
	}
	var decisions []identity.Decision
	for _, id := range ids {
		r.SPIFFEID, r.Keys = id, []identity.KeyDigest{key}
		some, err := set.Decide(r)
		if err != nil {
			return nil, err
		}
		decisions = append(decisions, some[0]) // it took the key
	}
	return decisions, nil
}

func loginDetail(l Login) map[string]string {
	detail := map[string]string{}
	if len(l.Unknown) > 0 {
		detail["unknown"] = strings.Join(l.Unknown, " ")
	}
	if l.TTL != 0 {
		detail["ttl"] = l.TTL.String()
	}
	return detail
}

// denyLogin records why a person whom the provider knows gets nothing, once for
// many repetitions. Any other error it returns as it is.
func (b *Broker) denyLogin(ctx context.Context, l Login, err error) (*Denial, error) {
	denial := &Denial{Code: DeniedByPolicy}
	reason := "no Identity grants it, or a Deny withholds it"
	var why *refusedError
	life := (*identity.LifeError)(nil)
	switch {
	case err == nil:
		return nil, nil
	case errors.As(err, &why):
		denial.Code, reason = why.code, why.why
	case errors.As(err, &life):
		denial.Code, denial.Least, denial.Most, reason = DeniedLife, life.Least, life.Most, life.Error()
	case errors.Is(err, identity.ErrDenied):
	default:
		return nil, fmt.Errorf("logging in: %w", err)
	}
	event := audit.Event{Kind: "login", Code: denial.Code, Reason: reason, Facts: l.User.Map(), Detail: loginDetail(l)}
	event.Detail["policy"] = strconv.FormatUint(b.policy.Load().Revision, 10)
	ref, err := b.denials.Append(ctx, fit(event))
	if err != nil {
		return nil, fmt.Errorf("recording a denial: %w", err)
	}
	denial.Record = ref.IDAt(b.cfg.Origin)
	return denial, nil
}

// CountLoginRefused counts what strangers showed in vain to log in. A reason is a
// few words of ours.
func (b *Broker) CountLoginRefused(reason string) { b.unnamed.Add(reason) }

// RefuseOperator records that somebody with an SVID of ours may not do what they
// asked of the broker, once for many repetitions.
func (b *Broker) RefuseOperator(ctx context.Context, id spiffeid.ID, asked, code, reason string) error {
	event := audit.Event{Kind: "admin", Actor: id.String(), Code: code, Reason: clip(reason, maxCutReason), Detail: map[string]string{"asked": asked, "actor": id.String()}}
	if _, err := b.denials.Append(ctx, event); err != nil {
		return fmt.Errorf("recording a denial: %w", err)
	}
	return nil
}
