package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A template is text around facts. In braces stands a fact's name, and after
// each | a function of its value:
//
//	/ns/{workload.kubernetes.namespace | lower}/{workload.docker.labels["app/tier"] | replace "." "-"}
//
// A brace itself is written {"{"}, as any text may be.
type template struct {
	lits  []string // one more than slots
	slots []slot
}

// parseTemplate cuts a text at its braces.
func parseTemplate(s string, p *place) (template, error) {
	t := template{lits: []string{""}}
	for {
		lit, rest, found := strings.Cut(s, "{")
		if strings.Contains(lit, "}") {
			return template{}, errors.New(`a } without its {: a brace itself is written {"}"}`)
		}
		t.lits[len(t.lits)-1] += lit
		if !found {
			return t, nil
		}
		inner, after, err := cutBrace(rest)
		if err != nil {
			return template{}, err
		}
		s = after
		if len(inner) > 0 && inner[0][0] == '"' { // text
			if len(inner) > 1 {
				return template{}, fmt.Errorf("{%s ...}: text takes no function", inner[0])
			}
			t.lits[len(t.lits)-1] += strings.Trim(inner[0], `"`)
			continue
		}
		r, err := p.parseSlot(inner)
		if err != nil {
			return template{}, err
		}
		r.text = strings.TrimSpace(rest[:len(rest)-len(after)-1])
		t.slots, t.lits = append(t.slots, r), append(t.lits, "")
	}
}

// cutBrace cuts what stands in braces into words, each |, each text in quotes
// and each run of others being one, and returns what follows the brace.
func cutBrace(s string) (words []string, after string, err error) {
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case '}':
			return words, s[i+1:], nil
		case '{':
			return nil, "", errors.New(`a { in braces: write {fact}, and a brace itself as {"{"}`)
		case ' ':
			i++
		case '|':
			words = append(words, "|")
			i++
		case '"':
			n := strings.IndexByte(s[i+1:], '"')
			if n < 0 {
				return nil, "", errors.New("a quote without its end")
			}
			words = append(words, s[i:i+n+2])
			i += n + 2
		default:
			n := i
			for n < len(s) && !strings.ContainsRune(` |"{}`, rune(s[n])) {
				if n++; s[n-1] != '[' || n == len(s) || s[n] != '"' {
					continue
				}
				end := strings.IndexByte(s[n+1:], '"') // the key of a label may hold anything
				if end < 0 {
					return nil, "", errors.New("a quote without its end")
				}
				n += end + 2
			}
			words = append(words, s[i:n])
			i = n
		}
	}
	return nil, "", errors.New("a { without its }")
}

// parseSlot parses a fact's name and its functions.
func (p *place) parseSlot(words []string) (slot, error) {
	if len(words) == 0 {
		return slot{}, errors.New("{} names no fact")
	}
	name, err := templateName(words[0])
	if err != nil {
		return slot{}, err
	}
	r := slot{name: name}
	for words = words[1:]; len(words) > 0; {
		if words[0] != "|" || len(words) == 1 || words[1] == "|" {
			return slot{}, fmt.Errorf("{%s ...}: what follows a fact is | and a function, such as | lower", name)
		}
		end := slices.Index(words[1:], "|") + 1
		if end == 0 {
			end = len(words)
		}
		f, err := p.parseFunction(words[1], words[2:end])
		if err != nil {
			return slot{}, fmt.Errorf("{%s ...}: %w", name, err)
		}
		if f.name == p.split && r.splits() {
			return slot{}, fmt.Errorf("{%s ...}: | %s stands there twice", name, f.name)
		}
		if r.funcs = append(r.funcs, f); len(r.funcs) > maxFunctions {
			return slot{}, fmt.Errorf("{%s ...}: at most %d functions are taken", name, maxFunctions)
		}
		words = words[end:]
	}
	return r, nil
}

// templateName takes `labels["a.b/c"]` for `labels.a.b/c`.
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

// constant says whether there are no facts in the template.
func (t *template) constant() bool { return len(t.slots) == 0 }

// names adds those of the facts to all.
func (t *template) names(all []string) []string {
	for i := range t.slots {
		all = append(all, t.slots[i].name)
	}
	return all
}

// trial is the text with harmless values, to find what no value could mend.
func (t *template) trial() string { return strings.Join(t.lits, "x") }

