package aws_test

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

// A capture is what a real client sent, byte for byte.
type capture struct {
	Raw       string `json:"raw_header_block"`
	Body      string `json:"body"`
	Root      string `json:"root_pem"`
	Signed    string `json:"signed_headers"`
	Canonical string `json:"canonical_request"`
}

var (
	captureDate   = regexp.MustCompile(`X-Amz-Date: (\w+)`)
	captureRegion = regexp.MustCompile(`Credential=\d+/\d+/([^/]+)/`)
)

func captures(t *testing.T) map[string]capture {
	t.Helper()
	files, err := filepath.Glob("testdata/ra-*.json")
	must(t, err)
	if len(files) != 7 {
		t.Fatalf("%d captures, want 7", len(files))
	}
	out := map[string]capture{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		var c capture
		must(t, json.Unmarshal(b, &c))
		out[filepath.Base(f)] = c
	}
	return out
}

// handler is an endpoint that knows what the capture names, at its own time.
func (c capture) handler(t *testing.T) http.Handler {
	t.Helper()
	now, err := time.Parse("20060102T150405Z", captureDate.FindStringSubmatch(c.Raw)[1])
	must(t, err)
	where := captureRegion.FindStringSubmatch(c.Raw)[1]
	partition := "aws"
	if strings.HasPrefix(where, "cn-") {
		partition = "aws-cn"
	}
	block, _ := pem.Decode([]byte(c.Root))
	root, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	anywhere := "arn:" + partition + ":rolesanywhere:" + where + ":000000000000:"
	role := "arn:" + partition + ":iam::000000000000:role/"
	cfg := aws.Config{
		Now: func() time.Time { return now }, Account: "000000000000", Region: where, RatePerSecond: 1_000_000,
		TrustAnchors: []aws.TrustAnchor{{ARN: anywhere + "trust-anchor/11111111-2222-3333-4444-555555555555",
			Certificates: []*x509.Certificate{root}, Enabled: true}},
		Profiles: []aws.Profile{{ARN: anywhere + "profile/66666666-7777-8888-9999-000000000000", Enabled: true,
			RoleARNs: []string{role + "throwaway", role + "path/to+x=,.@-_/role"}, AcceptRoleSessionName: true}},
	}
	for _, r := range cfg.Profiles[0].RoleARNs {
		cfg.Roles = append(cfg.Roles, aws.Role{ARN: r, TrustPolicy: `{"Version":"2012-10-17","Statement":{"Effect":"Allow",
			"Principal":{"Service":"rolesanywhere.amazonaws.com"},"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"]}}`})
	}
	cloud, err := aws.New(cfg)
	must(t, err)
	return cloud.RolesAnywhere()
}

// serve gives raw bytes to the handler as net/http's server would. It says false
// if the server itself would refuse them.
func serve(h http.Handler, raw, body string) (*httptest.ResponseRecorder, bool) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + body)))
	if err != nil {
		return nil, false
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w, true
}

func TestCapturedRequestsVerify(t *testing.T) {
	for name, c := range captures(t) {
		t.Run(name, func(t *testing.T) {
			h := c.handler(t)
			if w, ok := serve(h, c.Raw, c.Body); !ok || w.Code != http.StatusCreated {
				t.Fatalf("served %t: %v", ok, w)
			}
		})
	}
}

// Each byte of the query, the signed headers, the signature and the body counts.
// That it is the signature that refuses, and not a later check, shows in the
// words: they are those of the checks of the signature.
func TestCapturedRequestsWithOneByteChanged(t *testing.T) {
	for name, c := range captures(t) {
		t.Run(name, func(t *testing.T) {
			h := c.handler(t)
			for i := range []byte(c.Raw) {
				if c.counts(i) {
					c.flipped(t, h, flip(c.Raw, i), c.Body)
				}
			}
			for i := range []byte(c.Body) {
				c.flipped(t, h, c.Raw, flip(c.Body, i))
			}
		})
	}
}

func (c capture) flipped(t *testing.T, h http.Handler, raw, body string) {
	t.Helper()
	w, ok := serve(h, raw, body)
	if !ok {
		return
	}
	if w.Code == http.StatusBadRequest && strings.Contains(w.Body.String(), "wrong content type") {
		return
	}
	early := []string{"signature", "authentication", "Credential", "date", "Untrusted", "expired"}
	for _, word := range early {
		if w.Code == http.StatusForbidden && strings.Contains(w.Body.String(), word) {
			noCredential(t, w.Body.String())
			return
		}
	}
	t.Errorf("status %d %s for\n%s%s", w.Code, w.Body, raw, body)
}

// counts says whether byte i of the header block is in the query or in the value
// of a signed header or of Authorization. Of the certificates every 31st
// byte is taken: there are thousands.
func (c capture) counts(i int) bool {
	start := strings.LastIndexByte(c.Raw[:i], '\n') + 1
	line, _, _ := strings.Cut(c.Raw[start:], "\r\n")
	if i-start >= len(line) {
		return false
	}
	if start == 0 {
		return i > strings.IndexByte(line, '?') && i < strings.LastIndexByte(line, ' ')
	}
	name, _, _ := strings.Cut(line, ":")
	signed := bytes.Contains([]byte(";"+c.Signed+";"), []byte(";"+strings.ToLower(name)+";"))
	certificate := strings.HasPrefix(name, "X-Amz-X509")
	return (signed || name == "Authorization") && i-start > len(name)+1 && (!certificate || i%31 == 0)
}

func flip(s string, i int) string {
	b := []byte(s)
	b[i] ^= 1
	return string(b)
}
