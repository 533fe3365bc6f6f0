package local

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/exchangers"
)

// A Source is where Surfaces gets what it hands out: for the one workload that
// it serves, attested anew each time. Its errors carry a gRPC status, as
// Service's do.
type Source interface {
	Fetch(ctx context.Context, target string) (*api.FetchResponse, error)
	Token(ctx context.Context, target string, toFile bool) (*api.TokenResponse, error)
	// X509 is the X509-SVID of a SPIFFE ID: PEM of its chain, leaf first and
	// without the root, and of its key in PKCS #8.
	X509(ctx context.Context, spiffeID string) (chain, key []byte, err error)
}

// Config is the wiring of Surfaces. Fields are required unless noted.
type Config struct {
	// Dir is made if it is not there, and taken if it is ours alone.
	Dir string
	// UID is whose sockets may connect, and whose the files are. Only root can
	// name another than its own. GID is the files' group; it gives it nothing.
	UID, GID int
	Targets  []string // the first of each cloud is that cloud's default
	Source   Source
	// Command prints a target's credential, when a target's name is appended:
	// credence credentials. Nil: no AWS profiles with credential_process and no
	// executable sources.
	Command []string
	// Environ is what the workload has in its environment otherwise: its own AWS
	// files are copied, without what would come before ours, and its own CA files
	// stay trusted. Nil: nothing.
	Environ []string
	// Web makes the AWS default a web identity token file, where the target is
	// aws_web_identity and says nothing that the SDK couldn't; else it is the
	// container endpoint.
	Web bool
	// Door is where endpoints are, in place of a port of their own: the owner
	// closes it.
	Door *Door
	// Seed is of 32 bytes, which nobody guesses: endpoints' paths and secrets are
	// made from it, the same each time. Nil: they are new each time.
	Seed []byte
	// Keep leaves everything in Dir when it's closed, for Surfaces that follow,
	// in this process or the next; Erase removes it. Dir is then nobody else's:
	// it is refused where there are other files.
	Keep bool
	// EnvFile is the name of a file in Dir with Env, for systemd's
	// EnvironmentFile= and for shells; beside it, NAME.env makes a target the
	// default of its cloud. A Vault token is not in it: it would not last. Empty:
	// none.
	EnvFile string
	Trace   Trace            // of requests at endpoints; nil: they are not traced
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil means time.Now
}

// Surfaces are what stock SDKs look for, for one workload: files in a
// directory, endpoints on one loopback listener, and the environment that
// leads there. Files of JWT-SVIDs, certificates and bearer tokens are replaced
// by Run, and removed within a minute when they are no longer granted;
// endpoints ask the Source at each request.
//
// A path and a secret per target, the caller's uid and the headers that pages
// can't help sending keep others out; see the package comment.
type Surfaces struct {
	cfg     Config
	dir     *directory
	targets []*target
	server  *Door
	room    *room
	env     map[string]string
	unset   []string

	running sync.RWMutex // shared by Run, whole for Close
	end     context.CancelFunc
	ended   context.Context
	once    sync.Once
}

// target is one of the targets, and its surface.
type target struct {
	name     string
	first    *api.FetchResponse
	path     string // of its endpoint
	secret   string
	endpoint endpoint // nil: none

	cloud    string                      // of which one target is the default; empty: none
	env      map[string]string           // what makes it that, or names it alone
	files    []string                    // that hold something of the workload's
	refresh  func(context.Context) error // nil: it has no such files
	profiles []profile                   // of AWS
}

const (
	every      = time.Minute // files are looked after
	sourceTime = 45 * time.Second
	minSecret  = 32 // bytes
)

