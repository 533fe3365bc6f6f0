package oidc_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/evidence/oidc"
)

const audience = "credence://example.org/join"

func env(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

// A service is a CI system's endpoint.
func service(t *testing.T, answer func(http.ResponseWriter, *http.Request)) (*httptest.Server, *http.Client) {
	s := httptest.NewTLSServer(http.HandlerFunc(answer))
	t.Cleanup(s.Close)
	c := s.Client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s, c
}

func TestGitHub(t *testing.T) {
	s, client := service(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("Authorization") != "Bearer s3cret" || r.URL.Query().Get("api-version") != "2.0" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"count": 1, "value": "token for %s"}`, r.URL.Query().Get("audience"))
	})
	c := oidc.Config{Method: "github", Audience: audience, Client: client, Getenv: env(map[string]string{
		"ACTIONS_ID_TOKEN_REQUEST_URL": s.URL + "/x?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "s3cret",
	})}
	for range 2 { // a second one, for a node that joins again
		got, err := c.Evidence(t.Context())
		if err != nil || string(got) != "token for "+audience {
			t.Errorf("%q, %v", got, err)
		}
	}
	c.Getenv = env(nil)
	if _, err := c.Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "id-token: write") {
		t.Errorf("outside a job: %v", err)
	}
}

func TestAzureDevOps(t *testing.T) {
	s, client := service(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer s3cret" || r.URL.Query().Get("api-version") != "7.1" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"oidcToken": "a token"}`)
	})
	c := oidc.Config{Method: "azure_devops", Client: client, Getenv: env(map[string]string{"SYSTEM_OIDCREQUESTURI": s.URL, "SYSTEM_ACCESSTOKEN": "s3cret"})}
	if got, err := c.Evidence(t.Context()); err != nil || string(got) != "a token" {
		t.Errorf("%q, %v", got, err)
	}
	c.Getenv = env(map[string]string{"SYSTEM_OIDCREQUESTURI": s.URL})
	if _, err := c.Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "$(System.AccessToken)") {
		t.Errorf("without its secret: %v", err)
	}
}

// What an endpoint does wrong is told without what it was asked with.
func TestEndpointsThatFail(t *testing.T) {
	elsewhere, _ := service(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s is followed", r.URL) })
	for name, row := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		want   string
	}{
		"refuses":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "status 403"},
		"redirects":     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "status 302"},
		"says nothing":  {func(http.ResponseWriter, *http.Request) {}, "no value"},
		"says another":  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token": "x"}`) }, "no value"},
		"says a number": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"value": 1}`) }, "no value"},
		"says an empty": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"value": ""}`) }, "0 bytes"},
		"says without end": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"value": "%s"}`, strings.Repeat("a", 1<<20))
		}, "no value"},
		"says too much": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"value": "%s"}`, strings.Repeat("a", 17<<10))
		}, "17408 bytes"},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s, client := service(t, row.answer)
			c := oidc.Config{Method: "github", Audience: audience, Client: client, Getenv: env(map[string]string{
				"ACTIONS_ID_TOKEN_REQUEST_URL": s.URL + "/path-s3cret?x=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "s3cret",
			})}
			_, err := c.Evidence(t.Context())
			if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "aaaa") {
				t.Errorf("%v, want %s", err, row.want)
			}
		})
	}
	c := oidc.Config{Method: "github", Getenv: env(map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": "http://127.0.0.1:1/", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x"})}
	if _, err := c.Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("in plain text: %v", err)
	}
}

