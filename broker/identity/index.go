package identity

import "slices"

// An index finds the alternatives that may hold without looking at the
// others. Each one is filed once, under its rarest exact term, else under the
// longest head of its globs, by the name of the fact and then by the value;
// one without terms is always found.
type index struct {
	names  map[string]*shelf
	always []*alternative
}

// A shelf holds what is filed under one fact.
type shelf struct {
	equal map[string][]*alternative
	head  map[string][]*alternative // by what stands before the first star
	heads []int                     // lengths of head's keys
}

type valueKey struct{ name, value string }

// buildIndex counts first and files then: filed as they come, most would land
// under the term that all of them share.
func buildIndex(all []*alternative) *index {
	refs := make(map[valueKey]int, len(all))
	for _, a := range all {
		for i := range a.terms {
			if t := &a.terms[i]; t.exact() {
				refs[valueKey{t.name, t.text}]++
			}
		}
	}
	x := &index{names: map[string]*shelf{}}
	for _, a := range all {
		x.file(a, refs)
	}
	for _, s := range x.names {
		slices.Sort(s.heads)
		s.heads = slices.Compact(s.heads)
	}
	return x
}

func (x *index) file(a *alternative, refs map[valueKey]int) {
	best, least := -1, 0
	for i := range a.terms {
		if t := &a.terms[i]; t.exact() {
			if n := refs[valueKey{t.name, t.text}]; best < 0 || n < least {
				best, least = i, n
			}
		}
	}
	if best >= 0 {
		t := &a.terms[best]
		s := x.shelf(t.name)
		s.equal[t.text] = append(s.equal[t.text], a)
		return
	}
	for i := range a.terms {
		if best < 0 || len(a.terms[i].head) > len(a.terms[best].head) {
			best = i
		}
	}
	if best < 0 {
		x.always = append(x.always, a)
		return
	}
	t := &a.terms[best]
	s := x.shelf(t.name)
	s.head[t.head] = append(s.head[t.head], a)
	s.heads = append(s.heads, len(t.head))
}

func (x *index) shelf(name string) *shelf {
	s := x.names[name]
	if s == nil {
		s = &shelf{equal: map[string][]*alternative{}, head: map[string][]*alternative{}}
		x.names[name] = s
	}
	return s
}

// A survivor is an alternative whose terms may hold.
type survivor struct {
	*alternative
	terms truth
}

// find appends the alternatives whose terms give least or more; some perhaps
// twice, as a fact may have several values.
func (x *index) find(found []survivor, e *evidence, least truth) []survivor {
	found = keep(found, x.always, e, least)
	for _, facts := range [...]map[string][]string{e.node, e.workload, e.user, e.peer} {
		for name, values := range facts {
			s := x.names[name]
			if s == nil || len(e.unknown) > 0 && e.isUnknown(name) {
				continue
			}
			for _, v := range values {
				found = s.find(found, v, e, least)
			}
		}
	}
	if least == isUnknown && len(e.unknown) > 0 {
		found = x.findUnknown(found, e)
	}
	return found
}

func (s *shelf) find(found []survivor, value string, e *evidence, least truth) []survivor {
	found = keep(found, s.equal[value], e, least)
	for _, n := range s.heads {
		if n > len(value) {
			break
		}
		found = keep(found, s.head[value[:n]], e, least)
	}
	return found
}

// findUnknown finds what is filed under unknown facts, which no value leads
// to.
func (x *index) findUnknown(found []survivor, e *evidence) []survivor {
	for name, s := range x.names {
		if !e.isUnknown(name) {
			continue
		}
		for _, filed := range s.equal {
			found = keep(found, filed, e, isUnknown)
		}
		for _, filed := range s.head {
			found = keep(found, filed, e, isUnknown)
		}
	}
	return found
}

func keep(found []survivor, filed []*alternative, e *evidence, least truth) []survivor {
	for _, a := range filed {
		if t := a.evalTerms(e); t >= least {
			found = append(found, survivor{a, t})
		}
	}
	return found
}
