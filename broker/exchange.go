package broker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/attribute"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// Evidence is an SVID that somebody without an agent shows to get something for
// it. Whoever makes one has found it good: signature, form, times and, of a
// JWT-SVID, audience; of a peer's, that the peer is believed and the ID accepted.
type Evidence struct {
	ID        spiffeid.ID
	Kind      string            // KindX509, which TLS proved to be the caller's, or KindJWT
	Serial    string            // hex serial or jti; empty: a peer's token without
	Authority string            // ID of the issuing CA or JWT key
	Once      [sha256.Size]byte // what it is spent by: of a JWT-SVID, which anybody may have copied
	IssuedAt  time.Time
	Expires   time.Time
}

// An ExchangeRequest asks for a JWT-SVID for audiences, or for what a target's
// provider gives.
type ExchangeRequest struct {
	Evidence  Evidence
	Audiences []string
	Target    string
}

// Why evidence that is good gets nothing: a Denial's code.
const (
	DeniedByPolicy  = "denied"
	DeniedRevoked   = "revoked"   // by a cut-off
	DeniedEvicted   = "evicted"   // the node that it was issued to
	DeniedUnknown   = "unknown"   // nobody of us issued it, or not to a workload
	DeniedSpent     = "spent"     // used before
	DeniedAmbiguous = "ambiguous" // several Identities grant it: a peer's workload has one name here
	DeniedPeer      = "peer"      // its Peer accepts no such ID, or is not believed now
)

// ErrBehind: what was issued is not known yet, as the index is behind the record.
var ErrBehind = errors.New("the index is behind the record")

// spentAfter is how long after its end evidence is known to be spent: brokers'
// clocks differ.
const spentAfter = time.Minute

// A refusedError ends an exchange with a Denial.
type refusedError struct{ code, why string }

func (e *refusedError) Error() string { return e.why }

func refused(code, format string, args ...any) error {
	return &refusedError{code, fmt.Sprintf(format, args...)}
}

// A bearer is who shows evidence: what is decided on.
type bearer struct {
	Evidence
	node    Node   // that the SVID was issued to; zero: it is a peer's
	row     Issued // likewise
	request identity.Request
}

// Exchange gives a JWT-SVID for evidence, which it spends. It ends no later, and
// is no evidence itself. Nobody's but an Identity's that stands and grants it
// now is given:
//
//   - For an SVID of ours, that by which it was issued: the issuance index says
//     which, and for which node. The Identity must not have changed since, as
//     nobody attests the process again; the node must be welcome, its facts as
//     they are now must not refute the Identity, no cut-off may have hit the
//     SVID, and a Deny holds that may hold, whatever the process is. An SVID that
//     the index doesn't know is none of ours, whatever it is signed with.
//   - For a peer's, the one that Decide finds for the facts peer.trust_domain,
//     peer.id and peer.path; act in the token names the original.
func (b *Broker) Exchange(ctx context.Context, r ExchangeRequest) (JWTSVID, *Denial, error) {
	done := b.issuing(AskedExchange)
	ctx, end := b.span(ctx, spanExchange, "")
	svid, err := b.exchange(ctx, r)
	denial, err := b.refuse(ctx, r, err)
	end(err, outcome(denial, err))
	if denial != nil || err != nil {
		done(0, []*Denial{denial}, err)
		return JWTSVID{}, denial, err
	}
	done(1, nil, nil)
	return svid, nil, nil
}

