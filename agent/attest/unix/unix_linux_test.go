package unix_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/attest/unix"
	"github.com/credence-id/credence/agent/caller"
	"github.com/google/go-cmp/cmp"
)

// shell is the program that is attested, and copies of it: it does what it
// reads, and ends with it.
const shell = "/bin/sh"

type proc struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, program string, change ...func(*exec.Cmd)) *proc {
	t.Helper()
	cmd := exec.Command(program)
	for _, f := range change {
		f(cmd)
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	p := &proc{t, cmd, in, bufio.NewReader(out)}
	p.say("echo ready")
	p.ready()
	return p
}

func (p *proc) say(command string) {
	p.t.Helper()
	_, err := io.WriteString(p.in, command+"\n")
	must(p.t, err)
}

func (p *proc) ready() {
	p.t.Helper()
	if s, err := p.out.ReadString('\n'); s != "ready\n" {
		p.t.Fatalf("a helper said %q: %v", s, err)
	}
}

func (p *proc) opened() *caller.Process {
	p.t.Helper()
	c, err := caller.Open(p.cmd.Process.Pid)
	must(p.t, err)
	p.t.Cleanup(func() { c.Close() })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program makes another shell, with tail appended.
func program(t *testing.T, tail string) string {
	t.Helper()
	b, err := os.ReadFile(shell)
	must(t, err)
	name := filepath.Join(t.TempDir(), "sh")
	must(t, os.WriteFile(name, append(b, tail...), 0o755))
	return name
}

func sumOf(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func all(string) bool { return true }

// names are a user database.
func names(of map[uint32]string) func(uint32) (string, bool, error) {
	return func(id uint32) (string, bool, error) {
		n, ok := of[id]
		return n, ok, nil
	}
}

func id(n int) string { return fmt.Sprint(n) }

func TestOwnProcess(t *testing.T) {
	name := program(t, "")
	a := unix.New(unix.Config{UserName: names(map[uint32]string{uint32(os.Getuid()): "ana"}), GroupName: names(nil)})
	got, unknown, err := a.Attest(t.Context(), start(t, name).opened(), all)
	must(t, err)
	delete(got, unix.Groups)
	want := map[string][]string{
		unix.UID:    {id(os.Getuid())},
		unix.GID:    {id(os.Getgid())},
		unix.User:   {"ana"},
		unix.Path:   {name},
		unix.SHA256: {sumOf(t, name)},
	}
	if diff := cmp.Diff(want, got); diff != "" || len(unknown) > 0 {
		t.Errorf("unknown %v, facts (-want +got):\n%s", unknown, diff)
	}
}

func TestDigestOnlyWhenWanted(t *testing.T) {
	a := unix.New(unix.Config{})
	p := start(t, program(t, "")).opened()
	for name, wanted := range map[string]func(string) bool{
		"nil":          nil,
		"another fact": func(n string) bool { return n != unix.SHA256 },
	} {
		facts, unknown, err := a.Attest(t.Context(), p, wanted)
		must(t, err)
		if diff := cmp.Diff([]string{unix.SHA256}, unknown); diff != "" || facts[unix.SHA256] != nil {
			t.Errorf("%s: digest %v, unknown (-want +got):\n%s", name, facts[unix.SHA256], diff)
		}
	}
}

func TestAnotherUID(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another uid")
	}
	a := unix.New(unix.Config{UserName: names(nil), GroupName: names(map[uint32]string{10: "ten"})})
	p := start(t, shell, func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 4243, Groups: []uint32{10, 9, 10}}}
	}).opened()
	facts, _, err := a.Attest(t.Context(), p, all)
	must(t, err)
	for name, want := range map[string][]string{
		unix.UID:        {"65534"},
		unix.GID:        {"4243"},
		unix.User:       nil, // it has no name: that is proven
		unix.Groups:     {"9", "10"},
		unix.GroupNames: {"ten"},
		unix.SHA256:     {sumOf(t, shell)},
	} {
		if diff := cmp.Diff(want, facts[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// Without the right to read another uid's executable, its facts are unknown and
// the others stand.
func TestUnreadableExecutable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read all executables")
	}
	p, err := caller.Open(1)
	must(t, err)
	defer p.Close()
	facts, unknown, err := unix.New(unix.Config{}).Attest(t.Context(), p, all)
	must(t, err)
	if diff := cmp.Diff([]string{unix.Path, unix.SHA256}, unknown); diff != "" || facts[unix.UID][0] != "0" {
		t.Errorf("facts %v, unknown (-want +got):\n%s", facts, diff)
	}
}

func TestUserDatabaseFails(t *testing.T) {
	broken := func(uint32) (string, bool, error) { return "", false, errors.New("no answer") }
	a := unix.New(unix.Config{UserName: broken, GroupName: names(nil)})
	facts, unknown, err := a.Attest(t.Context(), start(t, program(t, "")).opened(), all)
	must(t, err)
	if diff := cmp.Diff([]string{unix.User}, unknown); diff != "" || facts[unix.User] != nil {
		t.Errorf("user %v, unknown (-want +got):\n%s", facts[unix.User], diff)
	}
}

func TestNamesAreCachedBriefly(t *testing.T) {
	now, asked := time.Now(), 0
	a := unix.New(unix.Config{
		UserName:  func(uint32) (string, bool, error) { asked++; return id(asked), true, nil },
		GroupName: names(nil),
		Now:       func() time.Time { return now },
	})
	p := start(t, program(t, "")).opened()
	for _, row := range []struct {
		later time.Duration
		want  string
	}{{0, "1"}, {29 * time.Second, "1"}, {2 * time.Second, "2"}} {
		now = now.Add(row.later)
		facts, _, err := a.Attest(t.Context(), p, nil)
		must(t, err)
		if got := facts[unix.User]; len(got) != 1 || got[0] != row.want {
			t.Errorf("%v later: got %v, want %s", row.later, got, row.want)
		}
	}
}

// A digest is remembered for a version of a file, and for that only.
func TestReplacedFile(t *testing.T) {
	// Far enough ahead that a file just written counts as long settled.
	a := unix.New(unix.Config{Now: func() time.Time { return time.Now().Add(time.Hour) }})
	name := program(t, "one")
	for _, tail := range []string{"one", "one", "two", "three"} {
		b, err := os.ReadFile(shell)
		must(t, err)
		must(t, os.WriteFile(name, append(b, tail...), 0o755))
		p := start(t, name)
		facts, _, err := a.Attest(t.Context(), p.opened(), all)
		must(t, err)
		if diff := cmp.Diff([]string{sumOf(t, name)}, facts[unix.SHA256]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tail, diff)
		}
		p.in.Close() // or it can't be written to
		p.cmd.Wait()
	}
}

