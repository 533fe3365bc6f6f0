package broker

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
)

// Bounds of one call.
const (
	MaxItems     = 64
	MaxKeys      = 8
	MaxAudiences = 16
	maxHeld      = 64
	maxTarget    = 63       // bytes; no Target has a longer name
	maxAsked     = 16 << 10 // bytes of all audiences together, as the record writes them
)

// A Workload is what an agent attested of one process.
type Workload struct {
	Facts   identity.Facts // workload.*
	Unknown []string       // names or prefixes whose attestor failed
}

// An X509Item asks for the X509-SVIDs of one workload.
type X509Item struct {
	Workload Workload
	Set      [sha256.Size]byte // digest of the workload as the agent sent it
	Keys     []crypto.PublicKey
	Held     []Held
	TTL      time.Duration // at most the identities' (identity.LifeError); then nothing that is held stands for it
}

// Held is an SVID that the agent has: it is not signed again if what is
// granted is the same.
type Held struct {
	Identity string
	Digest   [sha256.Size]byte
	NotAfter time.Time
}

// An X509Result answers one item: SVIDs, or a Denial.
type X509Result struct {
	SVIDs      []X509SVID
	KeysNeeded int // more keys to send, for the SVIDs that got none
	Denial     *Denial
	Revision   uint64 // of the policy that decided
}

// An X509SVID is one identity of a workload.
type X509SVID struct {
	identity.Decision
	Chain     []*x509.Certificate // nil: the held one stands
	PublicKey int                 // index into the item's keys
	Digest    [sha256.Size]byte
	Targets   []Target
}

// A Denial tells the caller which record to quote to the operator.
type Denial struct {
	Record      string
	Code        string
	Least, Most time.Duration // of DeniedLife: the bound that the life asked for breaks; the other is 0
}

// Why a node gets nothing: a Denial's code. What the facts give nothing for, and
// what a Deny withholds, are one: the node learns no more.
const (
	DeniedAll      = "denied"
	DeniedAudience = "audience_not_listed"
	DeniedTarget   = "target_not_listed"
	DeniedX509     = "target_takes_x509"
	DeniedID       = "spiffe_id_not_granted"
	DeniedLife     = "ttl_refused"     // a life under the least, or over that of an identity
	DeniedIssuer   = "no_issuer"       // so the broker makes no JWT-SVID
	DeniedRequest  = "request_refused" // it says two things at once, or breaks a bound
)

// A JWTRequest asks for JWT-SVIDs of one workload.
type JWTRequest struct {
	Workload  Workload
	Set       [sha256.Size]byte
	Audiences []string
	SPIFFEID  spiffeid.ID // zero: all
	Target    string      // for its exchange alone
	ToFile    bool
	TTL       time.Duration
}

// A JWTSVID is a token and what it says.
type JWTSVID struct {
	identity.Decision
	Token   string
	Expires time.Time
}

// errMeanwhile is ErrConflict where what was made has been revoked before it
// was released.
var errMeanwhile = fmt.Errorf("%w: revoked while it was made", ErrConflict)

// IssueX509 decides, signs and records for each item, and releases all of it
// once it is durable. A denied item has a Denial, not an error.
func (b *Broker) IssueX509(ctx context.Context, node Node, items []X509Item) ([]X509Result, error) {
	done := b.issuing(KindX509)
	results, err := b.issueX509(ctx, node, items)
	if errors.Is(err, errMeanwhile) { // what is made now is from after it
		results, err = b.issueX509(ctx, node, items)
	}
	signed, denied := made(results)
	done(signed, denied, err)
	return results, err
}

// made says how much was signed, and what was denied.
func made(results []X509Result) (signed int, denied []*Denial) {
	for _, r := range results {
		if r.Denial != nil {
			denied = append(denied, r.Denial)
		}
		for _, s := range r.SVIDs {
			if s.Chain != nil {
				signed++
			}
		}
	}
	return signed, denied
}

func (b *Broker) issueX509(ctx context.Context, node Node, items []X509Item) ([]X509Result, error) {
	if len(items) == 0 || len(items) > MaxItems {
		return nil, fmt.Errorf("issuing to %s: %w: %d items, 1 to %d are taken", node.ID, ErrRequest, len(items), MaxItems)
	}
	if err := b.standing(node); err != nil {
		return nil, fmt.Errorf("issuing: %w", err)
	}
	policy := b.ground(node.ID)
	results := make([]X509Result, len(items))
	var events []audit.Event
	for i, item := range items {
		if len(item.Keys) > MaxKeys || len(item.Held) > maxHeld {
			return nil, fmt.Errorf("issuing to %s: %w: %d keys and %d held, at most %d and %d are taken", node.ID, ErrRequest, len(item.Keys), len(item.Held), MaxKeys, maxHeld)
		}
		result, recorded, err := b.issueItem(ctx, policy, node, item)
		if err != nil {
			return nil, fmt.Errorf("issuing to %s: %w", node.ID, err)
		}
		results[i] = result
		events = append(events, recorded...)
	}
	if err := b.release(ctx, node, events); err != nil {
		return nil, err
	}
	return results, nil
}

