package identity

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Warning is about what is permitted but seldom meant.
type Warning struct {
	Lint                   string // its name, such as "subject_long"
	Kind, Name, Field, Msg string
}

func (w Warning) String() string {
	return (&Error{w.Kind, w.Name, w.Field, w.Msg}).Error() + " [" + w.Lint + "]"
}

// What Lint reckons with.
const (
	likelyFact   = 63               // bytes of a fact: a DNS label
	manyDepends  = 64               // facts that Denies read, and each Decision carries
	manyNodes    = 10               // that can claim an Identity
	fewLeft      = 5                // credentials that an app can have still
	fileLife     = 25 * time.Minute // of a token in a file: programs read it anew every 5 to 20 min
	maxLintSteps = 1_000_000        // comparisons of one Lint: an apply waits for it
	whenSteps    = 100              // what a when counts for, which may take milliseconds
)

// A Scope is what Lint looks at, and what it may know besides the set.
type Scope struct {
	Only    func(kind, name string) bool // nil: all
	Live    bool                         // Nodes and Sources are all that there are
	Nodes   []Place                      // that stand
	Sources []Source                     // by which others come, besides join tokens
}

// A Source is a JoinRule.
type Source struct {
	Rule, Method string
	Fixed        map[string]string // facts that are the same of all nodes that join by it
}

// Lint warns, in the order of names.
func (s *Set) Lint(scope Scope) []Warning {
	l := &linter{set: s, scope: scope, steps: maxLintSteps}
	only := scope.Only
	if only == nil {
		only = func(string, string) bool { return true }
	}
	for _, n := range scope.Nodes {
		l.nodes = append(l.nodes, blank(n.Facts))
	}
	for _, i := range s.identities {
		if only("Identity", i.Name) {
			l.chosen = append(l.chosen, i)
		}
	}
	l.likes()
	l.apps()
	for _, i := range l.chosen {
		l.identity(i)
	}
	for _, d := range s.denies {
		if only("Deny", d.Name) {
			l.deny(d)
		}
	}
	if n := len(s.denyReads.names); n > manyDepends {
		l.kind, l.name = "", ""
		l.warn("denies_many", "denies", "they read %d facts in all, and every SVID depends on each: agents ask again whenever one changes", n)
	}
	return l.all
}

type linter struct {
	set        *Set
	scope      Scope
	nodes      []*evidence
	chosen     []*identity
	byID       map[string][]*identity // of chosen ones' SPIFFE IDs
	byHint     map[string][]*identity
	used       map[string][]string // SPIFFE IDs by app
	told       map[string]bool     // apps
	steps      int                 // left
	kind, name string
	all        []Warning
}

func (l *linter) warn(lint, field, format string, args ...any) {
	l.all = append(l.all, Warning{lint, l.kind, l.name, field, fmt.Sprintf(format, args...)})
}

func (l *linter) identity(i *identity) {
	l.kind, l.name = "Identity", i.Name
	for _, a := range i.alternatives {
		l.item(a)
	}
	l.templates(i)
	l.targets(i)
	l.alike(i)
	if l.scope.Live {
		l.reachable(i)
	}
	if i.JWT != nil {
		l.jwt(i)
	}
}

// item warns of what a compromised node could claim: it makes up workload.*
// as it likes.
func (l *linter) item(a *alternative) {
	field := fmt.Sprintf("match[%d]", a.item)
	if !a.bound() {
		l.warn("any_node", field+".any_node", "no exact term binds it: any compromised node could claim it")
	}
	stars := !slices.ContainsFunc(a.terms, func(t term) bool { return !t.bare() })
	switch {
	case len(a.terms) == 0:
		l.warn("when_alone", field, "it has only a when, which every request evaluates: give it a term")
	case stars:
		l.warn("stars_alone", field, "its terms are bare stars, which every request that has the fact must look at")
	}
}

func (l *linter) jwt(i *identity) {
	j := i.JWT
	switch {
	case !l.set.config.JWT:
		l.warn("jwt_no_issuer", "jwt", "the broker has no issuer, so it makes no JWT-SVID")
	case len(j.Audiences) == 0 && len(i.Targets) == 0:
		l.warn("jwt_no_audience", "jwt.audiences", "none are listed, so the Workload API gives no JWT-SVID: list them, or leave jwt out")
	}
	for n, p := range i.audiences {
		field := fmt.Sprintf("jwt.audiences[%d]", n)
		if p.bare() && p.rest[0].any {
			l.warn("audience_any", field, "any audience may be asked for, also that of a cloud: list those that are meant") // SPIFFE JWT-SVID §3.2: one narrow audience
		}
		if j.Alg == algES256 && !strings.HasPrefix(p.text, "spiffe://") {
			l.warn("alg_undiscovered", field, "%q gets ES256, which OIDC discovery doesn't carry: leave jwt.alg out, or say RS256", p.text)
		}
	}
	switch output := i.forOutput(); {
	case len(j.Audiences) == 0:
	case output && i.jwtTTL < fileLife:
		l.warn("file_token_short", "jwt.ttl", "a token in a file lives %s, and programs read a file anew every 5 to 20 minutes: say jwt.ttl: %s, or have them ask the Workload API", i.jwtTTL, l.set.config.MaxJWTTTL)
	case !output && i.jwtTTL > l.set.config.TargetTTL:
		l.warn("jwt_life_long", "jwt.ttl", "%s is long for a bearer token, which nobody can take back: shorten it", i.jwtTTL)
	}
}

// forOutput says whether an item is for an output of agent.yaml: what is
// written to files.
func (i *identity) forOutput() bool {
	return slices.ContainsFunc(i.alternatives, func(a *alternative) bool {
		return slices.ContainsFunc(a.terms, func(t term) bool { return t.name == "workload.output.name" })
	})
}

func (l *linter) deny(d *deny) {
	l.kind, l.name = "Deny", d.Name
	for _, a := range d.alternatives {
		field := fmt.Sprintf("match[%d]", a.item)
		if len(a.terms) == 0 {
			l.warn("deny_when_alone", field, "it has only a when, which every request evaluates, and which holds for all that lack its facts: give it a term")
		}
		var r reads
		a.reads(&r)
		for _, name := range r.names {
			if strings.HasSuffix(name, costlySuffix) {
				l.warn("deny_costly", field, "it reads %s, so every agent must make it for every process, and where one can't the deny holds", name)
			}
		}
		ofWorkload := func(name string) bool { return under(name, "workload") }
		if every(r.names, ofWorkload) && every(r.groups, ofWorkload) && every(r.any, ofWorkload) {
			l.warn("deny_workload_only", field, "it reads facts of workloads alone, and a compromised node tells of those what it likes: name the node too (node.name), or evict it")
		}
	}
}
