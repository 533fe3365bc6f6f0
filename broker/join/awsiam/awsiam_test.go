package awsiam_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/awsiam"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/awsiam"
	"github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	account  = "123456789012"
	instance = "i-0abcdef0123456789"
	domain   = "example.org"
)

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

// A world is an account of AWS, a node with credentials of its, and a broker.
type world struct {
	t     testing.TB
	cloud *aws.Cloud
	mu    sync.Mutex // guards the rest
	now   time.Time
	asked []string // URLs that the broker sent something to
}

func newWorld(t testing.TB, region string) *world {
	t.Helper()
	i := issuertest.New(t)
	w := &world{t: t, now: start}
	partition := "aws"
	if strings.HasPrefix(region, "cn-") {
		partition = "aws-cn"
	}
	provider := strings.TrimPrefix(issuertest.URL, "https://")
	cloud, err := aws.New(aws.Config{
		Now: w.clock, Account: account, Region: region, Roots: i.Roots(), DialContext: i.DialContext,
		Roles: []aws.Role{{ARN: "arn:" + partition + ":iam::" + account + ":role/web", TrustPolicy: `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
			"Action": "sts:AssumeRoleWithWebIdentity", "Principal": {"Federated": "arn:` + partition + `:iam::` + account + `:oidc-provider/` + provider + `"},
			"Condition": {"StringEquals": {"` + provider + `:aud": "sts"}}}]}`}},
		OIDCProviders: []aws.OIDCProvider{{URL: issuertest.URL, ClientIDs: []string{"sts"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.cloud = cloud
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		setenv(t, name, "/nonexistent")
	}
	setenv(t, "AWS_EC2_METADATA_DISABLED", "true")
	setenv(t, "AWS_REGION", region)
	w.session(partition, instance)
	return w
}

// setenv works in fuzz targets and tests alike.
func setenv(t testing.TB, name, value string) {
	t.Setenv(name, value)
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) add(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// session gives the node credentials of the role in a session of a name.
func (w *world) session(partition, name string) {
	w.t.Helper()
	form := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {"arn:" + partition + ":iam::" + account + ":role/web"},
		"RoleSessionName": {name}, "DurationSeconds": {"3600"},
		"WebIdentityToken": {issuertest.Sign(w.t, issuertest.RSA(), "RS256", map[string]any{"kid": "k1"}, map[string]any{
			"iss": issuertest.URL, "aud": "sts", "sub": name, "iat": w.clock().Unix(), "exp": w.clock().Add(time.Hour).Unix(),
		})},
	}
	r := httptest.NewRequest(http.MethodPost, "https://sts.test/", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	got := httptest.NewRecorder()
	w.cloud.STS().ServeHTTP(got, r)
	var out struct {
		Key    string `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
		Secret string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
		Token  string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
	}
	if err := xml.Unmarshal(got.Body.Bytes(), &out); err != nil || out.Key == "" {
		w.t.Fatalf("no session: %v: %s", err, got.Body)
	}
	setenv(w.t, "AWS_ACCESS_KEY_ID", out.Key)
	setenv(w.t, "AWS_SECRET_ACCESS_KEY", out.Secret)
	setenv(w.t, "AWS_SESSION_TOKEN", out.Token)
}

// post is how the broker reaches STS, which judges for itself.
func (w *world) post(_ context.Context, url string, header http.Header, body []byte) (int, string, []byte, error) {
	w.mu.Lock()
	w.asked = append(w.asked, url)
	w.mu.Unlock()
	r := httptest.NewRequest(http.MethodPost, url, strings.NewReader(string(body)))
	r.Header = header.Clone()
	got := httptest.NewRecorder()
	w.cloud.STS().ServeHTTP(got, r)
	text, err := io.ReadAll(got.Body)
	return got.Code, got.Header().Get("Content-Type"), text, err
}

func settings(t testing.TB, text string) *awsiam.Settings {
	t.Helper()
	s := new(awsiam.Settings)
	if err := yaml.UnmarshalWithOptions([]byte(text), s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) method(text string) join.Method {
	w.t.Helper()
	return w.posting(text, w.post)
}

func (w *world) posting(text string, post awsiam.Post) join.Method {
	w.t.Helper()
	m, err := awsiam.New(awsiam.Config{Settings: settings(w.t, text), TrustDomain: domain, Post: post, Now: w.clock})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// node is the agent's side.
func (w *world) node() evidence.Config { return evidence.Config{TrustDomain: domain, Now: w.clock} }

func joinBy(t testing.TB, m join.Method, answer join.Challenge) (join.Proof, error) {
	return m.Join(t.Context(), []byte{1}, answer)
}

func TestJoin(t *testing.T) {
	for name, row := range map[string]struct {
		region, settings, session string
		name, durable, instance   string
		endpoint                  string
		facts                     map[string]string
	}{
		"an instance": {"eu-west-1", `{}`, instance, instance, `["aws","123456789012","role","web","` + instance + `"]`, "",
			"https://sts.eu-west-1.amazonaws.com/", map[string]string{"partition": "aws", "instance_id": instance}},
		"an instance, banned with its role": {"eu-west-1", `{ban_by: role}`, instance, instance, `["aws","123456789012","role","web"]`, instance,
			"https://sts.eu-west-1.amazonaws.com/", map[string]string{"partition": "aws", "instance_id": instance}},
		"another session": {"eu-west-1", `{regions: [eu-west-1]}`, "ana@example.org", "ana-example.org", `["aws","123456789012","role","web"]`, "ana@example.org",
			"https://sts.eu-west-1.amazonaws.com/", map[string]string{"partition": "aws"}},
		"almost an instance": {"eu-west-1", `{}`, "i-0ABCDEF0", "i-0ABCDEF0", `["aws","123456789012","role","web"]`, "i-0ABCDEF0",
			"https://sts.eu-west-1.amazonaws.com/", map[string]string{"partition": "aws"}},
		"in China": {"cn-north-1", `{}`, "i-0abcdef0", "i-0abcdef0", `["aws-cn","123456789012","role","web","i-0abcdef0"]`, "",
			"https://sts.cn-north-1.amazonaws.com.cn/", map[string]string{"partition": "aws-cn", "instance_id": "i-0abcdef0"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, row.region)
			w.session(row.facts["partition"], row.session)
			m := w.method(row.settings)
			proof, err := joinBy(t, m, w.node().Answer)
			if err != nil {
				t.Fatal(err)
			}
			if proof.Name != row.name || proof.DurableKey != row.durable || proof.Instance != row.instance {
				t.Errorf("name %s, durable key %s, instance %s", proof.Name, proof.DurableKey, proof.Instance)
			}
			row.facts["account"], row.facts["role"], row.facts["role_session"] = account, "web", row.session
			row.facts["arn"] = "arn:" + row.facts["partition"] + ":sts::123456789012:assumed-role/web/" + row.session
			want := map[string][]string{}
			for name, value := range row.facts {
				want["node.aws_iam."+name] = []string{value}
			}
			got := proof.Facts.Map()
			if id := got["node.aws_iam.user_id"]; len(id) != 1 || !strings.HasPrefix(id[0], "AROA") || !strings.HasSuffix(id[0], ":"+row.session) {
				t.Errorf("user_id is %q", id)
			}
			delete(got, "node.aws_iam.user_id")
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			w.add(30 * time.Minute) // it comes back by itself, by a new signature
			if again, err := joinBy(t, m, w.node().Answer); err != nil || again.DurableKey != proof.DurableKey {
				t.Errorf("half an hour later: %v, %v", again, err)
			}
			if d := cmp.Diff([]string{row.endpoint, row.endpoint}, w.asked); d != "" {
				t.Error(d)
			}
		})
	}
}

// A message is a signed request that a test may spoil.
type message struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

// spoiled is the node's answer, changed.
func (w *world) spoiled(change func(*message)) join.Challenge {
	return func(ctx context.Context, challenge []byte) ([]byte, error) {
		text, err := w.node().Answer(ctx, challenge)
		if err != nil {
			return nil, err
		}
		var m message
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, err
		}
		change(&m)
		return json.Marshal(m)
	}
}

// replaced is the node's answer, its text changed, exactly once.
func (w *world) replaced(old, with string) join.Challenge {
	return func(ctx context.Context, challenge []byte) ([]byte, error) {
		text, err := w.node().Answer(ctx, challenge)
		if err == nil && strings.Count(string(text), old) != 1 {
			w.t.Errorf("%q is not there once: %s", old, text)
		}
		return []byte(strings.Replace(string(text), old, with, 1)), err
	}
}

// None of these reaches STS, whatever its signature: a header, a host, a path or
// a parameter of the node's choice would be asked, and answered, in our name.
//
// Regression: CVE-2020-16250
// Regression: CVE-2022-2385
func TestNothingOfARequestIsTheNodesToChoose(t *testing.T) {
	w := newWorld(t, "eu-west-1")
	header := func(name, value string) join.Challenge {
		return w.spoiled(func(m *message) { m.Headers[name] = value })
	}
	host := func(host string) join.Challenge {
		return w.spoiled(func(m *message) { m.Headers["host"], m.URL = host, "https://"+host+"/" })
	}
	at := func(url string) join.Challenge { return w.spoiled(func(m *message) { m.URL = url }) }
	body := func(text string) join.Challenge { return w.spoiled(func(m *message) { m.Body = text }) }
	auth := func(old, with string) join.Challenge {
		return w.spoiled(func(m *message) {
			if !strings.Contains(m.Headers["authorization"], old) {
				t.Errorf("%q is not in it", old)
			}
			m.Headers["authorization"] = strings.ReplaceAll(m.Headers["authorization"], old, with)
		})
	}
	date := func(offset time.Duration) join.Challenge {
		return func(ctx context.Context, challenge []byte) ([]byte, error) {
			node := w.node()
			node.Now = func() time.Time { return w.clock().Add(offset) }
			return node.Answer(ctx, challenge)
		}
	}
	raw := func(text string) join.Challenge {
		return func(context.Context, []byte) ([]byte, error) { return []byte(text), nil }
	}
	rows := map[string]join.Challenge{
		"another host":                 host("sts.eu-west-1.amazonaws.com.evil.example"),
		"a host before":                host("evil.sts.eu-west-1.amazonaws.com"),
		"a host of dots":               host("stsxeu-west-1.amazonaws.com"),
		"a host in capitals":           host("STS.eu-west-1.amazonaws.com"),
		"a host with a dot":            host("sts.eu-west-1.amazonaws.com."),
		"a host with a port":           host("sts.eu-west-1.amazonaws.com:444"),
		"a homograph":                  host("sts.eu-west-1.аmazonaws.com"),
		"another service's host":       host("iam.amazonaws.com"),
		"another region's host":        host("sts.eu-west-2.amazonaws.com"),
		"another partition's host":     host("sts.eu-west-1.amazonaws.com.cn"),
		"the global host":              host("sts.amazonaws.com"),
		"a FIPS host that there isn't": host("sts-fips.eu-west-1.amazonaws.com"),
		"metadata":                     host("169.254.169.254"),
		"user information":             at("https://evil@sts.eu-west-1.amazonaws.com/"),
		"another host in the URL":      at("https://evil.example/"),
		"no TLS":                       at("http://sts.eu-west-1.amazonaws.com/"),
		"a path":                       at("https://sts.eu-west-1.amazonaws.com/x"),
		"a path of dots":               at("https://sts.eu-west-1.amazonaws.com/./"),
		"a query":                      at("https://sts.eu-west-1.amazonaws.com/?Action=AssumeRole"),
		"an empty query":               at("https://sts.eu-west-1.amazonaws.com/?"),
		"a fragment":                   at("https://sts.eu-west-1.amazonaws.com/#"),
		"no path":                      at("https://sts.eu-west-1.amazonaws.com"),
		"GET":                          w.spoiled(func(m *message) { m.Method = "GET" }),
		"post":                         w.spoiled(func(m *message) { m.Method = "post" }),
		"another action":               body("Action=GetSessionToken&Version=2011-06-15"),
		"an action twice":              body("Action=GetCallerIdentity&Version=2011-06-15&Action=GetSessionToken"),
		"an action in another case":    body("Action=GetCallerIdentity&Version=2011-06-15&action=GetSessionToken"),
		"an encoded action":            body("Action=%47etCallerIdentity&Version=2011-06-15"),
		"another order":                body("Version=2011-06-15&Action=GetCallerIdentity"),
		"no body":                      body(""),
		"an Accept":                    header("accept", "text/xml"),
		"an Accept in capitals":        header("Accept", "text/xml"),
		"a length":                     header("content-length", "43"),
		"an encoding":                  header("transfer-encoding", "chunked"),
		"a forwarded host":             header("x-forwarded-host", "evil.example"),
		"a header of STS":              header("x-amz-target", "GetSessionToken"),
		"another content type":         header("content-type", "application/json"),
		"a header's name in capitals": w.spoiled(func(m *message) {
			m.Headers["Host"] = m.Headers["host"]
			delete(m.Headers, "host")
		}),
		"a header in two cases":     header("X-Amz-Date", "20260504T102030Z"),
		"a header with a line":      w.spoiled(func(m *message) { m.Headers["x-amz-security-token"] += "\r\nX-Evil: 1" }),
		"a header with a space":     w.spoiled(func(m *message) { m.Headers["x-amz-security-token"] += " " }),
		"a long token":              header("x-amz-security-token", strings.Repeat("a", 8<<10+1)),
		"a header twice":            w.replaced(`"host":`, `"host":"sts.eu-west-1.amazonaws.com","host":`),
		"a header that is a list":   w.replaced(`"host":"sts.eu-west-1.amazonaws.com"`, `"host":["sts.eu-west-1.amazonaws.com"]`),
		"a member twice":            w.replaced(`{"method":"POST"`, `{"method":"GET","method":"POST"`),
		"a member more":             w.replaced(`{"method"`, `{"form":"","method"`),
		"a member in capitals":      w.replaced(`"method"`, `"Method"`),
		"something after it":        w.replaced(`2011-06-15"}`, `2011-06-15"}}`),
		"another trust domain":      header("x-credence-trust-domain", "example.com"),
		"another challenge":         header("x-credence-challenge", strings.Repeat("A", 43)),
		"no challenge":              w.spoiled(func(m *message) { delete(m.Headers, "x-credence-challenge") }),
		"no trust domain":           w.spoiled(func(m *message) { delete(m.Headers, "x-credence-trust-domain") }),
		"no signature":              w.spoiled(func(m *message) { delete(m.Headers, "authorization") }),
		"challenge not signed":      auth(";x-credence-challenge", ""),
		"trust domain not signed":   auth(";x-credence-trust-domain", ""),
		"host not signed":           auth(";host", ""),
		"token not signed":          auth(";x-amz-security-token", ""),
		"date not signed":           auth(";x-amz-date", ""),
		"a header signed but gone":  auth("content-type;", "accept;content-type;"),
		"headers signed twice":      auth("host;", "host;host;"),
		"another service":           auth("/sts/", "/iam/"),
		"another region":            auth("/eu-west-1/", "/eu-central-1/"),
		"a region that there isn't": auth("/eu-west-1/", "/evil-west-1/"),
		"another algorithm":         auth("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
		"a signature of X.509":      auth("AWS4-HMAC-SHA256", "AWS4-X509-RSA-SHA256"),
		"another day":               auth("/20260504/", "/20260503/"),
		"old":                       date(-5*time.Minute - time.Second),
		"of the future":             date(5*time.Minute + time.Second),
		"of next year":              header("x-amz-date", "20270504T102030Z"),
		"a date that isn't":         header("x-amz-date", "20260504T102099Z"),
		"a date of another form":    header("x-amz-date", "2026-05-04T10:20:30Z"),
		"truncated":                 raw(`{"method":"POST"`),
		"null":                      raw(`null`),
		"a list":                    raw(`[]`),
		"nothing":                   raw(`{}`),
		"deep":                      raw(strings.Repeat(`{"a":`, 5000)),
		"wide":                      raw(`{"a":[` + strings.Repeat("1,", 7000) + "1]}"),
		"binary":                    raw("\x00\xff"),
		"presigned": w.spoiled(func(m *message) {
			m.Method, m.URL = "GET", "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Signature=00"
		}),
	}
	m := w.method(`{}`)
	for name, answer := range rows {
		t.Run(name, func(t *testing.T) {
			if proof, err := joinBy(t, m, answer); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
				t.Errorf("%v, %v", proof, err)
			}
		})
	}
	if len(w.asked) > 0 {
		t.Errorf("STS was asked: %q", w.asked)
	}
	if _, err := joinBy(t, m, w.spoiled(func(*message) {})); err != nil {
		t.Errorf("one that was not changed: %v", err)
	}
}

// STS refuses what only STS can tell.
func TestSTSRefuses(t *testing.T) {
	for name, answer := range map[string]func(*world) join.Challenge{
		"another signature": func(w *world) join.Challenge {
			return w.spoiled(func(m *message) {
				m.Headers["authorization"] = m.Headers["authorization"][:len(m.Headers["authorization"])-8] + "00000000"
			})
		},
		"another key": func(w *world) join.Challenge {
			setenv(w.t, "AWS_ACCESS_KEY_ID", "ASIAAAAAAAAAAAAAAAAA")
			return w.node().Answer
		},
		"another secret": func(w *world) join.Challenge {
			setenv(w.t, "AWS_SECRET_ACCESS_KEY", "other")
			return w.node().Answer
		},
		"another session's token": func(w *world) join.Challenge {
			setenv(w.t, "AWS_SESSION_TOKEN", "other")
			return w.node().Answer
		},
		"an expired session": func(w *world) join.Challenge {
			w.add(time.Hour)
			return w.node().Answer
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "eu-west-1")
			if _, err := joinBy(t, w.method(`{}`), answer(w)); !errors.Is(err, join.ErrEvidence) || len(w.asked) != 1 {
				t.Errorf("%v, asked %q", err, w.asked)
			}
		})
	}
}

// A signed request that somebody saw is good for no other join, and for no other
// trust domain.
func TestReplay(t *testing.T) {
	w := newWorld(t, "eu-west-1")
	var seen []byte
	m := w.method(`{}`)
	if _, err := joinBy(t, m, func(ctx context.Context, challenge []byte) (_ []byte, err error) {
		seen, err = w.node().Answer(ctx, challenge)
		return seen, err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := joinBy(t, m, func(context.Context, []byte) ([]byte, error) { return seen, nil }); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("a second time: %v", err)
	}
	// A broker of another trust domain hands on what it was given for our challenge.
	if _, err := joinBy(t, m, func(ctx context.Context, challenge []byte) ([]byte, error) {
		return evidence.Config{TrustDomain: "evil.example", Now: w.clock}.Answer(ctx, challenge)
	}); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("one for another trust domain: %v", err)
	}
	if len(w.asked) != 1 {
		t.Errorf("STS was asked %d times", len(w.asked))
	}
}

func TestEvidenceIsAVersion(t *testing.T) {
	w := newWorld(t, "eu-west-1")
	for _, bad := range []string{"\x00", "\x02", "\x01\x01", "{}"} {
		_, err := w.method(`{}`).Join(t.Context(), []byte(bad), func(context.Context, []byte) ([]byte, error) {
			t.Error("a challenge was put")
			return nil, errors.New("no")
		})
		if !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	lost := errors.New("the node is gone")
	if _, err := joinBy(t, w.method(`{}`), func(context.Context, []byte) ([]byte, error) { return nil, lost }); !errors.Is(err, lost) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("no answer: %v", err)
	}
}

// What STS answers is read strictly: in one encoding, each member once, and its
// parts must fit together.
//
// Regression: CVE-2020-16250
func TestAnswersOfSTS(t *testing.T) {
	w := newWorld(t, "eu-west-1")
	answer := func(account, arn, id string) string {
		return `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"` + account + `","Arn":"` + arn + `","UserId":"` + id + `"},"ResponseMetadata":{"RequestId":"x"}}}`
	}
	const roleARN, roleID = "arn:aws:sts::123456789012:assumed-role/web/i-0abcdef0", "AROAAAAAAAAAAAAAAAAAA:i-0abcdef0"
	const userARN, userID = "arn:aws:iam::123456789012:user/ops/build+1", "AIDAAAAAAAAAAAAAAAAAA"
	good := answer(account, roleARN, roleID)
	const json, yes, bad, unknown = "application/json", "", "evidence", "unknown"
	for name, row := range map[string]struct {
		status     int
		kind, text string
		want       string
	}{
		"a role":                         {200, json, good, yes},
		"a role, with a charset":         {200, "application/json; charset=utf-8", good, yes},
		"a user":                         {200, json, answer(account, userARN, userID), yes},
		"a root user":                    {200, json, answer(account, "arn:aws:iam::123456789012:root", account), bad},
		"a federated user":               {200, json, answer(account, "arn:aws:sts::123456789012:federated-user/x", account+":x"), bad},
		"another account":                {200, json, answer("210987654321", roleARN, roleID), bad},
		"another account, of a user":     {200, json, answer("210987654321", userARN, userID), bad},
		"another session":                {200, json, answer(account, roleARN, roleID+"1"), bad},
		"a user's ID of a role":          {200, json, answer(account, roleARN, userID), bad},
		"a role's ID of a user":          {200, json, answer(account, userARN, roleID), bad},
		"an ARN within another":          {200, json, answer(account, "arn:aws:iam::123456789012:user/"+roleARN, roleID), bad},
		"a session with a slash":         {200, json, answer(account, roleARN+"/x", roleID+"/x"), bad},
		"a session with a line":          {200, json, answer(account, roleARN+`\n`, roleID+`\n`), bad},
		"another partition":              {200, json, answer(account, strings.Replace(roleARN, ":aws:", ":aws-cn:", 1), roleID), bad},
		"a partition that there isn't":   {200, json, answer(account, strings.Replace(roleARN, ":aws:", ":aws-x:", 1), roleID), bad},
		"no ARN":                         {200, json, `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"123456789012","UserId":"x"}}}`, unknown},
		"an ARN that is a number":        {200, json, strings.Replace(good, `"`+roleARN+`"`, "1", 1), unknown},
		"an ARN twice":                   {200, json, strings.Replace(good, `"Arn"`, `"Arn":"arn:aws:sts::123456789012:assumed-role/admin/x","Arn"`, 1), unknown},
		"an ARN in another case":         {200, json, strings.Replace(good, `"Arn"`, `"arn":"x","Arn"`, 1), unknown},
		"a result twice":                 {200, json, strings.Replace(good, `"ResponseMetadata"`, `"GetCallerIdentityResult":{},"ResponseMetadata"`, 1), unknown},
		"something after it":             {200, json, good + "{}", unknown},
		"another action's":               {200, json, strings.ReplaceAll(good, "GetCallerIdentity", "GetSessionToken"), unknown},
		"two actions'":                   {200, json, strings.Replace(good, `{"Get`, `{"GetSessionTokenResponse":{},"Get`, 1), unknown},
		"XML":                            {200, "text/xml", "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>" + roleARN + "</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>", unknown},
		"JSON that says it is XML":       {200, "text/xml", good, unknown},
		"JSON within XML":                {200, json, "<Message>" + good + "</Message>", unknown},
		"no content type":                {200, "", good, unknown},
		"two content types":              {200, "application/json, text/xml", good, unknown},
		"too much":                       {200, json, good + strings.Repeat(" ", 8<<10), unknown},
		"nothing":                        {200, json, "", unknown},
		"another good status":            {202, json, good, unknown},
		"a redirect":                     {307, json, good, unknown},
		"throttled, as STS does":         {400, "text/xml", "", unknown},
		"throttled, as others do":        {429, json, good, unknown},
		"refused, in the form of a yes":  {403, json, good, bad},
		"down, in the form of an answer": {503, json, good, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			m := w.posting(`{}`, func(context.Context, string, http.Header, []byte) (int, string, []byte, error) {
				return row.status, row.kind, []byte(row.text), nil
			})
			proof, err := joinBy(t, m, w.node().Answer)
			got := yes
			switch {
			case errors.Is(err, join.ErrEvidence):
				got = bad
			case err != nil:
				got = unknown
			}
			if got != row.want || (proof.DurableKey == "") != (got != yes) {
				t.Errorf("%v, %v: want %q", proof, err, row.want)
			}
		})
	}
	down := errors.New("STS is down")
	m := w.posting(`{}`, func(context.Context, string, http.Header, []byte) (int, string, []byte, error) {
		return 0, "", nil, down
	})
	if _, err := joinBy(t, m, w.node().Answer); !errors.Is(err, down) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("STS away: %v", err)
	}
}

// A user's keys have no session, and all who have them are one node.
func TestAUser(t *testing.T) {
	w := newWorld(t, "us-east-1")
	setenv(t, "AWS_SESSION_TOKEN", "")
	setenv(t, "AWS_ACCESS_KEY_ID", "AKIAAAAAAAAAAAAAAAAA")
	var sent http.Header
	m := w.posting(`{}`, func(_ context.Context, _ string, h http.Header, _ []byte) (int, string, []byte, error) {
		sent = h
		return 200, "application/json", []byte(`{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"123456789012",
			"Arn":"arn:aws:iam::123456789012:user/ops/build+1","UserId":"AIDAAAAAAAAAAAAAAAAAA"},"ResponseMetadata":{"RequestId":"x"}}}`), nil
	})
	proof, err := joinBy(t, m, w.node().Answer)
	if err != nil {
		t.Fatal(err)
	}
	if proof.Name != "build-1" || proof.Instance != "" || proof.DurableKey != `["aws","123456789012","user","build+1"]` {
		t.Errorf("%+v", proof)
	}
	if got := proof.Facts.Map()["node.aws_iam.user"]; !cmp.Equal(got, []string{"build+1"}) {
		t.Errorf("user %q", got)
	}
	names := map[string]bool{}
	for name := range sent {
		names[name] = true
	}
	want := map[string]bool{"Authorization": true, "Content-Type": true, "X-Amz-Date": true, "X-Credence-Challenge": true, "X-Credence-Trust-Domain": true, "Accept": true}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
}

// Settings say where requests may go; what they leave out goes nowhere.
func TestEndpoints(t *testing.T) {
	const yes, no = true, false
	for name, row := range map[string]struct {
		settings, region, endpoint, fips string
		want                             bool
	}{
		"its region":                   {`{regions: [eu-west-1]}`, "eu-west-1", "", "", yes},
		"another region":               {`{regions: [eu-west-2]}`, "eu-west-1", "", "", no},
		"FIPS":                         {`{}`, "us-east-1", "", "true", yes},
		"the global one, not asked":    {`{}`, "us-east-1", "https://sts.amazonaws.com", "", no},
		"the global one":               {`{global: true}`, "us-east-1", "https://sts.amazonaws.com", "", yes},
		"the global one beside one":    {`{global: true, regions: [eu-west-1]}`, "us-east-1", "https://sts.amazonaws.com", "", yes},
		"and not that region's own":    {`{global: true, regions: [eu-west-1]}`, "us-east-1", "", "", no},
		"the global one from afar":     {`{global: true}`, "eu-west-1", "https://sts.amazonaws.com", "", no},
		"one of its own":               {`{endpoint: "https://127.0.0.1:8443"}`, "eu-west-1", "https://127.0.0.1:8443", "", yes},
		"one of its own, of a region":  {`{endpoint: "https://127.0.0.1:8443", regions: [eu-west-2]}`, "eu-west-1", "https://127.0.0.1:8443", "", no},
		"AWS' beside one of its own":   {`{endpoint: "https://127.0.0.1:8443"}`, "eu-west-1", "", "", no},
		"one of the node's, not asked": {`{}`, "eu-west-1", "https://127.0.0.1:8443", "", no},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, row.region)
			setenv(t, "AWS_ENDPOINT_URL_STS", row.endpoint)
			setenv(t, "AWS_USE_FIPS_ENDPOINT", row.fips)
			_, err := joinBy(t, w.method(row.settings), w.node().Answer)
			if got := err == nil; got != row.want || got != (len(w.asked) == 1) {
				t.Errorf("%v, asked %q", err, w.asked)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	for text, field := range map[string]string{
		`{}`: "", `{regions: [eu-west-1, us-gov-west-1, cn-northwest-1]}`: "", `{ban_by: role}`: "", `{ban_by: instance, global: true}`: "",
		`{endpoint: "https://vpce-1.sts.eu-west-1.vpce.amazonaws.com", regions: [eu-isoe-west-1]}`: "",
		`{regions: [eu-west-1.evil]}`: "regions", `{regions: [""]}`: "regions", `{regions: [EU-west-1]}`: "regions", `{regions: [eu-isoe-west-1]}`: "regions",
		`{regions: ["eu-west-1.evil"], endpoint: "https://x.example"}`: "regions",
		`{ban_by: account}`: "ban_by", `{ca: "x"}`: "ca", `{ca: "x", endpoint: "https://x.example"}`: "ca",
		`{endpoint: "http://x.example"}`: "endpoint", `{endpoint: "https://x.example/"}`: "endpoint", `{endpoint: "https://x.example/y"}`: "endpoint",
		`{endpoint: "https://x.example?"}`: "endpoint", `{endpoint: "https://a@x.example"}`: "endpoint", `{endpoint: "https://X.example"}`: "endpoint",
		`{endpoint: "https://"}`: "endpoint", `{endpoint: "x.example"}`: "endpoint", `{endpoint: "https://x.example#"}`: "endpoint",
		`{endpoint: "https://x.example", global: true}`: "global",
	} {
		err := settings(t, text).Validate()
		if (err == nil) != (field == "") || err != nil && !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", text, err)
		}
		if _, failed := awsiam.New(awsiam.Config{Settings: settings(t, text), TrustDomain: domain}); (failed == nil) != (err == nil) {
			t.Errorf("%s: a method is made: %v", text, failed)
		}
	}
	if _, err := awsiam.New(awsiam.Config{Settings: settings(t, `{}`)}); err == nil {
		t.Error("a method for any trust domain")
	}
}

// Whatever a node answers, STS is asked at its own endpoint or not at all.
func FuzzAnswer(f *testing.F) {
	w := newWorld(f, "eu-west-1")
	var challenge []byte
	honest, err := w.node().Answer(f.Context(), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(honest)
	f.Add([]byte(`{"method":"POST","url":"https://sts.eu-west-1.amazonaws.com/","headers":{},"body":""}`))
	m := w.posting(`{}`, func(_ context.Context, url string, _ http.Header, _ []byte) (int, string, []byte, error) {
		if url != "https://sts.eu-west-1.amazonaws.com/" {
			f.Errorf("%q is asked", url)
		}
		return http.StatusForbidden, "", nil, nil
	})
	f.Fuzz(func(t *testing.T, answer []byte) {
		if _, err := joinBy(t, m, func(_ context.Context, c []byte) ([]byte, error) { challenge = c; return answer, nil }); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("challenge %x: %v", challenge, err)
		}
	})
}
