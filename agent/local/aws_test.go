package local_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/local"
)

// environment makes an SDK in this process see what a workload would.
func environment(t *testing.T, s *surfaces, environ ...string) {
	t.Helper()
	for _, name := range s.Unset() {
		t.Setenv(name, "")
	}
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_REGION", "AWS_CA_BUNDLE"} {
		t.Setenv(name, "")
	}
	for _, v := range s.Apply(environ) {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
}

func retrieve(t *testing.T, options ...func(*config.LoadOptions) error) []string {
	t.Helper()
	sdk, err := config.LoadDefaultConfig(t.Context(), options...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sdk.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return []string{got.AccessKeyID, got.SecretAccessKey, got.SessionToken, got.Expires.UTC().Format(time.RFC3339), sdk.Region}
}

// aws-sdk-go-v2's default chain finds the credential, though the user's own
// default profile has others.
func TestAWSServesTheSDK(t *testing.T) {
	own := t.TempDir()
	files := map[string]string{
		"config": "[default]\nregion = sa-east-1\ncredential_process = false\nsso_session = x\ns3 =\n  max_concurrent_requests = 3\n" +
			"[profile mine]\naws_access_key_id = AKIAMINE\naws_secret_access_key = mine\nregion = eu-north-1\n" +
			"[profile anywhere]\naws_access_key_id = AKIATHEIRS\naws_secret_access_key = theirs\n[services other]\nsts =\n  endpoint_url = https://sts.example\n",
		"credentials": "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = theirs\n[anywhere]\naws_access_key_id = AKIATHEIRS\naws_secret_access_key = theirs\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(own, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	environ := []string{"PATH=/usr/bin:/bin", "AWS_CONFIG_FILE=" + filepath.Join(own, "config"), "AWS_SHARED_CREDENTIALS_FILE=" + filepath.Join(own, "credentials")}
	process := filepath.Join(own, "it's a process")
	script := "#!/bin/sh\necho '{\"Version\":1,\"AccessKeyId\":\"ASIAPROCESS\",\"SecretAccessKey\":\"'\"$2\"'\",\"SessionToken\":\"s\",\"Expiration\":\"2030-01-02T03:04:05Z\"}'\n"
	if err := os.WriteFile(process, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s := opened(t, clouds(), []string{"anywhere", "web"}, func(c *local.Config) {
		c.Environ, c.Command = environ, []string{process, "credentials"}
	})
	environment(t, s, environ...)
	// The SDK asks the endpoint again five minutes early.
	want := []string{"ASIAEXAMPLE", "secret-key", "session", "2030-01-02T02:59:05Z", "eu-west-1"}
	if d := cmp.Diff(want, retrieve(t)); d != "" {
		t.Errorf("by default: %s", d)
	}
	want = []string{"ASIAPROCESS", "anywhere", "s", "2030-01-02T03:04:05Z", "eu-west-1"}
	if d := cmp.Diff(want, retrieve(t, config.WithSharedConfigProfile("anywhere"))); d != "" {
		t.Errorf("as a profile: %s", d)
	}
	want[1] = "web"
	if d := cmp.Diff(want, retrieve(t, config.WithSharedConfigProfile("web"))); d != "" {
		t.Errorf("as the second one's profile: %s", d)
	}
	if got := retrieve(t, config.WithSharedConfigProfile("mine")); got[0] != "AKIAMINE" {
		t.Errorf("the user's own profile: %v", got)
	}
	for name, text := range files {
		if got, err := os.ReadFile(filepath.Join(own, name)); err != nil || string(got) != text {
			t.Errorf("the user's own %s was touched: %v", name, err)
		}
	}
	kept := s.read("aws.config")
	for _, v := range []string{"region = sa-east-1", "max_concurrent_requests = 3", "endpoint_url = https://sts.example"} {
		if !strings.Contains(kept, v) {
			t.Errorf("%q was lost of the user's own:\n%s", v, kept)
		}
	}
	if all := kept + s.read("aws.credentials"); strings.Contains(all, "theirs") || strings.Contains(all, "sso_session") {
		t.Errorf("what would come before ours is there:\n%s", all)
	}
}

func TestWebIdentityProfile(t *testing.T) {
	from := clouds()
	from.put("private", awsAnswer("aws_web_identity", webSettings, "https://sts.internal"))
	from.put("narrowed", awsAnswer("aws_web_identity", `{"role":"arn:aws:iam::123456789012:role/orders","session_policy":"{}"}`, ""))
	s := opened(t, from, []string{"private", "narrowed"}, func(c *local.Config) { c.Web = true })
	file := filepath.Join(s.dir, "private.jwt")
	config := s.read("aws.config")
	for _, v := range []string{
		"[profile private.web]\nweb_identity_token_file = " + file + "\nrole_arn = arn:aws:iam::123456789012:role/orders\nrole_session_name = checkout\nduration_seconds = 1800\n",
		"[services private.web]\nsts = \n  endpoint_url = https://sts.internal\n",
	} {
		if !strings.Contains(config, v) {
			t.Errorf("the config lacks %q:\n%s", v, config)
		}
	}
	if strings.Contains(config, "[profile narrowed.web]") {
		t.Errorf("the SDK would not narrow its session:\n%s", config)
	}
	want := []string{
		"AWS_ENDPOINT_URL_STS=https://sts.internal", "AWS_REGION=eu-west-1", "AWS_ROLE_ARN=arn:aws:iam::123456789012:role/orders",
		"AWS_ROLE_SESSION_NAME=checkout", "AWS_WEB_IDENTITY_TOKEN_FILE=" + file,
	}
	if d := cmp.Diff(want, s.EnvOf("private")); d != "" {
		t.Errorf("the environment: %s", d)
	}
	if got := s.read("private.jwt"); !strings.HasPrefix(got, "private-true-") || strings.HasSuffix(got, "\n") {
		t.Errorf("the file is %q", got)
	}
	if e := s.endpoint("narrowed"); e.secret == "" {
		t.Error("the one that is narrowed has no endpoint")
	}
}

func TestWithoutCredentials(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nothing":               {"", ""},
		"another's profile":     {"[profile a]\nrole_arn = x\n", "[profile a]\nrole_arn = x\n"},
		"the default's":         {"[default]\nrole_arn = x\nregion = y\n", "[default]\nregion = y\n"},
		"by its long name":      {"[profile default]\nROLE_ARN=x\noutput=json\n", "[profile default]\noutput=json\n"},
		"with what hangs on it": {"[default]\nsso_session =\n  a = b\nregion = y\n  c = d\n", "[default]\nregion = y\n  c = d\n"},
		"ours":                  {"[profile ours]\nregion = x\n[b]\nregion = y\n", "[b]\nregion = y\n"},
		"ours, quoted":          {"[profile \"ours\"]\nregion = x\n", ""},
		"ours, spaced":          {"  [ profile   ours ] # note\nregion = x\n", ""},
		"services of that name": {"[services ours]\nsts =\n  endpoint_url = x\n", "[services ours]\nsts =\n  endpoint_url = x\n"},
		"no newline, and CRLF":  {"[default]\r\nregion = x\r\naws_session_token = y", "[default]\nregion = x\n"},
	} {
		if d := cmp.Diff(c.want, string(local.WithoutCredentials([]byte(c.in), map[string]bool{"ours": true}))); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
