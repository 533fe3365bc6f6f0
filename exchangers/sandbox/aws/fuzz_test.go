package aws_test

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

// Whatever the bytes, the answer is an error in the service's shape, or the
// bytes are those of a client that holds a key.
func FuzzRolesAnywhere(f *testing.F) {
	e := newAnywhere(f)
	for _, c := range []*call{e.call(), {key: e.key, leaf: e.cert, date: "x", chain: nil, algorithm: "y"}} {
		r := c.request(f)
		f.Add(r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("X-Amz-X509"), r.Header.Get("X-Amz-X509"), c.body)
	}
	f.Fuzz(func(t *testing.T, query, auth, cert, chain, body string) {
		r := httptest.NewRequest("POST", "/sessions", strings.NewReader(body))
		r.URL.RawQuery = query
		r.Header = http.Header{"Content-Type": {"application/json"}, "X-Amz-Date": {e.Now().Format("20060102T150405Z")},
			"Authorization": {auth}, "X-Amz-X509": {cert}, "X-Amz-X509-Chain": {chain}}
		w := httptest.NewRecorder()
		e.cloud.RolesAnywhere().ServeHTTP(w, r)
		if w.Code != 400 && w.Code != 403 || w.Header().Get("X-Amzn-Errortype") == "" {
			t.Errorf("status %d %s", w.Code, w.Body)
		}
		noCredential(t, w.Body.String())
	})
}

func FuzzSTS(f *testing.F) {
	e := newWeb(f)
	f.Add("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 5\r\n\r\n", "Action=GetCallerIdentity&Version=2011-06-15")
	f.Add("POST / HTTP/1.1\r\nHost: x\r\nAuthorization: AWS4-HMAC-SHA256 Credential=a/20261121/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n", "")
	f.Add("POST / HTTP/1.1\r\nHost: x\r\n\r\n", e.form(e.token().with("aud", "x")).Encode())
	f.Fuzz(func(t *testing.T, head, body string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			return
		}
		r.Body = httptest.NewRequest("POST", "/", strings.NewReader(body)).Body
		w := httptest.NewRecorder()
		e.cloud.STS().ServeHTTP(w, r)
		if w.Code < 400 || w.Code >= 500 || !strings.HasPrefix(w.Body.String(), "<ErrorResponse ") {
			t.Errorf("status %d %s", w.Code, w.Body)
		}
		noCredential(t, w.Body.String())
	})
}

// A policy that is accepted can be asked.
func FuzzTrustPolicy(f *testing.F) {
	e := newAnywhere(f)
	for _, p := range []string{anywherePolicy, webPolicy, allowAll, `{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":"*",
		"Action":"sts:*","Condition":{"ForAllValues:ArnLikeIfExists":{"a:b":["arn:*:*:*:*:*"]},"Null":{"c:d":true}}}}`} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if e.cloud.PutRole(aws.Role{ARN: roleARN, TrustPolicy: text}) == nil {
			e.send(t, e.call())
		}
	})
}
