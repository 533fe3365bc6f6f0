package workloadcmd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/agent/workloadapi"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/workloadcmd"
)

// ourUID says what the kernel does.
type ourUID struct{}

func (ourUID) Attest(context.Context, *caller.Process, func(string) bool) (map[string][]string, []string, error) {
	return map[string][]string{"workload.unix.uid": {strconv.Itoa(os.Getuid())}}, nil, nil
}

// A scene is a broker, an agent, and its workload socket.
type scene struct {
	*agenttest.Broker
	t      *testing.T
	socket string
	listen func() // serves the socket from now on
}

func setUp(t *testing.T) *scene {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &scene{Broker: agenttest.NewBroker(t, "example.org").Start(), t: t, socket: filepath.Join(dir, "workload.sock")}
	a, err := agent.New(agent.Config{
		TrustDomain: s.TrustDomain, Broker: []string{s.Address()}, CAPins: []string{s.Pin()}, Data: filepath.Join(dir, "data"),
		Join:      agent.Join{Method: "token", Evidence: func(context.Context) ([]byte, error) { return []byte("token-1"), nil }},
		Attestors: map[string]agent.Attestor{"workload.unix": ourUID{}}, Patience: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	s.listen = func() {
		l, err := caller.Listen(s.socket, 0o600)
		if err != nil {
			t.Error(err)
			return
		}
		server := workloadapi.New(workloadapi.Config{Agent: a}).GRPC()
		agentapi.RegisterSVIDsServer(server, local.NewSVIDs(a, nil))
		served := make(chan struct{})
		go func() { defer close(served); _ = server.Serve(l) }()
		t.Cleanup(func() { server.Stop(); <-served })
	}
	return s
}

// dir is one for --out.
func (s *scene) dir() string { return filepath.Join(filepath.Dir(s.socket), "tls") }

func runSVID(ctx context.Context, out, errs io.Writer, args ...string) int {
	p := &cli.Program{In: strings.NewReader(""), Out: out, Err: errs, Now: time.Now}
	root := &cobra.Command{Use: "credence"}
	root.AddCommand(workloadcmd.Commands(p, "credence", nil, nil)...)
	p.Furnish(root)
	return p.Execute(ctx, root, append([]string{"svid"}, args...))
}

func (s *scene) svid(args ...string) (code int, out, errs string) {
	s.t.Helper()
	var o, e bytes.Buffer
	code = runSVID(s.t.Context(), &o, &e, append(args, "--socket", s.socket)...)
	return code, o.String(), e.String()
}

var web = agenttest.Grant{Identity: "web", Path: "/web", Audiences: []string{"**"}}

func TestExitCodes(t *testing.T) {
	s := setUp(t)
	if code, _, errs := s.svid("x509"); code != 3 || !strings.Contains(errs, "is the agent running?") {
		t.Errorf("no socket: %d %s", code, errs)
	}
	s.listen()
	short := web
	short.TTL = 10 * time.Minute
	for _, row := range []struct {
		name, args string
		grants     []agenttest.Grant
		code       int
		says       string
	}{
		{"granted", "x509", []agenttest.Grant{web}, 0, ""},
		{"granted, for a life", "x509 --ttl 2m", []agenttest.Grant{web}, 0, ""},
		{"a token", "jwt --audience a --ttl 2m", []agenttest.Grant{web}, 0, ""},
		{"denied", "x509 --ttl 2m", nil, 4, agenttest.Record},
		{"a token denied", "jwt --audience a --ttl 2m", nil, 4, agenttest.Record},
		{"over the cap", "x509 --ttl 12m", []agenttest.Grant{short}, 4, "at most 10m0s"},
		{"over the cap, with patience", "x509 --ttl 12m --wait 10h", []agenttest.Grant{short}, 4, "at most 10m0s"},
		{"a token over the cap", "jwt --audience a --ttl 6m", []agenttest.Grant{web}, 4, "at most 5m0s"},
		{"no life", "x509 --ttl 0s", nil, 2, "whole seconds"},
		{"part of a second", "x509 --ttl 1500ms", nil, 2, "whole seconds"},
		{"a negative wait", "x509 --wait -1s", nil, 2, "--wait"},
		{"nowhere to write", "x509 --watch", nil, 2, "--out"},
		{"no audience", "jwt", nil, 2, "audience"},
		{"a broken flag", "x509 --ttl long", nil, 2, "--ttl"},
	} {
		s.Grant(row.grants...)
		code, out, errs := s.svid(strings.Fields(row.args)...)
		if code != row.code || !strings.Contains(errs, row.says) || code == 0 && out == "" {
			t.Errorf("%s: %d, %s, %s", row.name, code, out, errs)
		}
	}
}

// What was asked for with a life is written with it.
func TestOnceIntoFiles(t *testing.T) {
	s := setUp(t)
	s.listen()
	s.Grant(web)
	if code, out, errs := s.svid("x509", "--ttl", "2m", "--out", s.dir(), "-o", "json"); code != 0 || !strings.Contains(out, "svid_key.pem") {
		t.Fatal(code, out, errs)
	}
	svid, err := x509svid.Load(filepath.Join(s.dir(), "svid.pem"), filepath.Join(s.dir(), "svid_key.pem"))
	if err != nil || svid.ID.Path() != "/web" || time.Until(svid.Certificates[0].NotAfter) > 2*time.Minute+time.Second {
		t.Errorf("%v %v", svid, err)
	}
	if code, out, errs := s.svid("jwt", "--audience", "a", "--out", s.dir()); code != 0 || !strings.Contains(out, "wrote jwt_svid.token of spiffe://example.org/web") {
		t.Fatal(code, out, errs)
	}
	if info, err := os.Stat(filepath.Join(s.dir(), "jwt_svid.token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

// It waits for the agent, then for the grant, and says so; without them it ends
// with what it was told last.
func TestWait(t *testing.T) {
	s := setUp(t)
	if code, _, errs := s.svid("x509", "--wait", "200ms"); code != 3 || strings.Contains(errs, "waiting") {
		t.Errorf("no agent: %d %s", code, errs)
	}
	var errs bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- runSVID(t.Context(), io.Discard, &errs, "jwt", "--audience", "a", "--wait", "1m", "--socket", s.socket)
	}()
	s.Await("it has joined", func() bool { return s.Watching() > 0 })
	s.listen()
	s.Await("it was denied", func() bool { return s.Calls("IssueX509") > 1 })
	s.Grant(web)
	if got := <-code; got != 0 {
		t.Errorf("granted later: %d %s", got, errs.String())
	}
	s.Grant()
	got, _, said := s.svid("x509", "--ttl", "2m", "--wait", "3s")
	if got != 4 || !strings.Contains(said, "waiting, for at most") || !strings.Contains(said, agenttest.Record) {
		t.Errorf("granted never: %d %s", got, said)
	}
	// Who is told to stop waits no longer.
	ctx, cancel := context.WithCancel(t.Context())
	asked := s.Calls("IssueX509")
	go func() {
		s.Await("it asks", func() bool { return s.Calls("IssueX509") > asked })
		cancel()
	}()
	if got := runSVID(ctx, io.Discard, io.Discard, "x509", "--ttl", "2m", "--wait", "1h", "--socket", s.socket); got == 0 {
		t.Error("stopped, it says that it is done")
	}
}

// An event of --watch -o json.
type event struct {
	Event      string    `json:"event"`
	Time       time.Time `json:"time"`
	Generation uint64    `json:"generation"`
	SPIFFEID   string    `json:"spiffe_id"`
	NotAfter   time.Time `json:"not_after"`
	Files      []string  `json:"files"`
	Reason     string    `json:"reason"`
}

// watching starts a --watch; next is its next event.
func (s *scene) watching(args ...string) (next func() event, end func() int) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	r, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- runSVID(ctx, w, io.Discard, append(args, "--out", s.dir(), "--watch", "-o", "json", "--socket", s.socket)...)
		_ = w.Close()
	}()
	s.t.Cleanup(func() { cancel(); _ = r.Close() })
	lines := bufio.NewScanner(r)
	next = func() (e event) {
		s.t.Helper()
		if !lines.Scan() {
			s.t.Fatalf("it ended: %d", <-code)
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Time.IsZero() {
			s.t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		return e
	}
	return next, func() int { cancel(); return <-code }
}

func (s *scene) exists(name string) bool {
	_, err := os.Stat(filepath.Join(s.dir(), name))
	return !errors.Is(err, fs.ErrNotExist)
}

func TestWatchX509(t *testing.T) {
	s := setUp(t)
	s.listen()
	s.Grant(web)
	next, end := s.watching("x509")
	if e := next(); e.Event != "written" || e.Generation != 1 || e.SPIFFEID != "spiffe://example.org/web" || len(e.Files) != 3 || e.NotAfter.Before(time.Now()) {
		t.Errorf("%+v", e)
	}
	other := web
	other.Path = "/other"
	s.Grant(other)
	s.Push(&api.WatchResponse{Revision: 9, Changes: []*api.Change{{}}})
	if e := next(); e.Generation != 2 || e.SPIFFEID != "spiffe://example.org/other" {
		t.Errorf("%+v", e)
	}
	if svid, err := x509svid.Load(filepath.Join(s.dir(), "svid.pem"), filepath.Join(s.dir(), "svid_key.pem")); err != nil || svid.ID.Path() != "/other" {
		t.Errorf("%v %v", svid, err)
	}
	if to, err := os.Readlink(filepath.Join(s.dir(), "svid.pem")); err != nil || to != "..data/svid.pem" {
		t.Errorf("it is not replaced with the others: %s %v", to, err)
	}
	s.Grant()
	s.Push(&api.WatchResponse{Revision: 10, Changes: []*api.Change{{Erase: true}}})
	if e := next(); e.Event != "erased" || e.Reason == "" || s.exists("svid_key.pem") || s.exists("svid.pem") {
		t.Errorf("%+v", e)
	}
	s.Grant(web)
	if e := next(); e.Event != "written" || !s.exists("svid_key.pem") {
		t.Errorf("%+v", e)
	}
	if code := end(); code != 0 {
		t.Errorf("told to stop, it ends with %d", code)
	}
	if !s.exists("svid_key.pem") {
		t.Error("told to stop, it erases")
	}
}

// Where a life is asked for, and for tokens, the next is asked for at half of it.
func TestWatchRenews(t *testing.T) {
	for _, args := range [][]string{{"x509", "--ttl", "4s"}, {"jwt", "--audience", "a", "--ttl", "4s"}} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			s := setUp(t)
			s.listen()
			s.Grant(web)
			next, end := s.watching(args...)
			first := next()
			second := next()
			if first.Event != "written" || second.Event != "written" || second.Generation != 2 || !second.NotAfter.After(first.NotAfter) {
				t.Errorf("%+v, then %+v", first, second)
			}
			s.Grant()
			if e := next(); e.Event != "erased" || s.exists("svid_key.pem") || s.exists("jwt_svid.token") {
				t.Errorf("%+v", e)
			}
			if code := end(); code != 0 {
				t.Errorf("%d", code)
			}
		})
	}
}

// The first answer is what counts, as without --watch.
func TestWatchRefused(t *testing.T) {
	s := setUp(t)
	s.listen()
	if code, _, errs := s.svid("x509", "--watch", "--out", s.dir()); code != 4 || s.exists(".") {
		t.Errorf("%d %s", code, errs)
	}
	s.Grant(web)
	if err := os.Mkdir(s.dir(), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.dir(), 0o777); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := s.svid("x509", "--watch", "--out", s.dir()); code != 2 || s.exists("svid_key.pem") {
		t.Errorf("where others write: %d %s", code, errs)
	}
}
