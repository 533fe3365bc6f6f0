package exchangers

import (
	"fmt"
	"regexp"
	"slices"
)

// A State says how a step of a check ended.
type State string

// The states of a step.
const (
	Done    State = "done"
	Warning State = "warning" // a cloud takes it, or may
	Problem State = "problem" // a cloud refuses it: the walk ends here
)

// A Finding is what one step of the check of a Target found.
type Finding struct {
	Step   string // such as "issuer"
	State  State
	Code   string // of a warning or problem, for ever the same: such as "issuer_slash"
	Field  string // where to change it: of the Target, identity.X, broker.X or cloud.X
	Byte   int    // the first one, from 1, that differs from what the cloud has; 0: it is not about one
	Found  string
	Change string // the one thing to change; of a warning, to consider
	Shown  string // two texts, and a caret under the first byte that differs; or empty
}

// Registered is what the operator sees in the cloud's console. What is empty is
// not compared.
type Registered struct {
	Issuer    string
	Subject   string
	Audiences []string
}

// Question is what a Checker is asked.
type Question struct {
	Facts
	Identity   string // walk with this one alone; empty: with all that list the Target
	Registered Registered
}

// A Checker is Settings that can tell, before the provider is asked, what it
// would refuse. It reads no clock and asks nobody. The findings end with the
// first Problem.
type Checker interface {
	Check(Question) []Finding
}

// parties are those to walk with.
func (q Question) parties() []Party {
	if q.Identity == "" {
		return q.Parties
	}
	return slices.DeleteFunc(slices.Clone(q.Parties), func(p Party) bool { return p.Identity != q.Identity })
}

// A Walk gathers findings. Its steps return false at the first Problem.
type Walk struct {
	Question
	Findings []Finding
}

// Steps runs the steps until one fails, and returns what they found.
func (w *Walk) Steps(steps ...func() bool) []Finding {
	for _, step := range steps {
		if !step() {
			break
		}
	}
	return w.Findings
}

// Done says that a step found nothing wrong.
func (w *Walk) Done(step, format string, args ...any) bool {
	w.Findings = append(w.Findings, Finding{Step: step, State: Done, Found: fmt.Sprintf(format, args...)})
	return true
}

// Warn says what a cloud takes, or may take. The walk goes on.
func (w *Walk) Warn(step, code, field, found, change string) bool {
	w.Findings = append(w.Findings, Finding{Step: step, State: Warning, Code: code, Field: field, Found: found, Change: change})
	return true
}

// Fail says what a cloud refuses, and ends the walk.
func (w *Walk) Fail(step, code, field, found, change string) bool {
	w.Findings = append(w.Findings, Finding{Step: step, State: Problem, Code: code, Field: field, Found: found, Change: change})
	return false
}

// Settled checks what Validate would refuse: a Target may be older than the rule.
func (w *Walk) Settled() bool {
	if err := w.Target.Settings.Validate(); err != nil {
		field := fieldOf(err.Error())
		return w.Fail("target", "target_"+field, field, Clean(err.Error()), "change "+field+" of the Target")
	}
	return w.Done("target", "%s of flow %s", w.Target.Name, w.Target.Flow)
}

var firstField = regexp.MustCompile(`^([a-z_]+)(:|,| ["0-9])`)

// fieldOf is the name that Validate's errors begin with.
func fieldOf(text string) string {
	if m := firstField.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return "settings"
}

// Listed checks that somebody may exchange at the Target.
func (w *Walk) Listed() bool {
	all := w.parties()
	switch {
	case len(all) == 0 && w.Identity != "":
		return w.Fail("identity", "identity_unlisted", "identity.targets", "Identity "+w.Identity+" does not list this Target",
			"add "+w.Target.Name+" to targets of the Identity")
	case len(all) == 0:
		return w.Fail("identity", "identity_none", "identity.targets", "no Identity lists this Target", "add "+w.Target.Name+" to targets of an Identity")
	}
	for _, p := range all {
		w.Done("identity", "%s is %s", p.Identity, p.SPIFFEID)
	}
	return true
}

// Walked are the Identities that the walk is about.
func (w *Walk) Walked() []Party { return w.parties() }

// Audience compares what a JWT-SVID says with what the cloud takes: one of
// several.
func (w *Walk) Audience(field, ours string) bool {
	theirs := w.Registered.Audiences
	if len(theirs) == 0 || slices.Contains(theirs, ours) {
		return true
	}
	nearest, most := theirs[0], -1
	for _, one := range theirs {
		if d, _ := Differ(ours, one); d.Kind != "other" && d.Kind != "host" && d.Kind != "path" {
			nearest = one
			break
		} else if d.Byte > most {
			nearest, most = one, d.Byte
		}
	}
	return w.Compare("audience", "audience", "the audience", field, ours, nearest)
}

// Failed says whether the walk has ended with a Problem.
func (w *Walk) Failed() bool {
	n := len(w.Findings)
	return n > 0 && w.Findings[n-1].State == Problem
}
