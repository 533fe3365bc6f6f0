package aws_test

import (
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func web() *aws.WebIdentity { return &aws.WebIdentity{Role: webRoleARN} }

func TestWebIdentityExchanges(t *testing.T) {
	a := newAccount(t)
	for name, row := range map[string]struct {
		duration time.Duration
		session  string
		want     string
	}{
		"defaults":          {want: `^arn:aws:sts::123456789012:assumed-role/orders-web/ns\.shop\.sa\.orders-[0-9a-f]{8}$`},
		"duration and name": {15 * time.Minute, "ci+x=1,a.b@c-d", `/ci\+x=1,a\.b@c-d$`},
	} {
		t.Run(name, func(t *testing.T) {
			s := web()
			s.Duration, s.SessionName = exchangers.Duration(row.duration), row.session
			cred, err := exchanger(t, s, a.sts).Exchange(t.Context(), a.jwt(t, nil))
			if err != nil {
				t.Fatal(err)
			}
			life := max(row.duration, 0)
			if life == 0 {
				life = time.Hour
			}
			if left := time.Until(cred.Expires); left > life || left < life-time.Minute {
				t.Errorf("expires in %s, want %s", left, life)
			}
			if cred.AWS.Region != "us-east-1" || cred.RequestID == "" || !regexp.MustCompile(row.want).MatchString(cred.AWS.AssumedRole) {
				t.Errorf("%+v of %+v", cred.AWS, cred)
			}
		})
	}
}

func TestWebIdentityRefusals(t *testing.T) {
	a := newAccount(t)
	good := a.jwt(t, nil)
	rows := map[string]struct {
		settings func(*aws.WebIdentity)
		svids    svids
		keys     http.HandlerFunc
		status   int
		code     string
		class    exchangers.Class
		hint     string
	}{
		"audience of another cloud": {svids: a.jwt(t, map[string]any{"aud": "api://AzureADTokenExchange"}),
			status: 400, code: "InvalidIdentityToken", class: exchangers.Config, hint: "client IDs"},
		"unknown issuer": {svids: a.jwt(t, map[string]any{"iss": issuertest.URL + "/"}),
			status: 400, code: "InvalidIdentityToken", class: exchangers.Config, hint: "create an OIDC provider"},
		"expired": {svids: a.jwt(t, map[string]any{"iat": time.Now().Unix() - 1000, "exp": time.Now().Unix() - 500}),
			status: 400, code: "ExpiredTokenException", class: exchangers.Config, hint: "clock"},
		"subject of another": {svids: a.jwt(t, map[string]any{"sub": "spiffe://example.org/other"}),
			status: 403, code: "AccessDenied", class: exchangers.Config, hint: "trust policy"},
		"role that does not exist": {settings: func(s *aws.WebIdentity) { s.Role += "x" }, svids: good,
			status: 403, code: "AccessDenied", class: exchangers.Config, hint: "the role exists"},
		"longer than the role allows": {settings: func(s *aws.WebIdentity) { s.Duration = exchangers.Duration(2 * time.Hour) }, svids: good,
			status: 400, code: "ValidationError", class: exchangers.Config, hint: "lower the Target's duration"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := web()
			if row.settings != nil {
				row.settings(s)
			}
			cred, err := exchanger(t, s, a.sts).Exchange(t.Context(), row.svids)
			e := refused(t, cred, err)
			if e.Status != row.status || e.Code != row.code || e.Class != row.class || e.RequestID == "" || !strings.Contains(e.Hint, row.hint) {
				t.Errorf("%+v", e)
			}
			if strings.Contains(e.Error(), row.svids.jwt) || strings.Contains(e.Error(), "eyJ") {
				t.Errorf("the token is in the error: %v", e)
			}
		})
	}
	if _, err := exchanger(t, web(), a.sts).Exchange(t.Context(), svids{}); err == nil {
		t.Error("no SVID gave a credential")
	}
}

// The issuer's outage is not the operator's fault: it heals by itself.
func TestWebIdentityIssuerUnreachable(t *testing.T) {
	a := newAccount(t)
	a.issuer.SetDiscovery(issuertest.Status(http.StatusInternalServerError))
	cred, err := exchanger(t, web(), a.sts).Exchange(t.Context(), a.jwt(t, nil))
	if e := refused(t, cred, err); e.Class != exchangers.Propagation || !strings.Contains(e.Hint, "issuer") {
		t.Errorf("%+v", e)
	}
}

func TestWebIdentityFaults(t *testing.T) {
	a := newAccount(t)
	within := func(limit time.Duration) exchangers.Exchanger { return exchangerWithin(t, web(), a.sts, limit) }
	checkFaults(t, a, within, a.jwt(t, nil))
}

// record answers nothing useful and keeps the form.
func record(t *testing.T, status int, body string) (*url.Values, *int, exchangers.Exchanger) {
	t.Helper()
	form, calls := &url.Values{}, new(int)
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*calls++
		b, _ := io.ReadAll(r.Body)
		*form, _ = url.ParseQuery(string(b))
		if r.Header.Get("Authorization") != "" {
			t.Error("the request is signed")
		}
		w.Header().Set("X-Amz-Retry-After", "1500")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	return form, calls, exchanger(t, web(), server)
}

func TestWebIdentityCodesOfThrottling(t *testing.T) {
	form, calls, x := record(t, http.StatusBadRequest, `<ErrorResponse><Error><Code>Throttling</Code><Message>Rate exceeded</Message></Error><RequestId>id-1</RequestId></ErrorResponse>`)
	cred, err := x.Exchange(t.Context(), svids{jwt: "a.b.c"})
	e := refused(t, cred, err)
	if e.Class != exchangers.Throttled || e.RetryAfter != 1500*time.Millisecond || e.Code != "Throttling" {
		t.Errorf("%+v", e)
	}
	if *calls != 1 {
		t.Errorf("%d calls: the SDK retried", *calls)
	}
	want := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {webRoleARN},
		"WebIdentityToken": {"a.b.c"}, "RoleSessionName": (*form)["RoleSessionName"]}
	if form.Encode() != want.Encode() {
		t.Errorf("sent %s", form.Encode())
	}
}

func TestWebIdentityIgnoresTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{"AWS_ENDPOINT_URL_STS": "https://evil.invalid", "AWS_REGION": "eu-west-1", "AWS_CA_BUNDLE": "/nonexistent",
		"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_PROFILE": "none"} {
		t.Setenv(name, value)
	}
	a := newAccount(t)
	if cred, err := exchanger(t, web(), a.sts).Exchange(t.Context(), a.jwt(t, nil)); err != nil || cred.AWS.Region != "us-east-1" {
		t.Errorf("%+v, %v", cred.AWS, err)
	}
}

func TestDefaultSessionNameIsLegal(t *testing.T) {
	legal := regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	seen := map[string]string{}
	for _, id := range []string{"spiffe://example.org", "spiffe://example.org/a", "spiffe://example.org/ns/shop/sa/orders", "spiffe://other.org/ns/shop/sa/orders",
		"spiffe://example.org/" + strings.Repeat("x", 2000), "spiffe://example.org/y" + strings.Repeat("x", 2000), "spiffe://example.org/a/b", "spiffe://example.org/a.b"} {
		name := aws.SessionName(spiffeid.RequireFromString(id))
		if !legal.MatchString(name) || seen[name] != "" {
			t.Errorf("%s: %q (also of %q)", id, name, seen[name])
		}
		seen[name] = id
	}
}
