package identity

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of a Reach.
const (
	maxReached = 1000 // ways that are told
	maxPlaces  = 100  // nodes that are told of each item
	maxNear    = 3    // that a node is told
)

// A Place is a node that stands, for Reach.
type Place struct {
	ID    string
	Facts Facts
}

// A Reach is who can get an Identity now, or what can be got on a node: by what
// is known of nodes, whatever their workloads are.
type Reach struct {
	Ways []Way `json:"ways"`
	More int   `json:"more,omitempty"` // ways that are not told
}

// A Way is one item of an Identity's match, and the nodes that satisfy it.
type Way struct {
	Identity string    `json:"identity"`
	Item     int       `json:"item"`
	SPIFFEID string    `json:"spiffe_id"`         // with {facts} in it that neither item nor node fixes
	Let      []Holding `json:"let,omitempty"`     // terms on the node that hold: of the first node
	Nodes    []string  `json:"nodes,omitempty"`   // at most a hundred
	Count    int       `json:"count"`             // of all that satisfy it
	Needs    []string  `json:"needs,omitempty"`   // what remains for a workload to prove
	Denied   []string  `json:"denied,omitempty"`  // of those told the ones where a Deny withholds it from every workload, each with the Deny's name
	Callers  string    `json:"callers,omitempty"` // "people" or "peers": then no node gets it
}

// blank is what is known of a node before any workload is: its facts, and that
// all of workload.* may be anything.
func blank(node Facts) *evidence {
	return &evidence{node: node.m, unknown: []string{"workload"}}
}

// ReachOf tells who can get an Identity now, and whether there is one of this
// name.
func (s *Set) ReachOf(name string, nodes []Place) (Reach, bool) {
	i, ok := s.named(name)
	if !ok {
		return Reach{}, false
	}
	var r Reach
	for _, a := range i.alternatives {
		way := Way{Identity: i.Name, Item: a.item, Needs: a.needs(), Callers: a.callers()}
		for _, n := range nodes {
			if e := blank(n.Facts); a.callers() == "" && a.eval(e, a.evalTerms(e)) != isFalse {
				way.add(i, a, e, n.ID, s.sure(e))
			}
		}
		if way.SPIFFEID == "" {
			way.SPIFFEID = i.id.partialOn(a, blank(Facts{}))
		}
		r.Ways = append(r.Ways, way)
	}
	return r, true
}

// ReachFrom tells what workloads on a node can get.
func (s *Set) ReachFrom(node Place) Reach {
	var r Reach
	e := blank(node.Facts)
	sure := s.sure(e)
	for _, i := range s.identities {
		for _, a := range i.alternatives {
			if t := a.evalTerms(e); t == isFalse || a.callers() != "" || a.eval(e, t) == isFalse {
				continue
			}
			if len(r.Ways) == maxReached {
				r.More++
				continue
			}
			way := Way{Identity: i.Name, Item: a.item, Needs: a.needs()}
			way.add(i, a, e, node.ID, sure)
			r.Ways = append(r.Ways, way)
		}
	}
	return r
}

func (w *Way) add(i *identity, a *alternative, e *evidence, node string, sure []*deny) {
	if w.Count++; w.Count > maxPlaces {
		return
	}
	if w.Count == 1 {
		w.Let, w.SPIFFEID = a.holding(e), i.id.partialOn(a, e)
	}
	w.Nodes = append(w.Nodes, node)
	if d := i.withheldBy(sure); d != "" {
		w.Denied = append(w.Denied, node+" by Deny "+d)
	}
}

// sure are the Denies that hold whatever a workload on the node is.
func (s *Set) sure(e *evidence) (all []*deny) {
	var space [8]survivor
	for _, d := range unique(s.deny.find(space[:0], e, isTrue)) {
		if d.eval(e, d.terms) == isTrue {
			all = append(all, d.deny)
		}
	}
	return all
}

// withheldBy names one of the Denies that withholds all that the Identity can
// give; empty: none does.
func (i *identity) withheldBy(sure []*deny) string {
	for _, d := range sure {
		if len(d.ids) == 0 || slices.Contains(d.SPIFFEIDs, "/**") || i.id.constant() && d.withholds(i.id.id) {
			return d.Name
		}
	}
	return ""
}

// needs is what of an item a workload has to prove: its terms on workload.*, and
// what of its when reads any.
func (a *alternative) needs() []string {
	var all []string
	for i := range a.terms {
		if t := &a.terms[i]; !strings.HasPrefix(t.name, "node.") {
			all = append(all, fmt.Sprintf("%s: %q", t.name, t.text))
		}
	}
	onNode := func(name string) bool { return under(name, "node") }
	if w := a.when; w != nil && !(every(w.names, onNode) && every(w.groups, onNode) && every(w.any, onNode)) {
		all = append(all, "when: "+w.text)
	}
	return all
}

