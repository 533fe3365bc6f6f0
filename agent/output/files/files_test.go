//go:build linux

package files_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/agent/output/files"
	"github.com/credence-id/credence/exchangers"
)

// A source hands out tokens as the test says.
type source struct {
	now   time.Time
	life  time.Duration
	err   error
	made  int
	files []bool // toFile, as it was asked for
}

func (s *source) token(what string) (agent.JWTSVID, error) {
	if s.err != nil {
		return agent.JWTSVID{}, s.err
	}
	s.made++
	return agent.JWTSVID{Token: fmt.Sprintf("%s#%d", what, s.made), Expires: s.now.Add(s.life)}, nil
}

func (s *source) JWT(_ context.Context, audiences []string, id spiffeid.ID) (agent.JWTSVID, error) {
	return s.token(id.Path() + "@" + strings.Join(audiences, "+"))
}

func (s *source) TargetToken(_ context.Context, target string, toFile bool) (agent.JWTSVID, agent.Target, error) {
	s.files = append(s.files, toFile)
	svid, err := s.token(target)
	return svid, agent.Target{Name: target}, err
}

func (s *source) Exchange(context.Context, string, string) (agent.Exchanged, error) {
	return agent.Exchanged{}, exchangers.ErrClosed
}

type scene struct {
	*testing.T
	ca     *agenttest.CA
	peer   *agenttest.CA
	from   *source
	cfg    files.Config
	writer *files.Writer
}

func start(t *testing.T, change func(*files.Config)) *scene {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &scene{T: t, ca: agenttest.NewCA(t, "example.org"), peer: agenttest.NewCA(t, "peer.example"), from: &source{now: time.Now(), life: time.Hour}}
	s.cfg = files.Config{
		Dir: filepath.Join(dir, "tls"), Owner: output.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
		Now: func() time.Time { return s.from.now },
	}
	if change != nil {
		change(&s.cfg)
	}
	var err error
	if s.writer, err = files.New(s.cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scene) svid(path, hint string) *agent.SVID {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.Fatal(err)
	}
	id := spiffeid.RequireFromPath(s.ca.TrustDomain, path)
	return &agent.SVID{ID: id, Hint: hint, Key: key, KeyDER: der, Certificates: []*x509.Certificate{s.ca.Sign(id, key.Public(), time.Now().Add(time.Hour))}}
}

func bundle(ca *agenttest.CA) *agent.Bundle {
	return &agent.Bundle{TrustDomain: ca.TrustDomain, X509Authorities: []*x509.Certificate{ca.Root}, JWTAuthorities: ca.Bundle().JWTAuthorities()}
}

func (s *scene) update(svids ...*agent.SVID) agent.Update {
	return agent.Update{SVIDs: svids, Bundles: map[spiffeid.TrustDomain]*agent.Bundle{s.ca.TrustDomain: bundle(s.ca)}}
}

func (s *scene) write(u agent.Update) output.Written {
	s.Helper()
	w, err := s.writer.Write(s.Context(), s.from, u)
	if err != nil {
		s.Fatal(err)
	}
	return w
}

func (s *scene) read(name string) string {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, name))
	if err != nil {
		s.Fatal(err)
	}
	return string(b)
}

