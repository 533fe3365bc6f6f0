package identity

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Bounds of an Explanation.
const (
	maxMisses    = 16
	maxFound     = 8
	maxFoundText = 256
)

// Codes of an Explanation: what became of the request, by one word.
const (
	CodeGranted        = "granted"
	CodeNoIdentity     = "no_identity"           // of every Identity a term is false
	CodeAttestorFailed = "attestor_failed"       // the nearest fails on what is unknown
	CodeWhen           = "when_no_answer"        // the nearest has a when that can't tell
	CodeDenied         = "denied"                // a Deny holds
	CodeDeniedUnknown  = "denied_unknown"        // a Deny holds, as a fact that it reads is unknown
	CodeTemplate       = "spiffe_id_no_value"    // a fact in a template (spiffe_id, a name, a claim) has not the one value that it takes
	CodeReserved       = "spiffe_id_refused"     // what spiffe_id gives is reserved, or no SPIFFE ID
	CodeSPIFFEID       = "spiffe_id_not_granted" // another was asked for
	CodeAudience       = "audience_not_listed"
	CodeTarget         = "target_not_listed"
	CodeTargetX509     = "target_takes_x509"
	CodeIssuer         = "no_issuer"   // so no JWT-SVID at all
	CodeLife           = "ttl_refused" // longer than it gives
	CodeMalformed      = "malformed"   // the request was refused unseen
)

// An Explanation says why a request was granted or not. It names rules and
// facts, so it is for the operator alone, never for the caller.
type Explanation struct {
	Code      string    `json:"code"`
	Malformed string    `json:"malformed,omitempty"` // why the request was refused unseen
	Withheld  string    `json:"withheld,omitempty"`  // what outside of policy keeps it back, in words; whoever knows sets it
	Granted   []Granted `json:"granted,omitempty"`
	Denies    []DenyHit `json:"denies,omitempty"`  // that hold, whether they withheld anything or not
	Refused   []Refused `json:"refused,omitempty"` // Identities whose match holds, and what refused then
	Misses    []Miss    `json:"misses,omitempty"`  // of Identities whose match doesn't hold the nearest, if nothing was granted
}

// Granted is an Identity that the caller has.
type Granted struct {
	Identity string    `json:"identity"`
	Item     int       `json:"item"` // of its match, the first that holds
	SPIFFEID string    `json:"spiffe_id"`
	Holding  []Holding `json:"holding,omitempty"`
	Note     string    `json:"note,omitempty"` // what two Identities have alike
}

// A DenyHit is a Deny that holds.
type DenyHit struct {
	Deny    string    `json:"deny"`
	Item    int       `json:"item"`
	Reason  string    `json:"reason,omitempty"`
	Unknown bool      `json:"unknown,omitempty"` // it holds only since a fact that it reads is unknown
	Holding []Holding `json:"holding,omitempty"`
	Failing []Failing `json:"failing,omitempty"` // what is unknown
}

// Refused is an Identity whose match holds, but which isn't granted.
type Refused struct {
	Identity string `json:"identity"`
	Item     int    `json:"item"`
	Code     string `json:"code"`
	SPIFFEID string `json:"spiffe_id,omitempty"`
	Field    string `json:"field,omitempty"` // of the Identity; empty: a Deny
	Deny     string `json:"deny,omitempty"`
	Why      string `json:"why"`
}

// A Miss is an item of a match that doesn't hold.
type Miss struct {
	Identity string    `json:"identity"`
	Item     int       `json:"item"`
	Held     int       `json:"held"` // how many terms hold
	Holding  []Holding `json:"holding,omitempty"`
	Failing  []Failing `json:"failing"`
}

// A Holding is a term, or an item's when, that holds.
type Holding struct {
	Fact  string   `json:"fact,omitempty"` // empty: it is the when
	Want  string   `json:"want"`
	Found []string `json:"found,omitempty"`
}