// release makes it durable what is about to be released. It refuses if that
// fails, if the node has been evicted meanwhile, and if something of it has
// been revoked: its record may be too late for whoever lists what to revoke.
func (b *Broker) release(ctx context.Context, node Node, events []audit.Event) error {
	if len(events) > 0 {
		if err := b.recorded(ctx, events...); err != nil {
			return fmt.Errorf("recording what was issued to %s: %w", node.ID, err)
		}
	}
	if err := b.standing(node); err != nil {
		return fmt.Errorf("issuing: %w", err)
	}
	cuts := b.cuts.Load()
	for _, e := range events {
		if cut, hit := cuts.hit(Issued{SPIFFEID: e.SPIFFEID, Identity: e.Identity, Node: e.Node, Authority: e.Authority, IssuedAt: e.Issued}); hit {
			return fmt.Errorf("issuing to %s: %w: %s %s: ask again", node.ID, errMeanwhile, cut.Kind, cut.Value)
		}
	}
	return nil
}

func (b *Broker) issueItem(ctx context.Context, p ground, node Node, item X509Item) (X509Result, []audit.Event, error) {
	request := b.request(node, item.Workload)
	request.TTL = item.TTL
	digests, err := digestKeys(item.Keys)
	if err != nil {
		return X509Result{}, nil, err
	}
	request.Keys = digests
	result := X509Result{Revision: p.Revision}
	if item.TTL > 0 {
		item.Held = nil // it lives longer than was asked for
	}
	_, end := b.span(ctx, spanDecide, KindX509)
	decisions, kept, held, err := decideX509(p, request, item.Held)
	end(err)
	if errors.Is(err, identity.ErrDenied) {
		result.Denial, err = b.deny(ctx, p, node, request, "x509", err, DeniedAll)
		return result, nil, err
	}
	if err != nil {
		return result, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if item.TTL == 0 { // else the agent keeps nothing that a change could be told of
		b.remember(node.ID, p, item.Set, item.Workload, decisionsDigest(decisions, kept))
	}
	events := make([]audit.Event, 0, len(decisions))
	for i, d := range decisions {
		svid := X509SVID{Decision: d, Digest: kept[i], Targets: targetsOf(p, d)}
		if held[i] {
			result.SVIDs = append(result.SVIDs, svid)
			continue
		}
		if d.Grant.IsZero() {
			result.KeysNeeded++
			continue
		}
		svid.PublicKey = slices.Index(digests, d.Grant.Key())
		signing, end := b.span(ctx, spanSign, KindX509)
		svid.Chain, err = b.cfg.Issuer.SignX509(signing, d.Grant, item.Keys[svid.PublicKey])
		if end(err); err != nil {
			return result, nil, err
		}
		result.SVIDs = append(result.SVIDs, svid)
		events = append(events, issued("issue.x509", node, request, d, signed{
			serial: serialText(svid.Chain[0].SerialNumber), authority: authorityOf(svid.Chain), notAfter: svid.Chain[0].NotAfter, raw: svid.Chain[0].Raw,
		}))
	}
	return result, events, nil
}

func digestKeys(keys []crypto.PublicKey) ([]identity.KeyDigest, error) {
	digests := make([]identity.KeyDigest, 0, len(keys))
	for i, key := range keys {
		digest, err := identity.DigestKey(key)
		if err != nil {
			return nil, fmt.Errorf("%w: key %d: %w", ErrRequest, i, err)
		}
		if slices.Contains(digests, digest) {
			return nil, fmt.Errorf("%w: key %d is there twice", ErrRequest, i)
		}
		digests = append(digests, digest)
	}
	return digests, nil
}

// decideX509 decides, and says of which decisions the agent holds the SVID.
// Those need no key: if they took one that another decision lacks, it decides
// again with keys of nobody's in their places. The digests are the decisions'.
func decideX509(p ground, r identity.Request, holds []Held) (decisions []identity.Decision, digests [][sha256.Size]byte, held []bool, err error) {
	decisions, err = p.Set.Decide(r)
	if err != nil {
		return nil, nil, nil, err
	}
	wasted, lacking := false, false
	held, digests = make([]bool, len(decisions)), digestsOf(p, decisions) // no key is in them
	for i, d := range decisions {
		held[i] = isHeld(holds, d, digests[i], r.Time)
		wasted = wasted || held[i] && !d.Grant.IsZero()
		lacking = lacking || !held[i] && d.Grant.IsZero()
	}
	if !wasted || !lacking {
		return decisions, digests, held, nil
	}
	var keys []identity.KeyDigest
	for i, left := 0, r.Keys; i < len(decisions) && len(left) > 0; i++ {
		if held[i] {
			keys = append(keys, sha256.Sum256(fmt.Appendf(nil, "held %d", i))) // no key has this digest
			continue
		}
		keys, left = append(keys, left[0]), left[1:]
	}
	r.Keys = keys
	decisions, err = p.Set.Decide(r)
	return decisions, digests, held, err
}

// isHeld says whether the agent holds exactly what is granted, and for a while
// yet.
func isHeld(held []Held, d identity.Decision, digest [sha256.Size]byte, now time.Time) bool {
	for _, h := range held {
		if h.Identity == d.Identity && h.Digest == digest && h.NotAfter.After(now.Add(time.Minute)) {
			return true
		}
	}
	return false
}

// IssueJWT decides, signs, records and then releases. Where nothing is
// granted it returns a Denial and no error.
func (b *Broker) IssueJWT(ctx context.Context, node Node, r JWTRequest) ([]JWTSVID, *Denial, error) {
	done := b.issuing(KindJWT)
	svids, denial, err := b.issueJWT(ctx, node, r)
	if errors.Is(err, errMeanwhile) {
		svids, denial, err = b.issueJWT(ctx, node, r)
	}
	done(len(svids), []*Denial{denial}, err)
	return svids, denial, err
}

func (b *Broker) issueJWT(ctx context.Context, node Node, r JWTRequest) ([]JWTSVID, *Denial, error) {
	if len(r.Audiences) > MaxAudiences || (len(r.Audiences) == 0) == (r.Target == "") {
		return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w: give 1 to %d audiences, or a target", node.ID, ErrRequest, MaxAudiences)
	}
	if !fits(maxAsked, r.Audiences, r.Audiences...) || len(r.Target) > maxTarget {
		return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w: at most %d bytes of audiences, or %d of a target's name, are taken", node.ID, ErrRequest, maxAsked, maxTarget)
	}
	if err := b.standing(node); err != nil {
		return nil, nil, fmt.Errorf("issuing a JWT-SVID: %w", err)
	}
	if err := b.outlast(ctx); err != nil {
		return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w", node.ID, err)
	}
	policy := b.ground(node.ID)
	whole := b.request(node, r.Workload)
	request := whole
	request.Audiences, request.Target, request.SPIFFEID = r.Audiences, r.Target, r.SPIFFEID
	request.ToFile, request.TTL = r.ToFile, r.TTL
	_, end := b.span(ctx, spanDecide, KindJWT)
	decisions, err := policy.Set.Decide(request)
	end(err)
	if errors.Is(err, identity.ErrDenied) {
		denial, err := b.deny(ctx, policy, node, request, "jwt", err, refusedToken(policy, whole, r, err))
		return nil, denial, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w: %w", node.ID, ErrRequest, err)
	}
	// What a session remembers is what the facts give, not what was asked for.
	all, err := policy.Set.Decide(whole)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w", node.ID, err)
	}
	b.remember(node.ID, policy, r.Set, r.Workload, decisionsDigest(all, digestsOf(policy, all)))
	var svids []JWTSVID
	var events []audit.Event
	for _, d := range decisions {
		signing, end := b.span(ctx, spanSign, KindJWT)
		token, err := b.cfg.Issuer.SignJWT(signing, d.Grant)
		if end(err); err != nil {
			return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w", node.ID, err)
		}
		made, err := tokenClaims(token)
		if err != nil {
			return nil, nil, fmt.Errorf("issuing a JWT-SVID to %s: %w", node.ID, err)
		}
		svids = append(svids, JWTSVID{Decision: d, Token: token, Expires: made.notAfter})
		events = append(events, issued("issue.jwt", node, request, d, made))
	}
	if err := b.release(ctx, node, events); err != nil {
		return nil, nil, err
	}
	return svids, nil, nil
}