func (s *scene) names() (all []string) {
	s.Helper()
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "..data"))
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestDefaultFiles(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	v := s.svid("/web", "")
	if w := s.write(s.update(v, s.svid("/other", ""))); !w.Changed || w.Generation != 1 || !w.Again.IsZero() {
		t.Errorf("%+v", w)
	}
	if diff := cmp.Diff([]string{"generation", "svid.pem", "svid_bundle.pem", "svid_key.pem"}, s.names()); diff != "" {
		t.Error(diff)
	}
	got, err := x509svid.Load(filepath.Join(s.cfg.Dir, "svid.pem"), filepath.Join(s.cfg.Dir, "svid_key.pem"))
	if err != nil || got.ID != v.ID {
		t.Errorf("loaded %v: %v", got, err)
	}
	for name, want := range map[string]os.FileMode{"svid.pem": 0o644, "svid_key.pem": 0o600, "svid_bundle.pem": 0o644} {
		if info, err := os.Stat(filepath.Join(s.cfg.Dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if w := s.write(s.update(v)); w.Changed {
		t.Error("written again without a change")
	}
}

// Everything that can be asked for, under names of the user's own.
func TestAllFiles(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) {
		password := filepath.Join(filepath.Dir(c.Dir), "password")
		if err := os.WriteFile(password, []byte("changeit\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.SVID, c.Key, c.Bundle, c.CRL, c.Combined = "tls.crt", "tls.key", "ca.crt", "ca.crl", "tls.pem"
		c.BundleMap, c.JWTBundle, c.Mode = "bundles.json", "jwt_bundle.json", 0o640
		c.PKCS12 = &files.PKCS12{File: "tls.p12", Trust: "ca.p12", PasswordFile: password}
		c.JWTs = []files.JWT{{Audiences: []string{"orders", "pay"}}}
		c.Targets = []string{"aws-orders"}
	})
	v := s.svid("/web", "")
	u := s.update(v)
	u.Bundles[s.peer.TrustDomain] = bundle(s.peer)
	u.CRLs = []*agent.CRL{{DER: []byte("crl 1")}, {DER: []byte("crl 2")}}
	s.write(u)
	want := []string{"aws-orders.token", "bundles.json", "ca.crl", "ca.crt", "ca.p12", "generation", "jwt_bundle.json", "jwt_svid.token", "peer.example.ca.crt", "tls.crt", "tls.key", "tls.p12", "tls.pem"}
	if diff := cmp.Diff(want, s.names()); diff != "" {
		t.Fatal(diff)
	}
	for _, name := range []string{"tls.key", "tls.pem", "tls.p12", "jwt_svid.token", "aws-orders.token"} {
		if info, err := os.Stat(filepath.Join(s.cfg.Dir, name)); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if _, err := tls.X509KeyPair([]byte(s.read("tls.pem")), []byte(s.read("tls.pem"))); err != nil {
		t.Errorf("the combined file: %v", err)
	}
	if got := s.read("jwt_svid.token") + " " + s.read("aws-orders.token"); got != "/web@orders+pay#1 aws-orders#2" {
		t.Errorf("the tokens are %q", got)
	}
	if diff := cmp.Diff([]bool{true}, s.from.files); diff != "" {
		t.Errorf("the target's token is not one for a file: %s", diff)
	}
	for name, ca := range map[string]*agenttest.CA{"ca.crt": s.ca, "peer.example.ca.crt": s.peer} {
		block, rest := pem.Decode([]byte(s.read(name)))
		if block == nil || !slices.Equal(block.Bytes, ca.Root.Raw) || len(rest) > 0 {
			t.Errorf("%s holds not its trust domain's root alone", name)
		}
	}
	if n := strings.Count(s.read("ca.crl"), "BEGIN X509 CRL"); n != 2 {
		t.Errorf("%d CRLs", n)
	}
	s.checkBundles()
	s.checkStores(v)
}

func (s *scene) checkBundles() {
	s.Helper()
	var all struct {
		TrustDomains map[string]json.RawMessage `json:"trust_domains"`
	}
	if err := json.Unmarshal([]byte(s.read("bundles.json")), &all); err != nil {
		s.Fatal(err)
	}
	for _, ca := range []*agenttest.CA{s.ca, s.peer} {
		b, err := spiffebundle.Parse(ca.TrustDomain, all.TrustDomains[ca.TrustDomain.Name()])
		if err != nil || !b.HasX509Authority(ca.Root) || len(b.JWTAuthorities()) != 1 {
			s.Errorf("the bundle map's %s: %v", ca.TrustDomain, err)
		}
	}
	var keys map[string]string
	if err := json.Unmarshal([]byte(s.read("jwt_bundle.json")), &keys); err != nil || len(keys) != 2 {
		s.Fatal(keys, err)
	}
	text, err := base64.StdEncoding.DecodeString(keys["peer.example"])
	if err != nil {
		s.Fatal(err)
	}
	if b, err := jwtbundle.Parse(s.peer.TrustDomain, text); err != nil || len(b.JWTAuthorities()) != 1 {
		s.Errorf("the peer's JWT keys: %v", err)
	}
}

func (s *scene) checkStores(v *agent.SVID) {
	s.Helper()
	key, leaf, chain, err := pkcs12.DecodeChain([]byte(s.read("tls.p12")), "changeit")
	if err != nil || !leaf.Equal(v.Certificates[0]) || len(chain) != len(v.Certificates)-1 || !key.(*ecdsa.PrivateKey).Equal(v.Key) {
		s.Errorf("the key store: %v", err)
	}
	if roots, err := pkcs12.DecodeTrustStore([]byte(s.read("ca.p12")), "changeit"); err != nil || len(roots) != 1 || !roots[0].Equal(s.ca.Root) {
		s.Errorf("the trust store: %v", err)
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) { c.Hint = "main" })
	v := s.svid("/b", "main")
	s.write(s.update(s.svid("/a", "other"), v))
	if got, err := x509svid.Load(filepath.Join(s.cfg.Dir, "svid.pem"), filepath.Join(s.cfg.Dir, "svid_key.pem")); err != nil || got.ID != v.ID {
		t.Errorf("loaded %v: %v", got, err)
	}
	// Nothing is written in another's name, and what stood there goes.
	if _, err := s.writer.Write(t.Context(), s.from, s.update(s.svid("/a", "other"))); err == nil || !strings.Contains(err.Error(), "other") {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"generation"}, s.names()); diff != "" {
		t.Error(diff)
	}
}

func TestErase(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) { c.JWTs = []files.JWT{{Audiences: []string{"a"}}} })
	if err := s.writer.Erase(t.Context()); err != nil {
		t.Errorf("before anything was written: %v", err)
	}
	if _, err := os.Stat(s.cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an erasure made the directory")
	}
	u := s.update(s.svid("/a", ""))
	s.write(u)
	if err := s.writer.Erase(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"generation"}, s.names()); diff != "" {
		t.Error(diff)
	}
	// The same state again is written again, with a token of now.
	if w := s.write(u); !w.Changed || w.Generation != 3 || s.read("jwt_svid.token") != "/a@a#2" {
		t.Errorf("%+v %s", w, s.read("jwt_svid.token"))
	}
}

