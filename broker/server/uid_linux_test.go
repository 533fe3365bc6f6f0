package server_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Regression: Dex #4927
func TestAnotherUIDIsRefusedAtTheAdminSocket(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another uid")
	}
	e := newEnv(t)
	// What refuses must be the socket's other end, not the directory.
	if err := os.Chmod(e.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{0: "OK cjt_", 65534: "Unavailable "} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), socketEnv+"="+filepath.Join(e.dir, "admin.sock"), "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("uid %d: %s, %v", uid, out, err)
		}
	}
	tokens := 0
	for _, r := range e.records() {
		if r.Kind == "token" {
			tokens++
		}
	}
	if tokens != 1 {
		t.Errorf("%d tokens were made", tokens)
	}
}
