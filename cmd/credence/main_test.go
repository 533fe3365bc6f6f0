package main_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
	credence "github.com/credence-id/credence/cmd/credence"
	"github.com/credence-id/credence/cmd/stop"
)

// TestMain makes the test binary six programs: credence; credence-agent; limited, which is
// credence on a disk that can be filled; workload, somebody's program that
// uses go-spiffe; whoami, somebody's that uses the clouds' SDKs; and bare, a server
// to measure against.
func TestMain(m *testing.M) {
	if os.Getenv(raceOptions) == "" {
		_ = os.Setenv(raceOptions, raceAtOnce)
	}
	if name := filepath.Base(os.Args[0]); !slices.Contains([]string{"credence", "credence-agent", "limited", "later", "earlier"}, name) {
		signal.Reset(os.Interrupt, syscall.SIGTERM) // which package stop listens to
	}
	testscript.Main(m, map[string]func(){
		"credence":       credence.Main,
		"credence-agent": agentAlone,
		"later":          func() { os.Exit(shifted(2)) },
		"earlier":        func() { os.Exit(shifted(-2)) },
		"limited":        limited,
		"workload":       func() { os.Exit(workload(os.Args[1:])) },
		"whoami":         func() { os.Exit(whoami(os.Args[1:])) },
		"bare":           func() { os.Exit(bare(os.Args[1:])) },
	})
}

// agentAlone is credence-agent.
func agentAlone() {
	p := &cli.Program{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now}
	os.Exit(p.Execute(stop.Context(), agentcmd.Root(p), os.Args[1:]))
}

// Under the race detector each of the hundreds of processes would sleep for a
// second before it ends, in case that others still report.
const (
	raceOptions = "GORACE"
	raceAtOnce  = "atexit_sleep_ms=0"
)

// shifted is credence by a clock that is so many years off.
func shifted(years int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	now := func() time.Time { return time.Now().AddDate(years, 0, 0) }
	return credence.RunAt(ctx, now, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// patience is how long a test waits for what ought to be there at once.
const patience = 60 * time.Second

// A process is a program under test, with all that it has printed.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	err   error         // then, how

	mu      sync.Mutex // guards what follows
	text    bytes.Buffer
	changed chan struct{} // closed when more was printed
}

// spawn starts a program; whoever does stops it with halt.
func spawn(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{}), changed: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// start starts a program that ends with the test.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return startCmd(t, exec.Command(name, args...))
}

func startCmd(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p, err := spawn(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.halt() })
	return p
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
	return p.text.Write(b)
}

func (p *process) printed() (string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String(), p.changed
}

func (p *process) length() int {
	text, _ := p.printed()
	return len(text)
}

// await waits until what was printed from an offset on matches, and returns
// the match's groups.
func (p *process) await(pattern string, from int) ([]string, error) {
	re, err := regexp.Compile(`(?m)` + pattern)
	if err != nil {
		return nil, err
	}
	deadline := time.After(patience)
	for last := false; ; {
		text, changed := p.printed()
		if m := re.FindStringSubmatch(text[from:]); m != nil {
			return m, nil
		}
		if last {
			return nil, fmt.Errorf("%s ended (%v) without printing %q:\n%s", p.cmd.Args, p.err, pattern, text)
		}
		select {
		case <-changed:
		case <-p.ended:
			last = true // what it printed last is there now
		case <-deadline:
			return nil, fmt.Errorf("%s did not print %q:\n%s", p.cmd.Args, pattern, text)
		}
	}
}

// wait waits for the end of the program, and returns its exit code.
func (p *process) wait() (int, error) {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(patience):
		text, _ := p.printed()
		return 0, fmt.Errorf("%s does not end:\n%s", p.cmd.Args, text)
	}
}

// stop tells the program to stop.
func (p *process) stop() (int, error) {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	return p.wait()
}

// kill ends the program as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// halt stops the program politely if it listens.
func (p *process) halt() {
	if err := p.cmd.Process.Signal(os.Interrupt); err == nil {
		select {
		case <-p.ended:
			return
		case <-time.After(10 * time.Second):
		}
	}
	p.kill()
}

// shortDir is a temporary directory with a path that leaves room for sockets.
func shortDir() (string, error) { return os.MkdirTemp("", "c") }

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := shortDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// freePort is a port that nobody listens on, below those that systems give
// out by themselves.
func freePort() (string, error) {
	for range 200 {
		port := strconv.Itoa(12000 + rand.IntN(18000))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			return port, l.Close()
		}
	}
	return "", errors.New("no port is free")
}

