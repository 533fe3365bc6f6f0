//go:build !unix && pkcs11 && cgo

package pkcs11

import (
	"errors"
	"os"
)

func openPrivate(string) (*os.File, error) {
	return nil, errors.New("this system does not tell who may read a file")
}