// refusedToken is why there is no token: whether the facts give an identity at
// all, which the node knows, and what of the request that doesn't fit, which the
// node has read in its SVIDs.
func refusedToken(p ground, whole identity.Request, r JWTRequest, why error) string {
	if why != identity.ErrDenied { // it says more
		return DeniedRequest
	}
	all, err := p.Set.Decide(whole)
	if err != nil {
		return DeniedAll
	}
	if !r.SPIFFEID.IsZero() {
		all = slices.DeleteFunc(all, func(d identity.Decision) bool { return d.ID != r.SPIFFEID })
	}
	switch {
	case !p.Set.MakesJWT():
		return DeniedIssuer
	case len(all) == 0:
		return DeniedID
	case r.Target == "":
		return DeniedAudience
	case slices.ContainsFunc(all, func(d identity.Decision) bool { return slices.Contains(d.Targets, r.Target) }):
		return DeniedX509
	}
	return DeniedTarget
}

func (b *Broker) request(node Node, w Workload) identity.Request {
	return identity.Request{NodeID: node.ID, Node: node.Facts, Workload: w.Facts, Unknown: w.Unknown, Time: b.cfg.Now()}
}

// outlast waits for the end of the second in which a cut-off lies. A token says
// when it was issued in whole seconds: one of that second could not be told
// from those that are revoked.
func (b *Broker) outlast(ctx context.Context) error {
	clear := b.cuts.Load().clear
	if clear.IsZero() {
		return nil
	}
	wait := clear.Sub(b.cfg.Now())
	if wait <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(wait, time.Second)):
		return nil
	}
}

