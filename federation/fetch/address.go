package fetch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// A kind of address says who may let it be dialled.
type kind int

const (
	never   kind = iota // only a network that the broker's configuration names
	private             // also a Peer with allow_private
	public
)

// privateNetworks lead into a machine, a link or a site.
var privateNetworks = prefixes(
	"127.0.0.0/8", "::1/128", // loopback
	"169.254.0.0/16", "fe80::/10", // link-local
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", // private: RFC 1918, RFC 4193
	"100.64.0.0/10", // carrier-grade NAT: RFC 6598
)

// neverNetworks are no endpoint's. Instance metadata gives credentials to who
// asks; the rest is unspecified, multicast, reserved, for documentation or
// benchmarks, or carries an IPv4 address that a gateway would unwrap.
var neverNetworks = prefixes(
	"169.254.169.254/32", "169.254.170.0/24", "169.254.169.253/32", "169.254.169.123/32",
	"fd00:ec2::/32", "fd20:ce::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
	"0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", // unspecified, v4-compatible, v4-mapped, v4-translated
	"64:ff9b::/96", "64:ff9b:1::/48", // NAT64
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", // Teredo and other protocols, documentation, 6to4
	"fec0::/10", "ff00::/8", // old site-local, multicast
)

var globalUnicast6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

func within(addr netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

func kindOf(addr netip.Addr) kind {
	switch {
	case addr == netip.IPv6Loopback(): // it lies in ::/96
		return private
	case within(addr, neverNetworks):
		return never
	case within(addr, privateNetworks):
		return private
	case addr.Is4(), globalUnicast6.Contains(addr):
		return public
	}
	return never
}

// checkAddr judges the address that is about to be dialled.
func (c *Client) checkAddr(addr netip.Addr, allowPrivate bool) error {
	addr = addr.WithZone("")
	if within(addr, c.networks) || c.allowed != nil && within(addr, c.allowed()) {
		return nil
	}
	switch kindOf(addr) {
	case public:
		return nil
	case private:
		if allowPrivate {
			return nil
		}
		return &addressError{addr, true}
	}
	return &addressError{addr, false}
}

// dialer checks each address after the name was resolved and before a packet
// leaves, so that a name which resolves differently the next time gains nothing.
func (c *Client) dialer(allowPrivate bool) *net.Dialer {
	return &net.Dialer{
		Timeout:  Timeout,
		Resolver: c.resolver,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			if network != "tcp4" && network != "tcp6" {
				return fmt.Errorf("network %q is not dialled", network)
			}
			at, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address to dial does not parse: %w", err)
			}
			return c.checkAddr(at.Addr(), allowPrivate)
		},
	}
}
