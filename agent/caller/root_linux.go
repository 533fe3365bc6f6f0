package caller

import (
	"os"

	"golang.org/x/sys/unix"
)

// Root opens the process's root directory, as a place to look up what it shows
// (openat2(2), RESOLVE_IN_ROOT): all in there may be of its making, and so may what
// answers. The caller of Root closes it.
func (p *Process) Root() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.check(); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(p.dir, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.reading("root", err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}
