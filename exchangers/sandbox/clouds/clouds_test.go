package clouds_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/sandbox/clouds"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const spiffeID = "spiffe://example.org/checkout"

func example(t testing.TB, e clouds.Example) string {
	t.Helper()
	var b bytes.Buffer
	if err := e.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func parse(t testing.TB, text string) clouds.Config {
	t.Helper()
	var c clouds.Config
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&c); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

var plain = clouds.Example{Issuer: issuertest.URL, ID: spiffeID, Anchor: "bundle.pem"}

// commented is a key that the example has as a comment.
var commented = regexp.MustCompile(`(?m)^( *)# ?( *[a-z_]+:( .*)?)$`)

// Every key that there is stands in the example, and each that stands there as
// a comment can be taken out of it, all at once.
func TestExampleIsComplete(t *testing.T) {
	for name, e := range map[string]clouds.Example{
		"plain": plain, "on loopback": {Issuer: "https://127.0.0.1:8445", ID: spiffeID, Anchor: "bundle.pem", IssuerCA: "ca.pem"},
		"elsewhere": {Issuer: "https://id.example.org", ID: spiffeID, Anchor: "bundle.pem", IssuerCA: "ca.pem", At: "127.0.0.1:8445"},
	} {
		c := parse(t, example(t, e))
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	all := commented.ReplaceAllString(example(t, plain), "$1$2")
	c := parse(t, all)
	if err := c.Check(); err != nil {
		t.Errorf("with every comment taken out: %v\n%s", err, all)
	}
	b, err := yaml.Marshal(parse(t, all))
	if err != nil {
		t.Fatal(err)
	}
	own := regexp.MustCompile(`(?m)^\s*(?:- )?([a-z_0-9]+):`)
	for _, m := range own.FindAllSubmatch(b, -1) {
		key := string(m[1])
		if key != "cert" && key != "key" && key != "expression" && !strings.Contains(all, key+":") {
			t.Errorf("the example has no key %s", key)
		}
	}
}

// What an example shows as a default is the default.
func TestExampleShowsDefaults(t *testing.T) {
	c := parse(t, example(t, plain))
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	shown := commented.ReplaceAllString(example(t, plain), "$1$2")
	d := parse(t, shown)
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Listen, d.Listen); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(c.TLS, d.TLS); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(c.Azure.Resources, d.Azure.Resources); diff != "" || c.Record != d.Record {
		t.Error(diff)
	}
	if diff := cmp.Diff(c.Azure.Tenants[0].Apps, d.Azure.Tenants[0].Apps); diff != "" {
		t.Error(diff)
	}
}

func TestExampleRefuses(t *testing.T) {
	for name, e := range map[string]clouds.Example{
		"http": {Issuer: "http://id.example.org", ID: spiffeID, Anchor: "a"}, "quote": {Issuer: issuertest.URL, ID: spiffeID + `"`, Anchor: "a"},
		"line": {Issuer: issuertest.URL, ID: spiffeID, Anchor: "a\nb: c"},
	} {
		if err := e.Write(io.Discard); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

// What no cloud would create is refused with the path of its field.
func TestCheckRefuses(t *testing.T) {
	for name, row := range map[string]struct{ old, new, path string }{
		"nothing to judge":     {"", "record: 5\n", "aws"},
		"account":              {`account: "123456789012"`, `account: "1"`, "aws"},
		"anchor's ARN":         {"trust-anchor/4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21\n      certificates", "profile/4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21\n      certificates", "aws.trust_anchors[0]"},
		"profile's role":       {`roles: ["arn:aws:iam::123456789012:role/orders"]`, `roles: ["orders"]`, "aws.profiles[0]"},
		"trust policy":         {"Principal: {Service:", "Principle: {Service:", "aws.roles[0]"},
		"second trust policy":  {"StringEquals: {\"example.com/credence:sub", "StringSame: {\"example.com/credence:sub", "aws.roles[1]"},
		"provider with a port": {"- url: https://example.com/credence", "- url: https://example.com:8443/credence", "aws.oidc_providers[0]"},
		"pool's ID":            {"id: workloads", "id: gcp-workloads", "gcp.pools[0]"},
		"mapping":              {"{google.subject: assertion.sub}", "{google.subject: assertion..sub}", "gcp.pools[0].providers[0]"},
		"member":               {`"principal://iam.googleapis.com/projects`, `"principals://iam.googleapis.com/projects`, "gcp.service_accounts[0]"},
		"neither OIDC nor X.509": {"          x509:\n            trust_anchors: bundle.pem\n            # intermediates: intermediates.pem\n", "",
			"gcp.pools[0].providers[1]"},
		"tenant":           {"id: 6f1d1e0a-", "id: 6f1d1e0a", "azure.tenants[0]"},
		"credential":       {"- name: orders", "- name: or", "azure.tenants[0]"},
		"certificate only": {"  ca_file: sandbox-ca.pem", "  cert: a.pem", "tls"},
		"CA and certificate": {"  ca_file: sandbox-ca.pem", "  cert: a.pem\n  key: b.pem\n  ca_file: c.pem",
			"tls"},
		"identifier":   {"identifier: https://login.example", "identifier: login.example", "oauth"},
		"claims' type": {"            # bound_claims_type: string", "            bound_claims_type: regexp #", "vault.mounts[0]"},
		"vault's role": {"            user_claim: sub\n", "", "vault"},
		"record":       {"faults: sandbox.sock", "record: -1", "record"},
		"address":      {"\ntls: ", "\nlisten: {sts: nowhere}\ntls: ", "listen.sts"},
		"resolve":      {"issuers: ", "issuers:\n  resolve: {\"https://id.example.org\": \"127.0.0.1:1\"}\n#", "issuers.resolve"},
		"key age":      {"issuers: ", "issuers:\n  key_age: -1s\n#", "issuers.key_age"},
		"CRL": {"      # crls: [{crl: ca.crl.pem, disabled: true}]", "      crls: [{crl: \"-----BEGIN X509 CRL-----\"}]",
			"aws.trust_anchors[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(example(t, plain), row.old, row.new, 1)
			if row.old == "" {
				text = row.new
			} else if !strings.Contains(example(t, plain), row.old) {
				t.Fatalf("the example has no %q", row.old)
			}
			c := parse(t, text)
			err := c.Check()
			if err == nil {
				t.Fatal("taken")
			}
			if path, _, _ := strings.Cut(err.Error(), ": "); path != row.path {
				t.Errorf("%v, want it to begin with %s", err, row.path)
			}
		})
	}
}

// An unknown key is refused wherever it stands, in a policy too.
func TestUnknownKeys(t *testing.T) {
	for _, text := range []string{"awz: {}", "aws: {acount: 1}", "azure: {tenants: [{apps: [{credentials: []}]}]}", "listen: {gcp-sts: x}"} {
		var c clouds.Config
		if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&c); err == nil {
			t.Errorf("%s: taken", text)
		}
	}
}

// running serves an example for issuertest's issuer.
type running struct {
	*clouds.Clouds
	issuer *issuertest.Issuer
	client *http.Client
}

func run(t testing.TB, changes ...func(*clouds.Config)) *running {
	t.Helper()
	r := &running{issuer: issuertest.New(t)}
	dir := t.TempDir()
	anchor := issuertest.NewCA(t, "root", time.Now(), nil)
	files := map[string][]byte{"bundle.pem": anchor.Certificate.Raw, "ca.pem": r.issuer.Server.Certificate().Raw}
	for name, der := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := parse(t, example(t, clouds.Example{Issuer: issuertest.URL, ID: spiffeID, Anchor: filepath.Join(dir, "bundle.pem"),
		IssuerCA: filepath.Join(dir, "ca.pem"), At: r.issuer.Server.Listener.Addr().String()}))
	c.Issuers.Timeout = clouds.Duration(3 * time.Second)
	for _, f := range changes {
		f(&c)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.Clouds, err = clouds.New(c, nil); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(nil)
	server.Close()
	if err := r.Serve(server.TLS.Certificates[0], nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	tr := &http.Transport{TLSClientConfig: server.Client().Transport.(*http.Transport).TLSClientConfig}
	t.Cleanup(tr.CloseIdleConnections)
	r.client = &http.Client{Transport: tr, Timeout: 10 * time.Second}
	return r
}

// assume asks STS for the role of the web identity.
func (r *running) assume(t testing.TB) (int, string) {
	t.Helper()
	now := time.Now().Unix()
	token := issuertest.Sign(t, issuertest.RSA(), "RS256", nil, map[string]any{"iss": issuertest.URL, "sub": spiffeID, "aud": "sts.amazonaws.com", "iat": now - 5, "exp": now + 900})
	resp, err := r.client.PostForm(r.URLs()["sts"]+"/", url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {"arn:aws:iam::123456789012:role/orders-web"},
		"RoleSessionName": {"checkout"}, "WebIdentityToken": {token}})
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// ask calls the switchboard.
func (r *running) ask(t testing.TB, method, path, body string, into any) int {
	t.Helper()
	w := httptest.NewRecorder()
	r.Switchboard().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatalf("%s: %v", w.Body, err)
		}
	}
	return w.Code
}

func TestServicesAnswer(t *testing.T) {
	r := run(t)
	if status, body := r.assume(t); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	for _, name := range r.Names() {
		resp, err := r.client.Get(r.URLs()[name] + "/nowhere")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	resp, err := r.client.Get(r.URLs()["gcp_whoami"] + "/oauth2/v3/certs")
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("certs: %v %v", resp, err)
	}
	resp.Body.Close()
	var all []clouds.Request
	r.ask(t, "GET", "/requests?service=sts", "", &all)
	if len(all) != 2 || all[0].Status != 200 || len(all[0].Token) != 64 || all[1].Code != "InvalidAction" {
		t.Errorf("requests %+v", all)
	}
}

// The kinds of faults as a client sees them.
func TestFaults(t *testing.T) {
	r := run(t)
	r.client.Timeout = 10 * time.Second
	good := func(t *testing.T) {
		t.Helper()
		if status, body := r.assume(t); status != 200 {
			t.Errorf("afterwards: %d %s", status, body)
		}
	}
	for _, row := range []struct {
		fault  clouds.Fault
		status int
		body   string
	}{
		{clouds.Fault{Kind: "429", RetryAfter: 2}, 400, "<Code>Throttling</Code>"},
		{clouds.Fault{Kind: "500"}, 500, "<Code>InternalFailure</Code>"},
		{clouds.Fault{Kind: "503"}, 503, "<Code>ServiceUnavailable</Code>"},
		{clouds.Fault{Kind: "close"}, 0, "unexpected EOF"},
		{clouds.Fault{Kind: "truncated"}, 200, "<AssumeRoleWithWebIdentityResponse"},
		{clouds.Fault{Kind: "empty-credentials"}, 200, "<SecretAccessKey></SecretAccessKey>"},
		{clouds.Fault{Kind: "html"}, 200, "<!DOCTYPE html>"},
		{clouds.Fault{Kind: "slow-jwks"}, 400, "Couldn&#39;t retrieve verification key"},
		{clouds.Fault{Kind: "jwks-500"}, 400, "Couldn&#39;t retrieve verification key"},
		{clouds.Fault{Kind: "hang"}, 0, "Client.Timeout"},
	} {
		t.Run(row.fault.Kind, func(t *testing.T) {
			if row.fault.Kind == "hang" {
				r.client.Timeout = 50 * time.Millisecond
			}
			row.fault.Service = "sts"
			b, err := json.Marshal(row.fault)
			if err != nil {
				t.Fatal(err)
			}
			if code := r.ask(t, "POST", "/faults", string(b), nil); code != 200 {
				t.Fatalf("the switchboard says %d", code)
			}
			status, body := r.assume(t)
			if status != row.status || !strings.Contains(body, row.body) || row.fault.Kind == "truncated" && strings.Contains(body, "</AssumeRoleWithWebIdentityResponse>") {
				t.Errorf("%d %s", status, body)
			}
			r.client.Timeout = 10 * time.Second
			good(t)
		})
	}
}

func TestDropJWKS(t *testing.T) {
	r := run(t)
	for range 3 {
		r.assume(t)
	}
	before := r.issuer.Fetches()
	r.ask(t, "POST", "/faults", `{"service": "rolesanywhere", "kind": "drop-jwks"}`, nil)
	r.assume(t)
	if before != 1 || r.issuer.Fetches() != 2 {
		t.Errorf("%d fetches, then %d", before, r.issuer.Fetches())
	}
}

func TestStateAndClear(t *testing.T) {
	r := run(t)
	for _, body := range []string{
		`{"service": "entra", "kind": "503", "count": 2, "retry_after": 3}`, `{"service": "entra", "kind": "html"}`,
		`{"service": "gcp_sts_mtls", "kind": "jwks-500", "count": 2}`, `{"service": "sts", "kind": "clock", "offset": "-10m"}`,
	} {
		if code := r.ask(t, "POST", "/faults", body, nil); code != 200 {
			t.Errorf("%s: %d", body, code)
		}
	}
	var got []clouds.State
	r.ask(t, "GET", "/faults", "", &got)
	byName := map[string]clouds.State{}
	for _, s := range got {
		s.URL = ""
		byName[s.Service] = s
	}
	want := clouds.State{Service: "entra", Queued: []clouds.Queued{{Kind: "503", RetryAfter: 3}, {Kind: "503", RetryAfter: 3}, {Kind: "html"}}, Fetches: []string{}, Offset: "0s"}
	if diff := cmp.Diff(want, byName["entra"]); diff != "" {
		t.Error(diff)
	}
	if byName["rolesanywhere"].Offset != "-10m0s" || byName["gcp_sts"].Offset != "0s" || len(byName["gcp_iamcredentials"].Fetches) != 2 {
		t.Errorf("%+v", byName)
	}
	if status, body := r.assume(t); status != 400 || !strings.Contains(body, "iat is in the future") {
		t.Errorf("with the clock back: %d %s", status, body)
	}
	r.ask(t, "DELETE", "/faults", "", &got)
	for _, s := range got {
		if len(s.Queued)+len(s.Fetches) > 0 || s.Offset != "0s" {
			t.Errorf("left: %+v", s)
		}
	}
	if status, body := r.assume(t); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}

func TestSwitchboardRefuses(t *testing.T) {
	r := run(t)
	for name, row := range map[string]struct{ method, path, body string }{
		"unknown service":  {"POST", "/faults", `{"service": "s3", "kind": "500"}`},
		"unknown kind":     {"POST", "/faults", `{"service": "sts", "kind": "418"}`},
		"no kind":          {"POST", "/faults", `{"service": "sts"}`},
		"unknown field":    {"POST", "/faults", `{"service": "sts", "kind": "500", "times": 2}`},
		"no JSON":          {"POST", "/faults", `500`},
		"two objects":      {"POST", "/faults", `{"service": "sts", "kind": "500"} {}`},
		"negative count":   {"POST", "/faults", `{"service": "sts", "kind": "500", "count": -1}`},
		"huge count":       {"POST", "/faults", `{"service": "sts", "kind": "500", "count": 10001}`},
		"after a 500":      {"POST", "/faults", `{"service": "sts", "kind": "500", "retry_after": 1}`},
		"clock unset":      {"POST", "/faults", `{"service": "sts", "kind": "clock"}`},
		"clock twice":      {"POST", "/faults", `{"service": "sts", "kind": "clock", "offset": "1m", "count": 2}`},
		"offset of others": {"POST", "/faults", `{"service": "sts", "kind": "500", "offset": "1m"}`},
		"offset no time":   {"POST", "/faults", `{"service": "sts", "kind": "clock", "offset": "soon"}`},
		"requests of none": {"GET", "/requests?service=s3", ""},
	} {
		var no struct{ Error string }
		if code := r.ask(t, row.method, row.path, row.body, &no); code != http.StatusBadRequest || no.Error == "" {
			t.Errorf("%s: %d %+v", name, code, no)
		}
	}
	for _, row := range [][2]string{{"PUT", "/faults"}, {"GET", "/"}, {"DELETE", "/requests"}} {
		if code := r.ask(t, row[0], row[1], "", nil); code != 405 && code != 404 {
			t.Errorf("%s: %d", row, code)
		}
	}
}

func TestServeLeavesNothingWhenAPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := parse(t, fmt.Sprintf("azure: {}\nlisten: {azure_arm: %q}", l.Addr()))
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	made, err := clouds.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Serve(tls.Certificate{}, nil); err == nil || !strings.HasPrefix(err.Error(), "listen.azure_arm: ") {
		t.Errorf("%v", err)
	}
	d := net.Dialer{Timeout: time.Second}
	if conn, err := d.DialContext(context.Background(), "tcp", strings.TrimPrefix(made.URLs()["entra"], "https://")); err == nil {
		conn.Close()
		t.Error("entra is still served")
	}
}

