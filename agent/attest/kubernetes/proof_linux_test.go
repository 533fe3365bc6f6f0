package kubernetes_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credence-id/credence/agent/attest/attesttest"
	"github.com/credence-id/credence/agent/attest/kubernetes"
	"github.com/credence-id/credence/agent/attest/kubernetes/kubernetestest"
	"github.com/credence-id/credence/agent/caller"
)

const (
	proofPath = "/var/run/secrets/tokens/credence"
	token     = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
)

// rooted starts a process whose root is dir, and opens it.
func rooted(t *testing.T, dir string) *caller.Process {
	t.Helper()
	p, err := caller.Open(attesttest.Rooted(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// show writes what a process has at the path in its root.
func show(t *testing.T, root, path, text string) {
	t.Helper()
	full := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, root, to, path string) {
	t.Helper()
	full := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, full); err != nil {
		t.Fatal(err)
	}
}

func prover(t *testing.T) *kubernetes.Attestor {
	t.Helper()
	return polling(t, kubernetestest.New(t, node), func(c *kubernetes.Config) { c.Proof = proofPath })
}

// What a process shows is read below its own root, and is a small regular file in
// the form of a token: nothing of ours, whatever it links to.
func TestProve(t *testing.T) {
	outside := t.TempDir()
	show(t, outside, "secret", token)
	for name, row := range map[string]struct {
		make func(root string)
		want string
		says string
	}{
		"as the kubelet writes it": {make: func(root string) {
			dir := filepath.Dir(proofPath)
			show(t, root, dir+"/..2026_05_04/credence", token)
			link(t, root, "..2026_05_04", dir+"/..data")
			link(t, root, "..data/credence", proofPath)
		}, want: token},
		"with a line's end": {make: func(root string) { show(t, root, proofPath, token+"\n") }, want: token},
		"by an absolute link": {make: func(root string) {
			show(t, root, "/run/x", token)
			link(t, root, "/run", "/var/run/secrets/tokens/d")
			link(t, root, "d/x", proofPath)
		}, want: token},
		"as large as may be":         {make: func(root string) { show(t, root, proofPath, "a.b."+strings.Repeat("c", 16<<10-4)) }, want: "a.b." + strings.Repeat("c", 16<<10-4)},
		"none":                       {make: func(string) {}},
		"a directory that is a file": {make: func(root string) { show(t, root, filepath.Dir(proofPath), "x") }},
		"a link out":                 {make: func(root string) { link(t, root, filepath.Join(outside, "secret"), proofPath) }},
		"a link up and out": {make: func(root string) {
			link(t, root, strings.Repeat("../", 32)+filepath.Join(outside, "secret"), proofPath)
		}},
		"a directory's link out": {make: func(root string) {
			show(t, outside, "credence", token)
			link(t, root, outside, filepath.Dir(proofPath))
		}},
		"a link to nothing":             {make: func(root string) { link(t, root, "nothing", proofPath) }},
		"a link to itself":              {make: func(root string) { link(t, root, "credence", proofPath) }, says: "symbolic links"},
		"a directory":                   {make: func(root string) { show(t, root, proofPath+"/x", token) }, says: "no regular file"},
		"empty":                         {make: func(root string) { show(t, root, proofPath, "") }, says: "0 bytes"},
		"too large":                     {make: func(root string) { show(t, root, proofPath, "a.b."+strings.Repeat("c", 16<<10-3)) }, says: "16385 bytes"},
		"much too large":                {make: func(root string) { show(t, root, proofPath, strings.Repeat("c", 1<<20)) }, says: "bytes"},
		"what is not in a token's form": {make: func(root string) { show(t, root, proofPath, "root:$6$secret:19000::::::") }, says: "no token"},
		"a pipe": {make: func(root string) {
			show(t, root, filepath.Dir(proofPath)+"/x", "")
			if err := unix.Mkfifo(filepath.Join(root, proofPath), 0o600); err != nil {
				t.Fatal(err)
			}
		}, says: "no regular file"},
		"a device": {make: func(root string) {
			show(t, root, filepath.Dir(proofPath)+"/x", "")
			if err := unix.Mknod(filepath.Join(root, proofPath), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
				t.Skip(err)
			}
		}, says: "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			row.make(root)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, err := prover(t).Prove(ctx, rooted(t, root))
			if string(got) != row.want || (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
				t.Errorf("%.100q, %v; want %.100q, %q", got, err, row.want, row.says)
			}
			if err != nil && strings.Contains(err.Error(), "secret:") {
				t.Errorf("it tells what it read: %v", err)
			}
		})
	}
}

// A link of the kernel's own in a process's /proc leads anywhere: it is none.
func TestProveByAMagicLink(t *testing.T) {
	root := t.TempDir()
	p := rooted(t, root)
	proc := filepath.Join(root, "proc")
	if err := os.Mkdir(proc, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		t.Skip("proc cannot be mounted here:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(proc, unix.MNT_DETACH) })
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(outside)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	link(t, root, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), proofPath)
	if got, err := prover(t).Prove(t.Context(), p); len(got) > 0 || err == nil {
		t.Errorf("%s, %v", got, err)
	}
}

// A token that is replaced while it is read is the one or the other; one that is
// written to is none.
func TestProveMeanwhile(t *testing.T) {
	for name, row := range map[string]struct {
		do   func(t *testing.T, root string, kill func())
		want string
	}{
		"replaced": {func(t *testing.T, root string, _ func()) {
			show(t, root, "/next", "x.y.z")
			if err := os.Rename(filepath.Join(root, "next"), filepath.Join(root, proofPath)); err != nil {
				t.Error(err)
			}
		}, token},
		"written to":        {func(t *testing.T, root string, _ func()) { show(t, root, proofPath, "x.y.z") }, ""},
		"its process ended": {func(_ *testing.T, _ string, kill func()) { kill() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			show(t, root, proofPath, token)
			p := rooted(t, root)
			a := prover(t)
			a.Meanwhile(func() {
				row.do(t, root, func() {
					if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
						t.Error(err)
					}
					for p.Check() == nil {
					}
				})
			})
			got, err := a.Prove(t.Context(), p)
			if string(got) != row.want || (err == nil) != (row.want != "") {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}

// A file system that never answers holds up nobody for longer than they wait.
func TestProveHangs(t *testing.T) {
	root := t.TempDir()
	show(t, root, proofPath, token)
	p := rooted(t, root)
	a := prover(t)
	answer, hangs := make(chan struct{}), make(chan struct{}, 32)
	a.Meanwhile(func() { hangs <- struct{}{}; <-answer })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 17)
	for range 17 { // one more than are read at once
		go func() {
			_, err := a.Prove(ctx, p)
			done <- err
		}()
	}
	for range 16 {
		<-hangs
	}
	cancel()
	for range 17 {
		if err := <-done; err == nil {
			t.Error("it is read")
		}
	}
	if len(hangs) != 0 {
		t.Error("more than sixteen are read at once")
	}
	close(answer)
	if got, err := a.Prove(t.Context(), p); err != nil || string(got) != token {
		t.Errorf("%s, %v", got, err)
	}
}

// Without a path nothing is looked for.
func TestProveNothing(t *testing.T) {
	a := polling(t, kubernetestest.New(t, node), nil)
	p, err := caller.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if got, err := a.Prove(t.Context(), p); err != nil || got != nil {
		t.Errorf("%s, %v", got, err)
	}
}
