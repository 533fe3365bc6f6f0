package caller_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/caller"
)

// crowd is how often one helper connects.
const crowd = 500

// impostor starts a program that has that pid; nil if somebody else has it.
func impostor(pid int) (*os.Process, error) {
	for range 20 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, pid-1), 0); err != nil {
			return nil, err
		}
		got, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, nil)
		if err != nil {
			return nil, err
		}
		p, err := os.FindProcess(got)
		if err != nil || got == pid {
			return p, err
		}
		end(p)
	}
	return nil, nil
}

func end(p *os.Process) {
	_ = p.Kill()
	_, _ = p.Wait()
}

// Ten thousand times, or for eight seconds, the pid of a dead caller is given to another process of the
// same user, which lives while its connection is accepted and while those are
// asked that were accepted before. None of it says a word of the impostor.
func TestRecycledPIDs(t *testing.T) {
	if f, err := os.OpenFile("/proc/sys/kernel/ns_last_pid", os.O_WRONLY, 0); err != nil {
		t.Skip("only root chooses the next pid:", err)
	} else {
		_ = f.Close()
	}
	began, told := time.Now(), 0
	for told < 10000 && time.Since(began) < 8*time.Second {
		l, path := listen(t)
		h := start(t, "crowd", path).ready()
		held := make(map[string]*caller.Process)
		for name, f := range kernels {
			p, c := next(t, l, f)
			defer c.Close()
			defer p.Close()
			must(t, p.Check())
			held[name] = p
		}
		pid := h.cmd.Process.Pid
		h.end()
		for n := len(held); n < crowd && recycled(t, l, pid, held); n++ {
			told++
		}
	}
	t.Logf("%d in %s", told, time.Since(began))
	if told == 0 {
		t.Error("no pid was given again")
	}
}

func next(t *testing.T, l net.Listener, f from) (*caller.Process, net.Conn) {
	t.Helper()
	c, err := l.Accept()
	must(t, err)
	p, err := f(c.(*net.UnixConn))
	must(t, err)
	return p, c
}

func recycled(t *testing.T, l net.Listener, pid int, held map[string]*caller.Process) bool {
	t.Helper()
	other, err := impostor(pid)
	must(t, err)
	if other == nil {
		return false
	}
	defer end(other)
	c, err := l.Accept()
	must(t, err)
	defer c.Close()
	if _, err := caller.FromConn(c.(*net.UnixConn)); !errors.Is(err, caller.ErrGone) {
		t.Fatalf("FromConn: %v", err)
	}
	for name, p := range held {
		if err := p.Check(); !errors.Is(err, caller.ErrGone) {
			t.Fatalf("%s: Check: %v", name, err)
		}
		if text, _, err := p.Cgroups(); err == nil {
			t.Fatalf("%s: Cgroups: %s", name, text)
		}
		if groups, err := p.Groups(); err == nil {
			t.Fatalf("%s: Groups: %v", name, groups)
		}
		if path, _, err := p.Executable(); err == nil {
			t.Fatalf("%s: Executable: %s", name, path)
		}
	}
	return true
}