// TestScripts runs the sessions in testdata/script. Besides testscript's own
// commands they have:
//
//	code N PROGRAM ARG...            run it; its exit code must be N
//	until PATTERN PROGRAM ARG...     run it until it exits 0 and prints PATTERN
//	oneline                          the last standard error is one line
//	start NAME PATTERN PROGRAM ARG...  start it, wait until it prints PATTERN; $NAME is its first group
//	await NAME PATTERN               wait until it has printed PATTERN since it was last awaited
//	finish NAME, crash NAME          end it, politely or by SIGKILL
//	ends NAME N PATTERN              it ends by itself with code N and has printed PATTERN
//	signal NAME SIGNAL PATTERN       send USR1, USR2 or TERM to it and wait until it prints PATTERN
//	fromjson FILE NAME A.B.C         $NAME is that member of a JSON file
//	empty DIR                        the directory has nothing in it
//	tokenfile DIR                    it holds one secret of exec's, which only its owner may read
//	joinfiles                        what token create printed last becomes agent.yaml and its token file
//	big FILE BYTES TEXT              a file of that size which begins with TEXT
//	append FILE LINE...              add lines to a file
//	subst FILE                       put variables into a file
//	lines FILE N                     the file has so many lines
//	sql FILE STATEMENT               change a database behind its owner
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			dir, err := shortDir()
			if err != nil {
				return err
			}
			s := &session{processes: map[string]*process{}, seen: map[string]int{}}
			e.Values[sessionKey{}] = s
			e.Defer(func() {
				for _, p := range s.processes {
					p.halt()
				}
				os.RemoveAll(dir)
			})
			e.Setenv(raceOptions, os.Getenv(raceOptions))
			e.Setenv("D", dir)
			e.Setenv("PID", strconv.Itoa(os.Getpid()))
			e.Setenv("UID", strconv.Itoa(os.Getuid()))
			for _, name := range []string{"PORT1", "PORT2", "PORT3", "PORT4"} {
				port, err := freePort()
				if err != nil {
					return err
				}
				e.Setenv(name, port)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": scriptCode, "until": scriptUntil, "oneline": scriptOneLine, "start": scriptStart, "await": scriptAwait, "finish": scriptFinish,
			"crash": scriptCrash, "ends": scriptEnds, "signal": scriptSignal, "joinfiles": scriptJoinFiles, "big": scriptBig,
			"append": scriptAppend, "subst": scriptSubst, "lines": scriptLines, "sql": scriptSQL, "fromjson": scriptFromJSON, "empty": scriptEmpty,
			"tokenfile": scriptTokenFile, "sed": scriptSed,
		},
	})
}

// session is what a script has started.
type session struct {
	processes map[string]*process
	seen      map[string]int // up to where each one's output was awaited
}

type sessionKey struct{}

func sessionOf(ts *testscript.TestScript) *session { return ts.Value(sessionKey{}).(*session) }

func (s *session) process(ts *testscript.TestScript, name string) *process {
	p := s.processes[name]
	if p == nil {
		ts.Fatalf("%s was not started", name)
	}
	return p
}

// await also keeps what it has seen from being seen again.
func (s *session) await(ts *testscript.TestScript, name, pattern string) []string {
	p := s.process(ts, name)
	m, err := p.await(pattern, s.seen[name])
	ts.Check(err)
	s.seen[name] = p.length()
	return m
}

func want(ts *testscript.TestScript, neg bool, args []string, least int, usage string) {
	if neg || len(args) < least {
		ts.Fatalf("usage: %s", usage)
	}
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "code N PROGRAM ARG...")
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d; want %s", got, args[0])
	}
}

func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "until PATTERN PROGRAM ARG...")
	re := regexp.MustCompile(`(?m)` + args[0])
	for deadline := time.Now().Add(patience); ; {
		if err := ts.Exec(args[1], args[2:]...); err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not come to print %q", args[1:], args[0])
		}
		<-time.After(50 * time.Millisecond) // each costs as much in processor time
	}
}

func scriptOneLine(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 0, "oneline")
	if text := ts.ReadFile("stderr"); strings.Count(text, "\n") != 1 {
		ts.Fatalf("standard error is not one line:\n%s", text)
	}
}

func scriptStart(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3, "start NAME PATTERN PROGRAM ARG...")
	path := args[2]
	if found, err := exec.LookPath(path); err == nil {
		path = found
	}
	cmd := exec.Command(path, args[3:]...)
	cmd.Args[0] = args[2]
	cmd.Dir, cmd.Env = ts.MkAbs("."), os.Environ()
	for _, name := range []string{"HOME", "TMPDIR", "AWS_EC2_METADATA_DISABLED", "SSL_CERT_FILE"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	p, err := spawn(cmd)
	ts.Check(err)
	s := sessionOf(ts)
	s.processes[args[0]], s.seen[args[0]] = p, 0
	if m := s.await(ts, args[0], args[1]); len(m) > 1 {
		ts.Setenv(args[0], m[1])
	}
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "await NAME PATTERN")
	sessionOf(ts).await(ts, args[0], args[1])
}

