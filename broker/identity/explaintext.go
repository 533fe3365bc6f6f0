package identity

import (
	"fmt"
	"strings"
)

// Bounds of the text: an operator reads one screen.
const (
	shownMisses  = 3
	shownTerms   = 8
	shownGranted = 8
)

// String renders the explanation for people, on one screen: first what became
// of the request, then why.
func (x Explanation) String() string {
	w := &page{}
	if len(x.Granted) == 0 {
		w.line("nothing is granted (%s)", x.Code)
	}
	if x.Withheld != "" {
		w.line("%s", x.Withheld)
	}
	if x.Malformed != "" {
		w.line("the request was refused unseen: %s", x.Malformed)
	}
	for _, g := range x.Granted[:min(len(x.Granted), shownGranted)] {
		w.line("granted: %s, by Identity %s, match[%d]", g.SPIFFEID, g.Identity, g.Item)
		w.terms(g.Holding, nil)
		if g.Note != "" {
			w.line("  note: %s", g.Note)
		}
	}
	w.more(len(x.Granted)-shownGranted, "Identities are granted")
	for _, r := range x.Refused[:min(len(x.Refused), shownMisses)] {
		w.refused(r)
	}
	w.more(len(x.Refused)-shownMisses, "Identities match, and are refused")
	for _, d := range x.Denies[:min(len(x.Denies), shownMisses)] {
		w.deny(d)
	}
	w.more(len(x.Denies)-shownMisses, "Denies hold")
	if len(x.Refused) == 0 {
		for n, m := range x.Misses[:min(len(x.Misses), shownMisses)] {
			w.miss(n, m)
		}
		w.more(len(x.Misses)-shownMisses, "Identities are near")
	}
	if x.Code == CodeNoIdentity && len(x.Misses) == 0 && x.Withheld == "" {
		w.line("there are no Identities")
	}
	return w.String()
}

// A page is a text that grows by lines.
type page struct{ strings.Builder }

func (w *page) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

func (w *page) more(n int, what string) {
	if n > 0 {
		w.line("%d more %s: -o json has them", n, what)
	}
}

func (w *page) refused(r Refused) {
	who := fmt.Sprintf("Identity %s, match[%d] holds", r.Identity, r.Item)
	if r.SPIFFEID != "" {
		who += " and gives " + r.SPIFFEID
	}
	if r.Deny != "" {
		w.line("withheld: %s, but Deny %s holds", who, r.Deny)
		return
	}
	w.line("refused: %s, but %s: %s", who, r.Field, r.Why)
}

func (w *page) deny(d DenyHit) {
	why := ""
	if d.Unknown {
		why = ", since a fact that it reads is unknown"
	}
	if d.Reason != "" {
		why += fmt.Sprintf(": %q", d.Reason)
	}
	w.line("deny holds: %s, match[%d]%s", d.Deny, d.Item, why)
	w.terms(d.Holding, d.Failing)
}

func (w *page) miss(n int, m Miss) {
	near := "nearest"
	if n > 0 {
		near = "then"
	}
	w.line("%s: Identity %s, match[%d], where %d of %d hold", near, m.Identity, m.Item, len(m.Holding), len(m.Holding)+len(m.Failing))
	w.terms(m.Holding, m.Failing)
}

// terms shows what fails whole, and of what holds as much as there is room.
func (w *page) terms(holding []Holding, failing []Failing) {
	room := max(1, shownTerms-len(failing))
	for _, h := range holding[:min(len(holding), room)] {
		w.line("  ok    %s", h)
	}
	if n := len(holding) - room; n > 0 {
		w.line("  ok    %d more", n)
	}
	for _, f := range failing[:min(len(failing), shownTerms)] {
		w.line("  FAILS %s", f)
	}
	w.more(len(failing)-shownTerms, "fail")
}

// String renders the holding term on one line.
func (h Holding) String() string {
	switch {
	case h.Fact == "":
		return fmt.Sprintf("when %q", h.Want)
	case len(h.Found) == 1 && h.Found[0] == h.Want:
		return fmt.Sprintf("%s is %q", h.Fact, h.Want)
	}
	return fmt.Sprintf("%s wants %q, and is %s", h.Fact, h.Want, quoted(h.Found))
}

// String renders the failing term on one line.
func (f Failing) String() string {
	switch {
	case f.Fact == "" && f.Unknown:
		return fmt.Sprintf("when %q gives no answer: %q", f.Want, f.Why)
	case f.Fact == "":
		return fmt.Sprintf("when %q is false", f.Want)
	case f.Unknown && f.Why != "":
		return fmt.Sprintf("%s wants %q, and is unknown: its attestor failed: %q", f.Fact, f.Want, f.Why)
	case f.Unknown:
		return fmt.Sprintf("%s wants %q, and is unknown: its attestor could not prove it", f.Fact, f.Want)
	case len(f.Found) == 0:
		return fmt.Sprintf("%s wants %q, and is absent", f.Fact, f.Want)
	}
	return fmt.Sprintf("%s wants %q, and is %s", f.Fact, f.Want, quoted(f.Found))
}

func quoted(values []string) string {
	if len(values) == 1 {
		return fmt.Sprintf("%q", values[0])
	}
	return fmt.Sprintf("%q", values)
}