func (b *Broker) exchange(ctx context.Context, r ExchangeRequest) (JWTSVID, error) {
	if len(r.Audiences) == 0 || len(r.Audiences) > MaxAudiences || r.Target != "" || !fits(maxAsked, r.Audiences, r.Audiences...) {
		return JWTSVID{}, requestError("1 to %d audiences, of at most %d bytes, are taken", MaxAudiences, maxAsked)
	}
	who, err := b.bearer(ctx, r.Evidence)
	if err != nil {
		return JWTSVID{}, err
	}
	if err := b.outlast(ctx); err != nil {
		return JWTSVID{}, err
	}
	request := who.request
	request.Audiences, request.Time = r.Audiences, b.cfg.Now()
	_, end := b.span(ctx, spanDecide, KindJWT)
	d, err := decideOne(b.policy.Load(), request, "")
	if end(err); err != nil {
		return JWTSVID{}, err
	}
	if err := b.spend(ctx, r.Evidence); err != nil {
		return JWTSVID{}, err
	}
	token, made, err := b.signJWT(ctx, d.Grant)
	if err != nil {
		return JWTSVID{}, err
	}
	event := issued("issue.jwt", who.node, request, d, made)
	event.Detail = withDetail(event.Detail, r.Evidence.detail())
	if err := b.releaseTo(ctx, who, event); err != nil {
		return JWTSVID{}, err
	}
	return JWTSVID{Decision: d, Token: token, Expires: made.notAfter}, nil
}

// Stands says whether an X509-SVID of ours still counts where it is shown as
// evidence of who shows it, by the same rules as Exchange's. An error wrapping
// join.ErrEvidence means that it does not.
func (b *Broker) Stands(ctx context.Context, e Evidence) error {
	if e.ID.TrustDomain() != b.cfg.TrustDomain || e.Kind != KindX509 {
		return fmt.Errorf("%w: %s is no X509-SVID of ours", join.ErrEvidence, e.ID)
	}
	who, err := b.bearer(ctx, e)
	if err == nil {
		request := who.request
		request.Time = b.cfg.Now()
		_, err = decideOne(b.policy.Load(), request, "")
	}
	if errors.As(err, new(*refusedError)) {
		return fmt.Errorf("%w: %w", join.ErrEvidence, err)
	}
	return err
}

func (b *Broker) signJWT(ctx context.Context, g identity.Grant) (string, signed, error) {
	signing, end := b.span(ctx, spanSign, KindJWT)
	token, err := b.cfg.Issuer.SignJWT(signing, g)
	if end(err); err != nil {
		return "", signed{}, err
	}
	made, err := tokenClaims(token)
	return token, made, err
}

// decideOne decides for a bearer, who has one identity or none: of a target,
// one that lists it.
func decideOne(p *Policy, r identity.Request, target string) (identity.Decision, error) {
	decisions, err := p.Set.Decide(r)
	if target != "" {
		decisions = slices.DeleteFunc(decisions, func(d identity.Decision) bool { return !slices.Contains(d.Targets, target) })
	}
	switch {
	case errors.Is(err, identity.ErrDenied), err == nil && len(decisions) == 0:
		return identity.Decision{}, refused(DeniedByPolicy, "no Identity grants it, or a Deny withholds it")
	case err != nil:
		return identity.Decision{}, err
	case len(decisions) > 1:
		return identity.Decision{}, refused(DeniedAmbiguous, "%s and %s grant it: which is meant?", decisions[0].Identity, decisions[1].Identity)
	}
	return decisions[0], nil
}

// bearer finds out what is decided on.
func (b *Broker) bearer(ctx context.Context, e Evidence) (bearer, error) {
	who := bearer{Evidence: e, request: identity.Request{Ends: e.Expires}}
	if e.ID.TrustDomain() != b.cfg.TrustDomain {
		facts, err := identity.NewFacts("peer", map[string][]string{
			"peer.trust_domain": {e.ID.TrustDomain().Name()}, "peer.id": {e.ID.String()}, "peer.path": {e.ID.Path()},
		})
		who.request.Peer = facts
		return who, err
	}
	if identity.IsReserved(e.ID) { // whoever got it signed, and whatever the index says
		return who, refused(DeniedUnknown, "%s is no workload", e.ID)
	}
	row, err := b.lookUp(ctx, e)
	if err != nil {
		return who, err
	}
	if row.Node == "" {
		return who, refused(DeniedUnknown, "it is a person's, who logs in: only a workload's is exchanged")
	}
	who.row = row
	if err := b.stands(who); err != nil {
		return who, err
	}
	who.node, _ = b.node(row.Node)
	who.request.NodeID, who.request.Node = row.Node, who.node.Facts
	who.request.Presented = &identity.Presented{Identity: row.Identity, Revision: row.Revision, ID: e.ID}
	return who, nil
}