// deny records a denial; one node's repeated denial on the same facts, under
// the same policy, is one record with a count.
func (b *Broker) deny(ctx context.Context, p ground, node Node, r identity.Request, what string, why error, code string) (*Denial, error) {
	denial := &Denial{Code: code}
	if life := (*identity.LifeError)(nil); errors.As(why, &life) {
		denial.Code, denial.Least, denial.Most = DeniedLife, life.Least, life.Most
	}
	event := audit.Event{
		Kind: "deny", Node: node.ID, Code: denial.Code, Facts: r.Workload.Map(),
		Audiences: r.Audiences, Target: r.Target, Detail: map[string]string{"asked": what, "policy": strconv.FormatUint(p.Revision, 10)},
	}
	if len(r.Unknown) > 0 {
		event.Detail["unknown"] = strings.Join(r.Unknown, " ")
	}
	if r.TTL != 0 {
		event.Detail["ttl"] = r.TTL.String()
	}
	ref, err := b.denials.Append(ctx, fit(event))
	if err != nil {
		return nil, fmt.Errorf("recording a denial: %w", err)
	}
	denial.Record = ref.IDAt(b.cfg.Origin)
	return denial, nil
}

// signed is an SVID as the record has it.
type signed struct {
	serial, authority string
	notAfter          time.Time
	raw               []byte
}

// NodeSVID is the detail that has the serial of the node's own SVID, which it
// showed: the record of that, "join" or "renew", has how it joined, and its facts.
const NodeSVID = "node_svid"

// issued is the record of one SVID. The facts are those that the decision
// depended on: what else the process was is not the record's business.
func issued(kind string, node Node, r identity.Request, d identity.Decision, s signed) audit.Event {
	facts := make(map[string][]string, len(d.Depends))
	for name, values := range d.Depends {
		if len(values) > 0 {
			facts[name] = values
		}
	}
	var detail map[string]string
	if node.ID != "" {
		detail = map[string]string{NodeSVID: serialText(new(big.Int).SetBytes(node.Serial))}
	}
	return fit(audit.Event{
		Kind: kind, OK: true, Detail: detail, Node: node.ID, SPIFFEID: d.ID.String(), Identity: d.Identity, Revision: d.Revision,
		Serial: s.serial, Authority: s.authority, Issued: d.Grant.Made(), NotAfter: s.notAfter, Digest: digestText(s.raw), Audiences: d.Grant.Audiences(), Target: r.Target, Facts: facts,
	})
}

// maxPart bounds what one part of a record, which a node has a say in, adds to
// it.
const maxPart = 16 << 10

