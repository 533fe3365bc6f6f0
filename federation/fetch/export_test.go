package fetch

import (
	"net/netip"
	"time"
)

// CheckAddr judges an address without dialling it, which for a public one would
// leave the machine.
func CheckAddr(c *Client, addr netip.Addr, allowPrivate bool) error {
	return c.checkAddr(addr, allowPrivate)
}

// SetTimeout spares a test the whole of Timeout.
func SetTimeout(c *Client, d time.Duration) { c.timeout = d }
