package attest

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is told: a node reports 64 KiB of facts in all.
const (
	maxGroup = 128
	maxBytes = 24 << 10
)

// Told are an attestor's facts as they are gathered, from words that may be
// hostile: an image's and a pod's authors choose their labels.
type Told struct {
	Facts   map[string][]string
	Unknown []string
	prefix  string
}

// Tell returns facts under prefix, none yet.
func Tell(prefix string) *Told {
	return &Told{Facts: make(map[string][]string), prefix: prefix}
}

// Put tells a fact, unless it has no value or an empty one. A value that could
// mislead whoever reads it in a policy or a record leaves the fact unknown.
func (t *Told) Put(name string, values ...string) {
	switch {
	case slices.ContainsFunc(values, func(v string) bool { return !printable(v) }):
		t.Leave(name)
	case len(values) > 0 && values[0] != "":
		t.Facts[t.prefix+"."+name] = values
	}
}

// Leave leaves a fact, or all below it, unknown.
func (t *Told) Leave(name string) {
	t.Unknown = append(t.Unknown, t.prefix+"."+name)
	maps.DeleteFunc(t.Facts, func(fact string, _ []string) bool { return strings.HasPrefix(fact, t.prefix+"."+name+".") })
}

// Group tells facts below a name, empty ones too: all, or, where one of them
// cannot be told, none, for there may be too many to list those.
func (t *Told) Group(name string, all map[string]string) {
	if !Fits(all) {
		t.Leave(name)
		return
	}
	for key, value := range all {
		if !printable(value) {
			t.Leave(name)
			return
		}
		if usable(key) { // else no policy can name it
			t.Facts[t.prefix+"."+name+"."+key] = []string{value}
		}
	}
}

// Fits says whether a group is small enough to be told.
func Fits(all map[string]string) bool {
	n := 0
	for key, value := range all {
		n += len(key) + len(value)
	}
	return n <= maxBytes && len(all) <= maxGroup
}

// usable says whether a key can end a fact's name.
func usable(key string) bool {
	return key != "" && len(key) <= 256 && printable(key) && !strings.ContainsAny(key, " {}") &&
		!strings.HasPrefix(key, ".") && !strings.HasSuffix(key, ".") && !strings.Contains(key, "..")
}

// printable says whether a value could neither mislead who reads it in a policy
// or a record, nor fail to be sent as text.
func printable(v string) bool {
	return utf8.ValidString(v) && !strings.ContainsFunc(v, unicode.IsControl)
}
