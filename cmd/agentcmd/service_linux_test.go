package agentcmd_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/cmd/agentcmd"
)

// manager is a service manager's end of sd_notify.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return &manager{t, conn}
}

// next is what it is told next.
func (m *manager) next() string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := m.conn.Read(buf)
	if err != nil {
		m.t.Fatalf("nothing more is told: %v", err)
	}
	return string(buf[:n])
}

// until is what it is told up to a text.
func (m *manager) until(text string) (all []string) {
	m.t.Helper()
	for late := time.Now().Add(time.Minute); time.Now().Before(late); {
		all = append(all, m.next())
		if strings.Contains(all[len(all)-1], text) {
			return all
		}
	}
	m.t.Fatalf("%q is not told: %q", text, all)
	return nil
}

// watched is an agent that does as the test says.
type watched struct {
	joined chan struct{}

	mu     sync.Mutex // guards what follows
	hung   []string
	status agent.Status
	asked  func() // whenever somebody looks; nil: nobody cares
}

func (w *watched) Joined() <-chan struct{} { return w.joined }

func (w *watched) Hung() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked != nil {
		w.asked()
	}
	return w.hung
}

func (w *watched) Status() agent.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

func (w *watched) set(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// managed runs what tells the manager, and returns what stops it.
func managed(t *testing.T, w *watched) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { agentcmd.Tell(ctx, w, slog.New(slog.DiscardHandler)) })
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

// The manager is told that we are ready when identities are served, not before,
// how we do in between, and that we stop.
func TestTheManagerIsTold(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "3000") // it looks every ms
	w := &watched{joined: make(chan struct{}), status: agent.Status{Trouble: "no broker\nanswers"}}
	stop := managed(t, w)
	before := m.until("STATUS=not joined yet: no broker answers")
	w.set(func() { w.status = agent.Status{Node: "spiffe://example.org/credence/node/n", Connected: true} })
	close(w.joined)
	before = append(before, m.until("READY=1")...)
	if n := slices.Index(before, "READY=1"); n != len(before)-1 {
		t.Errorf("ready too soon: %q", before)
	}
	m.until("STATUS=spiffe://example.org/credence/node/n: serving")
	w.set(func() { w.status.Connected, w.status.Trouble = false, "it hung up" })
	m.until("STATUS=spiffe://example.org/credence/node/n: serving what it holds, no broker is connected: it hung up")
	stop()
	m.until("STOPPING=1")
}

// While a loop hangs the watchdog hears nothing, however often it would be time.
func TestTheWatchdogHearsNothingOfALoopThatHangs(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "3000")
	w := &watched{joined: make(chan struct{})}
	close(w.joined)
	managed(t, w)
	m.until("WATCHDOG=1")
	m.until("WATCHDOG=1")
	w.set(func() { w.hung = []string{"renewing hangs for 3m0s"} })
	m.until("STATUS=renewing hangs for 3m0s")
	var looks sync.WaitGroup
	looks.Add(20)
	left := 20
	w.set(func() {
		w.asked = func() {
			if left--; left >= 0 {
				looks.Done()
			}
		}
	})
	looks.Wait()
	w.set(func() { w.hung = nil })
	if told := m.until("STATUS="); len(told) != 1 {
		t.Errorf("while a loop hung it was told %q", told)
	}
	m.until("WATCHDOG=1")
}

// A manager that asks for no watchdog is told of none.
func TestNoWatchdogUnasked(t *testing.T) {
	for name, env := range map[string][2]string{"none": {"", ""}, "another process's": {"3000", "1"}} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			t.Setenv("WATCHDOG_USEC", env[0])
			t.Setenv("WATCHDOG_PID", env[1])
			w := &watched{joined: make(chan struct{})}
			close(w.joined)
			stop := managed(t, w)
			told := m.until("READY=1")
			stop()
			if told = append(told, m.until("STOPPING=1")...); slices.Contains(told, "WATCHDOG=1") {
				t.Errorf("told %q", told)
			}
		})
	}
}
