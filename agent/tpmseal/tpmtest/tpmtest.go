// Package tpmtest starts TPMs in software for tests. No program links it.
package tpmtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Start starts swtpm with a state of its own, and returns its socket. Where it
// is not installed the test is skipped.
func Start(t *testing.T) string {
	t.Helper()
	return StartIn(t, Dir(t))
}

// Dir is a directory for the state of a TPM. Where swtpm is not installed the test is
// skipped.
func Dir(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("swtpm is not installed: no TPM to test with")
	}
	dir, err := os.MkdirTemp("", "tpm") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// StartIn starts swtpm with the state of a directory, until the test ends.
func StartIn(t *testing.T, dir string) string {
	t.Helper()
	socket := filepath.Join(dir, "s")
	_ = os.Remove(socket) // of the one before
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+filepath.Join(dir, "c"))
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	late, look := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer look.Stop()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return socket
		}
		select {
		case <-look.C:
		case <-ended:
			t.Fatal("swtpm has ended")
		case <-late:
			t.Fatal("swtpm does not answer")
		}
	}
}