// stands refuses what has been revoked, and what a node got that is out. What a
// peer revoked we hear of no sooner than everybody: when it ends, or its keys do.
func (b *Broker) stands(who bearer) error {
	if who.row.Serial == "" {
		return nil
	}
	if cut, hit := b.cuts.Load().hit(who.row); hit {
		return refused(DeniedRevoked, "it was issued before %s: %s %s is revoked", cut.Before.UTC().Format(time.RFC3339), cut.Kind, cut.Value)
	}
	if n, ok := b.node(who.row.Node); who.row.Node != "" && (!ok || !n.EvictedAt.IsZero()) {
		return refused(DeniedEvicted, "%s, to which it was issued, has not joined, or is evicted", who.row.Node)
	}
	return nil
}

// lookUp finds an SVID of ours in the issuance index, into which all that was
// recorded goes within moments.
func (b *Broker) lookUp(ctx context.Context, e Evidence) (Issued, error) {
	if e.Serial == "" {
		return Issued{}, refused(DeniedUnknown, "it has no serial number or jti, as ours have")
	}
	recorded := b.cfg.Record.Head().Sequence
	rows, _, err := b.cfg.Index.Issued(ctx, IssuedQuery{Serial: e.Serial})
	if err == nil && len(rows) == 0 {
		waiting, cancel := context.WithTimeout(ctx, indexTime)
		defer cancel()
		if !b.indexer.wait(waiting, recorded) {
			return Issued{}, fmt.Errorf("finding out what was issued: %w", ErrBehind)
		}
		rows, _, err = b.cfg.Index.Issued(ctx, IssuedQuery{Serial: e.Serial})
	}
	if err != nil {
		return Issued{}, err
	}
	if len(rows) != 1 {
		return Issued{}, refused(DeniedUnknown, "nothing of this serial number was issued")
	}
	row := rows[0]
	if row.Kind != e.Kind || row.SPIFFEID != e.ID.String() || row.Authority != e.Authority || row.Identity == "" || !row.ExpiresAt.After(b.cfg.Now()) {
		return Issued{}, refused(DeniedUnknown, "what was issued under its serial number is another SVID: somebody else may sign as %s", e.Authority)
	}
	return row, nil
}

// spend makes sure that a token is used once. What is shown by TLS proves
// itself each time.
func (b *Broker) spend(ctx context.Context, e Evidence) error {
	if e.Kind == KindX509 {
		return nil
	}
	if e.Once == [sha256.Size]byte{} {
		return errors.New("a token without that by which it is spent")
	}
	err := b.cfg.Store.SpendEvidence(ctx, e.Once, e.Expires.Add(spentAfter), b.cfg.Now())
	if errors.Is(err, ErrSpent) {
		return refused(DeniedSpent, "it was used before")
	}
	return err
}

// releaseTo makes it durable what is about to be released to a bearer. It
// refuses what has been revoked meanwhile.
func (b *Broker) releaseTo(ctx context.Context, who bearer, event audit.Event) error {
	if err := b.recorded(ctx, event); err != nil {
		return fmt.Errorf("recording an exchange: %w", err)
	}
	if err := b.stands(who); err != nil {
		return err
	}
	made := Issued{SPIFFEID: event.SPIFFEID, Identity: event.Identity, Node: event.Node, Authority: event.Authority, IssuedAt: event.Issued}
	if cut, hit := b.cuts.Load().hit(made); hit {
		return fmt.Errorf("%w: %s %s", errMeanwhile, cut.Kind, cut.Value)
	}
	return nil
}

