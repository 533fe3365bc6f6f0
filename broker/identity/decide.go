package identity

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Algorithms of JWT-SVIDs.
const (
	algRS256 = "RS256"
	algES256 = "ES256"
)

// Bounds of a Request.
const (
	maxKeys    = 256
	maxUnknown = 64
)

// Decide returns what the set grants, in the order of the identities' names,
// which does not change while they stay (SPIFFE Workload API §8). Where it
// grants nothing, and where the request is malformed, the error is ErrDenied:
// Explain finds reasons, at its own cost.
//
// A Decision's Depends says on what it rests: the agent may serve what was
// granted to a process freshly and completely attested with equal values. Of
// an expression that reads all facts of a group, or asks whether there is any,
// it names the group by the group's name and ".{*}", which is no fact's name,
// and gives the names of the facts in it, or one empty string for none: who
// doesn't know this form compares it with a fact that no process has.
func (s *Set) Decide(r Request) ([]Decision, error) {
	j, err := s.judge(&r)
	if err != nil {
		return nil, err
	}
	decisions := make([]Decision, 0, len(j.granting))
	var most time.Duration
	for _, m := range j.granting {
		d, refused := s.decide(j, m.identity)
		switch {
		case refused == nil:
			decisions = append(decisions, d)
		case refused.most > 0 && (most == 0 || refused.most < most):
			most = refused.most
		}
	}
	if most > 0 { // whole or not at all: another identity would pass for the first
		return nil, &LifeError{Asked: r.TTL, Most: most}
	}
	if len(decisions) == 0 {
		return nil, ErrDenied
	}
	finish(r.Keys, decisions)
	return decisions, nil
}

// A judgement is which identities' conditions hold for a request, and which
// denies'.
type judgement struct {
	r        *Request
	e        *evidence
	granting []*alternative
	hits     []hit
}

// A hit is a deny that holds.
type hit struct {
	*alternative
	truth truth
}

// judge checks the request, looks up what may hold, and evaluates it.
func (s *Set) judge(r *Request) (*judgement, error) {
	if err := s.check(r); err != nil {
		return nil, err
	}
	j := &judgement{r: r, e: newEvidence(r)}
	var space [2][8]survivor
	var allow []survivor
	least := isTrue
	if r.Presented != nil {
		least, allow = isUnknown, s.presented(r.Presented, j.e)
	} else {
		allow = unique(s.allow.find(space[0][:0], j.e, isTrue))
	}
	deny := unique(s.deny.find(space[1][:0], j.e, isUnknown))
	if n := countWhens(allow) + countWhens(deny); n > maxWhens {
		return nil, fmt.Errorf("%w: %d expressions are candidates, at most %d are evaluated", ErrDenied, n, maxWhens)
	}
	foreign := r.User.Len()+r.Peer.Len() > 0
	for _, a := range allow {
		if n := len(j.granting); n > 0 && j.granting[n-1].owner == a.owner {
			continue
		}
		// An item for any node says nothing of people and peers.
		if foreign && !a.bound() {
			continue
		}
		if a.eval(j.e, a.terms) >= least {
			j.granting = append(j.granting, a.alternative)
		}
	}
	if len(j.granting) == 0 {
		return j, nil
	}
	for _, d := range deny {
		if t := d.eval(j.e, d.terms); t != isFalse {
			j.hits = append(j.hits, hit{d.alternative, t})
		}
	}
	return j, nil
}

// unique sorts by owner and item, and drops repetitions.
func unique(found []survivor) []survivor {
	slices.SortFunc(found, func(a, b survivor) int {
		return cmp.Or(strings.Compare(a.owner, b.owner), cmp.Compare(a.item, b.item))
	})
	return slices.CompactFunc(found, func(a, b survivor) bool { return a.alternative == b.alternative })
}

func countWhens(found []survivor) (n int) {
	for _, a := range found {
		if a.when != nil {
			n++
		}
	}
	return n
}

