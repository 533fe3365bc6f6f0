package server_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

const socketEnv = "SERVER_TEST_SOCKET"

// TestMain runs this binary as an operator of another uid.
func TestMain(m *testing.M) {
	if socket := os.Getenv(socketEnv); socket != "" {
		fmt.Print(call(socket))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// call makes a token, and says how that went.
func call(socket string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	r, err := api.NewAdminClient(conn).CreateToken(ctx, &api.CreateTokenRequest{Node: "n1"})
	return fmt.Sprintf("%s %s", status.Code(err), r.GetToken())
}

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
