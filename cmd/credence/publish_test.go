package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/publishtest"
)

// publisher is a broker that nobody reaches, and what its operator types.
type publisher struct {
	t   *testing.T
	dir string
	env []string
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	p := &publisher{t: t, dir: tempDir(t)}
	agents, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	file := p.write("broker.yaml", fmt.Appendf(nil, "trust_domain: example.org\ndata: %s/b\nissuer: https://id.example.org/td\nlisten: {agents: \"127.0.0.1:%s\", spiffe: none}\n", p.dir, agents))
	broker := start(t, "credence", "broker", "run", "-c", file)
	if _, err := broker.await("JWT key changed.*state=active.*alg=RS256", 0); err != nil {
		t.Fatal(err)
	}
	p.env = append(os.Environ(), "CREDENCE_ADMIN="+filepath.Join(p.dir, "b", "run", "admin.sock"),
		"AWS_ACCESS_KEY_ID="+publishtest.AccessKey, "AWS_SECRET_ACCESS_KEY="+publishtest.SecretKey, "AWS_REGION="+publishtest.Region,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_MAX_ATTEMPTS=1")
	return p
}

func (p *publisher) write(name string, text []byte) string {
	p.t.Helper()
	file := filepath.Join(p.dir, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// trust has what is typed believe a service's certificate.
func (p *publisher) trust(s *publishtest.Service) {
	file := p.write("ca.pem", s.PEM)
	p.env = append(p.env, "SSL_CERT_FILE="+file, "AWS_CA_BUNDLE="+file)
}

func (p *publisher) command(args ...string) *exec.Cmd {
	cmd := exec.Command("credence", args...)
	cmd.Env = p.env
	return cmd
}

func (p *publisher) run(code int, args ...string) string {
	p.t.Helper()
	cmd := p.command(args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		p.t.Fatalf("%q: %v, want exit code %d\n%s", args, err, code, out)
	}
	return string(out)
}

// holds checks what a place has.
func (p *publisher) holds(object func(string) (body, kind, cache string)) {
	p.t.Helper()
	for name, want := range map[string][]string{
		"td/" + publish.DiscoveryName: {`"issuer":"https://id.example.org/td"`, "public, max-age=300"},
		"td/" + publish.KeysName:      {`"use":"sig"`, "public, max-age=300"},
		"td/" + publish.BundleName:    {`"spiffe_sequence"`, "max-age=300"},
	} {
		body, kind, cache := object(name)
		if !json.Valid([]byte(body)) || !strings.Contains(body, want[0]) || kind != "application/json" || cache != want[1] {
			p.t.Errorf("%s: %s, %s, %s", name, kind, cache, body)
		}
	}
}

func TestPublishToS3(t *testing.T) {
	t.Parallel()
	p, service := newPublisher(t), publishtest.NewS3(t)
	p.trust(&service.Service)
	to := []string{"bundle", "publish", "--to", "s3://" + publishtest.Bucket + "/td", "--endpoint", service.URL}
	if out := p.run(0, to...); !strings.Contains(out, "keys, .well-known/openid-configuration, bundle") {
		t.Errorf("at first: %s", out)
	}
	p.holds(service.Object)
	if out := p.run(0, append(to, "-o", "json")...); !strings.Contains(out, `"changed": []`) {
		t.Errorf("again: %s", out)
	}
	if refused := service.Refused(); len(refused) > 0 {
		t.Errorf("refused: %s", refused)
	}
	p.env = append(p.env, "AWS_SECRET_ACCESS_KEY=another")
	if out := p.run(4, to...); !strings.Contains(out, "SignatureDoesNotMatch") {
		t.Errorf("with another's credentials: %s", out)
	}
}

func TestPublishWatches(t *testing.T) {
	t.Parallel()
	p, service := newPublisher(t), publishtest.NewS3(t)
	p.trust(&service.Service)
	watch := startCmd(t, p.command("bundle", "publish", "--to", "s3://"+publishtest.Bucket+"/td", "--endpoint", service.URL, "--watch"))
	if _, err := watch.await(`keys, \.well-known/openid-configuration, bundle changed, sequence \d+ is there`, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := watch.await(`key [0-9a-f]+ is there \d+h\S+ before it signs`, 0); err != nil {
		t.Error(err) // the standby
	}
	p.holds(service.Object)
	// A compromise makes a new standby, which the place cannot be told of.
	var down atomic.Bool
	down.Store(true)
	service.Fault(func(*http.Request) int {
		if down.Load() {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	p.run(0, "ca", "replace", "jwt", "--alg", "RS256", "--reason", "a drill")
	if _, err := watch.await(`error: s3://\S+: not published since \S+: `, 0); err != nil {
		t.Error(err)
	}
	if _, err := watch.await(`error: \S+ key [0-9a-f]+ is not there and signs in \d+h`, 0); err != nil {
		t.Error(err)
	}
	from := watch.length()
	down.Store(false)
	if _, err := watch.await(`keys, bundle changed, sequence \d+ is there`, from); err != nil {
		t.Error(err)
	}
	if code, err := watch.stop(); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
}

func TestPublishToGCS(t *testing.T) {
	t.Parallel()
	p, service := newPublisher(t), publishtest.NewGCS(t)
	p.trust(&service.Service)
	p.env = append(p.env, "GOOGLE_APPLICATION_CREDENTIALS="+p.write("account.json", service.ServiceAccount(t)))
	p.run(0, "bundle", "publish", "--to", "gs://"+publishtest.Bucket+"/td", "--endpoint", service.URL)
	p.holds(service.Object)
	if refused := service.Refused(); len(refused) > 0 {
		t.Errorf("refused: %s", refused)
	}
}

func TestPublishToATrustAnchor(t *testing.T) {
	t.Parallel()
	p, service := newPublisher(t), publishtest.NewRolesAnywhere(t)
	p.trust(&service.Service)
	out := p.run(0, "bundle", "publish", "--to", "rolesanywhere:"+publishtest.AnchorARN, "--endpoint", service.URL)
	if want := p.run(0, "bundle", "show", "-o", "pem"); service.PEM != want || !strings.Contains(out, "trust anchor") {
		t.Errorf("the anchor has %s, want %s; %s", service.PEM, want, out)
	}
}
