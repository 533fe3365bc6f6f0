package fetch

import "net/netip"

// CheckAddr judges an address without dialling it, which for a public one would
// leave the machine.
func CheckAddr(c *Client, addr netip.Addr, allowPrivate bool) error {
	return c.checkAddr(addr, allowPrivate)
}