func scriptFinish(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "finish NAME")
	p := sessionOf(ts).process(ts, args[0])
	code, err := p.stop()
	ts.Check(err)
	if code != 0 {
		text, _ := p.printed()
		ts.Fatalf("%s was told to stop and ended with code %d (%v):\n%s", args[0], code, p.err, text)
	}
}

func scriptCrash(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "crash NAME")
	sessionOf(ts).process(ts, args[0]).kill()
}

func scriptEnds(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3, "ends NAME N PATTERN")
	p := sessionOf(ts).process(ts, args[0])
	code, err := p.wait()
	ts.Check(err)
	text, _ := p.printed()
	if strconv.Itoa(code) != args[1] || !regexp.MustCompile(args[2]).MatchString(text) {
		ts.Fatalf("%s ended with code %d; want %s and %q:\n%s", args[0], code, args[1], args[2], text)
	}
}

func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3, "signal NAME USR1|USR2|TERM PATTERN")
	signal, ok := map[string]os.Signal{"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "TERM": syscall.SIGTERM}[args[1]]
	if !ok {
		ts.Fatalf("which signal is %s?", args[1])
	}
	s := sessionOf(ts)
	ts.Check(s.process(ts, args[0]).cmd.Process.Signal(signal))
	s.await(ts, args[0], args[2])
}

var printedToken = regexp.MustCompile(`(?m)^# +(cjt_\S+)$`)

func scriptJoinFiles(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 0, "joinfiles")
	text := ts.ReadFile("stdout")
	m := printedToken.FindStringSubmatch(text)
	if m == nil {
		ts.Fatalf("there is no token in:\n%s", text)
	}
	dir := ts.Getenv("D")
	text = strings.ReplaceAll(text, "/var/lib/credence", dir)
	ts.Check(os.WriteFile(ts.MkAbs("agent.yaml"), []byte(text), 0o600))
	ts.Check(os.WriteFile(filepath.Join(dir, "agent.token"), []byte(m[1]+"\n"), 0o600))
}

func scriptBig(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3, "big FILE BYTES TEXT")
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	text := append([]byte(args[2]+"\n"), bytes.Repeat([]byte("#"), size)...)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), text[:size], 0o600))
}

func scriptAppend(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "append FILE LINE...")
	text := ts.ReadFile(args[0]) + strings.Join(args[1:], "\n") + "\n"
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func scriptSed(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "sed FILE s,PATTERN,TEXT,...")
	text := ts.ReadFile(args[0])
	for _, arg := range args[1:] {
		parts := strings.Split(arg, ",")
		if len(parts) != 4 {
			ts.Fatalf("%s: s,PATTERN,TEXT, is wanted", arg)
		}
		re, err := regexp.Compile("(?m)" + parts[1])
		ts.Check(err)
		if !re.MatchString(text) {
			ts.Fatalf("%s: nothing is like that in:\n%s", arg, text)
		}
		text = re.ReplaceAllString(text, parts[2])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func scriptSubst(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "subst FILE")
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func scriptLines(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "lines FILE N")
	if n := strings.Count(ts.ReadFile(args[0]), "\n"); strconv.Itoa(n) != args[1] {
		ts.Fatalf("%s has %d lines; want %s", args[0], n, args[1])
	}
}

func scriptFromJSON(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3, "fromjson FILE NAME A.B.C")
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	for _, name := range strings.Split(args[2], ".") {
		if list, ok := v.([]any); ok && name == "0" && len(list) > 0 {
			v = list[0]
			continue
		}
		members, _ := v.(map[string]any)
		v = members[name]
	}
	text, ok := v.(string)
	if !ok || text == "" {
		ts.Fatalf("%s has no text at %s", args[0], args[2])
	}
	ts.Setenv(args[1], text)
}

func scriptEmpty(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "empty DIR")
	entries, err := os.ReadDir(args[0])
	ts.Check(err)
	if len(entries) > 0 {
		ts.Fatalf("%s holds %s", args[0], entries)
	}
}

func scriptTokenFile(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "tokenfile DIR")
	found, err := filepath.Glob(filepath.Join(args[0], "credence-exec-*", "*.container"))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%s holds the secrets %s", args[0], found)
	}
	info, err := os.Stat(found[0])
	ts.Check(err)
	dir, err := os.Stat(filepath.Dir(found[0]))
	ts.Check(err)
	text := ts.ReadFile(found[0])
	if info.Mode().Perm() != 0o600 || dir.Mode().Perm() != 0o700 || len(text) < 32 || strings.ContainsAny(text, "\r\n") {
		ts.Fatalf("%s: mode %s in %s, %d bytes", found[0], info.Mode(), dir.Mode(), len(text))
	}
}

func scriptSQL(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "sql FILE STATEMENT")
	db, err := sql.Open("sqlite", args[0])
	ts.Check(err)
	defer db.Close()
	_, err = db.Exec(args[1])
	ts.Check(err)
}

// credenceCmd runs credence to its end, as a person would in a terminal.
func credenceCmd(t *testing.T, in string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "credence", args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