// Tokens are renewed at half of their life, and one that could not be renewed
// stays until it ends.
func TestTokensAreRenewed(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) { c.JWTs = []files.JWT{{Audiences: []string{"a"}}} })
	u := s.update(s.svid("/w", ""))
	began := s.from.now
	w := s.write(u)
	if half := w.Again.Sub(began); half < 30*time.Minute || half > 33*time.Minute {
		t.Errorf("due after %s of an hour", half)
	}
	s.from.now = w.Again
	s.from.err = agent.ErrUnavailable
	w, err := s.writer.Write(t.Context(), s.from, u)
	if err == nil || w.Changed || w.Again.IsZero() || s.read("jwt_svid.token") != "/w@a#1" {
		t.Errorf("while the broker is away: %+v %v", w, err)
	}
	s.from.now = began.Add(time.Hour)
	if w, err = s.writer.Write(t.Context(), s.from, u); err == nil || !w.Changed {
		t.Errorf("the token has ended: %+v %v", w, err)
	}
	if diff := cmp.Diff([]string{"generation", "svid.pem", "svid_bundle.pem", "svid_key.pem"}, s.names()); diff != "" {
		t.Error(diff)
	}
	s.from.err = nil
	s.write(u)
	if got := s.read("jwt_svid.token"); got != "/w@a#2" {
		t.Errorf("the token is %q", got)
	}
}

// A token that is refused is erased at once, before its half life; the
// certificates stay.
func TestRefusedTokensGo(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) { c.Targets = []string{"aws"} })
	v := s.svid("/w", "")
	v.Targets = []agent.Target{{Name: "aws"}}
	s.write(s.update(v))
	without := *v
	without.Targets = nil
	s.from.err = agent.ErrDenied
	if _, err := s.writer.Write(t.Context(), s.from, s.update(&without)); !errors.Is(err, agent.ErrDenied) {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"generation", "svid.pem", "svid_bundle.pem", "svid_key.pem"}, s.names()); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Lstat(filepath.Join(s.cfg.Dir, "aws.token")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("its name stands")
	}
}

// Another identity's token is never served with this one's certificate.
func TestTokensAreTheIdentitys(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *files.Config) { c.JWTs = []files.JWT{{Audiences: []string{"a"}}} })
	s.write(s.update(s.svid("/one", "")))
	s.from.err = agent.ErrUnavailable
	if _, err := s.writer.Write(t.Context(), s.from, s.update(s.svid("/two", ""))); err == nil {
		t.Error("no error")
	}
	if slices.Contains(s.names(), "jwt_svid.token") {
		t.Errorf("it is %s", s.read("jwt_svid.token"))
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*files.Config){
		"":                       func(*files.Config) {},
		"dir: ":                  func(c *files.Config) { c.Dir = "tls" },
		"mode: ":                 func(c *files.Config) { c.Mode = 0o644 },
		"mode: 0060":             func(c *files.Config) { c.Mode = 0o060 },
		"key: ":                  func(c *files.Config) { c.Key = "../key" },
		"key: the file svid.pem": func(c *files.Config) { c.Key = "svid.pem" },
		"combined: ":             func(c *files.Config) { c.Combined = "generation" },
		"jwts: ":                 func(c *files.Config) { c.JWTs = []files.JWT{{File: "a"}} },
		"jwts: the file":         func(c *files.Config) { c.JWTs = []files.JWT{{Audiences: []string{"a"}}, {Audiences: []string{"b"}}} },
		"jwts: x":                func(c *files.Config) { c.JWTs = []files.JWT{{Audiences: []string{""}, File: "x"}} },
		"targets: ":              func(c *files.Config) { c.Targets = []string{"a/b"} },
		"pkcs12.password_file: ": func(c *files.Config) { c.PKCS12 = &files.PKCS12{} },
	} {
		c := files.Config{Dir: "/run/tls"}
		change(&c)
		err := c.Complete()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
