package caller_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/caller"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

type from func(*net.UnixConn) (*caller.Process, error)

// kernels are the ways in which the kernel lets us hold a process.
var kernels = map[string]from{
	"SO_PEERPIDFD": caller.FromConn,
	"pidfd_open":   func(c *net.UnixConn) (*caller.Process, error) { return caller.FromConnBefore65(c, true) },
	"proc only":    func(c *net.UnixConn) (*caller.Process, error) { return caller.FromConnBefore65(c, false) },
}

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(socketDir(t), "s")
	l, err := caller.Listen(path, 0o666)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l, path
}

// accept starts a helper in that mode and returns it as the caller.
func accept(t *testing.T, f from, change ...func(*exec.Cmd)) (*proc, *caller.Process) {
	t.Helper()
	l, path := listen(t)
	h := start(t, "connect", path, change...).ready()
	c, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	p, err := f(c.(*net.UnixConn))
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return h, p
}

func TestCallerIsWhoConnected(t *testing.T) {
	for name, f := range kernels {
		t.Run(name, func(t *testing.T) {
			h, p := accept(t, f)
			if p.PID() != h.cmd.Process.Pid || p.UID() != uint32(os.Getuid()) || p.GID() != uint32(os.Getgid()) {
				t.Errorf("got pid %d, uid %d, gid %d", p.PID(), p.UID(), p.GID())
			}
			must(t, p.Check())
			if !p.ExecutableKnown() {
				t.Error("the executable of a process of ours is unknown")
			}
			path, exe, err := p.Executable()
			must(t, err)
			defer exe.Close()
			own, err := os.Executable()
			must(t, err)
			want, err := os.Stat(own)
			must(t, err)
			got, err := exe.Stat()
			must(t, err)
			if path != own || !os.SameFile(got, want) {
				t.Errorf("executable is %s, want %s", path, own)
			}
		})
	}
}

// Regression: SPIRE #886
func TestExecAfterConnect(t *testing.T) {
	for name, f := range kernels {
		t.Run(name, func(t *testing.T) {
			h, p := accept(t, f)
			h.exec(copyOf(t))
			if err := p.Check(); !errors.Is(err, caller.ErrChanged) {
				t.Errorf("Check: %v", err)
			}
			if _, _, err := p.Executable(); !errors.Is(err, caller.ErrChanged) {
				t.Errorf("Executable: %v", err)
			}
			if _, err := p.Groups(); !errors.Is(err, caller.ErrChanged) {
				t.Errorf("Groups: %v", err)
			}
		})
	}
}

func TestDeadCaller(t *testing.T) {
	for name, f := range kernels {
		t.Run(name, func(t *testing.T) {
			h, p := accept(t, f)
			h.end()
			if err := p.Check(); !errors.Is(err, caller.ErrGone) {
				t.Errorf("Check: %v", err)
			}
			if _, _, err := p.Executable(); !errors.Is(err, caller.ErrGone) {
				t.Errorf("Executable: %v", err)
			}
		})
	}
}

// Regression: SPIRE #886
func TestDeadBeforeAccept(t *testing.T) {
	for name, f := range kernels {
		t.Run(name, func(t *testing.T) {
			l, path := listen(t)
			start(t, "connect", path).ready().end()
			c, err := l.Accept()
			must(t, err)
			defer c.Close()
			if _, err := f(c.(*net.UnixConn)); !errors.Is(err, caller.ErrGone) {
				t.Errorf("FromConn: %v", err)
			}
		})
	}
}

