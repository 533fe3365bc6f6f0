package identity

import (
	"errors"
	"maps"
	"slices"
)

// Changes are what one act does to Identities and Denies. Those given stand
// afterwards in place of the ones of their names, or as new ones. No name is in
// it twice.
type Changes struct {
	Identities        []Identity
	Denies            []Deny
	WithoutIdentities []string
	WithoutDenies     []string
}

// Change is Replace where nothing but these changes: its cost hardly grows with
// the set. It leaves s as it is. The Difference is between s and the new Set.
func (s *Set) Change(ch Changes) (*Set, *Difference, error) {
	next := *s
	next.identities, next.denies = slices.Clone(s.identities), slices.Clone(s.denies)
	next.whens, next.costly = maps.Clone(s.whens), maps.Clone(s.costly)
	c := &compiler{set: &next, old: s.whens, reads: map[string]*reads{}}
	c.config(s.config)
	e := &exchange{compiler: c, allow: s.allow.edit(), deny: s.deny.edit()}
	for _, name := range ch.WithoutIdentities {
		e.dropIdentity(name)
	}
	for _, name := range ch.WithoutDenies {
		e.dropDeny(name)
	}
	for _, i := range ch.Identities {
		e.putIdentity(i)
	}
	for _, d := range ch.Denies {
		e.putDeny(d)
	}
	next.allow, next.deny = e.allow.index, e.deny.index
	if len(ch.Denies)+len(ch.WithoutDenies) > 0 {
		next.denyReads = reads{}
		c.denyReads()
	}
	if len(c.errs) == 0 {
		c.checkAlways()
	}
	if len(c.errs) > 0 {
		return nil, nil, errors.Join(c.errs...)
	}
	c.wanted()
	return &next, e.difference(s), nil
}

// An exchange puts resources in place of others, one by one.
type exchange struct {
	*compiler
	allow, deny *edit
	touched     []*alternative
}

func (e *exchange) putIdentity(i Identity) {
	e.at("Identity", i.Name)
	e.dropIdentity(i.Name)
	one := &identity{Identity: i}
	e.compiler.identity(one)
	at, _ := slices.BinarySearchFunc(e.set.identities, i.Name, (*identity).compareName)
	e.set.identities = slices.Insert(e.set.identities, at, one)
	e.file(e.allow, one.alternatives)
}

func (e *exchange) dropIdentity(name string) {
	at, ok := slices.BinarySearchFunc(e.set.identities, name, (*identity).compareName)
	if !ok {
		return
	}
	old := e.set.identities[at]
	e.set.identities = slices.Delete(e.set.identities, at, at+1)
	e.count(old, -1)
	e.unfile(e.allow, old.alternatives)
}

func (e *exchange) putDeny(d Deny) {
	e.at("Deny", d.Name)
	e.dropDeny(d.named())
	one := &deny{Deny: d}
	e.compiler.deny(one)
	at, _ := slices.BinarySearchFunc(e.set.denies, one.Name, (*deny).compareName)
	e.set.denies = slices.Insert(e.set.denies, at, one)
	e.file(e.deny, one.alternatives)
}

func (e *exchange) dropDeny(name string) {
	at, ok := slices.BinarySearchFunc(e.set.denies, name, (*deny).compareName)
	if !ok {
		return
	}
	old := e.set.denies[at]
	e.set.denies = slices.Delete(e.set.denies, at, at+1)
	e.unfile(e.deny, old.alternatives)
}

func (e *exchange) file(in *edit, all []*alternative) {
	if len(e.errs) > 0 {
		return // some are not whole
	}
	for _, a := range all {
		in.add(a)
	}
	e.touched = append(e.touched, all...)
}

func (e *exchange) unfile(in *edit, all []*alternative) {
	if len(e.errs) > 0 {
		return
	}
	for _, a := range all {
		in.drop(a)
		if a.when == nil {
			continue
		}
		w := e.set.whens[a.when.text]
		if w.items--; w.items == 0 {
			delete(e.set.whens, a.when.text)
		} else {
			e.set.whens[a.when.text] = w
		}
	}
	e.touched = append(e.touched, all...)
}

// A Difference says on which requests two Sets may differ. The nil one says so
// of all.
type Difference struct{ touched *index }

// maxTouched is from how many items on deciding again costs less than asking
// first.
const maxTouched = 512

func (e *exchange) difference(before *Set) *Difference {
	if len(e.touched) > maxTouched || !before.denyReads.equal(&e.set.denyReads) {
		return nil // every Decision depends on what Denies read
	}
	all := make([]*alternative, len(e.touched)) // their place in an index is another here
	for n, a := range e.touched {
		own := *a
		all[n] = &own
	}
	return &Difference{buildIndex(all)}
}

func (r *reads) equal(o *reads) bool {
	return slices.Equal(r.names, o.names) && slices.Equal(r.groups, o.groups) && slices.Equal(r.any, o.any)
}

// OnNode says whether the Sets may differ for some workload of a node.
func (d *Difference) OnNode(node Facts) bool {
	return d == nil || len(d.touched.find(nil, blank(node), isUnknown)) > 0
}

// On says whether the Sets may decide differently on a request.
func (d *Difference) On(r Request) bool {
	if d == nil {
		return true
	}
	var space [4]survivor
	return len(d.touched.find(space[:0], newEvidence(&r), isUnknown)) > 0
}