// A Failing is a term, or an item's when, that doesn't hold.
type Failing struct {
	Fact    string   `json:"fact,omitempty"` // empty: it is the when
	Want    string   `json:"want"`
	Found   []string `json:"found,omitempty"` // none: the fact is absent
	Unknown bool     `json:"unknown,omitempty"`
	Why     string   `json:"why,omitempty"` // it is unknown
}

// Explain finds the reasons for what Decide answers. Unlike Decide it looks at
// each Identity, so it takes time with their number.
func (s *Set) Explain(r Request) Explanation { return s.explain(&r, "") }

// ExplainIdentity is Explain about the one Identity of this name, whether
// others are granted or not.
func (s *Set) ExplainIdentity(r Request, name string) Explanation { return s.explain(&r, name) }

func (s *Set) explain(r *Request, only string) Explanation {
	var x Explanation
	j, err := s.judge(r)
	if err != nil {
		x.Code, x.Malformed = CodeMalformed, strings.TrimPrefix(err.Error(), ErrDenied.Error()+": ")
		return x
	}
	for _, h := range j.hits {
		d := h.deny
		hit := DenyHit{Deny: d.Name, Item: h.item, Reason: d.Reason, Unknown: h.truth == isUnknown, Holding: h.holding(j.e)}
		if hit.Unknown {
			hit.Failing = h.failing(j.e)
		}
		x.Denies = append(x.Denies, hit)
	}
	holding := map[*identity]bool{}
	var decided []Decision
	for _, a := range j.granting {
		i := a.identity
		holding[i] = true
		if only != "" && i.Name != only {
			continue
		}
		d, refused := s.decide(j, i)
		if refused != nil {
			x.Refused = append(x.Refused, refused.of(i.Name, a.item))
			continue
		}
		x.Granted = append(x.Granted, Granted{Identity: i.Name, Item: a.item, SPIFFEID: d.ID.String(), Holding: a.holding(j.e), Note: alike(decided, d)})
		decided = append(decided, d)
	}
	if len(x.Granted) == 0 {
		x.Misses = s.misses(j.e, holding, only)
	}
	x.Code = x.code()
	return x
}

func (r *refusal) of(identity string, item int) Refused {
	out := Refused{Identity: identity, Item: item, Code: r.code, Field: r.field, Deny: r.deny, Why: r.msg}
	if !r.id.IsZero() {
		out.SPIFFEID = r.id.String()
	}
	return out
}

// alike says what an Identity has in common with those before it, which a
// workload sees.
func alike(before []Decision, d Decision) string {
	for _, o := range before {
		switch {
		case o.ID == d.ID:
			return fmt.Sprintf("it has the SPIFFE ID of Identity %s: the workload gets two SVIDs of it", o.Identity)
		case d.Hint != "" && o.Hint == d.Hint:
			return fmt.Sprintf("its hint %q is that of Identity %s, and is left out", d.Hint, o.Identity)
		}
	}
	return ""
}

func (x *Explanation) code() string {
	if len(x.Granted) > 0 {
		return CodeGranted
	}
	for _, r := range x.Refused {
		if r.Deny != "" {
			return r.Code
		}
	}
	if len(x.Refused) > 0 {
		return x.Refused[0].Code
	}
	if len(x.Misses) == 0 {
		return CodeNoIdentity
	}
	code := CodeNoIdentity
	for _, f := range x.Misses[0].Failing {
		switch {
		case !f.Unknown:
			return CodeNoIdentity
		case f.Fact == "":
			code = CodeWhen
		default:
			return CodeAttestorFailed
		}
	}
	return code
}

// Because tells of what is unknown why it is, by the names or prefixes that the
// Request has as Unknown.
func (x *Explanation) Because(why map[string]string) {
	tell := func(all []Failing) {
		for i := range all {
			for prefix, text := range why {
				if all[i].Fact != "" && all[i].Unknown && under(all[i].Fact, prefix) {
					all[i].Why = shorten([]string{text})[0]
				}
			}
		}
	}
	for i := range x.Misses {
		tell(x.Misses[i].Failing)
	}
	for i := range x.Denies {
		tell(x.Denies[i].Failing)
	}
}

