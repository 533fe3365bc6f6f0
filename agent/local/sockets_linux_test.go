package local_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
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

// The kernel itself is asked, in each way, about sockets of both families.
func TestTheKernelTellsTheOwner(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.MustParseAddrPort(l.Addr().String())
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := map[string]netip.AddrPort{"IPv4": netip.MustParseAddrPort(conn.LocalAddr().String())}
	if peer, ok := mappedClient(t, to); ok {
		from["IPv6, mapped"] = peer
	}
	for way, ownerOf := range map[string]func(peer, us netip.AddrPort) (uint32, error){
		"any way": local.OwnerOf, "by the table": local.TableOwner, "by sock_diag": local.DiagOwner,
	} {
		for family, peer := range from {
			uid, err := ownerOf(peer, to)
			if errors.Is(err, local.ErrNoDiag) {
				t.Logf("%s: %v", way, err)
				continue
			}
			if err != nil || int(uid) != os.Getuid() {
				t.Errorf("%s, %s: %d, %v", way, family, uid, err)
			}
			// One that isn't there, the listener alone, and the server's end.
			for _, pair := range [][2]netip.AddrPort{{peer, netip.AddrPortFrom(to.Addr(), 1)}, {to, netip.AddrPortFrom(to.Addr(), 1)}} {
				if uid, err := ownerOf(pair[0], pair[1]); err == nil {
					t.Errorf("%s: a socket that isn't there is %d's", way, uid)
				}
			}
		}
	}
}

// mappedClient connects by a socket of IPv6, as Java's does.
func mappedClient(t *testing.T, to netip.AddrPort) (netip.AddrPort, bool) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Logf("no IPv6: %v", err)
		return netip.AddrPort{}, false
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Connect(fd, &syscall.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		t.Fatal(err)
	}
	own, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	six := own.(*syscall.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(six.Addr).Unmap(), uint16(six.Port)), true
}

// answer is the kernel's, about the client's socket.
func answer(change func(b []byte)) []byte {
	b := make([]byte, 88)
	binary.NativeEndian.PutUint16(b[4:], 20)
	b[16], b[17] = syscall.AF_INET, 1
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], 8080)
	copy(b[24:], []byte{127, 0, 0, 1})
	copy(b[40:], []byte{127, 0, 0, 1})
	binary.NativeEndian.PutUint32(b[80:], 1000)
	binary.NativeEndian.PutUint32(b[84:], 77)
	change(b)
	return b
}

func TestDiagAnswer(t *testing.T) {
	from, to := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:8080")
	for name, c := range map[string]struct {
		answer []byte
		want   string
	}{
		"good":              {answer(func([]byte) {}), "1000"},
		"listening":         {answer(func(b []byte) { b[17] = 10 }), "no such socket"},
		"waiting":           {answer(func(b []byte) { b[17] = 6 }), "no such socket"},
		"without an inode":  {answer(func(b []byte) { b[84] = 0 }), "no such socket"},
		"another port":      {answer(func(b []byte) { b[21]++ }), "no such socket"},
		"another's address": {answer(func(b []byte) { b[43]++ }), "no such socket"},
		"another family":    {answer(func(b []byte) { b[16] = syscall.AF_INET6 }), "no such socket"},
		"there is none": {answer(func(b []byte) {
			binary.NativeEndian.PutUint16(b[4:], 2)
			binary.NativeEndian.PutUint32(b[16:], ^uint32(1))
		}), "no such socket"},
		"not permitted": {answer(func(b []byte) {
			binary.NativeEndian.PutUint16(b[4:], 2)
			binary.NativeEndian.PutUint32(b[16:], ^uint32(0))
		}), "no questions"},
		"cut":          {answer(func([]byte) {})[:87], "no questions"},
		"nothing":      {nil, "no questions"},
		"another kind": {answer(func(b []byte) { b[4], b[5] = 3, 3 }), "no questions"},
	} {
		uid, err := local.DiagAnswer(c.answer, from, to)
		got := fmt.Sprint(uid)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzDiagAnswer(f *testing.F) {
	f.Add(answer(func([]byte) {}))
	f.Add(answer(func(b []byte) { b[4] = 2 })[:20])
	from, to := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:8080")
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := local.DiagAnswer(b, from, to); err == nil && (len(b) < 88 || b[17] != 1) {
			t.Errorf("% x is taken", b)
		}
	})
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
