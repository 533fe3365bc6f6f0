//go:build pkcs11 && cgo

package pkcs11_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/keys/pkcs11"
)

const label, pin = "credence", "a-secret-pin"

// A token is one of SoftHSM2's, in a module that does what a test wants to go
// wrong.
type token struct {
	pkcs11.Settings
	softhsm, faults string
}

// newToken makes a token. Tests with one can't run in parallel: a module's
// state is the process's.
func newToken(t *testing.T) *token {
	t.Helper()
	dir := t.TempDir()
	k := &token{faults: filepath.Join(dir, "faults")}
	for _, at := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(at); err == nil {
			k.softhsm = at
		}
	}
	if k.softhsm == "" {
		t.Fatal("these tests need SoftHSM2: apt-get install softhsm2")
	}
	for _, name := range []string{"tokens", "faults"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	k.Settings = pkcs11.Settings{Module: filepath.Join(dir, "faults.so"), TokenLabel: label, PINFile: filepath.Join(dir, "pin"), Timeout: time.Minute}
	write(t, k.PINFile, pin+"\n")
	conf := filepath.Join(dir, "softhsm2.conf")
	write(t, conf, "directories.tokendir = "+filepath.Join(dir, "tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	t.Setenv("SOFTHSM2_CONF", conf)
	t.Setenv("CREDENCE_TEST_MODULE", k.softhsm)
	t.Setenv("CREDENCE_TEST_FAULTS", k.faults)
	command(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "12345678")
	headers := strings.TrimSpace(command(t, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11"))
	command(t, "gcc", "-shared", "-fPIC", "-I", headers, "-o", k.Module, "testdata/faults.c", "-ldl")
	return k
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// keys opens the token afresh.
func (k *token) keys(t *testing.T, timeout time.Duration) *pkcs11.Keys {
	t.Helper()
	s := k.Settings
	if timeout > 0 {
		s.Timeout = timeout
	}
	keys, err := pkcs11.New(pkcs11.Config{Settings: s, Purpose: "root"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := keys.Close(); err != nil {
			t.Error(err)
		}
	})
	return keys
}

// set lets a fault happen until restore.
func (k *token) set(t *testing.T, name string) (restore func()) {
	t.Helper()
	file := filepath.Join(k.faults, name)
	write(t, file, "")
	return func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
}

// logins says how often a PIN was tried.
func (k *token) logins(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(k.faults, "logins"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(data)
}

// hang lets the calls for act on the key ref wait.
func (k *token) hang(t *testing.T, act, ref string) (<-chan struct{}, func()) {
	file := filepath.Join(k.faults, act+"."+labelOf(ref))
	lock, err := os.Create(file)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		err = syscall.Mkfifo(file+".arrived", 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(file+".arrived", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	arrived, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := pipe.Read(make([]byte, 1)); err == nil {
			close(arrived)
		}
	}()
	return arrived, sync.OnceFunc(func() {
		os.Remove(file)
		os.Remove(file + ".arrived")
		lock.Close() // and unlocks
		pipe.Close() // and ends the reader
		<-ended
	})
}

func labelOf(ref string) string {
	return strings.TrimSuffix(strings.TrimPrefix(ref, "pkcs11:object="), ";type=private")
}
