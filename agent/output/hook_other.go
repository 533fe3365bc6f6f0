//go:build !linux

package output

import (
	"context"
	"os/exec"
)

func confine(*exec.Cmd, uint32, uint32) {}

func checkProgram(string) error { return errLinux }

// CheckSignal is for Linux only.
func CheckSignal(string) error { return nil }

// Signal is for Linux only.
func Signal(string, string) (Hook, error) {
	return func(context.Context, Written) error { return errLinux }, nil
}