// check refuses a request that says too little, or two things at once.
func (s *Set) check(r *Request) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrDenied}, args...)...)
	}
	foreign := r.User.Len() + r.Peer.Len()
	switch {
	case s == nil:
		return bad("there is no policy")
	case r.Time.IsZero():
		return bad("the request has no time")
	case foreign > 0 && (r.Node.Len() > 0 || r.Workload.Len() > 0 || r.NodeID != ""):
		return bad("the request has facts of a person or peer, and of a node")
	case r.User.Len() > 0 && r.Peer.Len() > 0:
		return bad("the request has facts of a person and of a peer")
	case r.Presented != nil && (foreign > 0 || r.Workload.Len() > 0 || r.NodeID == ""):
		return bad("the request shows an SVID of ours, and has a process, a person or a peer, or no node")
	case !r.Ends.IsZero() && !r.Ends.After(r.Time):
		return bad("what is granted would have to end at %s, before it starts", r.Ends.UTC().Format(time.RFC3339))
	case foreign == 0 && r.Node.Len() == 0:
		return bad("the request has no facts of a node, a person or a peer")
	case r.TTL < 0 || r.TTL > 0 && r.TTL < s.config.MinTTL:
		return &LifeError{Asked: r.TTL, Least: s.config.MinTTL}
	case r.Target != "" && len(r.Audiences) > 0:
		return bad("the request names a target and audiences")
	case r.ToFile && r.Target == "":
		return bad("the request is for a file, but names no target")
	case len(r.Keys) > maxKeys:
		return bad("the request has %d keys: at most %d are taken", len(r.Keys), maxKeys)
	case len(r.Audiences) > maxAudiences:
		return bad("the request has %d audiences: at most %d are taken", len(r.Audiences), maxAudiences)
	case len(r.Unknown) > maxUnknown || slices.Contains(r.Unknown, ""):
		return bad("the request has %d unknown prefixes, or an empty one: at most %d are taken", len(r.Unknown), maxUnknown)
	}
	for _, a := range r.Audiences {
		if a == "" || len(a) > maxAudience {
			return bad("the request has an audience of %d bytes: want 1 to %d", len(a), maxAudience)
		}
	}
	for i, k := range r.Keys {
		if k.IsZero() || slices.Contains(r.Keys[:i], k) {
			return bad("the request's key %d is zero, or stands there twice", i)
		}
	}
	return nil
}

// A refusal says why an identity whose conditions hold is not granted.
type refusal struct {
	field, msg, code string
	id               spiffeid.ID // where it is known
	deny             string
	most             time.Duration // that it gives, where more was asked for; else 0
}

// decide makes the decision on an identity whose conditions hold; without what
// depends on the other decisions.
func (s *Set) decide(j *judgement, i *identity) (Decision, *refusal) {
	id, name, err := i.id.render(j.e)
	if p := j.r.Presented; p != nil {
		if id, name, err = p.ID, "", nil; !i.id.fits(j.e, id) {
			err = fmt.Errorf("does not give %s any more", p.ID)
		}
	}
	switch {
	case err != nil && name != "":
		return Decision{}, unrendered("spiffe_id", name, err)
	case err != nil:
		return Decision{}, &refusal{field: "spiffe_id", msg: err.Error(), code: CodeReserved}
	case !j.r.SPIFFEID.IsZero() && j.r.SPIFFEID != id:
		return Decision{}, &refusal{field: "spiffe_id", msg: "another SPIFFE ID was asked for", code: CodeSPIFFEID, id: id}
	}
	for _, h := range j.hits {
		if d := h.deny; d.withholds(id) {
			code := CodeDenied
			if h.truth == isUnknown {
				code = CodeDeniedUnknown
			}
			return Decision{}, &refusal{msg: "withheld by Deny " + d.Name, code: code, id: id, deny: d.Name}
		}
	}
	g := Grant{id: id, by: i.Name, revision: i.Revision, node: j.r.NodeID, made: j.r.Time}
	life, field := i.x509TTL, "x509.ttl"
	if j.r.Target != "" || len(j.r.Audiences) > 0 {
		var refused *refusal
		if life, refused = s.grantJWT(&g, i, j); refused != nil {
			refused.id = id
			return Decision{}, refused
		}
		if field = "jwt.ttl"; j.r.Target != "" {
			field = "targets"
		}
	} else if refused := s.grantNames(&g, i, j.e); refused != nil {
		refused.id = id
		return Decision{}, refused
	}
	if j.r.TTL > life {
		return Decision{}, &refusal{field: field, msg: fmt.Sprintf("a life of %s was asked for, and this one gives %s", j.r.TTL, life), most: life, code: CodeLife, id: id}
	}
	if j.r.TTL > 0 {
		life = j.r.TTL
	}
	g.expires = j.r.Time.Add(life)
	if ends := j.r.Ends; !ends.IsZero() && ends.Before(g.expires) {
		g.expires = ends
	}
	d := Decision{
		Grant: g, Identity: i.Name, Revision: i.Revision, ID: id, Hint: i.Hint,
		FederatesWith: i.FederatesWith, Targets: i.Targets, Depends: s.depends(j.e, i),
	}
	if j.r.Target == "" {
		d.Use = i.use(g.audiences)
	}
	if s.isEvidence(g.audiences) {
		d.Use = UseSingle
	}
	if i.names != nil && g.audiences == nil {
		d.Names = append([]string{g.subject}, g.dnsNames...)
	}
	if i.JWT != nil && s.config.JWT {
		d.JWTAudiences = i.listed
	}
	return d, nil
}

