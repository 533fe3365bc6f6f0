package aws_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"encoding/json"
)

// A whoami is a GetCallerIdentity request before the vendor's signer signs it.
type whoami struct {
	creds           sdk.Credentials
	body            string
	service, region string
	date            time.Time
	after           func(*http.Request)
}

func (q *whoami) request(t testing.TB) *http.Request {
	t.Helper()
	r := httptest.NewRequest("POST", "https://sts.us-east-1.amazonaws.com/", strings.NewReader(q.body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	must(t, v4.NewSigner().SignHTTP(t.Context(), q.creds, r, digest(q.body), q.service, q.region, q.date))
	if q.after != nil {
		q.after(r)
	}
	return r
}

// session gets credentials of Roles Anywhere for 15 minutes.
func (e *anywhere) session(t testing.TB) sdk.Credentials {
	t.Helper()
	var out struct {
		CredentialSet []struct {
			Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }
		}
	}
	must(t, json.Unmarshal(e.send(t, e.call()).Body.Bytes(), &out))
	c := out.CredentialSet[0].Credentials
	return sdk.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
}

func TestGetCallerIdentityRefuses(t *testing.T) {
	const noMatch = "SignatureDoesNotMatch"
	rows := []struct {
		name   string
		change func(t *testing.T, e *anywhere, q *whoami)
		status int
		code   string
	}{
		{"not signed", func(_ *testing.T, _ *anywhere, q *whoami) {
			q.after = func(r *http.Request) { r.Header.Del("Authorization") }
		}, 403, "MissingAuthenticationToken"},
		{"another algorithm", func(_ *testing.T, _ *anywhere, q *whoami) {
			q.after = func(r *http.Request) {
				r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "HMAC", "X509-RSA", 1))
			}
		}, 400, "IncompleteSignature"},
		{"no signature", func(_ *testing.T, _ *anywhere, q *whoami) {
			q.after = func(r *http.Request) {
				a, _, _ := strings.Cut(r.Header.Get("Authorization"), ", Signature")
				r.Header.Set("Authorization", a)
			}
		}, 400, "IncompleteSignature"},
		{"unknown key", func(_ *testing.T, _ *anywhere, q *whoami) { q.creds.AccessKeyID = "ASIAAAAAAAAAAAAAAAAA" }, 403, "InvalidClientTokenId"},
		{"wrong secret", func(_ *testing.T, _ *anywhere, q *whoami) { q.creds.SecretAccessKey += "x" }, 403, noMatch},
		{"no session token", func(_ *testing.T, _ *anywhere, q *whoami) { q.creds.SessionToken = "" }, 403, noMatch},
		{"session token not signed", func(_ *testing.T, _ *anywhere, q *whoami) {
			token := q.creds.SessionToken
			q.creds.SessionToken = ""
			q.after = func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", token) }
		}, 403, noMatch},
		{"session token of another session", func(t *testing.T, e *anywhere, q *whoami) {
			q.creds.SessionToken = e.session(t).SessionToken
		}, 403, "InvalidClientTokenId"},
		{"another region", func(_ *testing.T, _ *anywhere, q *whoami) { q.region = "eu-west-1" }, 403, noMatch},
		{"another service", func(_ *testing.T, _ *anywhere, q *whoami) { q.service = "s3" }, 403, noMatch},
		{"301 s back", func(_ *testing.T, _ *anywhere, q *whoami) { q.date = q.date.Add(-301 * time.Second) }, 403, noMatch},
		{"301 s ahead", func(_ *testing.T, _ *anywhere, q *whoami) { q.date = q.date.Add(301 * time.Second) }, 403, noMatch},
		{"header changed", func(_ *testing.T, _ *anywhere, q *whoami) {
			q.after = func(r *http.Request) { r.Host = "sts.amazonaws.com" }
		}, 403, noMatch},
		{"body changed", func(_ *testing.T, _ *anywhere, q *whoami) {
			q.after = func(r *http.Request) {
				r.Body = httptest.NewRequest("POST", "/", strings.NewReader("Version=2011-06-15&Action=GetCallerIdentity")).Body
				r.ContentLength = int64(len(q.body))
			}
		}, 403, noMatch},
		{"parameter", func(_ *testing.T, _ *anywhere, q *whoami) { q.body += "&RoleArn=x" }, 400, "ValidationError"},
		{"credentials expire now", func(_ *testing.T, e *anywhere, q *whoami) {
			e.Add(15 * time.Minute)
			q.date = e.Now()
		}, 403, "ExpiredToken"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			e := newAnywhere(t)
			good := whoami{creds: e.session(t), body: "Action=GetCallerIdentity&Version=2011-06-15", service: "sts", region: region, date: e.Now()}
			q := good
			row.change(t, e, &q)
			wantError(t, e.whoami(t, &q), row.status, row.code, "")
			if row.code == "ExpiredToken" {
				e.Add(-time.Second)
			}
			good.date = e.Now()
			if w := e.whoami(t, &good); w.Code != http.StatusOK {
				t.Errorf("the good request: %s", w.Body)
			}
		})
	}
}

func (e *anywhere) whoami(t testing.TB, q *whoami) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	e.cloud.STS().ServeHTTP(w, q.request(t))
	return w
}

func TestGetCallerIdentitySkew(t *testing.T) {
	e := newAnywhere(t)
	q := whoami{creds: e.session(t), body: "Action=GetCallerIdentity&Version=2011-06-15", service: "sts", region: region}
	for _, d := range []time.Duration{-300 * time.Second, 0, 300 * time.Second} {
		q.date = e.Now().Add(d)
		if w := e.whoami(t, &q); w.Code != http.StatusOK {
			t.Errorf("%s: %s", d, w.Body)
		}
	}
}
