package caller_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/credence-id/credence/agent/caller"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const helperEnv = "CALLER_TEST_HELPER"

// TestMain runs this binary as one of the processes that the tests talk to.
func TestMain(m *testing.M) {
	if mode := os.Getenv(helperEnv); mode != "" {
		if err := helper(mode); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper says "ready" on stdout when it has done what its mode says, and lives
// until stdin ends or names another program to execute in its place.
func helper(mode string) error {
	switch mode {
	case "idle":
	case "connect": // and keep the socket over an exec
		if _, err := connect(); err != nil {
			return err
		}
	case "crowd": // connect often
		for range crowd {
			if _, err := connect(); err != nil {
				return err
			}
		}
	case "drop": // connect, then be another user
		if _, err := connect(); err != nil {
			return err
		}
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
	case "call": // gRPC
		return call()
	case "leave": // connect, say all that gRPC wants, leave the socket with a child
		return leave()
	case "child": // holds the socket that its parent connected, and answers on it
		return child()
	case "judge": // judge one caller on the listener that we inherited
		return judge()
	}
	return wait()
}

func wait() error {
	fmt.Println("ready")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return err
	}
	next := strings.TrimSpace(line)
	return become(next, "idle")
}

func become(program, mode string) error {
	if err := os.Setenv(helperEnv, mode); err != nil {
		return err
	}
	return syscall.Exec(program, []string{program}, os.Environ())
}

// connect returns a descriptor without close-on-exec.
func connect() (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	return fd, syscall.Connect(fd, &syscall.SockaddrUnix{Name: os.Getenv("SOCKET")})
}

func call() error {
	cc, err := grpc.NewClient("unix://"+os.Getenv("SOCKET"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer cc.Close()
	if _, err := healthpb.NewHealthClient(cc).Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
		return err
	}
	return wait()
}

const hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func leave() error {
	fd, err := connect()
	if err != nil {
		return err
	}
	if _, err := syscall.Write(fd, []byte(hello)); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=child")
	cmd.Stdout = os.NewFile(4, "child's words")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "socket")}
	if err := cmd.Start(); err != nil {
		return err
	}
	return become(os.Getenv("EXEC"), "idle")
}

// child answers the server's challenge on descriptor 3 and says what comes back.
func child() error {
	f := os.NewFile(3, "socket")
	frames := make([]byte, 26)
	if _, err := io.ReadFull(f, frames); err != nil {
		return err
	}
	frames[13] = 1 // ACK
	if _, err := f.Write(frames[9:]); err != nil {
		return err
	}
	got, _ := io.ReadAll(io.LimitReader(f, 64))
	fmt.Printf("got %d bytes\n", len(got))
	return nil
}

func judge() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	p, err := caller.FromConn(c.(*net.UnixConn))
	if err != nil {
		return err
	}
	_, _, exeErr := p.Executable()
	fmt.Println(p.UID(), p.ExecutableKnown(), exeErr != nil, p.Check())
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	fmt.Println(errors.Is(p.Check(), caller.ErrGone))
	return nil
}

// A proc is a running helper.
type proc struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, mode, socket string, change ...func(*exec.Cmd)) *proc {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+mode, "SOCKET="+socket, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	for _, f := range change {
		f(cmd)
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &proc{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	return p
}

func (p *proc) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("a helper said %q and ended: %v", s, err)
	}
	return strings.TrimSpace(s)
}

func (p *proc) ready() *proc {
	p.t.Helper()
	if got := p.line(); got != "ready" {
		p.t.Fatalf("a helper said %q", got)
	}
	return p
}

// end waits until the helper has ended and was reaped.
func (p *proc) end() {
	p.in.Close()
	p.cmd.Wait()
}

func (p *proc) exec(program string) {
	p.t.Helper()
	_, err := io.WriteString(p.in, program+"\n")
	must(p.t, err)
	p.ready()
}

func as(uid, gid uint32, groups ...uint32) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	}
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another uid")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// socketDir is short, and open to other uids.
func socketDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "c")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// copyOf returns another program: this one as another file.
func copyOf(t *testing.T) string {
	t.Helper()
	src, err := os.Open("/proc/self/exe")
	must(t, err)
	defer src.Close()
	name := filepath.Join(t.TempDir(), "other")
	dst, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(dst, src)
	must(t, err)
	must(t, dst.Close())
	return name
}

// waitZombie blocks until pid has ended, and leaves it unreaped.
func waitZombie(t *testing.T, pid int) {
	t.Helper()
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		return
	}
}
