package attest

import (
	"fmt"
	"os"

	"github.com/credence-id/credence/agent/caller"
)

// hostNamespace is the inode of the initial cgroup namespace, in every Linux
// (PROC_CGROUP_INIT_INO).
const hostNamespace = "cgroup:[4026531835]"

// Of locates a process that has connected. It wraps ErrAmbiguous, caller.ErrGone
// and caller.ErrChanged.
func Of(p *caller.Process) (Place, error) {
	cgroup, mounts, err := p.Cgroups()
	if err != nil {
		return Place{}, err
	}
	own, err := os.Readlink("/proc/self/ns/cgroup")
	if err != nil {
		return Place{}, fmt.Errorf("finding our own cgroup namespace: %w", err)
	}
	return Locate(cgroup, mounts, own == hostNamespace)
}
