//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package audit

import (
	"errors"
	"os"
	"runtime"
)

func lock(string) (*os.File, error) {
	return nil, errors.New("an audit record can't be locked on " + runtime.GOOS + ": run the broker on Linux or macOS")
}

func noRoom(error) bool { return false }
