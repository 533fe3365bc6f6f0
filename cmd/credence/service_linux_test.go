package main_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unixFile is a listening socket as a service manager hands it over.
func unixFile(t *testing.T, path string, mode os.FileMode) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// activated starts credence-agent with descriptors, as a service manager does.
func activated(t *testing.T, config, notify, names string, files ...*os.File) *process {
	t.Helper()
	cmd := exec.Command("sh", "-c", fmt.Sprintf("LISTEN_PID=$$ LISTEN_FDS=%d exec credence-agent run -c %s", len(files), config))
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "LISTEN_FDNAMES="+names, "NOTIFY_SOCKET="+notify)
	return startCmd(t, cmd)
}

// nodeFiles are agent.yaml and token of a node that may join d.
func nodeFiles(t *testing.T, d *devRun, dir, name string) (config string) {
	t.Helper()
	t.Setenv("CREDENCE_ADMIN", d.json.AdminSocket)
	code, text, errs := credenceCmd(t, "", "token", "create", "--node", name)
	m := printedToken.FindStringSubmatch(text)
	if code != 0 || m == nil {
		t.Fatalf("no token: %s", errs)
	}
	config = filepath.Join(dir, "agent.yaml")
	text = strings.ReplaceAll(text, "/var/lib/credence", dir) + "socket: " + dir + "/workload.sock\nadmin: " + dir + "/admin.sock\n"
	for file, text := range map[string]string{config: text, filepath.Join(dir, "agent.token"): m[1]} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return config
}

// An agent that a service manager starts takes over its sockets, tells when
// identities are served, and leaves the sockets to the next one, which callers do
// not notice.
func TestSocketActivation(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	dir := tempDir(t)
	config := nodeFiles(t, d, dir, "activated")
	d.apply(t, fmt.Sprintf("kind: Identity\nname: activated\nspiffe_id: /activated\nmatch: [{node.name: activated, workload.unix.uid: %d}]\n", os.Getuid()))
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	until := func(want string) {
		t.Helper()
		buf := make([]byte, 4096)
		if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("%s is not told: %v", want, err)
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	workload := unixFile(t, filepath.Join(dir, "workload.sock"), 0o666)
	admin := unixFile(t, filepath.Join(dir, "admin.sock"), 0o600)
	for _, how := range []string{"it joins", "it goes on", "it was killed"} {
		agent := activated(t, config, filepath.Join(dir, "notify"), "admin:workload", admin, workload)
		until("READY=1")
		if code, out, errs := credenceCmd(t, "", "svid", "x509", "--socket", dir+"/workload.sock"); code != 0 || !strings.Contains(out, "/activated ") {
			t.Fatalf("%s: exit code %d: %s%s", how, code, out, errs)
		}
		if code, out, errs := credenceCmd(t, "", "agent", "status", "--agent-admin", dir+"/admin.sock"); code > 1 || !strings.Contains(out, "credence/node/activated") {
			t.Fatalf("%s: exit code %d: %s%s", how, code, out, errs)
		}
		if how == "it goes on" {
			agent.kill()
			continue
		}
		if code, err := agent.stop(); code != 0 || err != nil {
			text, _ := agent.printed()
			t.Fatalf("%s: it stops with %d, %v:\n%s", how, code, err, text)
		}
		until("STOPPING=1")
	}
	for _, name := range []string{"workload.sock", "admin.sock"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("the manager's socket is gone: %v", err)
		}
	}
}

// What is handed over and isn't what agent.yaml says ends it with one line.
func TestSocketActivationRefuses(t *testing.T) {
	dir := tempDir(t)
	config := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf("trust_domain: example.org\ndata: %[1]s/d\nbroker: [\"127.0.0.1:1\"]\njoin: {method: token, token_file: %[1]s/t}\nsocket: %[1]s/w\nadmin: %[1]s/a\n"+
		"trust: {ca_pin: [\"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"]}\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	good, wide := unixFile(t, dir+"/w", 0o666), unixFile(t, dir+"/a", 0o666)
	for name, c := range map[string]struct {
		names string
		files []*os.File
		want  string
	}{
		"an unknown name":        {"api", []*os.File{good}, `a socket called "api": FileDescriptorName=workload or admin is wanted`},
		"no name":                {"", []*os.File{good}, "FileDescriptorName=workload or admin is wanted"},
		"one name twice":         {"workload:workload", []*os.File{good, good}, `two sockets called "workload"`},
		"the other's path":       {"workload", []*os.File{wide}, "bound to"},
		"wider than it may be":   {"workload:admin", []*os.File{good, wide}, "SocketMode=0600 is the widest"},
		"no socket, but a place": {"workload", []*os.File{os.Stdin}, "no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			p := activated(t, config, "", c.names, c.files...)
			code, err := p.wait()
			text, _ := p.printed()
			if err != nil || code != 2 || strings.Count(text, "\n") != 1 || !strings.Contains(text, c.want) {
				t.Errorf("exit code %d, %v; want 2 and %q:\n%s", code, err, c.want, text)
			}
		})
	}
}

// Told to stop, an agent ends with 0 whatever it is at: before its sockets, while a
// broker lets it wait, while none answers.
func TestAgentStopsAtAnyMoment(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, c := range map[string]struct{ broker, seen string }{
		"it reads its file":       {"127.0.0.1:1", ""},
		"it waits for an answer":  {silent.Addr().String(), "agent of example.org"},
		"it waits for a next try": {"127.0.0.1:1", "not joined yet"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			config := filepath.Join(dir, "agent.yaml")
			if c.seen == "" { // a pipe, which it has opened when we can open it too
				if err := syscall.Mkfifo(config, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			text := fmt.Sprintf("trust_domain: example.org\ndata: %[1]s/d\nbroker: [%[2]q]\njoin: {method: token, token_file: %[1]s/t}\n"+
				"trust: {ca_pin: [\"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"]}\n", dir, c.broker)
			if err := os.WriteFile(filepath.Join(dir, "t"), []byte("cjt_none"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.seen != "" {
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p := start(t, "credence-agent", "run", "-c", config)
			if c.seen == "" {
				f, err := os.OpenFile(config, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				_, err = f.WriteString(text)
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				if err != nil {
					t.Fatal(err)
				}
			} else {
				if _, err := p.await(c.seen, 0); err != nil {
					t.Fatal(err)
				}
				if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			code, err := p.wait()
			if text, _ := p.printed(); err != nil || code != 0 {
				t.Errorf("exit code %d, %v:\n%s", code, err, text)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "d", "run", "*.sock")); len(left) > 0 {
				t.Errorf("it left %q", left)
			}
		})
	}
}