// unrendered is a refusal for a fact that a template can't render.
func unrendered(field, name string, err error) *refusal {
	if name != "" {
		name += " "
	}
	return &refusal{field: field, msg: name + err.Error(), code: CodeTemplate}
}

func (d *deny) withholds(id spiffeid.ID) bool {
	if len(d.ids) == 0 {
		return true
	}
	return slices.ContainsFunc(d.ids, func(p idPattern) bool { return p.matches(id) })
}

// grantJWT fills in what a JWT-SVID has, and returns its life.
func (s *Set) grantJWT(g *Grant, i *identity, j *judgement) (time.Duration, *refusal) {
	r := j.r
	if !s.config.JWT {
		return 0, &refusal{field: "issuer", msg: "the broker has no issuer, so it makes no JWT-SVID", code: CodeIssuer}
	}
	if i.JWT != nil {
		var refused *refusal
		if g.claims, refused = i.renderClaims(j.e); refused != nil {
			return 0, refused
		}
	}
	if ids := r.Peer.Get("peer.id"); len(ids) == 1 {
		g.act = ids[0]
	}
	if r.Target != "" {
		return s.grantTarget(g, i, r)
	}
	if len(i.audiences) == 0 { // or no jwt at all
		return 0, &refusal{field: "jwt.audiences", msg: "none are listed", code: CodeAudience}
	}
	for _, a := range r.Audiences {
		if !matchAny(i.audiences, a) {
			return 0, &refusal{field: "jwt.audiences", msg: fmt.Sprintf("%q is not listed", a), code: CodeAudience}
		}
	}
	life := i.jwtTTL
	if s.isEvidence(r.Audiences) {
		if r.exchange() || len(r.Audiences) > 1 {
			return 0, &refusal{field: "jwt.audiences", msg: "a token for the token endpoint has no other audience, and no exchange gives it", code: CodeAudience}
		}
		life = min(life, EvidenceTTL)
	}
	g.audiences = slices.Clone(r.Audiences)
	if g.alg = i.JWT.Alg; g.alg == "" {
		g.alg = algFor(g.audiences)
	}
	return life, nil
}

// algFor is decision 7: what speaks SPIFFE takes ES256, clouds take RS256.
func algFor(audiences []string) string {
	for _, a := range audiences {
		if !strings.HasPrefix(a, "spiffe://") {
			return algRS256
		}
		if _, err := ParseID(a); err != nil {
			return algRS256
		}
	}
	return algES256
}

func (s *Set) grantTarget(g *Grant, i *identity, r *Request) (time.Duration, *refusal) {
	if !slices.Contains(i.Targets, r.Target) {
		return 0, &refusal{field: "targets", msg: fmt.Sprintf("%q is not listed", r.Target), code: CodeTarget}
	}
	t := s.targets[r.Target]
	if t.Audience == "" {
		return 0, &refusal{field: "targets", msg: fmt.Sprintf("%q takes an X509-SVID, no JWT-SVID", r.Target), code: CodeTargetX509}
	}
	life := s.config.TargetTTL
	if r.ToFile {
		life = s.config.FileTTL
	}
	if t.TTL > 0 {
		life = min(life, t.TTL)
	}
	g.audiences, g.alg = []string{t.Audience}, algRS256
	if s.isEvidence(g.audiences) {
		if r.exchange() {
			return 0, &refusal{field: "targets", msg: fmt.Sprintf("%q is our own token endpoint, and no exchange gives a token for it", r.Target), code: CodeTarget}
		}
		life = min(life, EvidenceTTL)
	}
	return life, nil
}

// finish does what concerns all decisions together: keys and hints.
func finish(keys []KeyDigest, decisions []Decision) {
	for n := range decisions {
		d := &decisions[n]
		if d.Grant.audiences == nil {
			if len(keys) == 0 {
				d.Grant = Grant{}
			} else {
				d.Grant.key, keys = keys[0], keys[1:]
			}
		}
		// SPIFFE Workload API §5.2.1: non-empty hints are unique in a response.
		if d.Hint != "" && slices.ContainsFunc(decisions[:n], func(o Decision) bool { return o.Hint == d.Hint }) {
			d.Hint = ""
		}
	}
}