func TestDeletedExecutable(t *testing.T) {
	name := program(t, "")
	p := start(t, name).opened()
	must(t, os.Remove(name))
	must(t, os.WriteFile(name+" (deleted)", nil, 0o755)) // what the kernel's path then names
	facts, unknown, err := unix.New(unix.Config{}).Attest(t.Context(), p, all)
	must(t, err)
	if diff := cmp.Diff([]string{unix.Path, unix.SHA256}, unknown); diff != "" || facts[unix.Path] != nil {
		t.Errorf("path %v, unknown (-want +got):\n%s", facts[unix.Path], diff)
	}
}

// A user may mount their own program over a trusted path, in a mount namespace
// of their own: there the path is the trusted one's.
func TestPathOfAnotherMountNamespace(t *testing.T) {
	evil, trusted := program(t, "evil"), program(t, "trusted")
	own := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	try := exec.Command("/bin/mount", "--bind", evil, trusted)
	try.SysProcAttr = own
	if err := try.Run(); err != nil {
		t.Skipf("this system gives users no mount namespace: %v", err)
	}
	p := start(t, shell, func(c *exec.Cmd) {
		c.Args = []string{"sh", "-c", `mount --bind "$1" "$2" && exec "$2"`, "sh", evil, trusted}
		c.SysProcAttr = own
	}).opened()
	if path, f, err := p.Executable(); err != nil || path != trusted {
		t.Fatalf("the attack isn't set up: %s, %v", path, err)
	} else {
		f.Close()
	}
	facts, unknown, err := unix.New(unix.Config{}).Attest(t.Context(), p, all)
	must(t, err)
	if diff := cmp.Diff([]string{unix.Path}, unknown); diff != "" || facts[unix.Path] != nil {
		t.Errorf("path %v, unknown (-want +got):\n%s", facts[unix.Path], diff)
	}
	if diff := cmp.Diff([]string{sumOf(t, evil)}, facts[unix.SHA256]); diff != "" {
		t.Errorf("digest (-want +got):\n%s", diff)
	}
}

func TestTooLargeExecutable(t *testing.T) {
	a := unix.New(unix.Config{MaxExecutable: 1000})
	_, unknown, err := a.Attest(t.Context(), start(t, program(t, "")).opened(), all)
	must(t, err)
	if diff := cmp.Diff([]string{unix.SHA256}, unknown); diff != "" {
		t.Errorf("unknown (-want +got):\n%s", diff)
	}
}

func TestUnprintablePath(t *testing.T) {
	old := program(t, "")
	for _, base := range []string{"two\nlines", "no\xffutf8"} {
		name := filepath.Join(filepath.Dir(old), base)
		must(t, os.Link(old, name))
		_, unknown, err := unix.New(unix.Config{}).Attest(t.Context(), start(t, name).opened(), all)
		must(t, err)
		if diff := cmp.Diff([]string{unix.Path}, unknown); diff != "" {
			t.Errorf("%q: unknown (-want +got):\n%s", base, diff)
		}
	}
}

func TestNothingOfAChangedProcess(t *testing.T) {
	// The name lookup stands between the first read and the last.
	for name, row := range map[string]struct {
		do   func(*proc)
		want error
	}{
		"executes another program": {func(p *proc) { p.say("exec '" + program(t, "other") + "' -c 'echo ready; read x'"); p.ready() }, caller.ErrChanged},
		"ends":                     {func(p *proc) { p.in.Close(); p.cmd.Wait() }, caller.ErrGone},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, program(t, ""))
			a := unix.New(unix.Config{UserName: func(uint32) (string, bool, error) { row.do(p); return "", false, nil }})
			facts, unknown, err := a.Attest(t.Context(), p.opened(), all)
			if !errors.Is(err, row.want) || facts != nil || unknown != nil {
				t.Errorf("got %v, %v, %v", facts, unknown, err)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := unix.New(unix.Config{}).Attest(ctx, start(t, program(t, "")).opened(), all); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
