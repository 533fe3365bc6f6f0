//go:build linux

package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/agent/output/sdk"
	"github.com/credence-id/credence/exchangers"
)

var id = spiffeid.RequireFromString("spiffe://example.org/web")

// A cloud is an output's view: it gives by target what the test says.
type cloud struct {
	mu      sync.Mutex // guards what follows
	targets map[string]agent.Target
	err     error
	region  string
}

func (c *cloud) JWT(context.Context, []string, spiffeid.ID) (agent.JWTSVID, error) {
	return agent.JWTSVID{}, errors.ErrUnsupported
}

func (c *cloud) target(name string) (agent.Target, error) {
	t, ok := c.targets[name]
	switch {
	case c.err != nil:
		return t, c.err
	case !ok:
		return t, &agent.Denied{Reason: "not listed"}
	}
	return t, nil
}

func (c *cloud) TargetToken(_ context.Context, name string, toFile bool) (agent.JWTSVID, agent.Target, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, err := c.target(name)
	return agent.JWTSVID{ID: id, Token: fmt.Sprint("token-", name, toFile), Expires: time.Now().Add(time.Hour)}, t, err
}

func (c *cloud) Exchange(_ context.Context, name, _ string) (agent.Exchanged, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, err := c.target(name)
	if err != nil {
		return agent.Exchanged{}, err
	}
	made := exchangers.Credential{Expires: time.Now().Add(time.Hour)}
	if strings.HasPrefix(t.Flow, "aws_") {
		made.AWS = &exchangers.AWS{AccessKeyID: "ASIA" + name, SecretAccessKey: exchangers.NewSecret("secret"), SessionToken: exchangers.NewSecret("session"), Region: c.region}
	} else {
		made.Bearer = &exchangers.Bearer{Token: exchangers.NewSecret("bearer-" + name)}
	}
	return agent.Exchanged{Credential: made, Target: t, ID: id}, nil
}

func (c *cloud) set(change func(*cloud)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *cloud) update() agent.Update {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &agent.SVID{ID: id}
	for _, t := range c.targets {
		v.Targets = append(v.Targets, t)
	}
	return agent.Update{SVIDs: []*agent.SVID{v}}
}

func target(name, flow, settings string) agent.Target {
	return agent.Target{Name: name, Revision: 1, Flow: flow, Settings: fmt.Appendf(nil, `{"flow":%q,"settings":%s}`, flow, settings)}
}

// A scene is one output of an agent that may start again.
type scene struct {
	*testing.T
	cloud *cloud
	cfg   sdk.Config
	w     *sdk.Writer
}

func start(t *testing.T, change func(*sdk.Config)) *scene {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &scene{T: t, cloud: &cloud{region: "eu-west-1", targets: map[string]agent.Target{
		"aws":    target("aws", "aws_roles_anywhere", "{}"),
		"orders": target("orders", "oauth", "{}"),
		"azure":  target("azure", "azure", `{"tenant":"6f1d1e0a-7c2b-4d6e-9a3f-0b1c2d3e4f50","client_id":"b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d","scope":"https://management.azure.com/.default"}`),
	}}}
	s.cfg = sdk.Config{
		Dir: filepath.Join(dir, "cloud"), Owner: output.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
		Targets: []string{"aws", "orders", "azure"}, State: filepath.Join(dir, "state.json"),
	}
	if change != nil {
		change(&s.cfg)
	}
	s.restart()
	t.Cleanup(func() { s.close() })
	if s.cfg.Listen == "" { // the port is to be free again where the agent begins anew
		l := listenBelow(t)
		s.cfg.Listen = l.Addr().String()
		l.Close()
		s.restart()
		s.cfg.Listen = ""
		s.restart()
	}
	return s
}

func (s *scene) close() {
	if s.w != nil {
		if err := s.w.Close(); err != nil {
			s.Error(err)
		}
	}
}

// restart is the agent's.
func (s *scene) restart() {
	s.Helper()
	s.close()
	w, err := sdk.New(s.cfg)
	if err != nil {
		s.Fatal(err)
	}
	if s.w = w; w.Listen() != nil {
		s.Fatal(w.Listen())
	}
}

