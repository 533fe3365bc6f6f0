package aws_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

const (
	nextARN    = "arn:aws:iam::123456789012:role/next"
	nextPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + roleARN + `"},
  "Action":["sts:AssumeRole","sts:SetSourceIdentity"],"Condition":{"StringEquals":{"sts:ExternalId":"ext-1"}}}]}`
	throughAccount = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},
  "Action":["sts:AssumeRole","sts:SetSourceIdentity"]}]}`
)

func nextForm() url.Values {
	return url.Values{"Action": {"AssumeRole"}, "Version": {"2011-06-15"}, "RoleArn": {nextARN}, "RoleSessionName": {"sess"}, "ExternalId": {"ext-1"}}
}

// next asks for the second role, signed with the session.
func (e *anywhere) next(t testing.TB, creds sdk.Credentials, f url.Values) *httptest.ResponseRecorder {
	t.Helper()
	q := whoami{creds: creds, body: f.Encode(), service: "sts", region: region, date: e.Now()}
	w := httptest.NewRecorder()
	e.cloud.STS().ServeHTTP(w, q.request(t))
	return w
}

func withNext(cfg *aws.Config) {
	cfg.Roles = append(cfg.Roles, aws.Role{ARN: nextARN, TrustPolicy: nextPolicy})
}

func (e *anywhere) wantNext(t testing.TB) {
	t.Helper()
	if w := e.next(t, e.session(t), nextForm()); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "assumed-role/next/sess") {
		t.Fatalf("the good request: status %d: %s", w.Code, w.Body)
	}
}

func TestAssumeRoleRefuses(t *testing.T) {
	set := func(name string, values ...string) func(*testing.T, *anywhere, url.Values) {
		return func(_ *testing.T, _ *anywhere, f url.Values) {
			f[name] = values
			if len(values) == 0 {
				f.Del(name)
			}
		}
	}
	trust := func(policy string) func(*testing.T, *anywhere, url.Values) {
		return func(t *testing.T, e *anywhere, _ url.Values) {
			must(t, e.cloud.PutRole(aws.Role{ARN: nextARN, TrustPolicy: policy}))
		}
	}
	for name, row := range map[string]struct {
		change func(*testing.T, *anywhere, url.Values)
		status int
		code   string
		text   string
	}{
		"no role":                {set("RoleArn"), 400, "ValidationError", "roleArn"},
		"user for a role":        {set("RoleArn", "arn:aws:iam::123456789012:user/x"), 400, "ValidationError", "roleArn"},
		"role that is not there": {set("RoleArn", nextARN+"x"), 403, "AccessDenied", "is not authorized to perform: sts:AssumeRole on resource: " + nextARN + "x"},
		"role elsewhere":         {set("RoleArn", "arn:aws:iam::210987654321:role/next"), 403, "AccessDenied", "is not authorized"},
		"no session name":        {set("RoleSessionName"), 400, "ValidationError", "roleSessionName"},
		"SPIFFE ID as name":      {set("RoleSessionName", spiffeID), 400, "ValidationError", "roleSessionName"},
		"899 s":                  {set("DurationSeconds", "899"), 400, "ValidationError", "durationSeconds"},
		"an hour and a second":   {set("DurationSeconds", "3601"), 400, "ValidationError", "1 hour session limit"},
		"no external ID":         {set("ExternalId"), 403, "AccessDenied", ""},
		"another external ID":    {set("ExternalId", "ext-2"), 403, "AccessDenied", ""},
		"space in the ID":        {set("ExternalId", "a b"), 400, "ValidationError", "externalId"},
		"1225 characters":        {set("ExternalId", strings.Repeat("x", 1225)), 400, "ValidationError", "externalId"},
		"a token beside":         {set("WebIdentityToken", "eyJhbGciOiJ9"), 400, "ValidationError", "unknown"},
		"tags":                   {set("Tags.member.1.Key", "a"), 400, "ValidationError", "unknown"},
		"policy is no JSON":      {set("Policy", "allow"), 400, "MalformedPolicyDocument", ""},
		"twice the role":         {set("RoleArn", nextARN, nextARN), 400, "ValidationError", ""},
		"not trusted":            {trust(strings.Replace(nextPolicy, roleARN, nextARN, 1)), 403, "AccessDenied", ""},
		"a service is trusted":   {trust(anywherePolicy), 403, "AccessDenied", ""},
		"no SetSourceIdentity":   {trust(strings.Replace(nextPolicy, `,"sts:SetSourceIdentity"`, "", 1)), 403, "AccessDenied", ""},
		"everyone is allowed":    {trust(strings.Replace(nextPolicy, `"`+roleARN+`"`, `"*"`, 1)), 403, "AccessDenied", ""},
		"denied to everyone":     {trust(strings.TrimSuffix(nextPolicy, "]}") + `,{"Effect":"Deny","Principal":"*","Action":"sts:*"}]}`), 403, "AccessDenied", ""},
		"denied to the account": {trust(strings.TrimSuffix(nextPolicy, "]}") +
			`,{"Effect":"Deny","Principal":{"AWS":"123456789012"},"Action":"sts:AssumeRole"}]}`), 403, "AccessDenied", ""},
		"the account alone": {trust(throughAccount), 403, "AccessDenied", ""},
		"another session":   {trust(strings.Replace(nextPolicy, roleARN, "arn:aws:sts::123456789012:assumed-role/orders/other", 1)), 403, "AccessDenied", ""},
		"a tag that it lacks": {trust(strings.Replace(nextPolicy, `"sts:ExternalId":"ext-1"`, `"aws:PrincipalTag/x509SAN/URI":"spiffe://example.org/x"`, 1)),
			403, "AccessDenied", ""},
		"the permission of another role": {func(t *testing.T, e *anywhere, _ url.Values) {
			must(t, e.cloud.PutRole(aws.Role{ARN: nextARN, TrustPolicy: throughAccount, MayAssume: []string{nextARN}}))
		}, 403, "AccessDenied", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newAnywhere(t, withNext)
			e.wantNext(t)
			f := nextForm()
			row.change(t, e, f)
			wantError(t, e.next(t, e.session(t), f), row.status, row.code, row.text)
			must(t, e.cloud.PutRole(aws.Role{ARN: nextARN, TrustPolicy: nextPolicy}))
			e.wantNext(t)
		})
	}
}

func TestAssumeRoleWantsALiveSession(t *testing.T) {
	e := newAnywhere(t, withNext)
	creds := e.session(t)
	q := whoami{creds: creds, body: nextForm().Encode(), service: "sts", region: region, date: e.Now(),
		after: func(r *http.Request) { r.Header.Del("Authorization") }}
	w := httptest.NewRecorder()
	e.cloud.STS().ServeHTTP(w, q.request(t))
	wantError(t, w, 403, "MissingAuthenticationToken", "")
	other := creds
	other.SecretAccessKey += "x"
	wantError(t, e.next(t, other, nextForm()), 403, "SignatureDoesNotMatch", "")
	e.Add(15 * time.Minute)
	wantError(t, e.next(t, creds, nextForm()), 403, "ExpiredToken", "")
	e.wantNext(t)
}

func TestAssumeRoleTakes(t *testing.T) {
	for name, change := range map[string]func(*aws.Config){
		"role named": func(*aws.Config) {},
		"a tag of the caller": func(c *aws.Config) {
			c.Roles[1].TrustPolicy = strings.Replace(nextPolicy, `"sts:ExternalId":"ext-1"`, `"aws:PrincipalTag/x509SAN/URI":"`+spiffeID+`"`, 1)
		},
		"source identity": func(c *aws.Config) {
			c.Roles[1].TrustPolicy = strings.Replace(nextPolicy, `"sts:ExternalId":"ext-1"`, `"aws:SourceIdentity":"CN=orders"`, 1)
		},
		"the account and a permission": func(c *aws.Config) {
			c.Roles[1].TrustPolicy, c.Roles[0].MayAssume = throughAccount, []string{nextARN}
		},
		"session policy that lets it": func(c *aws.Config) {
			c.Profiles[0].SessionPolicy = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["s3:*","sts:AssumeRole","sts:Set*"],"Resource":"arn:aws:iam::123456789012:role/*"}}`
		},
	} {
		t.Run(name, func(t *testing.T) { newAnywhere(t, withNext, change).wantNext(t) })
	}
}