var targetName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Open makes everything for all targets, or nothing: a target that is refused
// ends it. The owner calls Run to keep files fresh, and Close.
func Open(ctx context.Context, cfg Config) (*Surfaces, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Seed != nil && len(cfg.Seed) < minSecret {
		return nil, fmt.Errorf("making credential surfaces: a seed of %d bytes is wanted", minSecret)
	}
	if cfg.Dir == "" || cfg.Source == nil || len(cfg.Targets) == 0 {
		return nil, errors.New("making credential surfaces: a directory, a source and targets are wanted")
	}
	s := &Surfaces{cfg: cfg, env: map[string]string{}}
	s.ended, s.end = context.WithCancel(context.Background())
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Surfaces) open(ctx context.Context) (err error) {
	if err := s.fetch(ctx); err != nil { // before anything is made: most failures are refusals
		return err
	}
	if s.dir, err = openDirectory(s.cfg.Dir, s.cfg.UID, s.cfg.GID, s.cfg.Keep); err != nil {
		return err
	}
	if s.server = s.cfg.Door; s.server == nil {
		if s.server, err = OpenDoor("127.0.0.1:0", s.cfg.UID); err != nil {
			return err
		}
	}
	for _, t := range s.targets {
		if err := s.build(ctx, t); err != nil {
			return fmt.Errorf("target %s: %w", t.name, err)
		}
	}
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.envFiles(); err != nil {
		return err
	}
	if err := s.dir.removeOthers(); err != nil {
		return err
	}
	s.room = &room{targets: s.targets, trace: s.cfg.Trace}
	s.server.admit(s.room)
	return nil
}

// fetch asks for every target once.
func (s *Surfaces) fetch(ctx context.Context) error {
	for _, name := range s.cfg.Targets {
		if !targetName.MatchString(name) {
			return fmt.Errorf("target %q: that is no target's name", exchangers.Clean(name))
		}
		if slices.ContainsFunc(s.targets, func(t *target) bool { return t.name == name }) {
			return fmt.Errorf("target %s: it is named twice", name)
		}
		s.targets = append(s.targets, &target{name: name, path: "/" + s.secret("path", name) + "/" + name, secret: s.secret("secret", name), env: map[string]string{}})
	}
	errs := make([]error, len(s.targets))
	var asking sync.WaitGroup
	for i, t := range s.targets {
		asking.Go(func() { t.first, errs[i] = s.credential(ctx, t.name) })
	}
	asking.Wait()
	for _, err := range errs {
		if err != nil { // as it is: its status is for the caller
			return err
		}
	}
	return nil
}

// credential asks for a credential, and takes no empty one.
func (s *Surfaces) credential(ctx context.Context, name string) (*api.FetchResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTime)
	defer cancel()
	r, err := s.cfg.Source.Fetch(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case r.GetBearer().GetToken() != "", r.GetAws().GetAccessKeyId() != "" && r.GetAws().GetSecretAccessKey() != "":
		return r, nil
	}
	return nil, status.Error(codes.Unavailable, "the exchange gave nothing")
}

// token asks for a JWT-SVID, and takes no empty one.
func (s *Surfaces) token(ctx context.Context, name string, toFile bool) (*api.TokenResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTime)
	defer cancel()
	r, err := s.cfg.Source.Token(ctx, name, toFile)
	if err == nil && r.GetToken() == "" {
		err = status.Error(codes.Unavailable, "there is no JWT-SVID for the target")
	}
	return r, err
}

// build makes the surface of a target's flow.
func (s *Surfaces) build(ctx context.Context, t *target) (err error) {
	var wire exchangers.Wire
	if err := json.Unmarshal(t.first.GetSettings(), &wire); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	switch t.first.GetFlow() {
	case "aws_roles_anywhere", "aws_web_identity":
		err = s.aws(t, wire.Settings)
	case "gcp":
		err = s.gcp(ctx, t, wire.Settings)
	case "azure":
		err = s.azure(t, wire.Settings)
	case "oauth":
		err = s.oauth(t)
	default:
		err = fmt.Errorf("flow %q is not one that this program has", exchangers.Clean(t.first.GetFlow()))
	}
	if err == nil && t.refresh != nil {
		err = t.refresh(ctx)
	}
	return err
}

// settle chooses the defaults, and writes what is for all targets.
func (s *Surfaces) settle() error {
	defaults := map[string]bool{}
	for _, t := range s.targets {
		if t.cloud != "" && defaults[t.cloud] {
			continue
		}
		defaults[t.cloud] = true
		for name, value := range t.env {
			if _, taken := s.env[name]; taken {
				return fmt.Errorf("target %s: another target has %s", t.name, name)
			}
			s.env[name] = value
		}
		s.unset = append(s.unset, before[t.cloud]...)
	}
	if defaults[cloudAWS] {
		if err := s.awsFiles(); err != nil {
			return err
		}
	}
	made, err := s.authorities()
	if made {
		s.trust()
	}
	return err
}

// Env is what the workload's environment must have, as NAME=VALUE.
func (s *Surfaces) Env() []string { return sortedEnv(s.env) }

