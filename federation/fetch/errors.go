package fetch

import (
	"errors"
	"fmt"
	"net/netip"
)

// What a check tells apart.
var (
	errTooLarge = fmt.Errorf("answer is larger than %d bytes", MaxBody)
	errNotJSON  = errors.New("answer is not JSON: is this the URL of a bundle endpoint?")
	errEncoding = errors.New("it is encoded otherwise than by gzip, which alone was asked for")
)

type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status is %d, not 200", int(e)) }

// A redirectError is a redirect that is not followed.
type redirectError struct{ error }

func (e *redirectError) Unwrap() error { return e.error }

// An addressError is an address that is not dialled.
type addressError struct {
	addr    netip.Addr
	private bool // a Peer with allow_private may dial it
}

func (e *addressError) Error() string {
	if e.private {
		return fmt.Sprintf("address %s is loopback, link-local or private: "+
			"if the Peer is meant to be there, say allow_private: true", e.addr)
	}
	return fmt.Sprintf("address %s is of a special network: only allow_networks can open it", e.addr)
}

// A fingerprintError is a bundle that is not the one of the fingerprint.
type fingerprintError struct{ got, want string }

func (e *fingerprintError) Error() string {
	return fmt.Sprintf("the endpoint's bundle has the fingerprint %s, and no CA in its chain has %s: compare it with the peer's", e.got, e.want)
}