func every(names []string, ok func(string) bool) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return !ok(name) })
}

// callers says whether an item is of no node.
func (a *alternative) callers() string {
	for i := range a.terms {
		switch root, _, _ := strings.Cut(a.terms[i].name, "."); root {
		case "user":
			return "people"
		case "peer":
			return "peers"
		}
	}
	return ""
}

// partialOn renders what is fixed, by an exact term of the item or by the node; the
// other facts stay, in braces, as they were written.
func (t *idTemplate) partialOn(a *alternative, e *evidence) string {
	if t.constant() {
		return t.id.String()
	}
	fixed := func(name string) (string, bool) {
		if values := e.get(name); len(values) == 1 {
			return values[0], true
		}
		i := slices.IndexFunc(a.terms, func(f term) bool { return f.name == name && f.exact() })
		if i < 0 {
			return "", false
		}
		return a.terms[i].text, true
	}
	return t.template.partial(inID, fixed, func(r *slot) string { return "{" + r.text + "}" })
}

// String renders the reach for people, on one screen.
func (r Reach) String() string {
	w := &page{}
	if len(r.Ways) == 0 {
		w.line("nothing can be got there")
	}
	const shown, names = 8, 5
	for _, way := range r.Ways[:min(len(r.Ways), shown)] {
		w.line("Identity %s, match[%d]: %s", way.Identity, way.Item, way.SPIFFEID)
		switch {
		case way.Callers != "":
			w.line("  who   %s who prove what follows; no node gets it", way.Callers)
		case way.Count == 0:
			w.line("  nodes none that stands has the facts")
		default:
			more := ""
			if way.Count > names {
				more = fmt.Sprintf(", and %d more", way.Count-names)
			}
			w.line("  nodes %s%s", strings.Join(way.Nodes[:min(len(way.Nodes), names)], ", "), more)
		}
		for _, h := range way.Let {
			w.line("  let   %s", h)
		}
		for _, d := range way.Denied[:min(len(way.Denied), names)] {
			w.line("  DENY  %s", d)
		}
		for _, n := range way.Needs {
			w.line("  needs %s", n)
		}
		if len(way.Needs) == 0 && way.Count > 0 {
			w.line("  needs nothing: every workload there gets it")
		}
	}
	w.more(len(r.Ways)+r.More-shown, "ways")
	return w.String()
}

// A Near is what a node may be told of an Identity that one of its workloads
// misses: the names of the facts that are missing, and nothing of what they would
// have to be.
type Near struct {
	Identity string
	Item     int
	Missing  []string // names of workload facts
	When     bool     // its when doesn't hold
	Code     string   // of one whose match holds: what of the request doesn't fit
}

// NearTo is Explain for the node that asks, which may be an attacker's. It tells
// of no Identity but those that the node could get by what it says of its
// workloads, whatever that is: of which all terms on node.* hold, and which no
// Deny withholds; and of no Deny at all.
func (s *Set) NearTo(r Request) []Near {
	j, err := s.judge(&r)
	if err != nil {
		return nil
	}
	e := blank(r.Node)
	sure := s.sure(e)
	holding := map[*identity]bool{}
	var near []Near
	for _, a := range j.granting {
		holding[a.identity] = true
		_, refused := s.decide(j, a.identity)
		if refused != nil && refused.deny == "" && len(near) < maxNear {
			near = append(near, Near{Identity: a.owner, Item: a.item, Code: refused.code})
		}
	}
	found := make([]miss, 0, maxNear+1)
	for _, i := range s.identities {
		if holding[i] {
			continue
		}
		for _, a := range i.alternatives {
			m := newMiss(a, j.e, failsAtMost(found, maxNear))
			if len(found) == maxNear && found[maxNear-1].compare(m) <= 0 {
				continue // as most are
			}
			if a.callers() == "" && a.eval(e, a.evalTerms(e)) != isFalse && i.withheldBy(sure) == "" {
				found = addMiss(found, m, maxNear)
			}
		}
	}
	for _, m := range found[:min(len(found), maxNear-len(near))] {
		n := Near{Identity: m.owner, Item: m.item}
		for _, f := range m.failing(j.e) {
			if f.Fact == "" {
				n.When = true
			} else {
				n.Missing = append(n.Missing, f.Fact)
			}
		}
		near = append(near, n)
	}
	return near
}
