//go:build unix

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/credence-id/credence/cmd/cli"
)

// longestSocket is the longest name of a socket below the directory.
const longestSocket = len("/peer/agent-admin.sock")

// lockState keeps a second dev from a state directory in use: it would take
// down what the first one serves.
func lockState(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another credence dev uses it: stop that one, or name another directory")
		}
		return nil, fmt.Errorf("--data %s: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// socketDir is where the sockets of a state directory lie: in it, where every
// user gets there and the path is short enough, else in one of ours under the
// system's temporary directory, the same for the same state.
func socketDir(state string) (string, error) {
	run := filepath.Join(state, "run")
	if len(run)+longestSocket <= 100 && cli.Traversable(state) {
		if err := os.MkdirAll(run, 0o755); err != nil {
			return "", err
		}
		return run, os.Chmod(run, 0o755)
	}
	sum := sha256.Sum256([]byte(state))
	run = filepath.Join(os.TempDir(), fmt.Sprintf("credence-dev-%d-%x", os.Getuid(), sum[:4]))
	if err := os.Mkdir(run, 0o755); err != nil && !os.IsExist(err) {
		return "", err
	}
	info, err := os.Lstat(run)
	if err != nil {
		return "", err
	}
	// Anybody could have made it before us.
	if s, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(s.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s is not a directory of ours: remove it", run)
	}
	return run, os.Chmod(run, 0o755)
}
