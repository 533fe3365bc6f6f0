//go:build !linux

package caller

import "net"

const maxPath = 103

func challenge(*net.UnixConn, *Process) ([]byte, error) { return nil, errSystem }