// fill renders the text, with what value gives for each fact.
func (t *template) fill(value func(*slot) (string, error)) (text, name string, err error) {
	var b strings.Builder
	b.WriteString(t.lits[0])
	for i := range t.slots {
		v, err := value(&t.slots[i])
		if err != nil {
			return "", t.slots[i].name, err
		}
		b.WriteString(v)
		b.WriteString(t.lits[i+1])
	}
	return b.String(), "", nil
}

// render returns the text, or the name of the fact that prevented it and why.
func (t *template) render(e *evidence, p *place) (text, name string, err error) {
	return t.fill(func(r *slot) (string, error) { return r.render(e, p) })
}

// partial renders what is fixed, by exact terms or by known facts; the other
// facts stay, in braces, as show writes them.
func (t *template) partial(p *place, fixed func(name string) (string, bool), show func(*slot) string) string {
	text, _, _ := t.fill(func(r *slot) (string, error) {
		if value, ok := fixed(r.name); ok {
			if v, err := r.of(value, p); err == nil {
				return v, nil
			}
		}
		return show(r), nil
	})
	return text
}

// An idTemplate is a parsed Identity.SPIFFEID, always a full ID in our trust
// domain.
type idTemplate struct {
	template
	id spiffeid.ID // of a constant: what it always renders
}

// ValidTemplate says what is wrong with an Identity's SPIFFEID in td, if
// anything is.
func ValidTemplate(td spiffeid.TrustDomain, s string) error {
	_, err := parseID(td, s)
	return err
}

func parseID(td spiffeid.TrustDomain, s string) (idTemplate, error) {
	if err := checkTrustDomain(td); err != nil {
		return idTemplate{}, err
	}
	path, err := templatePath(td, s)
	if err != nil {
		return idTemplate{}, err
	}
	t, err := parseTemplate(path, inID)
	if err != nil {
		return idTemplate{}, err
	}
	if first := t.lits[0]; isReserved(first) && (t.constant() || first != reserved) {
		return idTemplate{}, fmt.Errorf("%q lies under %s, which is Credence's own", s, reserved)
	}
	t.lits[0] = td.IDString() + t.lits[0]
	id, err := ParseID(t.trial())
	if err != nil {
		return idTemplate{}, err
	}
	if t.constant() {
		return idTemplate{id: id}, nil
	}
	return idTemplate{template: t}, nil
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

// render returns the ID, or the name of the fact that prevented it and why.
func (t *idTemplate) render(e *evidence) (id spiffeid.ID, name string, err error) {
	if t.constant() {
		return t.id, "", nil
	}
	text, name, err := t.template.render(e, inID)
	if err != nil {
		return spiffeid.ID{}, name, err
	}
	if id, err = ParseID(text); err != nil {
		return spiffeid.ID{}, "", err
	}
	if isReserved(id.Path()) {
		return spiffeid.ID{}, "", fmt.Errorf("%s lies under %s, which is Credence's own", id, reserved)
	}
	return id, "", nil
}

// A Party is what an Identity can give by one of its items. A fact that the item
// fixes by an exact term is filled in; the others stay, in braces: {fact}, or
// {fact|path} for one of several segments.
type Party struct {
	SPIFFEID string
	Subject  string // of its X509-SVIDs; empty: none
}

// Parties are what i can give in td, in the order of its items.
func (i Identity) Parties(td spiffeid.TrustDomain) ([]Party, error) {
	t, err := parseID(td, i.SPIFFEID)
	if err != nil {
		return nil, err
	}
	var subject template
	if i.X509 != nil {
		if subject, err = parseTemplate(i.X509.Subject, inText); err != nil {
			return nil, err
		}
	}
	var all []Party
	for _, item := range i.Match {
		p := Party{SPIFFEID: t.id.String()}
		if !t.constant() {
			p.SPIFFEID = t.partial(inID, item.fixed, (*slot).brief)
		}
		if !subject.constant() {
			p.Subject, _, _ = subject.fill(func(r *slot) (string, error) {
				if value, ok := item.fixed(r.name); ok {
					if v, err := r.of(value, inText); err == nil {
						return escapeRDN(v), nil
					}
				}
				return r.brief(), nil
			})
		} else if i.X509 != nil {
			p.Subject = i.X509.Subject
		}
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all, nil
}

// fixed is the one value that a fact can have to be rendered where the item
// holds.
func (i Item) fixed(name string) (string, bool) {
	for _, t := range i.Terms {
		if t.Name == name && !strings.Contains(t.Pattern, "*") {
			return t.Pattern, true
		}
	}
	return "", false
}