// refuse records why evidence that is good got nothing, once for many
// repetitions. Any other error it returns as it is.
func (b *Broker) refuse(ctx context.Context, r ExchangeRequest, err error) (*Denial, error) {
	var why *refusedError
	if err == nil {
		return nil, nil
	}
	if !errors.As(err, &why) {
		return nil, fmt.Errorf("exchanging an SVID of %s: %w", r.Evidence.ID, err)
	}
	return b.Refuse(ctx, r, why.code, why.why)
}

// Refuse records that evidence which is somebody's got nothing. The reason is for
// the operator.
func (b *Broker) Refuse(ctx context.Context, r ExchangeRequest, code, reason string) (*Denial, error) {
	e := r.Evidence
	event := audit.Event{
		Kind: "deny", SPIFFEID: e.ID.String(), Code: code, Reason: reason, Audiences: r.Audiences, Target: r.Target,
		Detail: e.detail(),
	}
	event.Detail["policy"] = strconv.FormatUint(b.policy.Load().Revision, 10)
	delete(event.Detail, "evidence_serial") // each has another, and repetitions are one record
	if code == DeniedPeer {                 // nor does a peer fill the record with IDs
		event.Detail["evidence"] = e.ID.TrustDomain().IDString()
	}
	if !fits(maxAsked, r.Audiences, r.Audiences...) {
		event.Audiences = nil
	}
	ref, err := b.denials.Append(ctx, event)
	if err != nil {
		return nil, fmt.Errorf("recording a denial: %w", err)
	}
	return &Denial{Record: ref.IDAt(b.cfg.Origin), Code: code}, nil
}

// CountRefused counts what strangers showed in vain. A reason is a few words of
// ours.
func (b *Broker) CountRefused(reason string) { b.shown.Add(reason) }

// withDetail adds more, which it keeps, to a record's detail.
func withDetail(detail, more map[string]string) map[string]string {
	maps.Copy(more, detail)
	return more
}

// detail names evidence in a record.
func (e Evidence) detail() map[string]string {
	m := map[string]string{"asked": "exchange", "evidence": e.ID.String(), "evidence_kind": e.Kind}
	if e.Serial != "" {
		m["evidence_serial"] = e.Serial
	}
	return m
}

// Lent is what an exchange at a target's provider may present: SVIDs of the one
// identity that was granted, which never leave the broker otherwise.
type Lent struct {
	ID     spiffeid.ID
	Target Target
	Ends   time.Time // the credential must end by then
	JWT    func(context.Context) (string, error)
	X509   func(context.Context) ([]*x509.Certificate, crypto.Signer, error)
}

// Traded is what a provider gave or, with an error, refused.
type Traded struct {
	Expires   time.Time
	RequestID string
	Code      string
	Class     string
}

// ErrOutlives: what a provider gave ends later than what was shown for it.
var ErrOutlives = errors.New("the credential would outlive the SVID that was shown")

// ExchangeAt lets trade exchange at a target's provider for evidence, which it
// spends, and records how that went: what trade got may be released where
// Denial and error are nil, and not otherwise. Nothing of it is kept, so that
// nobody has what another's evidence gave. For who is served see Exchange.
func (b *Broker) ExchangeAt(ctx context.Context, r ExchangeRequest, trade func(context.Context, Lent) (Traded, error)) (*Denial, error) {
	done := b.issuing(AskedExchange)
	ctx, end := b.span(ctx, spanExchange, "")
	denial, err := b.refuse(ctx, r, b.exchangeAt(ctx, r, trade))
	end(err, outcome(denial, err))
	done(0, []*Denial{denial}, err)
	return denial, err
}

