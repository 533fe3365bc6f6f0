package identity

import (
	"fmt"
	"slices"
	"strings"
)

// A Warning is about what is permitted but seldom meant.
type Warning struct {
	Kind, Name, Field, Msg string
}

func (w Warning) String() string {
	return (&Error{w.Kind, w.Name, w.Field, w.Msg}).Error()
}

// What Lint reckons with.
const (
	gcpSubject  = 127 // bytes of google.subject that Google Cloud's workload identity federation takes
	likelyFact  = 63  // bytes of a rendered fact: a DNS label
	manyDepends = 64  // facts that Denies read, and each Decision carries
)

// Lint warns, in the order of names.
func (s *Set) Lint() []Warning {
	l := &linter{set: s}
	for _, i := range s.identities {
		l.identity(i)
	}
	for _, d := range s.denies {
		l.deny(d)
	}
	if n := len(s.denyReads.names); n > manyDepends {
		l.kind, l.name = "", ""
		l.warn("denies", "they read %d facts in all, and every SVID depends on each: agents ask again whenever one changes", n)
	}
	return l.all
}

type linter struct {
	set        *Set
	kind, name string
	all        []Warning
}

func (l *linter) warn(field, format string, args ...any) {
	l.all = append(l.all, Warning{l.kind, l.name, field, fmt.Sprintf(format, args...)})
}

func (l *linter) identity(i *identity) {
	l.kind, l.name = "Identity", i.Name
	for _, a := range i.alternatives {
		l.item(a)
	}
	if n := i.id.likely(); n > gcpSubject && len(i.Targets) > 0 {
		l.warn("spiffe_id", "it may have %d bytes, and Google Cloud takes a subject of at most %d", n, gcpSubject)
	}
	l.targets(i)
	if i.JWT != nil {
		l.jwt(i)
	}
}

// item warns of what a compromised node could claim: it makes up workload.*
// as it likes.
func (l *linter) item(a *alternative) {
	field := fmt.Sprintf("match[%d]", a.item)
	if !a.bound() {
		l.warn(field+".any_node", "no exact term binds it: any compromised node could claim it")
	}
	stars := !slices.ContainsFunc(a.terms, func(t term) bool { return !t.bare() })
	switch {
	case len(a.terms) == 0:
		l.warn(field, "it has only a when, which every request evaluates: give it a term")
	case stars:
		l.warn(field, "its terms are bare stars, which every request that has the fact must look at")
	}
}

func (l *linter) targets(i *identity) {
	if i.X509 != nil && i.X509.Subject != "" {
		return
	}
	for n, name := range i.Targets {
		if l.set.targets[name].Audience == "" {
			l.warn(fmt.Sprintf("targets[%d]", n), "%s takes an X509-SVID, and Roles Anywhere wants one with a subject: say x509.subject", name)
			return
		}
	}
}

func (l *linter) jwt(i *identity) {
	j := i.JWT
	switch {
	case !l.set.config.JWT:
		l.warn("jwt", "the broker has no issuer, so it makes no JWT-SVID")
	case len(j.Audiences) == 0 && len(i.Targets) == 0:
		l.warn("jwt.audiences", "none are listed, so the Workload API gives no JWT-SVID")
	}
	for n, p := range i.audiences {
		field := fmt.Sprintf("jwt.audiences[%d]", n)
		if p.bare() && p.rest[0].any {
			l.warn(field, "any audience may be asked for, also that of a cloud") // SPIFFE JWT-SVID §3.2: one narrow audience
		}
		if j.Alg == algES256 && !strings.HasPrefix(p.text, "spiffe://") {
			l.warn(field, "%q gets ES256, which OIDC discovery doesn't carry: leave jwt.alg out, or say RS256", p.text)
		}
	}
	if len(j.Audiences) > 0 && i.jwtTTL > l.set.config.TargetTTL {
		l.warn("jwt.ttl", "%s is long for a bearer token", i.jwtTTL)
	}
}

func (l *linter) deny(d *deny) {
	l.kind, l.name = "Deny", d.Name
	for _, a := range d.alternatives {
		field := fmt.Sprintf("match[%d]", a.item)
		if len(a.terms) == 0 {
			l.warn(field, "it has only a when, which every request evaluates, and which holds for all that lack its facts: give it a term")
		}
		var r reads
		a.reads(&r)
		for _, name := range r.names {
			if strings.HasSuffix(name, costlySuffix) {
				l.warn(field, "it reads %s, so every agent must make it for every process, and where one can't the deny holds", name)
			}
		}
	}
}

// likely is how long the ID may well get.
func (t *idTemplate) likely() int {
	if t.constant() {
		return len(t.id.String())
	}
	n := likelyFact * len(t.slots)
	for _, lit := range t.lits {
		n += len(lit)
	}
	return n
}