func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vars := env(map[string]string{
		"MINE": "from a variable", "CREDENCE_ID_TOKEN": "of GitLab", "TFC_WORKLOAD_IDENTITY_TOKEN_CREDENCE": "of Terraform",
	})
	for _, row := range []struct {
		c         oidc.Config
		want, bad string
	}{
		{oidc.Config{Method: "oidc", File: file}, "from a file", ""},
		{oidc.Config{Method: "github", File: file}, "from a file", ""},
		{oidc.Config{Method: "oidc", Env: "MINE"}, "from a variable", ""},
		{oidc.Config{Method: "gitlab"}, "of GitLab", ""},
		{oidc.Config{Method: "terraform_cloud"}, "of Terraform", ""},
		{oidc.Config{Method: "oidc", File: filepath.Join(dir, "none")}, "", "no such file"},
		{oidc.Config{Method: "oidc", File: big}, "", "bytes came"},
		{oidc.Config{Method: "oidc", Env: "NONE"}, "", "NONE is not set"},
		{oidc.Config{Method: "oidc"}, "", "set token_file"},
		{oidc.Config{Method: "gitlab", Getenv: env(nil), Audience: audience}, "", "{aud: " + audience + "}"},
		{oidc.Config{Method: "terraform_cloud", Getenv: env(nil)}, "", "TFC_WORKLOAD_IDENTITY_AUDIENCE_CREDENCE"},
	} {
		if row.c.Getenv == nil {
			row.c.Getenv = vars
		}
		got, err := row.c.Evidence(t.Context())
		if string(got) != row.want || (row.bad == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), row.bad)) {
			t.Errorf("%+v: %q, %v", row.c, got, err)
		}
	}
}

func TestCommands(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("it has no sh")
	}
	for _, row := range []struct{ script, want, bad string }{
		{"echo a token", "a token", ""},
		{"echo noise >&2; echo a token", "a token", ""},
		{"echo s3cret; echo why >&2; exit 3", "", "exit status 3: \"why\\n\""},
		{"exec yes s3cret", "", "sh:"},
		{"head -c 1000000 /dev/zero >&2; echo t", "t", ""},
		{"true", "", "0 bytes"},
	} {
		got, err := oidc.Config{Method: "oidc", Command: []string{"sh", "-c", row.script}}.Evidence(t.Context())
		if string(got) != row.want || (row.bad == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), row.bad)) {
			t.Errorf("%s: %q, %v", row.script, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the output is quoted: %v", row.script, err)
		}
	}
	if _, err := (oidc.Config{Method: "oidc", Command: []string{"/none/such"}}).Evidence(t.Context()); err == nil {
		t.Error("a program that there is not")
	}
}

func TestCircleCI(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("it has no sh")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "circleci"), []byte("#!/bin/sh\necho \"$*\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	got, err := oidc.Config{Method: "circleci", Audience: audience}.Evidence(t.Context())
	if want := `run oidc get --claims {"aud":"` + audience + `"}`; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAWS(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil || r.Form.Get("Action") != "GetWebIdentityToken" || !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/sts/aws4_request") {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.Form.Get("Audience.member.1") == "denied" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>`)
			return
		}
		token := url.QueryEscape(r.Form.Get("Audience.member.1") + " " + r.Form.Get("SigningAlgorithm") + " " + r.Form.Get("DurationSeconds"))
		fmt.Fprintf(w, `<GetWebIdentityTokenResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetWebIdentityTokenResult><WebIdentityToken>%s</WebIdentityToken></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>`, token)
	}))
	t.Cleanup(s.Close)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_STS": s.URL, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "eu-west-1",
		"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	got, err := oidc.Config{Method: "aws_oidc", Audience: audience}.Evidence(t.Context())
	if want := url.QueryEscape(audience + " RS256 60"); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := (oidc.Config{Method: "aws_oidc", Audience: "denied"}).Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "sts:GetWebIdentityToken") {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	for _, row := range []struct {
		c    oidc.Config
		want string
	}{
		{oidc.Config{Method: "oidc"}, "token_file:"},
		{oidc.Config{Method: "github", File: "a", Env: "b"}, "token_file: one of"},
		{oidc.Config{Method: "github", Command: []string{""}}, "token_command:"},
		{oidc.Config{Method: "token", File: "a"}, "method:"},
		{oidc.Config{Method: "github"}, ""},
		{oidc.Config{Method: "oidc", Env: "X"}, ""},
	} {
		err := row.c.Check()
		if (err == nil) != (row.want == "") || (err != nil && !strings.HasPrefix(err.Error(), row.want)) {
			t.Errorf("%+v: %v", row.c, err)
		}
	}
}
