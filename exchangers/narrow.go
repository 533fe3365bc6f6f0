package exchangers

import (
	"errors"
	"time"
)

// ErrLife and ErrScope are why a credential cannot be narrowed as it was asked.
var (
	ErrLife  = errors.New("the credential cannot end so soon")
	ErrScope = errors.New("not among the target's scopes")
)

// A Narrower is Settings that can ask for less: for a credential that ends
// within a life, and has only some of the scopes (none: all of them). It leaves
// itself as it is. The error wraps ErrLife or ErrScope and names what the
// provider would take. Where the provider alone says how long its credentials
// live, that the answer ends in time is left to the caller to check.
type Narrower interface {
	Narrow(life time.Duration, scopes []string) (Settings, error)
}

// Subset is the scopes that are wanted, or all where none are. The error wraps
// ErrScope.
func Subset(wanted, all []string) ([]string, error) {
	if len(wanted) == 0 {
		return all, nil
	}
	have := make(map[string]bool, len(all))
	for _, s := range all {
		have[s] = true
	}
	for _, s := range wanted {
		if !have[s] {
			return nil, ErrScope
		}
	}
	return wanted, nil
}
