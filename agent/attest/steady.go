package attest

import (
	"errors"
	"fmt"

	"github.com/credence-id/credence/agent/caller"
)

// Steady returns what describe says of the place where p is, if p was there all
// the time and is still the process that connected.
func Steady(p *caller.Process, describe func(Place) (map[string][]string, []string, error)) (facts map[string][]string, unknown []string, err error) {
	place, err := Of(p)
	if err == nil {
		facts, unknown, err = describe(place)
	}
	if err == nil {
		var again Place
		if again, err = Of(p); err == nil && again.Cgroup != place.Cgroup {
			err = fmt.Errorf("it moved from %s to %s meanwhile", place.Cgroup, again.Cgroup)
		}
		err = errors.Join(err, p.Check())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	return facts, unknown, nil
}

// First holds what a runtime says against the kernel's word: pid, a container's
// first process, must be in the very cgroup that place names.
func First(pid int, place Place) error {
	first, err := caller.Open(pid)
	if err != nil {
		return fmt.Errorf("the container's first process: %w", err)
	}
	defer first.Close()
	there, err := Of(first)
	if err != nil {
		return fmt.Errorf("the container's first process: %w", err)
	}
	if there.Container == nil || *there.Container != *place.Container || there.Cgroup != place.Cgroup {
		return fmt.Errorf("%w: it is in the cgroup %s, and the runtime has that container's first process in %s", ErrAmbiguous, place.Cgroup, there.Cgroup)
	}
	return nil
}
