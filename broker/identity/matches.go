package identity

import (
	"errors"
	"fmt"
)

// Matches says whether one of the items is true of f: what a JoinRule allows.
// It compiles the items on each call, so it is for
// what happens seldom; an item that can't be compiled is an error, and so is no
// item at all.
func Matches(items []Item, f Facts) (bool, error) {
	alternatives, err := compileAllow(items)
	if err != nil {
		return false, err
	}
	e := &evidence{node: f.m, workload: f.m, user: f.m, peer: f.m}
	for _, a := range alternatives {
		if a.eval(e, a.evalTerms(e)) == isTrue {
			return true, nil
		}
	}
	return false, nil
}

// CheckItems says what is wrong with items that are to be given to Matches.
func CheckItems(items []Item) error {
	_, err := compileAllow(items)
	return err
}

func compileAllow(items []Item) ([]*alternative, error) {
	c := &compiler{set: &Set{whens: map[string]usedWhen{}}}
	alternatives := c.compileItems(alternative{}, items)
	if len(c.errs) > 0 {
		return nil, fmt.Errorf("matching facts: %w", errors.Join(c.errs...))
	}
	return alternatives, nil
}
