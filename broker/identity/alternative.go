package identity

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of what one Identity or Deny may hold.
const (
	maxItems = 256
	maxTerms = 32
)

// An alternative is a compiled Item.
type alternative struct {
	owner    string    // its name
	identity *identity // that owns it; nil: deny does
	deny     *deny
	item     int
	filed    int // in an index: place of the term; -1: always found
	terms    []term
	when     *when
}

// evalTerms evaluates the terms alone: what is cheap.
func (a *alternative) evalTerms(e *evidence) truth {
	all := isTrue
	for i := range a.terms {
		if all = min(all, a.terms[i].eval(e)); all == isFalse {
			return isFalse
		}
	}
	return all
}

// eval evaluates the alternative, whose terms gave terms.
func (a *alternative) eval(e *evidence, terms truth) truth {
	if a.when == nil || terms == isFalse {
		return terms
	}
	when, _ := a.when.eval(e)
	return min(terms, when)
}

// reads adds what the alternative depends on.
func (a *alternative) reads(to *reads) {
	for _, t := range a.terms {
		to.names = append(to.names, t.name)
	}
	if a.when != nil {
		to.add(a.when.reads)
	}
}

// compileItems parses the alternatives of one resource. The rules of an
// Identity's items are more than those of a Deny's: a Deny may be wide.
// owned is what each of them has in common.
func (c *compiler) compileItems(owned alternative, items []Item) []*alternative {
	if len(items) == 0 {
		c.fail("match", "missing: want at least one item")
	}
	if len(items) > maxItems {
		c.fail("match", "%d items: at most %d are taken", len(items), maxItems)
		return nil
	}
	alternatives := make([]*alternative, 0, len(items))
	for i := range items {
		a := &alternative{}
		*a = owned
		a.item = i
		c.compileItem(a, &items[i], fmt.Sprintf("match[%d]", i), owned.identity != nil)
		alternatives = append(alternatives, a)
	}
	return alternatives
}

func (c *compiler) compileItem(a *alternative, item *Item, field string, grants bool) {
	if len(item.Terms) > maxTerms {
		c.fail(field, "%d terms: at most %d are taken", len(item.Terms), maxTerms)
		return
	}
	if len(item.Terms) == 0 && item.When == "" {
		c.fail(field, "empty: want a term or when")
		return
	}
	a.terms = make([]term, 0, len(item.Terms))
	for _, t := range item.Terms {
		p, err := parsePattern(t.Pattern)
		if err == nil {
			err = CheckFactName(t.Name)
		}
		if err != nil {
			c.fail(field+"."+t.Name, "%v", err)
			continue
		}
		a.terms = append(a.terms, term{t.Name, p})
	}
	if item.When != "" {
		var err error
		if a.when, err = c.when(item.When); err != nil {
			c.fail(field+".when", "%v", err)
			return
		}
	}
	if len(a.terms) < len(item.Terms) {
		return // what follows would judge an item that nobody wrote
	}
	c.checkCaller(a, field)
	if !grants {
		if item.AnyNode {
			c.fail(field+".any_node", "a deny needs none: it may be as wide as it likes")
		}
		return
	}
	if !item.AnyNode && !a.bound() {
		c.fail(field, "no exact node.* term besides node.method (for people an exact user.* term besides user.issuer, for peers peer.*): any compromised node could claim this; bind it, or say any_node: true")
	}
	c.checkExecutable(a, field)
}

// bound says whether a term ties the item to certain nodes, people or peers.
// How a node joined ties it to nothing, nor does where a person logs in.
func (a *alternative) bound() bool {
	return slices.ContainsFunc(a.terms, func(t term) bool {
		return t.exact() && t.name != "node.method" && t.name != "user.issuer" && !strings.HasPrefix(t.name, "workload.")
	})
}

// checkCaller refuses terms of which some are on a node's caller and some on a
// person or a peer: there is no such caller, so the item would never hold.
func (c *compiler) checkCaller(a *alternative, field string) {
	kind := ""
	for _, t := range a.terms {
		root, _, _ := strings.Cut(t.name, ".")
		if root == "workload" {
			root = "node"
		}
		if kind != "" && kind != root {
			c.fail(field, "has terms on %s.* and on %s.*, which no caller has both", kind, root)
			return
		}
		kind = root
	}
}

// checkExecutable refuses an item that knows a process by its file alone: who
// may run that file may be anyone.
func (c *compiler) checkExecutable(a *alternative, field string) {
	var r reads
	a.reads(&r)
	i := slices.IndexFunc(r.names, isExecutable)
	if i < 0 {
		return
	}
	narrows := func(t term) bool {
		return strings.HasPrefix(t.name, "workload.") && !isExecutable(t.name) && !t.bare()
	}
	if !slices.ContainsFunc(a.terms, narrows) {
		c.fail(field, "%s alone tells which file runs, not who runs it: add a term on the uid, the unit or the container", r.names[i])
	}
}

// isExecutable says whether name is of a process's file, such as
// workload.unix.path.
func isExecutable(name string) bool {
	return strings.HasPrefix(name, "workload.") && strings.Count(name, ".") == 2 &&
		(strings.HasSuffix(name, ".path") || strings.HasSuffix(name, ".sha256"))
}
