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

// An Explanation says why a request was granted or not. It names rules and
// facts, so it is for the operator alone, never for the caller.
type Explanation struct {
	Malformed string    `json:"malformed,omitempty"` // why the request was refused unseen
	Granted   []Granted `json:"granted,omitempty"`
	Denies    []DenyHit `json:"denies,omitempty"`  // that hold, whether they withheld anything or not
	Refused   []Refused `json:"refused,omitempty"` // Identities whose match holds, and what refused then
	Misses    []Miss    `json:"misses,omitempty"`  // of Identities whose match doesn't hold the nearest, if nothing was granted
}

// Granted is an Identity that the caller has.
type Granted struct {
	Identity string `json:"identity"`
	Item     int    `json:"item"` // of its match, the first that holds
	SPIFFEID string `json:"spiffe_id"`
}

// A DenyHit is a Deny that holds.
type DenyHit struct {
	Deny    string `json:"deny"`
	Item    int    `json:"item"`
	Reason  string `json:"reason,omitempty"`
	Unknown bool   `json:"unknown,omitempty"` // it holds only since a fact that it reads is unknown
}

// Refused is an Identity whose match holds, but which isn't granted.
type Refused struct {
	Identity string `json:"identity"`
	Item     int    `json:"item"`
	Field    string `json:"field,omitempty"` // of the Identity; empty: a Deny
	Why      string `json:"why"`
}

// A Miss is an item of a match that doesn't hold.
type Miss struct {
	Identity string    `json:"identity"`
	Item     int       `json:"item"`
	Held     int       `json:"held"` // how many terms hold
	Failing  []Failing `json:"failing"`
}

// A Failing is a term, or an item's when, that doesn't hold.
type Failing struct {
	Fact    string   `json:"fact,omitempty"` // empty: it is the when
	Want    string   `json:"want"`
	Found   []string `json:"found,omitempty"` // none: the fact is absent
	Unknown bool     `json:"unknown,omitempty"`
	Why     string   `json:"why,omitempty"` // a when that gave no answer
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
		x.Malformed = strings.TrimPrefix(err.Error(), ErrDenied.Error()+": ")
		return x
	}
	for _, h := range j.hits {
		d := &s.denies[h.owner]
		x.Denies = append(x.Denies, DenyHit{d.Name, h.item, d.Reason, h.truth == isUnknown})
	}
	holding := map[int]bool{}
	for _, a := range j.granting {
		holding[a.owner] = true
		i := &s.identities[a.owner]
		if only != "" && i.Name != only {
			continue
		}
		if d, refused := s.decide(j, a.owner); refused != nil {
			x.Refused = append(x.Refused, Refused{i.Name, a.item, refused.field, refused.msg})
		} else {
			x.Granted = append(x.Granted, Granted{i.Name, a.item, d.ID.String()})
		}
	}
	if len(x.Granted) == 0 {
		x.Misses = s.misses(j.e, holding, only)
	}
	return x
}

// misses returns the nearest: those of which something holds, then those of
// which least fails.
func (s *Set) misses(e *evidence, holding map[int]bool, only string) []Miss {
	var near []*miss
	for owner := range s.identities {
		i := &s.identities[owner]
		if holding[owner] || only != "" && i.Name != only {
			continue
		}
		for _, a := range i.alternatives {
			near = addMiss(near, newMiss(a, e))
		}
	}
	var misses []Miss
	for _, m := range near {
		misses = append(misses, Miss{s.identities[m.owner].Name, m.item, m.held, m.explain(e)})
	}
	return misses
}

// A miss counts how near an alternative came.
type miss struct {
	*alternative
	held, failing int
}

func newMiss(a *alternative, e *evidence) *miss {
	m := &miss{alternative: a}
	for i := range a.terms {
		if a.terms[i].eval(e) == isTrue {
			m.held++
		} else {
			m.failing++
		}
	}
	return m
}

func (m *miss) compare(o *miss) int {
	return cmp.Or(
		cmp.Compare(min(o.held, 1), min(m.held, 1)),
		cmp.Compare(m.failing, o.failing),
		cmp.Compare(o.held, m.held),
		cmp.Compare(m.owner, o.owner),
		cmp.Compare(m.item, o.item),
	)
}

// addMiss keeps the nearest maxMisses.
func addMiss(near []*miss, m *miss) []*miss {
	at, _ := slices.BinarySearchFunc(near, m, (*miss).compare)
	if at == maxMisses {
		return near
	}
	near = slices.Insert(near, at, m)
	return near[:min(len(near), maxMisses)]
}

func (m *miss) explain(e *evidence) []Failing {
	var all []Failing
	for i := range m.terms {
		t := &m.terms[i]
		if truth := t.eval(e); truth != isTrue {
			all = append(all, Failing{Fact: t.name, Want: t.text, Found: shorten(e.get(t.name)), Unknown: truth == isUnknown})
		}
	}
	if m.when != nil && len(all) == 0 {
		f := Failing{Want: m.when.text}
		truth, err := m.when.eval(e)
		if f.Unknown = truth == isUnknown; err != nil {
			f.Why = err.Error()
		}
		all = append(all, f)
	}
	return all
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

// String renders the explanation for people, a line for each part.
func (x Explanation) String() string {
	var b strings.Builder
	if x.Malformed != "" {
		fmt.Fprintf(&b, "refused unseen: %s\n", x.Malformed)
	}
	for _, g := range x.Granted {
		fmt.Fprintf(&b, "granted: %s by Identity %s, match[%d]\n", g.SPIFFEID, g.Identity, g.Item)
	}
	for _, d := range x.Denies {
		fmt.Fprintf(&b, "deny holds: %s, match[%d]", d.Deny, d.Item)
		if d.Unknown {
			b.WriteString(", since a fact that it reads is unknown")
		}
		if d.Reason != "" {
			fmt.Fprintf(&b, ": %q", d.Reason)
		}
		b.WriteByte('\n')
	}
	for _, r := range x.Refused {
		fmt.Fprintf(&b, "not granted: Identity %s: match[%d] holds, but %s\n", r.Identity, r.Item, strings.TrimPrefix(r.Field+": "+r.Why, ": "))
	}
	for _, m := range x.Misses {
		fmt.Fprintf(&b, "not matched: Identity %s, match[%d], where %d terms hold:\n", m.Identity, m.Item, m.Held)
		for _, f := range m.Failing {
			fmt.Fprintf(&b, "  %s\n", f)
		}
	}
	if b.Len() == 0 {
		return "nothing granted: there are no Identities\n"
	}
	return b.String()
}

// String renders the failing term on one line.
func (f Failing) String() string {
	switch {
	case f.Fact == "" && f.Why != "":
		return fmt.Sprintf("when %q gives no answer: %q", f.Want, f.Why)
	case f.Fact == "":
		return fmt.Sprintf("when %q is false", f.Want)
	case f.Unknown:
		return fmt.Sprintf("%s wants %q, and is unknown: its attestor failed", f.Fact, f.Want)
	case len(f.Found) == 0:
		return fmt.Sprintf("%s wants %q, and is absent", f.Fact, f.Want)
	default:
		return fmt.Sprintf("%s wants %q, and is %q", f.Fact, f.Want, f.Found)
	}
}
