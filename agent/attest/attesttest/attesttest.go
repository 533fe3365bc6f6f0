//go:build linux

// Package attesttest is for tests of attestors: processes that wait, and the
// cgroups of this machine to put them in.
package attesttest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	waits = "ATTEST_TEST_WAITS"
	roots = "ATTEST_TEST_ROOT"
)

// Main is a package's TestMain: it lets the test program be started again as a
// process that waits.
func Main(m *testing.M) {
	if os.Getenv(waits) != "" {
		if root := os.Getenv(roots); root != "" {
			if err := syscall.Chroot(root); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Process starts one that waits until the test ends.
func Process(t *testing.T) int {
	t.Helper()
	return start(t, "")
}

// Rooted starts one whose root directory is another. It skips the test where that
// cannot be.
func Rooted(t *testing.T, root string) int {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("who is not root has no other root directory")
	}
	return start(t, root)
}

func start(t *testing.T, root string) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), waits+"=1", roots+"="+root)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatal(line, err)
	}
	return cmd.Process.Pid
}

// Into moves processes into a cgroup of every hierarchy that there is, as a
// runtime or systemd does. It skips the test where that cannot be.
func Into(t *testing.T, path string, pids ...int) {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		root := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(fields[1], "name="))
		if fields[1] == "" {
			root = "/sys/fs/cgroup/unified"
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
				root = "/sys/fs/cgroup"
			}
		}
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue // not mounted: everybody is in its root
		}
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Skip("cgroups cannot be made here:", err)
		}
		t.Cleanup(func() {
			for _, pid := range pids {
				_ = os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0) // an error: it has ended
			}
			for dir := dir; dir != root; dir = filepath.Dir(dir) {
				_ = os.Remove(dir) // an error: it is somebody else's too
			}
		})
		open := root
		for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			open = filepath.Join(open, part)
			for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // without these nobody may enter
				if text, err := os.ReadFile(filepath.Join(root, name)); err == nil {
					_ = os.WriteFile(filepath.Join(open, name), text, 0)
				}
			}
		}
		for _, pid := range pids {
			enter := func() error {
				return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0)
			}
			if err := enter(); err != nil {
				t.Skip("processes cannot be moved here:", err)
			}
		}
	}
}
