//go:build !pkcs11 || !cgo

package pkcs11_test

import (
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/keys/pkcs11"
)

// A build without PKCS#11 says which one has it.
func TestAbsent(t *testing.T) {
	_, err := pkcs11.New(pkcs11.Config{
		Settings: pkcs11.Settings{Module: "/usr/lib/p11.so", TokenLabel: "credence", PINFile: "/run/secrets/pin"}, Purpose: "root",
	})
	if err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=1 go build -tags pkcs11 ./cmd/credence") {
		t.Error(err)
	}
}