// fit keeps a record within audit.MaxLine: a node's long facts would else keep
// its workloads, and those asked for in the same call, from any answer. What is
// too long is recorded by its digest; a piece of it would say what nobody said.
func fit(e audit.Event) audit.Event {
	var facts []string
	for name, values := range e.Facts {
		facts = append(append(facts, name), values...)
	}
	if !fits(maxPart, e.Facts, facts...) {
		text, _ := json.Marshal(e.Facts)                            // strings: it cannot fail
		e.Facts = map[string][]string{"sha256": {digestText(text)}} // no fact has this name
	}
	if unknown := e.Detail["unknown"]; !fits(maxPart, unknown, unknown) {
		e.Detail = maps.Clone(e.Detail)
		e.Detail["unknown_sha256"] = digestText([]byte(e.Detail["unknown"]))
		delete(e.Detail, "unknown")
	}
	return e
}

// fits says whether v, which is made of these strings, takes at most so many
// bytes of JSON. It is encoded only where that is not plain from their lengths.
func fits(most int, v any, parts ...string) bool {
	n := 2
	for _, s := range parts {
		n += 6*len(s) + 6 // escapes; quotes, comma or colon, brackets
	}
	if n <= most {
		return true
	}
	text, err := json.Marshal(v)
	return err == nil && len(text) <= most
}

func targetsOf(p ground, d identity.Decision) []Target {
	targets := make([]Target, 0, len(d.Targets))
	for _, name := range d.Targets {
		if t, ok := p.Targets[name]; ok {
			targets = append(targets, t)
		}
	}
	return targets
}

// decisionDigest names what an agent serves for a decision: as long as it is
// the same, the SVID that it holds will do. A cut-off makes it another.
func decisionDigest(p ground, d identity.Decision) [sha256.Size]byte {
	revisions := make([]uint64, 0, len(d.Targets))
	for _, t := range targetsOf(p, d) {
		revisions = append(revisions, t.Revision)
	}
	var audiences []string
	uses := make(map[string]identity.Use)
	for _, a := range d.JWTAudiences {
		audiences = append(audiences, a.Pattern)
		if a.Use != identity.UseDefault {
			uses[a.Pattern] = a.Use
		}
	}
	parts := []any{
		d.Identity, d.ID.String(), d.Hint, d.FederatesWith, d.Targets, revisions, audiences, p.Set.X509(d.Identity),
	}
	if len(uses) > 0 {
		parts = append(parts, uses)
	}
	if len(d.Names) > 0 { // by the facts, which a node that joins anew may have others of
		parts = append(parts, d.Names)
	}
	if cut := p.cuts.newest(d.ID.String(), d.Identity, p.node); !cut.IsZero() {
		parts = append(parts, cut.UnixMilli())
	}
	text, err := json.Marshal(parts)
	if err != nil {
		panic("marshalling strings: " + err.Error())
	}
	return sha256.Sum256(text)
}

func digestsOf(p ground, decisions []identity.Decision) [][sha256.Size]byte {
	digests := make([][sha256.Size]byte, len(decisions))
	for i, d := range decisions {
		digests[i] = decisionDigest(p, d)
	}
	return digests
}

// decisionsDigest names what an agent knows of a set of facts, given each
// decision's digest. It holds more than what is served: an agent lends an SVID
// to processes that are equal in what it depends on, and must hear when that
// grows.
func decisionsDigest(decisions []identity.Decision, digests [][sha256.Size]byte) [sha256.Size]byte {
	var text []byte
	for i, d := range decisions {
		text = append(text, digests[i][:]...)
		for _, name := range slices.Sorted(maps.Keys(d.Depends)) { // of the same facts: their values are
			text = strconv.AppendQuote(text, name)
		}
	}
	return sha256.Sum256(text)
}

// tokenClaims reads back what the authority wrote.
func tokenClaims(token string) (signed, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return signed{}, errors.New("the authority returned no compact JWS")
	}
	var header struct {
		KeyID string `json:"kid"`
	}
	var claims struct {
		ID      string `json:"jti"`
		Expires int64  `json:"exp"`
	}
	for i, into := range []any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			return signed{}, fmt.Errorf("reading back a token: %w", err)
		}
	}
	if claims.ID == "" || claims.Expires == 0 || header.KeyID == "" {
		return signed{}, errors.New("the authority's token lacks kid, jti or exp")
	}
	return signed{claims.ID, header.KeyID, time.Unix(claims.Expires, 0), []byte(token)}, nil
}

// authorityOf is the ID of the issuing CA that signed a chain's leaf: half of
// the digest of its key.
func authorityOf(chain []*x509.Certificate) string {
	if len(chain) < 2 { // signed by an anchor, which names itself
		return hex.EncodeToString(chain[0].AuthorityKeyId[:min(16, len(chain[0].AuthorityKeyId))])
	}
	sum := sha256.Sum256(chain[1].RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:16])
}
