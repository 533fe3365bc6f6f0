package identity

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
)

// Bounds of what one set of facts may hold.
const (
	MaxFacts      = 256
	MaxFactsBytes = 64 << 10
)

// Facts are proven attributes by dotted name, such as "workload.unix.gid",
// each with one or more values. An absent name is not the empty string. Facts
// are immutable; the zero Facts hold nothing.
type Facts struct{ m map[string][]string }

// NewFacts returns the facts that one prover proved. It refuses a name that
// does not lie under prefix (a dotted path such as "workload.unix" or
// "node"), so that no driver can speak for another, a fact without a value, a
// malformed name, and more than MaxFacts or MaxFactsBytes.
func NewFacts(prefix string, m map[string][]string) (Facts, error) {
	if prefix == "" {
		return Facts{}, fmt.Errorf("making facts: no prefix")
	}
	if len(m) > MaxFacts {
		return Facts{}, fmt.Errorf("making facts of %s: %d facts, at most %d are taken", prefix, len(m), MaxFacts)
	}
	size := 0
	own := make(map[string][]string, len(m))
	for name, values := range m {
		if !strings.HasPrefix(name, prefix+".") {
			return Facts{}, fmt.Errorf("making facts of %s: %q is not under it", prefix, name)
		}
		if err := CheckFactName(name); err != nil {
			return Facts{}, fmt.Errorf("making facts of %s: %w", prefix, err)
		}
		if len(values) == 0 {
			return Facts{}, fmt.Errorf("making facts of %s: %q has no value", prefix, name)
		}
		size += len(name)
		for _, v := range values {
			size += 1 + len(v) // so that empty values have a bound too
		}
		own[name] = slices.Clone(values)
	}
	if size > MaxFactsBytes {
		return Facts{}, fmt.Errorf("making facts of %s: %d bytes, at most %d are taken", prefix, size, MaxFactsBytes)
	}
	return Facts{own}, nil
}

// roots are the first parts that a fact's name may have.
var roots = []string{"node", "workload", "user", "peer"}

// CheckFactName refuses what cannot be a fact's name: at least two parts
// between dots, the first of them node, workload, user or peer, each part
// non-empty and, but for the last (a label's key), of [a-z0-9_].
func CheckFactName(name string) error {
	if len(name) > 512 {
		return fmt.Errorf("fact name of %d bytes: at most 512 are taken", len(name))
	}
	root, rest, ok := strings.Cut(name, ".")
	if !ok || !slices.Contains(roots, root) || rest == "" {
		return fmt.Errorf("%q is not a fact's name, which starts with node, workload, user or peer, then a dot", name)
	}
	for _, r := range name {
		if r <= ' ' || r == 0x7f || r == '{' || r == '}' {
			return fmt.Errorf("%q is not a fact's name: it holds %q", name, r)
		}
	}
	if strings.HasPrefix(rest, ".") || strings.HasSuffix(rest, ".") || strings.Contains(rest, "..") {
		return fmt.Errorf("%q is not a fact's name: it has an empty part", name)
	}
	return nil
}

// Get returns the values of a fact, nil if it is absent. The caller must not
// change them.
func (f Facts) Get(name string) []string { return f.m[name] }

// Len returns how many facts there are.
func (f Facts) Len() int { return len(f.m) }

// All yields the facts in the order of their names.
func (f Facts) All() iter.Seq2[string, []string] {
	return func(yield func(string, []string) bool) {
		for _, name := range slices.Sorted(maps.Keys(f.m)) {
			if !yield(name, f.m[name]) {
				return
			}
		}
	}
}

// Map returns a copy of the facts.
func (f Facts) Map() map[string][]string {
	m := make(map[string][]string, len(f.m))
	for name, values := range f.m {
		m[name] = slices.Clone(values)
	}
	return m
}

// Join returns the facts of both. It refuses a name that both hold: one fact
// has one prover.
func (f Facts) Join(g Facts) (Facts, error) {
	m := maps.Clone(f.m)
	if m == nil {
		m = make(map[string][]string, len(g.m))
	}
	for name, values := range g.m {
		if _, twice := m[name]; twice {
			return Facts{}, fmt.Errorf("joining facts: %q is proven twice", name)
		}
		m[name] = values
	}
	if len(m) > MaxFacts {
		return Facts{}, fmt.Errorf("joining facts: %d facts, at most %d are taken", len(m), MaxFacts)
	}
	return Facts{m}, nil
}

// MarshalJSON writes an object of string lists.
func (f Facts) MarshalJSON() ([]byte, error) {
	if f.m == nil {
		return []byte("{}"), nil
	}
	return json.Marshal(f.m)
}

// ParseFacts reads what MarshalJSON wrote, under the rules of NewFacts.
func ParseFacts(prefix string, data []byte) (Facts, error) {
	if len(data) > 8*MaxFactsBytes { // an escape takes up to six bytes, quotes and commas the rest
		return Facts{}, fmt.Errorf("parsing facts of %s: %d bytes of JSON, at most %d are taken", prefix, len(data), 8*MaxFactsBytes)
	}
	var m map[string][]string
	if err := json.Unmarshal(data, &m); err != nil {
		return Facts{}, fmt.Errorf("parsing facts of %s: %w", prefix, err)
	}
	return NewFacts(prefix, m)
}
