package local

import (
	"io"
	"net/netip"
)

// SocketOwner is socketOwner of the socket between two addresses.
func SocketOwner(table io.Reader, from, to netip.AddrPort, wide bool) (uint32, error) {
	return socketOwner(table, socketName(from, wide), socketName(to, wide))
}

// WithoutCredentials is withoutCredentials.
var WithoutCredentials = withoutCredentials

// QuoteEnv is quoteEnv.
var QuoteEnv = quoteEnv
