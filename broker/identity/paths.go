package identity

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Paths are patterns over the paths of SPIFFE IDs in one trust domain: what
// somebody may change Identities and Denies under. The zero Paths hold nothing.
type Paths struct {
	td    spiffeid.TrustDomain
	atoms [][]atom
}

// ParsePaths parses patterns, each of which begins with a slash.
func ParsePaths(td spiffeid.TrustDomain, patterns []string) (Paths, error) {
	p := Paths{td: td}
	for _, text := range patterns {
		if _, err := parsePattern(text); err != nil {
			return Paths{}, err
		}
		if !strings.HasPrefix(text, "/") {
			return Paths{}, fmt.Errorf("%q: a pattern of paths such as /shop/** is wanted", text)
		}
		p.atoms = append(p.atoms, atomsOf(text))
	}
	return p, nil
}

// HoldIdentity says whether every SPIFFE ID that i can ever give, whatever its
// facts are, lies under one of the patterns.
func (p Paths) HoldIdentity(i Identity) bool {
	atoms, ok := p.idAtoms(i)
	return ok && p.hold(atoms)
}

// HoldDeny says whether every SPIFFE ID that d can withhold lies under one of the
// patterns.
func (p Paths) HoldDeny(d Deny) bool {
	for _, text := range d.SPIFFEIDs {
		if path, full := strings.CutPrefix(text, p.td.IDString()); full {
			text = path
		}
		if !strings.HasPrefix(text, "/") || !p.hold(atomsOf(text)) {
			return false
		}
	}
	return len(d.SPIFFEIDs) > 0 // none is all
}

// CanGive says whether i can give an ID, by some facts. What is no Identity in td
// may give any.
func CanGive(td spiffeid.TrustDomain, i Identity, id spiffeid.ID) bool {
	atoms, ok := Paths{td: td}.idAtoms(i)
	return !ok || id.TrustDomain() == td && within(literal(id.Path()), atoms)
}

func (p Paths) hold(inner []atom) bool {
	return slices.ContainsFunc(p.atoms, func(outer []atom) bool { return within(inner, outer) })
}

// idAtoms are what an Identity's template gives.
func (p Paths) idAtoms(i Identity) ([]atom, bool) {
	t, err := parseID(p.td, i.SPIFFEID)
	if err != nil {
		return nil, false
	}
	if t.constant() {
		return literal(t.id.Path()), true
	}
	first, ok := strings.CutPrefix(t.lits[0], p.td.IDString())
	if !ok {
		return nil, false
	}
	all := literal(first)
	for n := range t.slots {
		run := atom{run: true}
		run.any = t.slots[n].splits()
		all = append(append(all, run), literal(t.lits[n+1])...)
	}
	return all, true
}

// An atom is a byte, or a run: without slashes, or any.
type atom struct {
	lit      byte
	run, any bool
}

func literal(s string) []atom {
	all := make([]atom, len(s))
	for i := range s {
		all[i].lit = s[i]
	}
	return all
}

func atomsOf(pattern string) (all []atom) {
	for len(pattern) > 0 {
		switch {
		case strings.HasPrefix(pattern, "**"):
			all, pattern = append(all, atom{run: true, any: true}), pattern[2:]
		case pattern[0] == '*':
			all, pattern = append(all, atom{run: true}), pattern[1:]
		default:
			all, pattern = append(all, atom{lit: pattern[0]}), pattern[1:]
		}
	}
	return all
}

// within says whether whatever inner describes outer describes too. Where it says
// so, it is so; two runs of outer that only together hold one of inner are not
// taken for it.
func within(inner, outer []atom) bool {
	at, next := make([]bool, len(outer)+1), make([]bool, len(outer)+1)
	at[0] = true
	for i := 0; ; i++ {
		for n, a := range outer { // a run may be empty
			at[n+1] = at[n+1] || at[n] && a.run
		}
		if i == len(inner) {
			return at[len(outer)]
		}
		clear(next)
		for n, a := range outer {
			switch c := inner[i]; {
			case !at[n]:
			case a.run && (a.any || !c.any && (c.run || c.lit != '/')):
				next[n] = true
			case !a.run && !c.run && a.lit == c.lit:
				next[n+1] = true
			}
		}
		at, next = next, at
	}
}

// Stands says whether there is an Identity of a name, of this revision.
func (s *Set) Stands(name string, revision uint64) bool {
	i, ok := s.named(name)
	return ok && i.Revision == revision
}