// misses returns the nearest: those of which something holds, then those of
// which least fails.
func (s *Set) misses(e *evidence, holding map[*identity]bool, only string) []Miss {
	near := make([]miss, 0, maxMisses+1)
	for _, i := range s.identities {
		if holding[i] || only != "" && i.Name != only {
			continue
		}
		for _, a := range i.alternatives {
			near = addMiss(near, newMiss(a, e, failsAtMost(near, maxMisses)), maxMisses)
		}
	}
	var misses []Miss
	for _, m := range near {
		misses = append(misses, Miss{m.owner, m.item, m.held, m.holding(e), m.failing(e)})
	}
	return misses
}

// A miss counts how near an alternative came.
type miss struct {
	*alternative
	held, fails int
}

// newMiss counts until more than most fail: what comes after is of no interest. The
// last terms are looked at first, as what tells an alternative from others is
// mostly said last.
func newMiss(a *alternative, e *evidence, most int) miss {
	m := miss{alternative: a}
	for i := len(a.terms) - 1; i >= 0 && m.fails <= most; i-- {
		if a.terms[i].eval(e) == isTrue {
			m.held++
		} else {
			m.fails++
		}
	}
	return m
}

// failsAtMost is how many terms may fail of what comes among the nearest so many.
func failsAtMost(near []miss, most int) int {
	if len(near) < most || near[most-1].held == 0 {
		return maxTerms
	}
	return near[most-1].fails
}

func (m miss) compare(o miss) int {
	return cmp.Or(
		cmp.Compare(min(o.held, 1), min(m.held, 1)),
		cmp.Compare(m.fails, o.fails),
		cmp.Compare(o.held, m.held),
		strings.Compare(m.owner, o.owner),
		cmp.Compare(m.item, o.item),
	)
}

// addMiss keeps the nearest, at most so many.
func addMiss(near []miss, m miss, most int) []miss {
	if len(near) == most && near[most-1].compare(m) <= 0 {
		return near // as most are
	}
	at, _ := slices.BinarySearchFunc(near, m, miss.compare)
	near = slices.Insert(near, at, m)
	return near[:min(len(near), most)]
}

// holding are the terms that hold, and the when if it does.
func (a *alternative) holding(e *evidence) []Holding {
	var all []Holding
	for i := range a.terms {
		if t := &a.terms[i]; t.eval(e) == isTrue {
			all = append(all, Holding{t.name, t.text, shorten(e.get(t.name))})
		}
	}
	if a.when != nil && len(all) == len(a.terms) {
		if truth, _ := a.when.eval(e); truth == isTrue {
			all = append(all, Holding{Want: a.when.text})
		}
	}
	return all
}

// failing are the terms that don't hold; or, where all do, the when.
func (a *alternative) failing(e *evidence) []Failing {
	var all []Failing
	for i := range a.terms {
		t := &a.terms[i]
		if truth := t.eval(e); truth != isTrue {
			all = append(all, Failing{Fact: t.name, Want: t.text, Found: shorten(e.get(t.name)), Unknown: truth == isUnknown})
		}
	}
	if a.when == nil || len(all) > 0 {
		return all
	}
	truth, err := a.when.eval(e)
	if truth == isTrue {
		return all
	}
	f := Failing{Want: a.when.text, Unknown: truth == isUnknown}
	if err != nil {
		f.Why = err.Error()
	}
	return append(all, f)
}

// shorten bounds what an explanation repeats of a fact.
func shorten(values []string) []string {
	var short []string
	for _, v := range values[:min(len(values), maxFound)] {
		if len(v) > maxFoundText {
			v = strings.ToValidUTF8(v[:maxFoundText], "") + "..."
		}
		short = append(short, v)
	}
	if n := len(values) - maxFound; n > 0 {
		short = append(short, fmt.Sprintf("... and %d more", n))
	}
	return short
}
