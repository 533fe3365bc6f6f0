package identity

import (
	"hash/maphash"
	"maps"
	"slices"
)

// An index finds the alternatives that may hold without looking at the
// others. Each one is filed once, under its rarest exact term, else under the
// longest head of its globs, by the name of the fact and then by the value;
// one without terms is always found. An index that is in use never changes: an
// edit makes another, which shares with it what it doesn't touch.
type index struct {
	names  map[string]*shelf
	always []*alternative
}

// A shelf holds what is filed under one fact.
type shelf struct {
	equal shards
	head  map[string][]*alternative // by what stands before the first star
	heads []int                     // lengths of head's keys, in order
}

// Shards are a map in 1, 2, 4 and so on parts, so that a change copies no more
// than one of them.
type shards struct {
	parts []map[string][]*alternative
	keys  int
}

const fullShard = 256 // keys of a part, on average

var seed = maphash.MakeSeed()

func (s *shards) at(key string) int {
	return int(maphash.String(seed, key) & uint64(len(s.parts)-1))
}

func (s *shards) get(key string) []*alternative {
	if len(s.parts) == 0 {
		return nil
	}
	return s.parts[s.at(key)][key]
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
	e := (&index{}).edit()
	e.fresh = true
	for _, a := range all {
		e.file(a, func(t *term) int { return refs[valueKey{t.name, t.text}] })
	}
	return e.index
}

// An edit makes an index of another, of which it copies first what it changes.
type edit struct {
	*index
	own   map[*shelf]map[int]bool // shelves that are no other index's; of each the parts
	fresh bool                    // all of it is no other index's
}

func (x *index) edit() *edit {
	next := &index{names: maps.Clone(x.names), always: slices.Clone(x.always)}
	if next.names == nil {
		next.names = map[string]*shelf{}
	}
	return &edit{index: next, own: map[*shelf]map[int]bool{}}
}

// add files an alternative among those that stand already: where fewest are.
func (e *edit) add(a *alternative) {
	e.file(a, func(t *term) int {
		if s := e.names[t.name]; s != nil {
			return len(s.equal.get(t.text))
		}
		return 0
	})
}

// file files an alternative under its exact term of least weight, if it has
// one.
func (e *edit) file(a *alternative, weigh func(*term) int) {
	best, least := -1, 0
	for i := range a.terms {
		if t := &a.terms[i]; t.exact() {
			if n := weigh(t); best < 0 || n < least {
				best, least = i, n
			}
		}
	}
	for i := range a.terms {
		if t := &a.terms[i]; best < 0 || !a.terms[best].exact() && len(t.head) > len(a.terms[best].head) {
			best = i
		}
	}
	a.filed = best
	if best < 0 {
		e.always = append(e.always, a)
		return
	}
	t := &a.terms[best]
	s := e.shelf(t.name)
	if t.exact() {
		part := e.part(s, t.text)
		if _, known := part[t.text]; !known {
			s.equal.keys++
		}
		part[t.text] = e.append(part[t.text], a)
		return
	}
	s.head[t.head] = e.append(s.head[t.head], a)
	if at, known := slices.BinarySearch(s.heads, len(t.head)); !known {
		s.heads = slices.Insert(s.heads, at, len(t.head))
	}
}

func (e *edit) append(filed []*alternative, a *alternative) []*alternative {
	if !e.fresh { // what lies behind it may be another edit's
		filed = slices.Clip(filed)
	}
	return append(filed, a)
}

// drop takes an alternative out.
func (e *edit) drop(a *alternative) {
	if a.filed < 0 {
		e.always = without(e.always, a)
		return
	}
	t := &a.terms[a.filed]
	s := e.shelf(t.name)
	var in map[string][]*alternative
	var key string
	if t.exact() {
		in, key = e.part(s, t.text), t.text
	} else {
		in, key = s.head, t.head
	}
	if in[key] = without(in[key], a); len(in[key]) > 0 {
		return
	}
	delete(in, key) // of heads one too many does no harm
	if t.exact() {
		s.equal.keys--
	}
	if s.equal.keys == 0 && len(s.head) == 0 {
		delete(e.names, t.name)
	}
}

// without returns a copy of all that lacks a.
func without(all []*alternative, a *alternative) []*alternative {
	left := make([]*alternative, 0, len(all))
	for _, o := range all {
		if o != a {
			left = append(left, o)
		}
	}
	return left
}

// shelf returns the shelf of a fact, to change it.
func (e *edit) shelf(name string) *shelf {
	s := e.names[name]
	if e.own[s] != nil {
		return s
	}
	next := &shelf{head: map[string][]*alternative{}, equal: shards{parts: []map[string][]*alternative{nil}}}
	if s != nil {
		next = &shelf{equal: shards{slices.Clone(s.equal.parts), s.equal.keys}, head: maps.Clone(s.head), heads: slices.Clone(s.heads)}
	}
	e.names[name], e.own[next] = next, map[int]bool{}
	return next
}

// part returns the part of a shelf in which a key stands, to change it.
func (e *edit) part(s *shelf, key string) map[string][]*alternative {
	if s.equal.keys > fullShard*len(s.equal.parts) {
		e.split(s)
	}
	at := s.equal.at(key)
	if !e.own[s][at] {
		if s.equal.parts[at] = maps.Clone(s.equal.parts[at]); s.equal.parts[at] == nil {
			s.equal.parts[at] = map[string][]*alternative{}
		}
		e.own[s][at] = true
	}
	return s.equal.parts[at]
}

// split doubles the parts of a shelf.
func (e *edit) split(s *shelf) {
	old := s.equal.parts
	s.equal.parts = make([]map[string][]*alternative, 2*len(old))
	for at := range s.equal.parts {
		s.equal.parts[at], e.own[s][at] = map[string][]*alternative{}, true
	}
	for _, part := range old {
		for key, filed := range part {
			s.equal.parts[s.equal.at(key)][key] = filed
		}
	}
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
	found = keep(found, s.equal.get(value), e, least)
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
		for _, part := range s.equal.parts {
			for _, filed := range part {
				found = keep(found, filed, e, isUnknown)
			}
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
