package identity

import (
	"slices"
	"strings"
)

// truth is Kleene's: what is false whatever the unknown facts hold is false,
// what is true whatever they hold is true.
type truth uint8

const (
	isFalse truth = iota
	isUnknown
	isTrue
)

func (t truth) String() string { return [...]string{"false", "unknown", "true"}[t] }

// evidence is what a Request proves, read by name.
type evidence struct {
	node, workload, user, peer map[string][]string
	unknown                    []string
	names                      []string // sorted; see sorted
}

func newEvidence(r *Request) *evidence {
	e := &evidence{node: r.Node.m, workload: r.Workload.m, user: r.User.m, peer: r.Peer.m, unknown: r.Unknown}
	if r.Presented != nil {
		e.unknown = append(slices.Clone(r.Unknown), "workload")
	}
	return e
}

// root returns the facts among which name must lie: a fact filed under
// another's root is never found.
func (e *evidence) root(name string) map[string][]string {
	if name == "" {
		return nil
	}
	switch name[0] {
	case 'n':
		return e.node
	case 'w':
		return e.workload
	case 'u':
		return e.user
	default:
		return e.peer
	}
}

// get returns a fact's values; nil if it is absent or unknown.
func (e *evidence) get(name string) []string {
	if e.isUnknown(name) {
		return nil
	}
	return e.root(name)[name]
}

// isUnknown says whether the prover of name failed. What it proved before it
// failed counts for nothing: nobody knows what else it would have said.
func (e *evidence) isUnknown(name string) bool {
	for _, u := range e.unknown {
		if under(name, u) {
			return true
		}
	}
	return false
}

// unknownBelow says whether some fact at or below prefix may be unknown.
func (e *evidence) unknownBelow(prefix string) bool {
	for _, u := range e.unknown {
		if under(u, prefix) || under(prefix, u) {
			return true
		}
	}
	return false
}

// under says whether name is prefix or lies below it.
func under(name, prefix string) bool {
	return strings.HasPrefix(name, prefix) && (len(name) == len(prefix) || name[len(prefix)] == '.')
}

// below yields the names of the known facts under prefix, itself not, in
// order.
func (e *evidence) below(prefix string) []string {
	if e.names == nil {
		e.names = make([]string, 0, len(e.node)+len(e.workload)+len(e.user)+len(e.peer))
		for _, m := range []map[string][]string{e.node, e.workload, e.user, e.peer} {
			for name := range m {
				if !e.isUnknown(name) {
					e.names = append(e.names, name)
				}
			}
		}
		slices.Sort(e.names)
		e.names = slices.Compact(e.names)
	}
	prefix += "."
	from, _ := slices.BinarySearch(e.names, prefix)
	to := from
	for to < len(e.names) && strings.HasPrefix(e.names[to], prefix) {
		to++
	}
	return e.names[from:to]
}

// anyBelow says whether a known fact lies below prefix.
func (e *evidence) anyBelow(prefix string) bool { return len(e.below(prefix)) > 0 }

// A term is a parsed Term.
type term struct {
	name string
	pattern
}

func (t *term) eval(e *evidence) truth {
	if len(e.unknown) > 0 && e.isUnknown(t.name) {
		return isUnknown
	}
	for _, v := range e.root(t.name)[t.name] {
		if t.match(v) {
			return isTrue
		}
	}
	return isFalse
}