func (b *Broker) exchangeAt(ctx context.Context, r ExchangeRequest, trade func(context.Context, Lent) (Traded, error)) error {
	if r.Target == "" || len(r.Target) > maxTarget || len(r.Audiences) > 0 {
		return requestError("a target's name has 1 to %d bytes, and excludes audiences", maxTarget)
	}
	who, err := b.bearer(ctx, r.Evidence)
	if err != nil {
		return err
	}
	l := lender{b: b, who: who, target: r.Target, policy: b.policy.Load()}
	request := l.ask()
	_, end := b.span(ctx, spanDecide, "")
	d, err := decideOne(l.policy, request, r.Target)
	if end(err); err != nil {
		return err
	}
	target, ok := l.policy.Targets[r.Target]
	if !ok {
		return refused(DeniedByPolicy, "there is no target %s", r.Target)
	}
	if err := b.spend(ctx, r.Evidence); err != nil {
		return err
	}
	trading, end := b.span(ctx, spanTrade, "")
	got, err := trade(trading, Lent{ID: d.ID, Target: target, Ends: r.Evidence.Expires, JWT: l.jwt, X509: l.x509})
	if err == nil && (got.Expires.IsZero() || got.Expires.After(r.Evidence.Expires)) {
		err = fmt.Errorf("%w: it ends at %s, that at %s", ErrOutlives, got.Expires.UTC().Format(time.RFC3339), r.Evidence.Expires.UTC().Format(time.RFC3339))
		got.Code = "outlives"
	}
	end(err, attribute.String("credence.target", target.Name), attribute.String("credence.flow", target.Flow), attribute.String("credence.cloud_request_id", got.RequestID))
	event := audit.Event{
		Kind: "exchange", OK: err == nil, Node: who.node.ID, SPIFFEID: d.ID.String(), Identity: d.Identity, Revision: d.Revision,
		Target: r.Target, Issued: request.Time, NotAfter: got.Expires, Code: got.Code, Detail: r.Evidence.detail(),
	}
	for name, value := range map[string]string{"class": got.Class, "request_id": got.RequestID} {
		if value != "" {
			event.Detail[name] = clip(value, maxCutActor)
		}
	}
	if released := b.releaseTo(ctx, who, event); released != nil {
		return errors.Join(err, released)
	}
	return err
}

// A lender signs what an exchange presents. Each signature is decided, and
// recorded before it is shown to anybody.
type lender struct {
	b      *Broker
	who    bearer
	target string
	policy *Policy
}

// ask is the request for the bearer and the target: for a token, or for a key
// where the target takes an X509-SVID, which the policy says.
func (l *lender) ask(keys ...identity.KeyDigest) identity.Request {
	r := l.who.request
	r.Time, r.Target, r.Keys = l.b.cfg.Now(), l.target, nil
	if audience, known := l.policy.Set.TargetAudience(l.target); known && audience == "" {
		r.Target, r.Keys = "", keys
	}
	return r
}

func (l *lender) jwt(ctx context.Context) (string, error) {
	if err := l.b.outlast(ctx); err != nil {
		return "", err
	}
	request := l.ask()
	d, err := decideOne(l.policy, request, l.target)
	if err != nil {
		return "", err
	}
	token, made, err := l.b.signJWT(ctx, d.Grant)
	if err != nil {
		return "", err
	}
	return token, l.record(ctx, issued("issue.jwt", l.who.node, request, d, made))
}

func (l *lender) x509(ctx context.Context) ([]*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	digest, err := identity.DigestKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	request := l.ask(digest)
	d, err := decideOne(l.policy, request, l.target)
	if err != nil {
		return nil, nil, err
	}
	signing, end := l.b.span(ctx, spanSign, KindX509)
	chain, err := l.b.cfg.Issuer.SignX509(signing, d.Grant, key.Public())
	if end(err); err != nil {
		return nil, nil, err
	}
	event := issued("issue.x509", l.who.node, request, d, signed{
		serial: serialText(chain[0].SerialNumber), authority: authorityOf(chain), notAfter: chain[0].NotAfter, raw: chain[0].Raw,
	})
	return chain, key, l.record(ctx, event)
}

func (l *lender) record(ctx context.Context, event audit.Event) error {
	event.Target, event.Detail = l.target, withDetail(event.Detail, l.who.detail())
	return l.b.releaseTo(ctx, l.who, event)
}
