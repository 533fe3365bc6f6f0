package identity

import (
	"slices"
	"strings"
)

// groupMark ends the name of a group of facts in Decision.Depends. Braces are
// in no fact's name.
const groupMark = ".{*}"

// depends returns what a decision for an identity rests on: what the identity
// reads in any of its items and in its template, and what any Deny reads,
// whether it came to be evaluated or not.
func (s *Set) depends(e *evidence, i *identity) map[string][]string {
	m := make(map[string][]string, len(i.reads.names)+len(s.denyReads.names))
	for _, r := range [...]*reads{i.reads, &s.denyReads} {
		for _, name := range r.names {
			m[name] = e.get(name)
		}
		for _, group := range r.groups {
			e.dependGroup(m, group)
		}
		for _, group := range r.any {
			e.dependAny(m, group)
		}
	}
	return m
}

// dependGroup enters all facts of a group, and the group itself: that no other
// joins them.
func (e *evidence) dependGroup(m map[string][]string, group string) {
	if m[group] != nil { // it is a fact here, and has no group
		return
	}
	names := e.below(group)
	for _, name := range names {
		m[name] = e.get(name)
	}
	if len(names) == 0 {
		names = []string{""}
	}
	m[group+groupMark] = slices.Clone(names)
}

// dependAny enters the first fact of a group: while it stands the group does.
// Of an empty group it enters the group.
func (e *evidence) dependAny(m map[string][]string, group string) {
	if m[group] != nil {
		return
	}
	if names := e.below(group); len(names) > 0 {
		m[names[0]] = e.get(names[0])
		return
	}
	m[group+groupMark] = []string{""}
}

// WantedFacts names the costly facts that some item reads, in order: an agent
// makes them only if they are wanted. Those are digests of whole files,
// "workload.unix.sha256" and any other that ends in ".sha256", and what may be
// secret: variables, such as "workload.docker.env.TIER", together with their
// group.
func (s *Set) WantedFacts() []string {
	return s.wanted
}

const (
	costlySuffix = ".sha256"
	costlyFact   = "workload.unix" + costlySuffix
	variableMark = ".env."
)

func (r *reads) addCostly(to *reads) {
	for _, name := range r.names {
		if strings.HasSuffix(name, costlySuffix) {
			to.names = append(to.names, name)
		}
		if i := strings.Index(name, variableMark); i > 0 {
			to.names = append(to.names, name, name[:i]+strings.TrimSuffix(variableMark, "."))
		}
	}
	for _, group := range r.groups {
		if under(costlyFact, group) {
			to.names = append(to.names, costlyFact)
		}
	}
}