func (s *scene) write(changed bool) {
	s.Helper()
	if got, err := s.w.Write(s.Context(), s.cloud, s.cloud.update()); err != nil || got.Changed != changed || got.Again.IsZero() {
		s.Fatalf("%+v %v, want changed %t", got, err, changed)
	}
}

func (s *scene) read(name string) string {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(s.cfg.Dir, name))
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

func (s *scene) files() (all []string) {
	s.Helper()
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".credence" {
			all = append(all, e.Name())
		}
	}
	return all
}

// service is a running service's environment.
type service map[string]string

func (s *scene) service() service {
	s.Helper()
	sh := exec.Command("/bin/sh", "-ec", "set -a; . "+filepath.Join(s.cfg.Dir, sdk.EnvFile)+"; exec env")
	sh.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := sh.Output()
	if err != nil {
		s.Fatal(err)
	}
	all := service{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if name != "PATH" && name != "PWD" && name != "_" {
			all[name] = value
		}
	}
	return all
}

// ask is what a service's SDK asks, with the secret that it read.
func (s *scene) ask(e service, secret string) int {
	s.Helper()
	r, err := http.NewRequest(http.MethodGet, e["AWS_CONTAINER_CREDENTIALS_FULL_URI"], nil)
	if err != nil {
		s.Fatal(err)
	}
	r.Header.Set("Authorization", secret)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		s.Log(err)
		return 0
	}
	answer.Body.Close()
	return answer.StatusCode
}

// The AWS SDK finds credentials by the environment file and nothing else.
func TestAStockSDKReadsTheEnvironmentFile(t *testing.T) {
	s := start(t, nil)
	s.write(true)
	info, err := os.Stat(filepath.Join(s.cfg.Dir, sdk.EnvFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range s.service() {
		t.Setenv(name, value)
	}
	loaded, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := loaded.Credentials.Retrieve(t.Context())
	if err != nil || got.AccessKeyID != "ASIAaws" || loaded.Region != "eu-west-1" {
		t.Errorf("%+v in %s: %v", got, loaded.Region, err)
	}
	if got := s.read("orders.token"); got != "bearer-orders" {
		t.Error(got)
	}
	if text := s.read(sdk.EnvFile); strings.Contains(text, "bearer-") || strings.Contains(text, "session") {
		t.Errorf("a credential is in it: %s", text)
	}
}

// A service that runs over an agent's restart goes on with what it read once.
func TestARestartKeepsPortAndSecrets(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.write(true)
	s.write(false)
	running, env, secret := s.service(), s.read(sdk.EnvFile), s.read("aws.container")
	if got := s.ask(running, secret); got != http.StatusOK {
		t.Fatal(got)
	}
	s.restart()
	if got := s.ask(running, secret); got != http.StatusServiceUnavailable {
		t.Errorf("before anything is granted: %d", got)
	}
	if s.read(sdk.EnvFile) != env {
		t.Error("a restart erases")
	}
	s.write(false)
	if d := cmp.Diff(env, s.read(sdk.EnvFile)); d != "" {
		t.Error(d)
	}
	if got := s.ask(running, secret); got != http.StatusOK {
		t.Error(got)
	}
	if info, err := os.Stat(s.cfg.State); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestADenialErases(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"by the agent that wrote": false, "by the next one": true} {
		s := start(t, nil)
		s.write(true)
		running, env, secret := s.service(), s.read(sdk.EnvFile), s.read("aws.container")
		if restart {
			s.restart()
		}
		if err := s.w.Erase(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string(nil), s.files()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if got := s.ask(running, secret); got != http.StatusForbidden {
			t.Errorf("%s: %d", name, got)
		}
		s.write(true)
		if got := s.ask(running, secret); got != http.StatusOK || s.read(sdk.EnvFile) != env {
			t.Errorf("%s: granted again, it answers %d", name, got)
		}
	}
}

// A target that is no longer listed goes, and takes no other with it while the
// agent runs.
func TestATargetIsWithdrawn(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.write(true)
	running, secret := s.service(), s.read("aws.container")
	s.cloud.set(func(c *cloud) { delete(c.targets, "orders") })
	if _, err := s.w.Write(t.Context(), s.cloud, s.cloud.update()); err == nil || !strings.Contains(err.Error(), "not listed") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, "orders.token")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its file: %v", err)
	}
	if got := s.ask(running, secret); got != http.StatusOK {
		t.Errorf("another's: %d", got)
	}
	// An agent that begins with that serves none, and leaves none.
	s.restart()
	if _, err := s.w.Write(t.Context(), s.cloud, s.cloud.update()); err == nil {
		t.Error("all are served")
	}
	if got := s.ask(running, secret); got != http.StatusForbidden || len(s.files()) > 0 {
		t.Errorf("%d %v", got, s.files())
	}
}

func TestItWaitsForTheCloud(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.cloud.set(func(c *cloud) { c.err = agent.ErrUnavailable })
	if got, err := s.w.Write(t.Context(), s.cloud, agent.Update{}); err == nil || got.Changed || len(s.files()) > 0 {
		t.Errorf("%+v %v %v", got, err, s.files())
	}
	s.cloud.set(func(c *cloud) { c.err = nil })
	s.write(true)
	running, secret := s.service(), s.read("aws.container")
	// What stands stays while it is away.
	s.cloud.set(func(c *cloud) { c.err = agent.ErrUnavailable })
	s.write(false)
	if got := s.ask(running, secret); got != http.StatusServiceUnavailable || s.read("orders.token") == "" {
		t.Error(got)
	}
	s.restart()
	if _, err := s.w.Write(t.Context(), s.cloud, s.cloud.update()); err == nil || s.read("orders.token") == "" {
		t.Errorf("a restart while it is away: %v", err)
	}
}

// What a Target says now replaces what it said, whole.
func TestAChangedTargetIsServedAnew(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.write(true)
	running, secret := s.service(), s.read("aws.container")
	s.cloud.set(func(c *cloud) {
		c.region = "eu-central-1"
		changed := target("azure", "oauth", "{}")
		changed.Revision = 2
		c.targets["azure"] = changed
	})
	s.write(true)
	now := s.service()
	if now["AWS_REGION"] != "eu-central-1" || now["IDENTITY_ENDPOINT"] != "" {
		t.Error(now)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, "azure.jwt")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file of before: %v", err)
	}
	if got := s.ask(running, secret); got != http.StatusOK {
		t.Error(got)
	}
}

