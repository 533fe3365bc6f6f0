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
)

// A running broker takes over what can change, of a file that Kubernetes swaps under
// a link, names what needs a restart, and keeps all of it where the file will not do.
func TestReload(t *testing.T) {
	dir := tempDir(t)
	// As a volume of a ConfigMap is: broker.yaml -> ..data/broker.yaml, ..data -> ..N.
	config, swaps := filepath.Join(dir, "broker.yaml"), 0
	write := func(more string) {
		t.Helper()
		swaps++
		to := filepath.Join(dir, fmt.Sprintf("..%d", swaps))
		text := fmt.Sprintf("trust_domain: example.org\ndata: %s/data\n", dir) + more
		for _, err := range []error{
			os.Mkdir(to, 0o700), os.WriteFile(filepath.Join(to, "broker.yaml"), []byte(text), 0o600),
			os.Symlink(filepath.Base(to), filepath.Join(dir, "..new")), os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	const listen = "listen: {agents: '127.0.0.1:0', spiffe: none}\n"
	write(listen + "dns_suffixes: [svc]\n")
	if err := os.Symlink("..data/broker.yaml", config); err != nil {
		t.Fatal(err)
	}
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	cmd := exec.Command("credence", "broker", "run", "-c", config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	p := startCmd(t, cmd)
	if _, err := p.await(`^admin: `, 0); err != nil {
		t.Fatal(err)
	}
	told := make([]byte, 64)
	if n, err := manager.Read(told); err != nil || string(told[:n]) != "READY=1" {
		t.Errorf("the service manager is told %q, %v", told[:n], err)
	}
	t.Setenv("CREDENCE_ADMIN", filepath.Join(dir, "data", "run", "admin.sock"))
	apply := func(want int, name string) {
		t.Helper()
		identity := fmt.Sprintf("kind: Identity\nname: web\nspiffe_id: /web\nmatch: [{node.name: n1, workload.unix.uid: 1}]\nx509: {dns_names: [%s]}\n", name)
		if code, out, errs := credenceCmd(t, identity, "apply", "-f", "-"); code != want {
			t.Errorf("applying %s: %d: %s%s", name, code, out, errs)
		}
	}
	reload := func(more string, want ...string) {
		t.Helper()
		write(more)
		from := p.length()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if _, err := p.await(line, from); err != nil {
				t.Fatal(err)
			}
		}
	}
	apply(0, "web.svc")
	const role = "roles: [{id: spiffe://example.org/people/ana, role: auditor}]\n"
	reload(listen+"dns_suffixes: [svc]\nroles: [{id: spiffe://example.org/people/ana, role: king}]\n", `msg="reload refused" error=".*broker.yaml:5:\d+: .*roles\[0\].role`)
	reload("listen: {agents: '127.0.0.1:1', spiffe: none}\nname_constraints: true\ndns_suffixes: [svc, other]\n"+role,
		`msg="needs a restart" key=listen.agents$`, `msg="needs a restart" key=name_constraints$`, `msg=reloaded changed="dns_suffixes roles"`)
	apply(0, "web.other")
	reload(listen+"dns_suffixes: [svc]\n", `msg="reload refused" error=".*Identity web.*web.other`)
	apply(0, "web.other") // all as it was
	reload(listen+"dns_suffixes: [svc, other]\n"+role, `msg=reloaded changed=""`)
	code, out, _ := credenceCmd(t, "", "audit", "tail", "-o", "json")
	if n := strings.Count(out, `"reload"`); code != 0 || n != 1 || !strings.Contains(out, "dns_suffixes roles") {
		t.Errorf("%d reloads are recorded: %s", n, out)
	}
	if code, err := p.stop(); code != 0 || err != nil {
		t.Errorf("it ends with %d, %v", code, err)
	}
}