// A zombie still has its number and its /proc directory.
func TestZombieIsGone(t *testing.T) {
	for name, f := range kernels {
		t.Run(name, func(t *testing.T) {
			h, p := accept(t, f)
			h.in.Close()
			if _, err := h.out.ReadByte(); err == nil {
				t.Fatal("the helper spoke")
			}
			waitZombie(t, h.cmd.Process.Pid)
			if err := p.Check(); !errors.Is(err, caller.ErrGone) {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

func TestClosedProcessIsGone(t *testing.T) {
	_, p := accept(t, caller.FromConn)
	must(t, p.Close())
	must(t, p.Close())
	if err := p.Check(); !errors.Is(err, caller.ErrGone) {
		t.Errorf("Check: %v", err)
	}
}

// Regression: SPIRE 0.12.1 descriptors
func TestDescriptorsAreReleased(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(fds)
	}
	before := count()
	for range 20 {
		p, err := caller.Open(os.Getpid())
		must(t, err)
		must(t, p.Close())
		if _, err := caller.Open(1 << 30); err == nil {
			t.Fatal("opened a process that can't be")
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestDeletedExecutable(t *testing.T) {
	other := copyOf(t)
	h := start(t, "idle", "").ready()
	h.exec(other)
	p, err := caller.Open(h.cmd.Process.Pid)
	must(t, err)
	defer p.Close()
	must(t, os.Remove(other))
	if path, _, err := p.Executable(); err == nil || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("got %q, %v", path, err)
	}
	must(t, p.Check()) // it still runs what it ran
}

func TestAnotherUID(t *testing.T) {
	needRoot(t)
	_, p := accept(t, caller.FromConn, as(65534, 65533, 7, 4242))
	groups, err := p.Groups()
	must(t, err)
	slices.Sort(groups)
	if diff := cmp.Diff([]uint32{7, 4242}, groups); diff != "" || p.UID() != 65534 || p.GID() != 65533 {
		t.Errorf("uid %d, gid %d, groups (-want +got):\n%s", p.UID(), p.GID(), diff)
	}
	o, err := caller.Open(p.PID())
	must(t, err)
	defer o.Close()
	if o.UID() != 65534 || o.GID() != 65533 {
		t.Errorf("opened: uid %d, gid %d", o.UID(), o.GID())
	}
}

// An agent that isn't root can't read another uid's executable: it knows the
// caller all the same, and never says anything of the executable.
func TestUnknownExecutable(t *testing.T) {
	if os.Getuid() != 0 {
		p, err := caller.Open(1)
		must(t, err)
		defer p.Close()
		_, _, exeErr := p.Executable()
		if p.ExecutableKnown() || !errors.Is(exeErr, fs.ErrPermission) || p.Check() != nil {
			t.Errorf("known %v, executable: %v", p.ExecutableKnown(), exeErr)
		}
		return
	}
	l, path := listen(t)
	f, err := l.(interface{ File() (*os.File, error) }).File()
	must(t, err)
	defer f.Close()
	judge := start(t, "judge", "", as(65534, 65534), func(c *exec.Cmd) { c.ExtraFiles = []*os.File{f} }).ready()
	h := start(t, "connect", path).ready()
	if got, want := judge.line(), "0 false true <nil>"; got != want {
		t.Errorf("uid, known, refused, check: got %q, want %q", got, want)
	}
	h.in.Close() // a zombie: its start time can still be read
	waitZombie(t, h.cmd.Process.Pid)
	_, err = io.WriteString(judge.in, "\n")
	must(t, err)
	if got := judge.line(); got != "true" {
		t.Errorf("gone: %s", got)
	}
}

// What could not be read at connect is never told, also if it can be later.
func TestExecutableBecomesKnown(t *testing.T) {
	proc := newFakeProc(t)
	exe := filepath.Join(proc.root, "42/exe")
	must(t, os.Remove(exe))
	must(t, os.Symlink("exe", exe)) // a loop: unreadable for root too
	p, err := caller.OpenIn(proc.root, 42)
	must(t, err)
	defer p.Close()
	must(t, p.Check())
	if _, _, err := p.Executable(); p.ExecutableKnown() || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("known %v, %v", p.ExecutableKnown(), err)
	}
	proc.runs("other")
	if err := p.Check(); !errors.Is(err, caller.ErrChanged) {
		t.Errorf("Check: %v", err)
	}
}

// Before Linux 6.5 the number may be another process's by the time we look.
func TestAnotherUsersProcessHasTheNumber(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	start(t, "drop", path).ready()
	c, err := l.Accept()
	must(t, err)
	defer c.Close()
	if _, err := caller.FromConnBefore65(c.(*net.UnixConn), true); !errors.Is(err, caller.ErrGone) {
		t.Errorf("before 6.5: %v", err)
	}
	p, err := caller.FromConn(c.(*net.UnixConn))
	must(t, err)
	defer p.Close()
	if p.UID() != 0 {
		t.Errorf("uid %d, want the one at connect", p.UID())
	}
}

func TestProcOfAnotherNamespace(t *testing.T) {
	for name, row := range map[string]struct {
		line string
		ok   bool
	}{
		"ours":            {"Pid:\t42\n", true},
		"another's":       {"Pid:\t43\n", false},
		"not in it":       {"Pid:\t0\n", false},
		"gone":            {"Pid:\t-1\n", false},
		"doesn't say any": {"pos:\t0\n", false},
	} {
		proc := newFakeProc(t)
		dir := filepath.Join(proc.root, "self/fdinfo")
		must(t, os.MkdirAll(dir, 0o755))
		p, err := caller.OpenInWith(proc.root, 42, func() (int, error) {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			must(t, err)
			return fd, os.WriteFile(filepath.Join(dir, fmt.Sprint(fd)), []byte(row.line), 0o600)
		})
		if (err == nil) != row.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			p.Close()
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, pid := range []int{0, -1, 1 << 30} {
		if p, err := caller.Open(pid); err == nil {
			t.Errorf("pid %d: opened as %d", pid, p.PID())
		}
	}
}

// fakeProc is a /proc with one process, 42.
type fakeProc struct {
	t    *testing.T
	root string
}

func newFakeProc(t *testing.T) fakeProc {
	p := fakeProc{t, t.TempDir()}
	must(t, os.Mkdir(filepath.Join(p.root, "42"), 0o755))
	p.startedAt(1000)
	p.runs("first")
	return p
}

func (p fakeProc) startedAt(ticks int) {
	stat := fmt.Sprintf("42 (x) S %s%d 0 0\n", strings.Repeat("0 ", 18), ticks)
	must(p.t, os.WriteFile(filepath.Join(p.root, "42/stat"), []byte(stat), 0o644))
}

func (p fakeProc) runs(name string) {
	file, exe := filepath.Join(p.root, name), filepath.Join(p.root, "42/exe")
	must(p.t, os.WriteFile(file, nil, 0o755))
	if err := os.Remove(exe); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.t.Fatal(err)
	}
	must(p.t, os.Symlink(file, exe))
}

// Regression: SPIRE #886
func TestReusedPID(t *testing.T) {
	proc := newFakeProc(t)
	p, err := caller.OpenIn(proc.root, 42)
	must(t, err)
	defer p.Close()
	must(t, p.Check())
	proc.startedAt(1001)
	if err := p.Check(); !errors.Is(err, caller.ErrGone) {
		t.Errorf("Check: %v", err)
	}
}

// The file that ran was deleted and its inode could be given to another: not
// while we hold it.
func TestInodeIsNotReused(t *testing.T) {
	proc := newFakeProc(t)
	p, err := caller.OpenIn(proc.root, 42)
	must(t, err)
	defer p.Close()
	must(t, os.Remove(filepath.Join(proc.root, "first")))
	for i := range 50 {
		proc.runs(fmt.Sprint("other", i))
		if err := p.Check(); !errors.Is(err, caller.ErrChanged) {
			t.Fatalf("Check: %v", err)
		}
	}
}

// Regression: SPIRE #982
func TestParseStartTime(t *testing.T) {
	rest := " S " + strings.Repeat("0 ", 18) + "77 5 5"
	for name, row := range map[string]struct {
		stat string
		want uint64
		ok   bool
	}{
		"plain":                     {"1 (init)" + rest, 77, true},
		"name of spaces and parens": {"1 (a) S 1 2 (b)" + rest, 77, true},
		"name that looks like stat": {"1 (x) S " + strings.Repeat("0 ", 18) + "1 5 5)" + rest, 77, true},
		"name with a line break":    {"1 (a\n) S 1)" + rest, 77, true},
		"no name":                   {"1 S 0", 0, false},
		"cut":                       {"1 (x) S 0 0", 0, false},
		"negative":                  {"1 (x) S " + strings.Repeat("0 ", 18) + "-1 5", 0, false},
		"larger than 64 bits":       {"1 (x) S " + strings.Repeat("0 ", 18) + "99999999999999999999 5", 0, false},
		"empty":                     {"", 0, false},
	} {
		got, err := caller.ParseStartTime([]byte(row.stat))
		if got != row.want || (err == nil) != row.ok {
			t.Errorf("%s: got %d, %v", name, got, err)
		}
	}
}

func TestParseIDs(t *testing.T) {
	const good = "Name:\tUid:\\nx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n"
	uid, gid, groups, err := caller.ParseIDs([]byte(good))
	must(t, err)
	if diff := cmp.Diff([]uint32{9, 10}, groups); diff != "" || uid != 2 || gid != 6 {
		t.Errorf("uid %d, gid %d, groups:\n%s", uid, gid, diff)
	}
	for name, change := range map[string][2]string{
		"no uid":            {"Uid:\t1\t2\t3\t4", ""},
		"three uids":        {"1\t2\t3\t4", "1\t2\t3"},
		"the uid of nobody": {"1\t2\t3\t4", "1\t4294967295\t3\t4"},
		"a signed gid":      {"\t6\t", "\t-6\t"},
		"no groups":         {"Groups:", "Grips:"},
		"a group's name":    {"9 10", "9 wheel"},
	} {
		if uid, gid, groups, err := caller.ParseIDs([]byte(strings.Replace(good, change[0], change[1], 1))); err == nil {
			t.Errorf("%s: got %d %d %d", name, uid, gid, groups)
		}
	}
}

// Regression: SPIRE #982
func FuzzParseStartTime(f *testing.F) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("1 (a) b) S 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := caller.ParseStartTime(b)
		if err != nil {
			return
		}
		// A process that chooses its name has no say in the time.
		named := append([]byte("1 (Z 1 2 3 ) 4 5 6"), b...)
		if again, err := caller.ParseStartTime(named); err != nil || again != got {
			t.Errorf("got %d, named otherwise %d, %v", got, again, err)
		}
	})
}

func FuzzParseIDs(f *testing.F) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		uid, gid, _, err := caller.ParseIDs(b)
		if err == nil && (uid == 1<<32-1 || gid == 1<<32-1) {
			t.Error("took the id of nobody")
		}
	})
}

func FuzzFindAnswer(f *testing.F) {
	nonce := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
	ack := append([]byte{0, 0, 8, 6, 1, 0, 0, 0, 0}, nonce[:]...)
	f.Add(append([]byte(hello), ack...), 30)
	f.Add([]byte(hello), 3)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 5)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		at, found, err := caller.FindAnswer(b, 0, nonce)
		if found && !bytes.Equal(b[at+9:at+17], nonce[:]) {
			t.Fatal("found what isn't there")
		}
		if err != nil || cut < 0 || cut > len(b) {
			return
		}
		next, early, err := caller.FindAnswer(b[:cut], 0, nonce)
		if err != nil {
			t.Fatalf("the first %d bytes: %v", cut, err)
		}
		if early {
			return
		}
		if at2, found2, err := caller.FindAnswer(b, next, nonce); at2 != at || found2 != found || err != nil {
			t.Errorf("in two reads: %d %v %v, in one: %d %v", at2, found2, err, at, found)
		}
	})
}