// What narrows the first session narrows what it can go on to.
func TestSessionPolicyHoldsForChaining(t *testing.T) {
	statement := func(s string) string { return `{"Version":"2012-10-17","Statement":[` + s + `]}` }
	all := `{"Effect":"Allow","Action":"*","Resource":"*"}`
	for name, policy := range map[string]string{
		"another action":       statement(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`),
		"another resource":     statement(`{"Effect":"Allow","Action":"*","Resource":"arn:aws:iam::123456789012:role/x"}`),
		"without SetSource":    statement(`{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}`),
		"denied":               statement(all + `,{"Effect":"Deny","Action":"sts:Assume*","Resource":"*"}`),
		"denied on conditions": statement(all + `,{"Effect":"Deny","Action":"s3:*","Resource":"*","Condition":{}}`),
		"allowed on some":      statement(`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{}}`),
		"no statement":         `{}`,
	} {
		t.Run(name, func(t *testing.T) {
			e := newAnywhere(t, withNext, func(c *aws.Config) { c.Profiles[0].SessionPolicy = policy })
			wantError(t, e.next(t, e.session(t), nextForm()), 403, "AccessDenied", "")
		})
	}
}

// The vendor's client chains, and is who it became; tags that are transitive go
// on, and need TagSession.
func TestSDKChains(t *testing.T) {
	const policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + roleARN + `"},"Action":["sts:AssumeRole","sts:TagSession"]}]}`
	e := newWeb(t, realTime, func(c *aws.Config) {
		c.Roles = append(c.Roles, aws.Role{ARN: nextARN, TrustPolicy: policy})
		c.Roles[0].TrustPolicy = strings.Replace(webPolicy, `"sts:AssumeRoleWithWebIdentity"`, `"sts:AssumeRoleWithWebIdentity","sts:TagSession"`, 1)
	})
	tagged := realToken(e).with("https://aws.amazon.com/tags", map[string]any{"principal_tags": map[string]any{"Team": []string{"a"}, "Cost": []string{"b"}}, "transitive_tag_keys": []string{"Team"}})
	out, err := client(t, e.cloud.STS(), sdk.AnonymousCredentials{}).AssumeRoleWithWebIdentity(t.Context(), input(tagged))
	must(t, err)
	c := out.Credentials
	first := client(t, e.cloud.STS(), credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken))
	ask := func() (*sts.AssumeRoleOutput, error) {
		return first.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: sdk.String(nextARN), RoleSessionName: sdk.String("second")})
	}
	must(t, e.cloud.PutRole(aws.Role{ARN: nextARN, TrustPolicy: strings.Replace(policy, `,"sts:TagSession"`, "", 1)}))
	if out, err := ask(); err == nil {
		t.Errorf("transitive tags without TagSession: %+v", out.AssumedRoleUser)
	}
	must(t, e.cloud.PutRole(aws.Role{ARN: nextARN, TrustPolicy: policy}))
	next, err := ask()
	must(t, err)
	c = next.Credentials
	me, err := client(t, e.cloud.STS(), credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)).
		GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	must(t, err)
	if sdk.ToString(me.Arn) != "arn:aws:sts::123456789012:assumed-role/next/second" {
		t.Errorf("%+v", me)
	}
	for _, s := range e.cloud.Sessions() {
		if s.AccessKeyID == *c.AccessKeyId && (len(s.Tags) != 1 || s.Tags["Team"] != "a") {
			t.Errorf("tags %v", s.Tags)
		}
	}
}
