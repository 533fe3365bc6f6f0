package local_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/local"
)

const tableHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

// row is a line of the kernel's table on this machine.
func row(from, to, state, uid, inode string) string {
	return fmt.Sprintf("   0: %s %s %s 00000000:00000000 00:00000000 00000000 %5s        0 %s 1 0000000000000000 20 4 30 10 -1\n", from, to, state, uid, inode)
}

// loopback is 127.0.0.1 as this machine's tables have it.
var loopback = fmt.Sprintf("%08X", binary.NativeEndian.Uint32([]byte{127, 0, 0, 1}))

func TestSocketOwner(t *testing.T) {
	from, to := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:8080")
	client, server := loopback+":9C40", loopback+":1F90"
	mapped := "0000000000000000" + fmt.Sprintf("%08X", binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))
	good := row(client, server, "01", "1000", "77")
	for name, c := range map[string]struct {
		table string
		wide  bool
		want  string
	}{
		"the client's":           {tableHead + row(server, client, "01", "0", "78") + good, false, "1000"},
		"of a mapped address":    {tableHead + row(mapped+client, mapped+server, "01", "1001", "5"), true, "1001"},
		"the server's end alone": {tableHead + row(server, client, "01", "0", "78"), false, "no such socket"},
		"another port":           {tableHead + row(loopback+":9C41", server, "01", "1000", "77"), false, "no such socket"},
		"to another port":        {tableHead + row(client, loopback+":1F91", "01", "1000", "77"), false, "no such socket"},
		"waiting, owner unknown": {tableHead + row(client, server, "06", "0", "0"), false, "no such socket"},
		"half closed":            {tableHead + row(client, server, "05", "0", "77"), false, "no such socket"},
		"without an inode":       {tableHead + row(client, server, "01", "0", "0"), false, "no such socket"},
		"two, of two":            {tableHead + good + row(client, server, "01", "0", "79"), false, "two such sockets"},
		"two, of one":            {tableHead + good + good, false, "1000"},
		"a torn line":            {tableHead + good[:60], false, "no such socket"},
		"an odd owner":           {tableHead + row(client, server, "01", "root", "77"), false, "owner"},
		"an owner below zero":    {tableHead + row(client, server, "01", "-1", "77"), false, "owner"},
		"a line without an end":  {tableHead + strings.Repeat("x", 100_000) + good, false, "reading"},
		"nothing":                {"", false, "no such socket"},
	} {
		uid, err := local.SocketOwner(strings.NewReader(c.table), from, to, c.wide)
		got := fmt.Sprint(uid)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// The kernel itself is asked, by both families.
func TestTheKernelTellsTheOwner(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from, to := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
	if uid, err := local.OwnerOf(from, to); err != nil || int(uid) != os.Getuid() {
		t.Errorf("%d, %v", uid, err)
	}
	if _, err := local.OwnerOf(to, netip.AddrPortFrom(to.Addr(), 1)); err == nil {
		t.Error("a socket that isn't there has an owner")
	}
}

func FuzzSocketOwner(f *testing.F) {
	client, server := loopback+":9C40", loopback+":1F90"
	f.Add(tableHead + row(client, server, "01", "1000", "77"))
	f.Add(tableHead + row(client, server, "06", "0", "0"))
	f.Add(row(client, server, "01", "4294967296", "1"))
	from, to := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:8080")
	f.Fuzz(func(t *testing.T, table string) {
		uid, err := local.SocketOwner(strings.NewReader(table), from, to, false)
		if err != nil {
			return
		}
		// Somewhere a line says just that.
		for line := range strings.Lines(table) {
			field := strings.Fields(line)
			if len(field) >= 10 && field[1] == client && field[2] == server && field[3] == "01" && strings.TrimLeft(field[7], "0") == strings.TrimLeft(fmt.Sprint(uid), "0") {
				return
			}
		}
		t.Errorf("%d, and no line says so", uid)
	})
}