// EnvOf is what makes one target the default of its cloud. It is nil for a
// target that is not one of these.
func (s *Surfaces) EnvOf(name string) []string {
	for _, t := range s.targets {
		if t.name == name {
			return sortedEnv(t.env)
		}
	}
	return nil
}

func sortedEnv(env map[string]string) []string {
	all := make([]string, 0, len(env))
	for name, value := range env {
		all = append(all, name+"="+value)
	}
	slices.Sort(all)
	return all
}

// Unset are the names of variables by which SDKs would find other credentials
// before these, or these elsewhere: the workload's environment must not have
// them, but for those in Env.
func (s *Surfaces) Unset() []string { return slices.Clone(s.unset) }

// Apply is environ with Unset taken out and Env put in.
func (s *Surfaces) Apply(environ []string) []string {
	out := slices.DeleteFunc(slices.Clone(environ), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		_, ours := s.env[name]
		return ours || slices.Contains(s.unset, name)
	})
	return append(out, s.Env()...)
}

// Run keeps the files fresh until ctx ends or Close is called.
func (s *Surfaces) Run(ctx context.Context) {
	s.running.RLock()
	defer s.running.RUnlock()
	for {
		// Those who began together don't ask together.
		wait := every*9/10 + mathrand.N(every/10)
		select {
		case <-ctx.Done():
			return
		case <-s.ended.Done():
			return
		case <-time.After(wait):
		}
		s.Refresh(ctx)
	}
}

// Refresh looks after all files once; Run does, each minute.
func (s *Surfaces) Refresh(ctx context.Context) {
	for _, t := range s.targets {
		if t.refresh == nil {
			continue
		}
		err := t.refresh(ctx)
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "credential file not refreshed", "target", t.name, "error", exchangers.Clean(err.Error()))
		}
		if status.Code(err) == codes.PermissionDenied {
			for _, name := range t.files {
				if err := s.dir.remove(name); err != nil {
					s.cfg.Log.WarnContext(ctx, "credential file not removed", "target", t.name, "error", err)
				}
			}
		}
	}
	if _, err := s.authorities(); err != nil {
		s.cfg.Log.WarnContext(ctx, "CA file not refreshed", "error", err)
	}
}

// Close ends the listener and Run, and removes what was made; Config says what
// stays.
func (s *Surfaces) Close() (err error) {
	s.once.Do(func() {
		s.end()
		s.running.Lock()
		defer s.running.Unlock()
		switch {
		case s.server == nil:
		case s.cfg.Door != nil:
			s.server.leave(s.room)
		default:
			s.server.Close()
		}
		if s.dir != nil {
			err = s.dir.close()
		}
	})
	return err
}

// Fingerprint tells whether a program that read the environment and the files
// must read them again: it changes with all but the files that Refresh keeps
// fresh.
func (s *Surfaces) Fingerprint() string {
	sum := sha256.New()
	fresh := map[string]bool{}
	for _, t := range s.targets {
		for _, name := range t.files {
			fresh[name] = true
		}
	}
	for _, name := range s.dir.names() {
		if !fresh[name] {
			fmt.Fprintf(sum, "%q %x\n", name, s.dir.sum(name))
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// secret is what nobody guesses, for one use.
func (s *Surfaces) secret(use, name string) string {
	if s.cfg.Seed == nil {
		return unguessable()
	}
	b := hmac.New(sha256.New, s.cfg.Seed)
	fmt.Fprintf(b, "%s %s", use, name)
	return base64.RawURLEncoding.EncodeToString(b.Sum(nil))
}

// unguessable is 32 random bytes as text.
func unguessable() string {
	b := make([]byte, minSecret)
	_, _ = rand.Read(b) // never fails (crypto/rand.Read)
	return base64.RawURLEncoding.EncodeToString(b)
}

// value is a variable of an environment; the last one counts, as for a
// program.
func value(environ []string, name string) string {
	for _, v := range slices.Backward(environ) {
		if n, value, _ := strings.Cut(v, "="); n == name {
			return value
		}
	}
	return ""
}

// variable makes a target's name part of a variable's.
func variable(prefix, name string) string {
	return prefix + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(name))
}

// home is the workload's home directory.
func home(environ []string) string {
	if h := value(environ, "HOME"); h != "" {
		return h
	}
	return os.DevNull
}
