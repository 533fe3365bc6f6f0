package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A template is a parsed Identity.SPIFFEID: literal text around facts, always
// a full ID in our trust domain.
type template struct {
	lits  []string // one more than names; without names none
	names []string
	id    spiffeid.ID // without names: what it always renders
}

// ValidTemplate says what is wrong with an Identity's SPIFFEID in td, if
// anything is.
func ValidTemplate(td spiffeid.TrustDomain, s string) error {
	_, err := parseTemplate(td, s)
	return err
}

func parseTemplate(td spiffeid.TrustDomain, s string) (template, error) {
	if err := checkTrustDomain(td); err != nil {
		return template{}, err
	}
	path, err := templatePath(td, s)
	if err != nil {
		return template{}, err
	}
	t, err := splitTemplate(path)
	if err != nil {
		return template{}, err
	}
	if first := t.lits[0]; isReserved(first) && (len(t.names) == 0 || first != reserved) {
		return template{}, fmt.Errorf("%q lies under %s, which is Credence's own", s, reserved)
	}
	t.lits[0] = td.IDString() + t.lits[0]
	// A trial with harmless values finds what no value could mend.
	id, err := ParseID(strings.Join(t.lits, "x"))
	if err != nil {
		return template{}, err
	}
	if len(t.names) == 0 {
		t.id, t.lits = id, nil
	}
	return t, nil
}

// templatePath returns the path of s, which is one or a full ID in td.
func templatePath(td spiffeid.TrustDomain, s string) (string, error) {
	if len(s) > maxID {
		return "", fmt.Errorf("%d bytes: at most %d are taken", len(s), maxID)
	}
	path, full := strings.CutPrefix(s, td.IDString())
	switch {
	case s == "":
		return "", errors.New("missing: want a path such as /ns/shop/checkout")
	case full && path == "", path == "/":
		return "", fmt.Errorf("%q has no path: it would name the trust domain", s) // SPIFFE X509-SVID §3.1
	case !strings.HasPrefix(path, "/"):
		return "", fmt.Errorf("%q is neither a path nor an ID in %s", s, td.IDString())
	}
	return path, nil
}

// splitTemplate cuts at braces. `{labels["a.b/c"]}` means `{labels.a.b/c}`.
func splitTemplate(s string) (template, error) {
	var t template
	for {
		lit, rest, found := strings.Cut(s, "{")
		if strings.Contains(lit, "}") {
			return template{}, errors.New("a } without its {")
		}
		t.lits = append(t.lits, lit)
		if !found {
			return t, nil
		}
		inner, after, closed := strings.Cut(rest, "}")
		if !closed {
			return template{}, errors.New("a { without its }")
		}
		name, err := templateName(inner)
		if err != nil {
			return template{}, err
		}
		t.names = append(t.names, name)
		s = after
	}
}

func templateName(s string) (string, error) {
	if front, key, ok := strings.Cut(s, `["`); ok {
		key, ok = strings.CutSuffix(key, `"]`)
		if !ok || strings.Contains(key, `"`) {
			return "", fmt.Errorf("{%s} is not a fact's name", s)
		}
		s = front + "." + key
	}
	return s, CheckFactName(s)
}

// render returns the ID, or the name of the fact that prevented it and why.
func (t *template) render(e *evidence) (id spiffeid.ID, name string, err error) {
	if len(t.names) == 0 {
		return t.id, "", nil
	}
	var b strings.Builder
	b.WriteString(t.lits[0])
	for i, name := range t.names {
		values := e.get(name)
		if len(values) != 1 {
			return spiffeid.ID{}, name, fmt.Errorf("has %d values, and a SPIFFE ID takes exactly one", len(values))
		}
		// The value may come from whoever asks: it must not reach beyond its
		// own segment, nor be mended so that it doesn't.
		if len(values[0]) > maxID || spiffeid.ValidatePathSegment(values[0]) != nil {
			return spiffeid.ID{}, name, fmt.Errorf("is %.100q, which can't stand in one segment of a SPIFFE ID", values[0])
		}
		b.WriteString(values[0])
		b.WriteString(t.lits[i+1])
	}
	id, err = ParseID(b.String())
	if err != nil {
		return spiffeid.ID{}, "", err
	}
	if isReserved(id.Path()) {
		return spiffeid.ID{}, "", fmt.Errorf("%s lies under %s, which is Credence's own", id, reserved)
	}
	return id, "", nil
}

// IDs are the SPIFFE IDs that i can grant in td, in the order of its items. A
// fact that an item fixes by an exact term is filled in; the others stay, in
// braces.
func (i Identity) IDs(td spiffeid.TrustDomain) ([]string, error) {
	t, err := parseTemplate(td, i.SPIFFEID)
	if err != nil {
		return nil, err
	}
	if len(t.names) == 0 {
		return []string{t.id.String()}, nil
	}
	var ids []string
	for _, item := range i.Match {
		id := t.lits[0]
		for n, name := range t.names {
			id += item.fixed(name) + t.lits[n+1]
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// fixed is the one value that a fact can have to be rendered where the item
// holds, or its name in braces.
func (i Item) fixed(name string) string {
	for _, t := range i.Terms {
		if t.Name == name && !strings.Contains(t.Pattern, "*") && spiffeid.ValidatePathSegment(t.Pattern) == nil {
			return t.Pattern
		}
	}
	return "{" + name + "}"
}
