// Package postgrestest starts PostgreSQL for tests: the real server, in a
// directory of its own, on a socket there.
//
// It trusts the server that is installed; where there is none the test is
// skipped. What is done with a database is left to the tests.
package postgrestest

import (
	"bytes"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver by which databases are made
)

// A Server is a running PostgreSQL.
type Server struct {
	Dir       string // its data and its socket
	bin       string
	as        *syscall.Credential // it refuses to run as root
	cmd       *exec.Cmd
	log       output
	databases atomic.Int64
	marks     atomic.Int64
}

// output is what a server says, to be read while it runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Start starts a server without databases of ours, until the test is done.
func Start(t testing.TB) *Server {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		t.Skip("there is no PostgreSQL server here")
	}
	slices.Sort(found)
	s := &Server{bin: found[len(found)-1]}
	var err error
	if s.Dir, err = os.MkdirTemp("", "pg"); err != nil { // a socket's path is short, and t.TempDir is root's
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.Dir) })
	if os.Getuid() == 0 {
		s.become(t, "nobody")
	}
	out, err := s.command("initdb", "--pgdata", s.data(), "--username", "credence", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C.UTF-8").CombinedOutput()
	if err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	t.Cleanup(s.Kill)
	s.Run(t)
	return s
}

func (s *Server) become(t testing.TB, name string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := os.Chown(s.Dir, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = s.Dir, &syscall.SysProcAttr{Credential: s.as}
	return cmd
}

// Run starts the server again after Stop or Kill, and waits until it answers.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	s.cmd = s.command("postgres", "-D", s.data(), "-k", s.Dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	db := s.open(t)
	defer db.Close()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		err := db.PingContext(t.Context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL does not answer: %v\n%s", err, s.log.String())
		}
	}
}

// Stop stops the server in order, as an administrator does: its sessions are
// ended.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

// Kill ends the server as a crash does.
func (s *Server) Kill() { s.end(syscall.SIGQUIT) }

func (s *Server) end(signal syscall.Signal) {
	if s.cmd != nil && s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(signal)
		_ = s.cmd.Wait()
	}
}

// Freeze stops the server where it stands, with all that it runs: its socket takes
// connections and nobody answers. Thaw has it go on.
func (s *Server) Freeze(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGSTOP)
	t.Cleanup(func() { s.Thaw(t) }) // or it could not be ended
}

// Thaw undoes Freeze.
func (s *Server) Thaw(t testing.TB) { s.signal(t, syscall.SIGCONT) }

// signal reaches the server and its children.
func (s *Server) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	parent := s.cmd.Process.Pid
	_ = syscall.Kill(parent, signal) // first: it makes no more children
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatalf("there is no /proc (%v)", err)
	}
	for _, path := range stats {
		text, _ := os.ReadFile(path) // it may have ended
		pid, _, _ := strings.Cut(string(text), " ")
		after := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if child, err := strconv.Atoi(pid); err == nil && len(after) > 1 && after[1] == strconv.Itoa(parent) {
			_ = syscall.Kill(child, signal)
		}
	}
}

func (s *Server) open(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", s.URL("public")+"&default_transaction_read_only=off") // whatever a test made of the server
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// URL is that of a schema.
func (s *Server) URL(schema string) string {
	return "postgres://credence@/postgres?host=" + url.QueryEscape(s.Dir) + "&search_path=" + schema
}

// Database makes what is an empty database to who opens its URL: a schema, which
// is made a hundred times sooner.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("t%d", s.databases.Add(1))
	s.Exec(t, "CREATE SCHEMA "+name)
	return s.URL(name)
}

// Statements has the server tell all that it is asked from now on, and returns
// what tells it.
func (s *Server) Statements(t testing.TB) func() []string {
	t.Helper()
	s.Exec(t, "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()")
	mark := fmt.Sprintf("SELECT 'from here on %d'", s.marks.Add(1))
	for end := time.Now().Add(30 * time.Second); !strings.Contains(s.log.String(), mark); { // the log comes later than the answer
		if time.Now().After(end) {
			t.Fatal("the server logs no statements")
		}
		s.Exec(t, mark)
	}
	return func() (all []string) {
		text := s.log.String()
		for line := range strings.Lines(text[strings.LastIndex(text, mark):]) {
			for _, way := range []string{"LOG:  statement: ", "LOG:  execute "} {
				if _, text, ok := strings.Cut(line, way); ok {
					all = append(all, strings.TrimSpace(text))
				}
			}
		}
		return all
	}
}

// Exec runs statements as the superuser, outside of any database of ours.
func (s *Server) Exec(t testing.TB, statements ...string) {
	t.Helper()
	db := s.open(t)
	defer db.Close()
	for _, text := range statements {
		if _, err := db.ExecContext(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", strings.SplitN(text, "\n", 2)[0], err)
		}
	}
}
