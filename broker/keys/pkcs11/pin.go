//go:build pkcs11 && cgo

package pkcs11

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// readPIN reads a PIN: a line, whose end is not part of it. Links are
// followed, as secrets that an orchestrator mounts are links; what they lead
// to is checked. Its errors hold no byte of the PIN.
func readPIN(file string) (string, error) {
	pin, err := func() (string, error) {
		real, err := filepath.EvalSymlinks(file)
		if err != nil {
			return "", err
		}
		f, err := openPrivate(real)
		if err != nil {
			return "", err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, 258))
		if err != nil {
			return "", err
		}
		pin := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		if pin == "" || len(pin) > 255 || strings.ContainsAny(pin, "\r\n\x00") {
			return "", errors.New("it holds no PIN: one line of 1 to 255 bytes is wanted")
		}
		return pin, nil
	}()
	if err != nil {
		return "", fmt.Errorf("reading the PIN in pin_file %s: %w", file, err)
	}
	return pin, nil
}
