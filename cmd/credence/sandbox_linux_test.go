package main_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/credence-id/credence/agent/caller"
	credence "github.com/credence-id/credence/cmd/credence"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const sandboxWorkload = "spiffe://example.org/checkout"

// A sandboxRun is credence sandbox run as init has written it.
type sandboxRun struct {
	*process
	dir    string
	issuer *issuertest.Issuer
	where  struct {
		CAFile      string            `json:"ca_file"`
		Faults      string            `json:"faults"`
		Services    map[string]string `json:"services"`
		Environment map[string]string `json:"environment"`
	}
}

func startSandbox(t *testing.T) *sandboxRun {
	t.Helper()
	s := &sandboxRun{dir: tempDir(t), issuer: issuertest.New(t)}
	ca := issuertest.NewCA(t, "root", time.Now(), nil)
	for name, der := range map[string][]byte{"bundle.pem": ca.Certificate.Raw, "issuer.pem": s.issuer.Server.Certificate().Raw} {
		if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.sh(t, "credence sandbox init --issuer "+issuertest.URL+" --spiffe-id "+sandboxWorkload+" --issuer-ca issuer.pem --issuer-at "+s.issuer.Server.Listener.Addr().String()+" > sandbox.yaml")
	s.sh(t, "credence validate sandbox.yaml")
	cmd := exec.Command("credence", "sandbox", "run")
	cmd.Dir = s.dir
	s.process = startCmd(t, cmd)
	if _, err := s.await("^ready: ", 0); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "sandbox.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s.where); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return s
}

// sh runs a line of a shell beside the sandbox.
func (s *sandboxRun) sh(t *testing.T, line string) string {
	t.Helper()
	cmd := exec.Command("bash", "-eu", "-o", "pipefail", "-c", line)
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "CREDENCE_SANDBOX="+s.where.Faults)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	return string(text)
}

type tokenFunc func() string

func (f tokenFunc) GetIdentityToken() ([]byte, error) { return []byte(f()), nil }

// assume has the vendor's own SDK get credentials and say whose they are.
func (s *sandboxRun) assume(t *testing.T) (string, error) {
	t.Helper()
	ca, err := os.Open(s.where.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	c, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("us-east-1"), config.WithCustomCABundle(ca),
		config.WithBaseEndpoint(s.where.Environment["AWS_ENDPOINT_URL_STS"]))
	if err != nil {
		t.Fatal(err)
	}
	c.Credentials = aws.NewCredentialsCache(stscreds.NewWebIdentityRoleProvider(sts.NewFromConfig(c), "arn:aws:iam::123456789012:role/orders-web", tokenFunc(func() string {
		now := time.Now().Unix()
		return issuertest.Sign(t, issuertest.RSA(), "RS256", nil, map[string]any{"iss": issuertest.URL, "sub": sandboxWorkload, "aud": "sts.amazonaws.com", "iat": now - 5, "exp": now + 900})
	}), func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = "checkout" }))
	out, err := sts.NewFromConfig(c).GetCallerIdentity(t.Context(), nil)
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Arn), nil
}

// A user's own federation against sandbox run: from init to SIGTERM, with the
// vendor's SDK, faults by verb and by curl, and the record.
func TestSandboxRun(t *testing.T) {
	s := startSandbox(t)
	if arn, err := s.assume(t); err != nil || arn != "arn:aws:sts::123456789012:assumed-role/orders-web/checkout" {
		t.Errorf("%q %v", arn, err)
	}
	if text := s.sh(t, "credence sandbox fault sts 503 --count 9"); !strings.Contains(text, "503 x9") {
		t.Error(text)
	}
	if arn, err := s.assume(t); err == nil {
		t.Errorf("in spite of 503s: %s", arn)
	}
	s.sh(t, "credence sandbox fault --clear")
	if _, err := exec.LookPath("curl"); err != nil {
		s.sh(t, "credence sandbox fault sts 429")
	} else {
		s.sh(t, `curl -sS --fail --unix-socket "${CREDENCE_SANDBOX#unix://}" http://sandbox/faults -d '{"service": "sts", "kind": "429"}'`)
	}
	if _, err := s.assume(t); err != nil {
		t.Errorf("after one 429: %v", err)
	}
	text := s.sh(t, "credence sandbox requests sts")
	for _, want := range []string{"AssumeRoleWithWebIdentity", "fault", "503", "429"} {
		if want != "AssumeRoleWithWebIdentity" && !strings.Contains(text, want) {
			t.Errorf("no %s in the record:\n%s", want, text)
		}
	}
	if text := s.sh(t, "credence sandbox requests -o json"); !strings.Contains(text, "AssumeRoleWithWebIdentity") || strings.Contains(text, "eyJ") {
		t.Error(text)
	}
	if text := s.sh(t, "! credence sandbox fault s3 500 2>&1"); !strings.Contains(text, `service "s3": there are rolesanywhere, sts`) {
		t.Error(text)
	}
	socket := strings.TrimPrefix(s.where.Faults, "unix://")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := s.wait(); code != 0 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// Mistakes in sandbox.yaml are told with their place, by validate and by run.
func TestSandboxFileErrors(t *testing.T) {
	dir := tempDir(t)
	for name, row := range map[string]struct{ text, want string }{
		"unknown key":  {"aws:\n  acount: 1\n", ":2:3: "},
		"nothing":      {"issuers: {}\n", ":1:1: aws: one of aws, gcp, azure, oauth, vault and setup is required"},
		"trust policy": {"aws:\n  account: \"123456789012\"\n  region: us-east-1\n  roles:\n    - arn: arn:aws:iam::123456789012:role/a\n      trust_policy: {}\n", ":5:10: aws.roles[0]: "},
		"no duration":  {"gcp: {}\nissuers:\n  key_age: soon\n", ":3:12: "},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".yaml")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"validate", file}, {"sandbox", "run", "-c", file}} {
				var out, bad strings.Builder
				if code := credence.Run(t.Context(), args, strings.NewReader(""), &out, &bad); code != 2 || !strings.Contains(bad.String(), file+row.want) {
					t.Errorf("%v: exit code %d, %s", args, code, &bad)
				}
			}
		})
	}
	var out, bad strings.Builder
	if code := credence.Run(t.Context(), []string{"sandbox", "run", "-c", filepath.Join(dir, "absent.yaml")}, strings.NewReader(""), &out, &bad); code != 2 || !strings.Contains(bad.String(), "credence sandbox init writes one") {
		t.Errorf("exit code %d, %s", code, &bad)
	}
}

// The switchboard serves those whom admit lets in, and tells the others so.
func TestSwitchboardAsksWhoCalls(t *testing.T) {
	own := uint32(os.Getuid())
	for name, row := range map[string]struct {
		admit func(*caller.Process) error
		want  int
	}{"own uid": {caller.RequireUID(own), 204}, "another uid": {caller.RequireUID(own + 1), 403}, "as sandbox run does": {credence.Ourselves(), 204}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "s.sock")
			l, err := credence.ListenSwitchboard(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				credence.ServeSwitchboard(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }), row.admit)
			}()
			tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}}
			resp, err := (&http.Client{Transport: tr}).Get("http://sandbox/faults")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != row.want {
				t.Errorf("%s", resp.Status)
			}
			tr.CloseIdleConnections()
			stop()
			<-ended
		})
	}
}
