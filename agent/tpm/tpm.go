// Package tpm opens the machine's TPM 2.0, and finds the storage key below which
// the TPM wraps what is ours, so that no other TPM reads it. What is wrapped is the
// caller's. It trusts the device that it is pointed at to be this machine's TPM.
package tpm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Device is where Linux has the TPM, shared among its users by the kernel.
const Device = "/dev/tpmrm0"

// ErrAbsent says that there is no TPM.
var ErrAbsent = errors.New("this machine has no TPM")

// Open opens a TPM's device, or the socket of one in software; where there is none,
// the error wraps ErrAbsent.
func Open(device string) (transport.TPMCloser, error) {
	info, err := os.Stat(device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrAbsent, device)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	connect := linuxtpm.Open
	if info.Mode()&os.ModeSocket != 0 {
		connect = linuxudstpm.Open
	}
	tpm, err := connect(device)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	return tpm, nil
}

// Foreign says whether it was another TPM that wrapped what was to be loaded, or this
// one before it was cleared: nobody gets that back.
func Foreign(err error) bool {
	return errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCBinding)
}
