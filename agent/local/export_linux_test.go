package local

import "net/netip"

// The ways to tell a socket's owner.
var (
	OwnerOf    = ownerOf
	TableOwner = tableOwner
	DiagOwner  = diagOwner
	ErrNoDiag  = errNoDiag
)

// DiagAnswer is diagAnswer to a question about the socket between two
// addresses.
func DiagAnswer(answer []byte, from, to netip.AddrPort) (uint32, error) {
	return diagAnswer(answer, diagQuestion(from, to))
}
