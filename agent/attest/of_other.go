//go:build !linux

package attest

import (
	"errors"

	"github.com/credence-id/credence/agent/caller"
)

// Of refuses: only Linux has cgroups.
func Of(*caller.Process) (Place, error) {
	return Place{}, errors.New("only Linux has cgroups")
}
