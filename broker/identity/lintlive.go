package identity

import (
	"fmt"
	"slices"
	"strings"
)

// reachable warns of items that no node satisfies, nor one that could join, and
// of what many nodes can claim.
func (l *linter) reachable(i *identity) {
	most, at := 0, 0
	for _, a := range i.alternatives {
		if a.callers() != "" {
			continue
		}
		n, counted := l.count(a)
		if counted && n == 0 {
			if why := l.unreachable(a); why != "" {
				l.warn("unreachable", fmt.Sprintf("match[%d]", a.item), "no node that stands satisfies it, and none can that joins: %s", why)
			}
		}
		if n > most && !a.proven() {
			most, at = n, a.item
		}
	}
	if most >= manyNodes {
		l.warn("nodes_many", fmt.Sprintf("match[%d]", at), "%d nodes can claim this, whatever runs on them, and any of them may be compromised: name fewer by terms on node.*, or want workload.kubernetes.proven: \"true\"", most)
	}
}

// count is how many nodes satisfy the item, whatever their workloads are; false
// where to count takes too long.
func (l *linter) count(a *alternative) (n int, counted bool) {
	if l.steps -= len(l.nodes); l.steps < 0 {
		return 0, false
	}
	for _, e := range l.nodes {
		t := a.evalTerms(e)
		if t != isFalse && a.when != nil {
			if l.steps -= whenSteps; l.steps < 0 {
				return 0, false
			}
		}
		if a.eval(e, t) != isFalse {
			n++
		}
	}
	return n, true
}

// proven says whether the item wants what the broker verifies, and no node can
// make up.
func (a *alternative) proven() bool {
	return slices.ContainsFunc(a.terms, func(t term) bool {
		return t.name == "workload.kubernetes.proven" && t.exact()
	})
}

// unreachable says what no node can have; empty: one can join that has all, by
// what is known before it does.
func (l *linter) unreachable(a *alternative) string {
	sources := append([]Source{{Method: "token"}}, l.scope.Sources...)
	if slices.ContainsFunc(sources, func(s Source) bool {
		return !slices.ContainsFunc(a.terms, func(t term) bool { return !s.mayGive(&t) })
	}) {
		return ""
	}
	for _, t := range a.terms {
		if slices.ContainsFunc(sources, func(s Source) bool { return s.mayGive(&t) }) {
			continue
		}
		if m := method(t.name); m != "" && !slices.ContainsFunc(sources, func(s Source) bool { return s.Method == m }) {
			return fmt.Sprintf("%s wants a JoinRule of method %s", t.name, m)
		}
		return fmt.Sprintf("neither a JoinRule nor a token gives %s: %q", t.name, t.text)
	}
	return "no one JoinRule gives all of its terms on node.*"
}

// method is whose fact a name is: "github" proves node.github.*.
func method(name string) string {
	rest, _ := strings.CutPrefix(name, "node.")
	m, _, of := strings.Cut(rest, ".")
	if !of {
		return ""
	}
	return m
}

// mayGive says whether a node that joins by a source may satisfy a term.
func (s Source) mayGive(t *term) bool {
	switch {
	case !strings.HasPrefix(t.name, "node."), t.name == "node.name", t.name == "node.id":
		return true
	case t.name == "node.method":
		return t.match(s.Method)
	case t.name == "node.join_rule":
		return s.Rule != "" && t.match(s.Rule)
	}
	if value, ok := s.Fixed[t.name]; ok {
		return t.match(value)
	}
	return method(t.name) == s.Method
}

// likes finds the identities that have a SPIFFE ID or hint in common with those
// that are looked at.
func (l *linter) likes() {
	l.byID, l.byHint = map[string][]*identity{}, map[string][]*identity{}
	for _, i := range l.chosen {
		l.byID[l.text(i)] = nil
		if i.Hint != "" {
			l.byHint[i.Hint] = nil
		}
	}
	for _, i := range l.set.identities {
		if all, ok := l.byID[l.text(i)]; ok {
			l.byID[l.text(i)] = append(all, i)
		}
		if all, ok := l.byHint[i.Hint]; ok {
			l.byHint[i.Hint] = append(all, i)
		}
	}
}

// text is an identity's template, without the trust domain.
func (l *linter) text(i *identity) string {
	return strings.TrimPrefix(i.SPIFFEID, l.set.config.TrustDomain.IDString())
}

// alike warns of an identity that a workload gets beside another of the same
// SPIFFE ID or hint.
func (l *linter) alike(i *identity) {
	if o, item := l.implied(i, l.byID[l.text(i)]); o != nil {
		l.warn("shadowed", fmt.Sprintf("match[%d]", item), "whoever satisfies it has the same SPIFFE ID by Identity %s, and gets two SVIDs of it: remove one, or tell them apart by spiffe_id or match", o.Name)
		return
	}
	if o, item := l.implied(i, l.byHint[i.Hint]); i.Hint != "" && o != nil {
		l.warn("hint_shared", "hint", "whoever satisfies match[%d] has Identity %s too, with the same hint, and %s goes without: give it another", item, o.Name, max(i.Name, o.Name))
	}
}

// implied returns another identity that everybody has who satisfies one of i's
// items. Of two that imply each other the second by name is told of.
func (l *linter) implied(i *identity, all []*identity) (*identity, int) {
	for _, o := range all {
		for _, a := range i.alternatives {
			for _, b := range o.alternatives {
				if l.steps--; l.steps < 0 {
					return nil, 0
				}
				if o != i && a.implies(b) && (o.Name < i.Name || !b.implies(a)) {
					return o, a.item
				}
			}
		}
	}
	return nil, 0
}

// implies says whether b holds where a does, as far as its terms show.
func (a *alternative) implies(b *alternative) bool {
	if b.when != nil && (a.when == nil || a.when.text != b.when.text) {
		return false
	}
	return !slices.ContainsFunc(b.terms, func(t term) bool {
		return !slices.ContainsFunc(a.terms, func(u term) bool {
			return u.name == t.name && (u.text == t.text || u.exact() && t.match(u.text))
		})
	})
}
