package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// own is a line that a program writes for a person, and not into its log.
var own = regexp.MustCompile(`(?m)^(?:init |time=|broker of |admin: |agent of |warning: |SCHED ).*\n?`)

// stopAfter starts a program, tells it to stop so long after its first package
// that listens was made ready, and wants it to end with 0 and no complaint. Until
// then, milliseconds after it was started, it dies of the signal.
func stopAfter(t *testing.T, d time.Duration, name string, args ...string) (printed string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	p := startCmd(t, cmd)
	if _, err := p.await(`^init github.com/credence-id/credence/cmd/stop `, 0); err != nil {
		t.Error(err)
		return ""
	}
	select {
	case <-time.After(d): // whatever moment that is: what is wanted holds at each
	case <-p.ended:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	code, err := p.wait()
	printed, _ = p.printed()
	if left := own.ReplaceAllString(printed, ""); code != 0 || err != nil || left != "" || strings.Contains(printed, "panic") {
		t.Errorf("stopped after %s: exit code %d, %v, %q:\n%s", d, code, err, left, printed)
	}
	return printed
}

// Told to stop at any moment of its start, a broker ends with 0, and the next start
// goes on with what it had told of.
func TestBrokerStopsAtAnyMomentOfItsStart(t *testing.T) {
	t.Parallel()
	pin := regexp.MustCompile(`pin (sha256:\w+)`)
	var chains sync.WaitGroup
	for chain := range 2 {
		dir := tempDir(t)
		config := filepath.Join(dir, "broker.yaml")
		text := fmt.Sprintf("trust_domain: example.org\ndata: %s/data\nissuer: https://id.example.org\nlisten: {agents: '127.0.0.1:0', spiffe: '127.0.0.1:0'}\n", dir)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		chains.Go(func() {
			known := ""
			for n := range 10 { // the first of a directory that is not there yet, the last of one that is whole
				printed := stopAfter(t, time.Duration(28*n+14*chain)*time.Millisecond, "credence", "broker", "run", "-c", config)
				if m := pin.FindStringSubmatch(printed); m != nil {
					if known != "" && known != m[1] {
						t.Errorf("the pin was %s, and is %s", known, m[1])
					}
					known = m[1]
				}
			}
			last := start(t, "credence", "broker", "run", "-c", config)
			m, err := last.await(`pin (sha256:\w+)`, 0)
			if err != nil || known != "" && m[1] != known {
				t.Errorf("the last start: %v, %v; want %s", m, err, known)
			}
			if code, err := last.stop(); code != 0 || err != nil {
				t.Errorf("the last ends with %d, %v", code, err)
			}
		})
	}
	chains.Wait()
}

// So does an agent, and a token that it spent has bought something.
func TestAgentStopsAtAnyMomentOfItsStart(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	var chains sync.WaitGroup
	for chain := range 2 {
		dir := tempDir(t)
		config := nodeFiles(t, d, dir, fmt.Sprintf("stopped-%d", chain))
		chains.Go(func() {
			for n := range 10 {
				stopAfter(t, time.Duration(15*n+8*chain)*time.Millisecond, "credence-agent", "run", "-c", config)
			}
			last := start(t, "credence-agent", "run", "-c", config)
			for late := time.After(patience); ; {
				code, out, _ := credenceCmd(t, "", "agent", "status", "--agent-admin", dir+"/admin.sock")
				if code <= 1 && strings.Contains(out, "/credence/node/stopped-") {
					break
				}
				select {
				case <-last.ended:
					text, _ := last.printed()
					t.Errorf("the last start ended:\n%s", text)
					return
				case <-late:
					text, _ := last.printed()
					t.Errorf("the last start does not join:\n%s", text)
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
			if code, err := last.stop(); code != 0 || err != nil {
				t.Errorf("the last ends with %d, %v", code, err)
			}
		})
	}
	chains.Wait()
}
