package systemd_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/attest/attesttest"
	"github.com/credence-id/credence/agent/attest/systemd"
	"github.com/credence-id/credence/agent/caller"
)

func TestMain(m *testing.M) { attesttest.Main(m) }

// manager is systemd's, as far as it is asked: on a bus of the test's own.
type manager struct {
	units map[uint32]string // by pid
}

const (
	at      = "org.freedesktop.systemd1"
	objects = "/org/freedesktop/systemd1"
)

func (m *manager) GetUnitByPID(pid uint32) (dbus.ObjectPath, *dbus.Error) {
	unit, ok := m.units[pid]
	if !ok {
		return "", dbus.NewError(at+".NoUnitForPID", []any{"PID does not belong to any loaded unit"})
	}
	return path(unit), nil
}

// path escapes a unit's name as systemd does.
func path(unit string) dbus.ObjectPath {
	var b strings.Builder
	for _, c := range []byte(unit) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return dbus.ObjectPath(objects + "/unit/" + b.String())
}

// bus starts a message bus with a manager on it, and returns its address.
func bus(t *testing.T, m *manager, fragments map[string]any) string {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("no dbus-daemon here")
	}
	dir, err := os.MkdirTemp("", "bus") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><type>system</type><listen>unix:path=%s/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	address = strings.TrimSpace(address)
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.Export(m, objects, at+".Manager"); err != nil {
		t.Fatal(err)
	}
	for unit, fragment := range fragments {
		props := prop.Map{at + ".Unit": {"FragmentPath": {Value: fragment, Emit: prop.EmitFalse}}}
		if _, err := prop.Export(conn, path(unit), props); err != nil {
			t.Fatal(err)
		}
	}
	if reply, err := conn.RequestName(at, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return address
}

func attested(t *testing.T, a *systemd.Attestor, pid int) (map[string][]string, error) {
	t.Helper()
	p, err := caller.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	facts, unknown, err := a.Attest(t.Context(), p, nil)
	if len(unknown) > 0 {
		t.Errorf("unknown %v", unknown)
	}
	return facts, err
}

func TestFacts(t *testing.T) {
	pid, scope := attesttest.Process(t), attesttest.Process(t)
	attesttest.Into(t, "/system.slice/nginx.service/workers", pid)
	attesttest.Into(t, "/system.slice/run-1.scope", scope)
	m := &manager{units: map[uint32]string{uint32(pid): "nginx.service", uint32(scope): "run-1.scope"}}
	a := systemd.New(systemd.Config{Bus: bus(t, m, map[string]any{"nginx.service": "/lib/systemd/system/nginx.service"})})
	defer a.Close()
	facts, err := attested(t, a, pid)
	want := map[string][]string{
		"workload.systemd.unit": {"nginx.service"}, "workload.systemd.slice": {"system.slice"},
		"workload.systemd.fragment_path": {"/lib/systemd/system/nginx.service"},
	}
	if diff := cmp.Diff(want, facts); err != nil || diff != "" {
		t.Error(diff, err)
	}
	if _, err := attested(t, a, scope); err == nil {
		t.Error("a unit that the manager has no object for passes")
	}
}

func TestRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		cgroup   string
		unit     string
		fragment any
		want     string
	}{
		"another unit":                {"/system.slice/nginx.service", "sshd.service", "", `systemd says "sshd.service"`},
		"a unit systemd lacks":        {"/system.slice/nginx.service", "", "", "asking systemd for its unit"},
		"a path with a line":          {"/system.slice/nginx.service", "nginx.service", "/a\nb", "cannot be told"},
		"a path of another kind":      {"/system.slice/nginx.service", "nginx.service", uint32(7), "no text"},
		"a user's unit, as a service": {"/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", "nginx.service", "", "user@1000.service"},
	} {
		t.Run(name, func(t *testing.T) {
			pid := attesttest.Process(t)
			attesttest.Into(t, test.cgroup, pid)
			m := &manager{units: map[uint32]string{}}
			if test.unit != "" {
				m.units[uint32(pid)] = test.unit
			}
			a := systemd.New(systemd.Config{Bus: bus(t, m, map[string]any{"nginx.service": test.fragment, "sshd.service": ""})})
			defer a.Close()
			facts, err := attested(t, a, pid)
			if err == nil || !strings.Contains(err.Error(), test.want) || len(facts) != 0 {
				t.Errorf("%v, %v; want %q", facts, err, test.want)
			}
		})
	}
}

// In no unit there is nothing to tell; without a bus nothing is proven.
func TestNoUnit(t *testing.T) {
	pid := attesttest.Process(t)
	a := systemd.New(systemd.Config{Bus: bus(t, &manager{}, nil)})
	defer a.Close()
	if facts, err := attested(t, a, pid); err != nil || len(facts) != 0 {
		t.Errorf("%v, %v", facts, err)
	}
	away := systemd.New(systemd.Config{Bus: "unix:path=" + filepath.Join(t.TempDir(), "none"), Timeout: time.Second})
	if _, err := attested(t, away, pid); err == nil {
		t.Error("without a bus it is proven to be in no unit")
	}
}

// A bus that is restarted is found again.
func TestReconnects(t *testing.T) {
	pid := attesttest.Process(t)
	attesttest.Into(t, "/system.slice/nginx.service", pid)
	a := systemd.New(systemd.Config{Bus: bus(t, &manager{units: map[uint32]string{uint32(pid): "nginx.service"}}, map[string]any{"nginx.service": ""})})
	for range 2 {
		if facts, err := attested(t, a, pid); err != nil || len(facts) != 2 {
			t.Fatal(facts, err)
		}
		a.Close()
	}
}