// listenBelow listens at a port below those that outgoing connections of this
// machine get, so that it is free again once it is closed.
func listenBelow(t *testing.T) net.Listener {
	t.Helper()
	for range 200 {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(18000))); err == nil {
			return l
		}
	}
	t.Fatal("no port is free")
	return nil
}

func TestAPortThatIsTaken(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.write(true)
	uri := s.service()["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
	s.close()
	s.w = nil
	host := strings.Split(uri, "/")[2]
	if other, err := net.Listen("tcp", host); err == nil { // else somebody on this machine was faster, which will do
		defer other.Close()
	}
	s.restart()
	s.write(true)
	if moved := s.service(); strings.Contains(moved["AWS_CONTAINER_CREDENTIALS_FULL_URI"], host) || s.ask(moved, s.read("aws.container")) != http.StatusOK {
		t.Error(moved)
	}
	// One that agent.yaml names is waited for.
	other := listenBelow(t)
	defer other.Close()
	host = other.Addr().String()
	s.cfg.Listen = host
	w, err := sdk.New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(t.Context(), s.cloud, s.cloud.update()); err == nil || !strings.Contains(err.Error(), host) {
		t.Error(err)
	}
	other.Close()
	if got, err := w.Write(t.Context(), s.cloud, s.cloud.update()); err != nil || !got.Changed {
		t.Errorf("%+v %v", got, err)
	}
}

// Secrets that another user was handed are worth nothing.
func TestAnotherUserGetsOtherSecrets(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.write(true)
	before := s.read("aws.container")
	text, err := os.ReadFile(s.cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	was := strings.Replace(string(text), fmt.Sprintf(`"uid":%d`, os.Geteuid()), `"uid":4711`, 1)
	if was == string(text) {
		t.Fatal(was)
	}
	if err := os.WriteFile(s.cfg.State, []byte(was), 0o600); err != nil {
		t.Fatal(err)
	}
	s.restart()
	s.write(true)
	if s.read("aws.container") == before {
		t.Error("it is the same")
	}
}

// What is one user's is nobody else's, not even root's.
func TestItIsForOneUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root makes another's files")
	}
	const other = 33
	s := start(t, func(c *sdk.Config) { c.Owner = output.Owner{UID: other, GID: other} })
	s.write(true)
	for _, name := range s.files() {
		info, err := os.Stat(filepath.Join(s.cfg.Dir, name))
		if owner, ok := info.Sys().(*syscall.Stat_t); err != nil || !ok || owner.Uid != other || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if got := s.ask(s.service(), s.read("aws.container")); got != http.StatusForbidden {
		t.Errorf("root is answered %d", got)
	}
	sh := exec.Command("/bin/sh", "-ec", ". ./env; cat $CREDENCE_TOKEN_FILE_ORDERS")
	sh.Dir, sh.SysProcAttr = s.cfg.Dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
	if out, err := sh.Output(); string(out) != "bearer-orders" {
		t.Errorf("its own processes read %q: %v", out, err)
	}
}

// Nothing is put among others' files, nor removed there.
func TestADirectoryOfItsOwn(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"others' files": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "env"), []byte("PRECIOUS=1"), 0o600))
		},
		"a directory for all":   func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)) },
		"a link":                func(dir string) error { return os.Symlink("/etc", dir) },
		"one above for all":     func(dir string) error { return os.Chmod(filepath.Dir(dir), 0o777) },
		"nothing where it is":   func(dir string) error { return os.Remove(filepath.Dir(dir) + "/gone") },
		"a file in place of it": func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
	} {
		s := start(t, nil)
		if name == "nothing where it is" {
			s.cfg.Dir = filepath.Join(s.cfg.Dir, "gone", "cloud")
			s.restart()
		} else if err := spoil(s.cfg.Dir); err != nil {
			t.Fatal(err)
		}
		if err := s.w.Check(); err == nil {
			t.Errorf("%s: the check finds nothing", name)
		}
		if _, err := s.w.Write(t.Context(), s.cloud, s.cloud.update()); err == nil {
			t.Errorf("%s: it is written to", name)
		}
		err := s.w.Erase(t.Context())
		if name == "others' files" && (err == nil || s.read("env") != "PRECIOUS=1") {
			t.Errorf("%s: erased: %v", name, err)
		}
		if err := os.Chmod(filepath.Dir(s.cfg.Dir), 0o755); err != nil && name != "nothing where it is" {
			t.Fatal(err)
		}
	}
	s := start(t, nil)
	if err := s.w.Check(); err != nil {
		t.Error(err)
	}
	s.write(true)
	if err := s.w.Check(); err != nil {
		t.Error(err)
	}
}

func TestConfigIsHeldToItsLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*sdk.Config)
		says   string
	}{
		"no directory":        {func(c *sdk.Config) { c.Dir = "" }, "dir:"},
		"a relative one":      {func(c *sdk.Config) { c.Dir = "run/web" }, "dir:"},
		"no targets":          {func(c *sdk.Config) { c.Targets = nil }, "targets:"},
		"a path for a target": {func(c *sdk.Config) { c.Targets = []string{"../x"} }, "targets:"},
		"a target twice":      {func(c *sdk.Config) { c.Targets = []string{"a", "a"} }, "twice"},
		"all interfaces":      {func(c *sdk.Config) { c.Listen = "0.0.0.0:9911" }, "listen:"},
		"no port":             {func(c *sdk.Config) { c.Listen = "127.0.0.1:0" }, "listen:"},
		"a name":              {func(c *sdk.Config) { c.Listen = "localhost:9911" }, "listen:"},
		"no state":            {func(c *sdk.Config) { c.State = "" }, "state"},
	} {
		cfg := sdk.Config{Dir: "/run/web", Targets: []string{"aws"}, Listen: "127.0.0.1:9911", State: "/x"}
		if _, err := sdk.New(cfg); err != nil {
			t.Fatal(err)
		}
		c.change(&cfg)
		if _, err := sdk.New(cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
