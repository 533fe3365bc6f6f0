package local

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// maxTable bounds what is read of a table of sockets: 100,000 of them.
const maxTable = 16 << 20

var errNoSocket = errors.New("the kernel shows no such socket")

// socketOwner reads a table in the form of /proc/net/tcp or tcp6 (proc(5)), and
// returns the uid of the established socket that goes from local to remote.
// Other states don't count: there the kernel may have forgotten the owner and
// says 0.
func socketOwner(table io.Reader, local, remote string) (uid uint32, err error) {
	const established = "01"
	found := false
	lines := bufio.NewScanner(io.LimitReader(table, maxTable))
	for lines.Scan() {
		// Most lines are other sockets': fields are cut only from a candidate.
		if !bytes.Contains(lines.Bytes(), []byte(local)) {
			continue
		}
		field := strings.Fields(lines.Text())
		if len(field) < 10 || field[1] != local || field[2] != remote || field[3] != established || field[9] == "0" {
			continue
		}
		owner, err := strconv.ParseUint(field[7], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("the kernel's table of sockets has the owner %.20q", field[7])
		}
		if found && uint32(owner) != uid {
			return 0, errors.New("the kernel shows two such sockets")
		}
		uid, found = uint32(owner), true
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("reading the kernel's table of sockets: %w", err)
	}
	if !found {
		return 0, errNoSocket
	}
	return uid, nil
}

// socketName is an address as the tables have it: words of 32 bits as the
// machine holds them, in hex, and the port. wide is an IPv4 address in IPv6.
func socketName(a netip.AddrPort, wide bool) string {
	ip := a.Addr().Unmap()
	bytes := ip.AsSlice()
	if wide {
		sixteen := a.Addr().As16()
		bytes = sixteen[:]
	}
	var b strings.Builder
	for ; len(bytes) >= 4; bytes = bytes[4:] {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(bytes))
	}
	fmt.Fprintf(&b, ":%04X", a.Port())
	return b.String()
}
