//go:build !unix

package keys

import (
	"errors"
	"io/fs"
	"os"
)

var errSystem = errors.New("keeping keys in files: this system does not tell who may read a file")

// OpenPrivate refuses: see there.
func OpenPrivate(string, ...int) (*os.File, error) { return nil, errSystem }

// OpenSecret refuses: see there.
func OpenSecret(string) (*os.File, error) { return nil, errSystem }

// CheckSecret refuses: see there.
func CheckSecret(fs.FileInfo, ...int) error { return errSystem }

// CheckPrivate refuses: see there.
func CheckPrivate(fs.FileInfo, ...int) error { return errSystem }