// webPlan is what credence target setup -o json writes for a web identity.
const webPlan = `{"target": "orders", "flow": "aws_web_identity", "cloud": {"name": "aws", "partition": "aws", "account": "123456789012", "region": "us-east-1"},
  "resources": [
    {"type": "aws_iam_openid_connect_provider", "label": "issuer", "values": {"url": "https://example.com/credence", "client_id_list": ["sts.amazonaws.com"]}},
    {"type": "aws_iam_role", "label": "role", "values": {"name": "orders-web", "path": "/", "max_session_duration": 3600, "assume_role_policy":
      {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Federated": {"ref": "aws_iam_openid_connect_provider.issuer.arn"}}, "Action": "sts:AssumeRoleWithWebIdentity",
       "Condition": {"StringEquals": {"example.com/credence:sub": "spiffe://example.org/checkout"}}}]}}}],
  "notes": [], "apply": {}}`

const poolPlan = `{"target": "pool", "flow": "gcp", "cloud": {"name": "gcp"}, "resources": [
  {"type": "google_iam_workload_identity_pool", "label": "pool", "values": {"project": "123456789", "workload_identity_pool_id": "workloads"}}], "notes": [], "apply": {}}`

// What credence target setup says is created, alone and beside what the file
// says itself, and nothing of that is lost.
func TestSetup(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"web.json": webPlan, "pool.json": poolPlan, "bad.json": `{"shoe": 1}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plans := []string{filepath.Join(dir, "web.json"), filepath.Join(dir, "pool.json")}
	for name, change := range map[string]func(*clouds.Config){
		"alone":  func(c *clouds.Config) { c.AWS, c.GCP, c.Azure, c.OAuth, c.Vault = nil, nil, nil, nil, nil },
		"beside": func(c *clouds.Config) { c.AWS.Roles, c.AWS.OIDCProviders = c.AWS.Roles[:1], nil },
	} {
		r := run(t, func(c *clouds.Config) { c.Setup = plans; change(c) })
		if status, body := r.assume(t); status != 200 {
			t.Errorf("%s: %d %s", name, status, body)
		}
		pool := "projects/123456789/locations/global/workloadIdentityPools/workloads"
		if !r.GCP.HasPool(pool) || name == "beside" && (!r.Azure.HasTenant("6f1d1e0a-7c2b-4d6e-9a3f-0b1c2d3e4f50") || r.OAuth == nil) {
			t.Errorf("%s: something is not there", name)
		}
	}
	for path, c := range map[string]clouds.Config{
		"unknown":         {Setup: []string{filepath.Join(dir, "bad.json")}},
		"absent":          {Setup: []string{filepath.Join(dir, "absent.json")}},
		"another account": {Setup: plans[:1], AWS: &clouds.AWS{Account: "000000000000", Region: "us-east-1"}},
	} {
		if err := c.Check(); err != nil {
			t.Errorf("%s: Check reads it: %v", path, err)
		}
		if _, err := clouds.New(c, nil); err == nil || !strings.HasPrefix(err.Error(), "setup: ") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty.pem": "", "key.pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "bad.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"absent.pem", "empty.pem", "key.pem", "bad.pem"} {
		file := filepath.Join(dir, name)
		for path, text := range map[string]string{
			"aws.trust_anchors[0]":      `aws: {account: "123456789012", region: us-east-1, trust_anchors: [{arn: "arn:aws:rolesanywhere:us-east-1:123456789012:trust-anchor/4f8e1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21", certificates: ` + file + `}]}`,
			"gcp.pools[0].providers[0]": `gcp: {pools: [{project: "1", id: pool, providers: [{id: prov, attribute_mapping: {google.subject: assertion.san.uri}, x509: {trust_anchors: ` + file + `}}]}]}`,
			"issuers.ca_file":           "azure: {}\nissuers: {ca_file: " + file + "}",
		} {
			c := parse(t, text)
			if path != "issuers.ca_file" {
				c.Issuers.CAFile = unread(t, dir)
			}
			if err := c.Check(); err != nil {
				t.Errorf("%s in %s is read by Check: %v", path, name, err)
				continue
			}
			_, err := clouds.New(c, nil)
			if err == nil || !strings.HasPrefix(err.Error(), path+": ") || name == "absent.pem" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s in %s: %v", path, name, err)
			}
		}
	}
}

// unread is a file with a good CA.
func unread(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(dir, "good.pem")
	ca := issuertest.NewCA(t, "root", time.Now(), nil)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
