package local

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// ownerOf returns the uid of the program at the other end of a loopback
// connection, which comes from peer and ends at us.
func ownerOf(peer, us netip.AddrPort) (uint32, error) {
	if uid, err := diagOwner(peer, us); !errors.Is(err, errNoDiag) {
		return uid, err
	}
	return tableOwner(peer, us)
}

// tableOwner is ownerOf by the kernel's tables as text: slower, but everywhere.
func tableOwner(peer, us netip.AddrPort) (uint32, error) {
	for _, table := range []struct {
		file string
		wide bool
	}{{"/proc/self/net/tcp", false}, {"/proc/self/net/tcp6", true}} {
		uid, err := ownerIn(table.file, socketName(peer, table.wide), socketName(us, table.wide))
		if !errors.Is(err, errNoSocket) {
			return uid, err
		}
	}
	return 0, errNoSocket
}

func ownerIn(file, local, remote string) (uint32, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) { // no IPv6
		return 0, errNoSocket
	}
	if err != nil {
		return 0, fmt.Errorf("telling who connected: %w", err)
	}
	defer f.Close()
	return socketOwner(f, local, remote)
}
