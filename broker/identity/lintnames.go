package identity

import (
	"fmt"
	"slices"
	"strings"
)

// templates warns of facts by which two workloads may come to one SPIFFE ID.
func (l *linter) templates(i *identity) {
	t := &i.id.template
	for n := range t.slots {
		r := &t.slots[n]
		if f, lossy := r.lossy(); lossy && !i.fixes(r.name) {
			why := "two values may come out as one"
			if f.name == "hash" {
				why = fmt.Sprintf("of %d digits whoever chooses the value finds one that comes out alike: take %d or more", f.digits, safeHash)
			}
			l.warn("template_lossy", "spiffe_id", "{%s}: with | %s %s; | escape keeps values apart, as an exact term on %s does", r.text, f.name, why, r.name)
		}
		if n > 0 && l.runsOn(i, &t.slots[n-1], r, t.lits[n]) {
			l.warn("template_ambiguous", "spiffe_id", "{%s} and {%s}: where one ends and the next begins is told by their values alone, so that others of them give the same SPIFFE ID: put a / between them", t.slots[n-1].text, r.text)
		}
	}
}

// fixes says whether each item holds for one value of a fact alone.
func (i *identity) fixes(name string) bool {
	return !slices.ContainsFunc(i.alternatives, func(a *alternative) bool { return !a.fixes(name) })
}

func (a *alternative) fixes(name string) bool {
	return slices.ContainsFunc(a.terms, func(t term) bool { return t.name == name && t.exact() })
}

// runsOn says whether two facts, with lit between, may trade what they are
// rendered as.
func (l *linter) runsOn(i *identity, r, next *slot, lit string) bool {
	for _, one := range []*slot{r, next} {
		if _, known := one.width(); known && !one.splits() || i.fixes(one.name) {
			return false
		}
	}
	return !strings.Contains(lit, "/") || r.splits() && next.splits()
}

// targets warns of what the clouds of an identity's targets will not take.
func (l *linter) targets(i *identity) {
	subject := ""
	if i.X509 != nil {
		subject = strings.ToUpper(i.X509.Subject)
	}
	for n, name := range i.Targets {
		limits, field := l.set.targets[name].Limits, fmt.Sprintf("targets[%d]", n)
		if most := limits.SPIFFEID; most > 0 {
			if id, size := i.longest(); size > most {
				l.warn("subject_long", "spiffe_id", "%s may have %d bytes, and %s, where %s leads, takes at most %d: shorten it, or write | hash 32 after a long fact", id, size, limits.Provider, name, most)
			}
		}
		if wants := limits.WantsRDN; wants == "any" && subject == "" || wants == "CN" && !strings.HasPrefix(subject, "CN=") && !strings.Contains(subject, ",CN=") {
			l.warn("subject_missing", field, "%s, where %s leads, wants X509-SVIDs with a subject, and theirs has none: say x509: {subject: \"CN=%s\"}", limits.Provider, name, i.Name)
		}
		l.app(i, field, limits)
	}
}

// longest is the longest SPIFFE ID that the identity likely gives, facts in
// braces, and its bytes.
func (i *identity) longest() (id string, most int) {
	if i.id.constant() {
		return i.id.id.String(), len(i.id.id.String())
	}
	for _, a := range i.alternatives {
		size := 0
		for _, lit := range i.id.lits {
			size += len(lit)
		}
		for n := range i.id.slots {
			size += i.id.slots[n].likely(a)
		}
		if size > most {
			id, most = i.id.partialOn(a, blank(Facts{})), size
		}
	}
	return id, most
}

// likely is how long a rendered fact may well be.
func (r *slot) likely(a *alternative) int {
	for _, t := range a.terms {
		if t.name == r.name && t.exact() {
			if v, err := r.of(t.text, inID); err == nil {
				return len(v)
			}
		}
	}
	if n, known := r.width(); known && !r.splits() {
		return n
	}
	if r.splits() {
		return 2*likelyFact + 1
	}
	return likelyFact
}

// apps counts the SPIFFE IDs that each app of a cloud must know.
func (l *linter) apps() {
	l.used, l.told = map[string][]string{}, map[string]bool{}
	wanted := map[string]bool{}
	for _, i := range l.chosen {
		for _, name := range i.Targets {
			if app := l.set.targets[name].Limits.App; app != "" {
				wanted[app] = true
			}
		}
	}
	if len(wanted) == 0 {
		return
	}
	for _, i := range l.set.identities {
		for _, name := range i.Targets {
			if app := l.set.targets[name].Limits.App; wanted[app] {
				l.used[app] = append(l.used[app], i.given()...)
			}
		}
	}
	for app, ids := range l.used {
		slices.Sort(ids)
		l.used[app] = slices.Compact(ids)
	}
}

// given are the SPIFFE IDs of an identity, one for each item; facts that no item
// fixes stay in braces.
func (i *identity) given() (ids []string) {
	for _, a := range i.alternatives {
		ids = append(ids, i.id.partialOn(a, blank(Facts{})))
	}
	return ids
}

func (l *linter) app(i *identity, field string, limits Limits) {
	if limits.App == "" {
		return
	}
	if n := slices.IndexFunc(i.given(), func(id string) bool { return strings.Contains(id, "{") }); n >= 0 {
		l.warn("credentials_template", field, "%s knows each SPIFFE ID by a credential of its own, and %s may be any: fix its facts by exact terms", limits.Provider, i.given()[n])
	}
	if n := len(l.used[limits.App]); n > limits.Credentials-fewLeft && !l.told[limits.App] {
		l.told[limits.App] = true
		l.warn("credentials_many", field, "%s of %s needs a federated credential for each of %d SPIFFE IDs, and has at most %d: give the next Identities a Target of another app, or let those that may do the same share a SPIFFE ID", limits.App, limits.Provider, n, limits.Credentials)
	}
}
