package fetch_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

func judge(t *testing.T, cfg fetch.Config, addr string, allowPrivate bool) error {
	t.Helper()
	return fetch.CheckAddr(fetch.New(cfg), netip.MustParseAddr(addr), allowPrivate)
}

// Regression: SPIRE 1.14.2 SSRF
func TestAddresses(t *testing.T) {
	const public, private, never = "public", "private", "never"
	for addr, want := range map[string]string{
		"8.8.8.8": public, "1.1.1.1": public, "172.32.0.1": public, "100.128.0.1": public, "2606:4700:4700::1111": public,
		"127.0.0.1": private, "127.255.255.254": private, "::1": private, "10.0.0.1": private, "172.16.0.1": private,
		"172.31.255.255": private, "192.168.1.1": private, "169.254.1.1": private, "fe80::1": private, "fe80::1%eth0": private,
		"fd00::1": private, "fc00::1": private, "100.64.0.1": private, "100.127.255.255": private,
		"169.254.169.254": never, "169.254.170.2": never, "fd00:ec2::254": never, "168.63.129.16": never, "100.100.100.200": never,
		"0.0.0.0": never, "0.1.2.3": never, "::": never, "224.0.0.1": never, "239.1.1.1": never, "ff02::1": never, "255.255.255.255": never,
		"240.0.0.1": never, "192.0.2.1": never, "198.18.0.1": never, "2001:db8::1": never, "fec0::1": never, "4000::1": never,
		"::ffff:8.8.8.8": never, "::ffff:127.0.0.1": never, "::127.0.0.1": never, "::ffff:0:127.0.0.1": never,
		"64:ff9b::7f00:1": never, "64:ff9b:1::7f00:1": never, "2002:7f00:1::": never, "2001:0:1::1": never,
	} {
		t.Run(addr, func(t *testing.T) {
			got := never
			switch {
			case judge(t, fetch.Config{}, addr, false) == nil:
				got = public
			case judge(t, fetch.Config{}, addr, true) == nil:
				got = private
			}
			if got != want {
				t.Errorf("%s is %s, want %s", addr, got, want)
			}
			open := fetch.Config{AllowNetworks: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr).WithZone(""), 24)}}
			if err := judge(t, open, addr, false); err != nil {
				t.Errorf("allow_networks does not open it: %v", err)
			}
		})
	}
}

// Regression: GHSA-fgw5-hp8f-xfhc
func TestPrivateAddressNeedsPermission(t *testing.T) {
	root := newCA(t)
	var asked atomic.Int32
	s := serve(t, root.SVID(t, endpoint), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		io.WriteString(w, document)
	}))
	req := spiffeRequest(root, s.URL)
	req.AllowPrivate = false
	_, err := fetch.New(fetch.Config{}).Fetch(t.Context(), req)
	refused(t, err, "allow_private")
	if asked.Load() != 0 {
		t.Error("the server was reached")
	}
	here := fetch.Config{AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	if _, err := fetch.New(here).Fetch(t.Context(), req); err != nil {
		t.Error(err)
	}
}

// nameServer answers every question for an A record with the next of addrs, as
// a rebinding one does, and is what the client's resolver dials. Without one it
// knows no name.
func nameServer(t *testing.T, addrs ...string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for given := 0; ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			question := buf[12:n]
			end := strings.IndexByte(string(question), 0) + 5 // name, type, class
			msg := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question[:end]...)
			switch {
			case len(addrs) == 0:
				msg[3] |= 3 // there is no such name
			case binary.BigEndian.Uint16(question[end-4:]) == 1: // A
				msg[7] = 1
				msg = append(msg, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				msg = append(msg, netip.MustParseAddr(addrs[given%len(addrs)]).AsSlice()...)
				given++
			}
			conn.WriteTo(msg, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// Regression: SPIRE 1.14.2 SSRF
// Regression: percy #2333
func TestRebindingNameGainsNothing(t *testing.T) {
	root := newCA(t)
	s := serve(t, root.SVID(t, endpoint), reply(document))
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// A first look by someone who checks names gets a public address.
	resolver := nameServer(t, "8.8.8.8", "127.0.0.1")
	if first, err := resolver.LookupHost(t.Context(), "rebind.example"); err != nil || first[0] != "8.8.8.8" {
		t.Fatalf("the name server answers %v, %v", first, err)
	}
	req := spiffeRequest(root, "https://rebind.example:"+port+"/")
	req.AllowPrivate = false
	_, err = fetch.New(fetch.Config{Resolver: resolver}).Fetch(t.Context(), req)
	refused(t, err, "127.0.0.1")
	// And the same name works where loopback is allowed: it was the address.
	req.AllowPrivate = true
	local := nameServer(t, "127.0.0.1")
	if _, err := fetch.New(fetch.Config{Resolver: local}).Fetch(t.Context(), req); err != nil {
		t.Error(err)
	}
	if _, err := fetch.New(fetch.Config{Resolver: nameServer(t, "169.254.169.254")}).Fetch(t.Context(), req); err == nil {
		t.Error("a name led to instance metadata")
	}
}

// Regression: SPIRE 1.14.2 SSRF
func TestSpellingsOfLoopback(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0", "[::]"} {
		t.Run(host, func(t *testing.T) {
			_, err := fetch.New(fetch.Config{}).Fetch(t.Context(),
				federation.Request{URL: "https://" + host + ":1/", HTTPSWeb: &federation.HTTPSWeb{}})
			refused(t, err, "address")
		})
	}
}
