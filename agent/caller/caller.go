// Package caller says which process is at the other end of a Unix socket, and
// whether it is still the same one.
//
// It trusts the kernel alone: SO_PEERCRED names the process that called
// connect, with its uid and gid at that moment; a pidfd (SO_PEERPIDFD since
// Linux 6.5, before that pidfd_open with the start time compared) and an open
// /proc/PID directory are bound to that process and not to its number, so a
// reused pid is never taken for it. The executable is held open from accept on
// and compared again by Check, which whoever answers must call last before each
// answer. What follows:
//
//   - A child that inherited the socket gets what its parent may have, whatever
//     program the child runs: the caller is who connected.
//   - A process that connected and then executed another program gets nothing.
//     Credentials sees that also when it happened before accept: the process
//     that connected must itself answer a challenge sent after its executable
//     was read.
//   - A dead caller gets nothing.
//
// Where the executable cannot be read (an agent that is not root, a process of
// another uid), ExecutableKnown is false, and Executable refuses for as long as
// the Process lives. An exec in that process may then go unnoticed, and it does
// not matter: no fact about the executable was proven, so nothing granted
// depends on it, and uid and gid are those of the connect.
//
// It leaves to others what a process may have. An executable only narrows a
// uid: whoever has the same uid may load a library into that program or trace
// it. In a user namespace all ids without a mapping read as the overflow id
// (65534): grant nothing to that id there.
package caller

import "errors"

var (
	// ErrGone says that the process at the other end has ended, or that its
	// connection is closed: nothing may be answered any more.
	ErrGone = errors.New("the calling process is gone")

	// ErrChanged says that the process lives, but runs another executable than
	// when it connected.
	ErrChanged = errors.New("the calling process now runs another executable")
)
