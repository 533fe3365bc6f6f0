package main_test

import (
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// An instance of EC2 joins by the credentials of its role, which STS knows; what
// another role's session shows is refused; and one that is evicted stays out,
// while another of its role joins.
func TestAWSRoleJoins(t *testing.T) {
	issuer := issuertest.New(t)
	provider := strings.TrimPrefix(issuertest.URL, "https://")
	role := func(name string) aws.Role {
		return aws.Role{ARN: "arn:aws:iam::123456789012:role/" + name, TrustPolicy: `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
			"Action": "sts:AssumeRoleWithWebIdentity", "Principal": {"Federated": "arn:aws:iam::123456789012:oidc-provider/` + provider + `"},
			"Condition": {"StringEquals": {"` + provider + `:aud": "sts"}}}]}`}
	}
	cloud, err := aws.New(aws.Config{
		Account: "123456789012", Region: "eu-west-1", Roots: issuer.Roots(), DialContext: issuer.DialContext,
		Roles: []aws.Role{role("web"), role("admin")}, OIDCProviders: []aws.OIDCProvider{{URL: issuertest.URL, ClientIDs: []string{"sts"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	sts := httptest.NewTLSServer(cloud.STS())
	t.Cleanup(sts.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: sts.Certificate().Raw}))
	s := newSide(t, "example.org", func(s *side) { s.more = "allow_networks: [127.0.0.0/8]\n" })
	s.credence(fmt.Sprintf("kind: JoinRule\nname: aws\naws_iam:\n  endpoint: %s\n  ca: |\n    %s\nallow: [{node.aws_iam.account: \"123456789012\", node.aws_iam.role: web}]\n",
		sts.URL, strings.ReplaceAll(ca, "\n", "\n    ")), "apply", "-f", "-")
	pin, err := s.broker.await(`pin (sha256:[0-9a-f]{64})`, 0)
	if err != nil {
		t.Fatal(err)
	}
	instance := func(name, role, session string) *exec.Cmd {
		config := s.write(name+".yaml", fmt.Sprintf("trust_domain: example.org\ndata: %s\nbroker: [\"127.0.0.1:%s\"]\ntrust: {ca_pin: [%q]}\njoin: {method: aws_iam}\n",
			s.path(name), s.ports[0], pin[1]))
		cmd := exec.Command("credence", "agent", "run", "-c", config)
		cmd.Env = append(os.Environ(), "AWS_REGION=eu-west-1", "AWS_ENDPOINT_URL_STS="+sts.URL, "AWS_EC2_METADATA_DISABLED=true",
			"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")
		cmd.Env = append(cmd.Env, awsSession(t, cloud, "arn:aws:iam::123456789012:role/"+role, session)...)
		return cmd
	}
	const one, two = "i-0abcdef0123456789", "i-0abcdef012345678a"
	if _, err := startCmd(t, instance("one", "web", one)).await("joined", 0); err != nil {
		t.Fatal(err)
	}
	var nodes []struct {
		ID    string              `json:"id"`
		Name  string              `json:"name"`
		Facts map[string][]string `json:"facts"`
	}
	if err := json.Unmarshal([]byte(s.credence("", "node", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 1 || nodes[0].Name != one || nodes[0].Facts["node.aws_iam.arn"][0] != "arn:aws:sts::123456789012:assumed-role/web/"+one {
		t.Fatalf("nodes %+v", nodes)
	}
	if out, err := instance("admin", "admin", two).CombinedOutput(); err == nil {
		t.Errorf("another role: %s", out)
	}
	s.credence("", "node", "evict", nodes[0].ID)
	if out, err := instance("again", "web", one).CombinedOutput(); err == nil {
		t.Errorf("an evicted instance: %s", out)
	}
	if _, err := startCmd(t, instance("two", "web", two)).await("joined", 0); err != nil {
		t.Errorf("another instance: %v", err)
	}
}

// awsSession is a new session's credentials, as the SDK finds them in the
// environment.
func awsSession(t *testing.T, cloud *aws.Cloud, role, name string) []string {
	t.Helper()
	now := time.Now().Unix()
	form := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {role}, "RoleSessionName": {name},
		"WebIdentityToken": {issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"kid": "k1"}, map[string]any{
			"iss": issuertest.URL, "aud": "sts", "sub": name, "iat": now, "exp": now + 600})}}
	r := httptest.NewRequest(http.MethodPost, "https://sts.test/", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	got := httptest.NewRecorder()
	cloud.STS().ServeHTTP(got, r)
	var out struct {
		Key    string `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
		Secret string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
		Token  string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
	}
	if err := xml.Unmarshal(got.Body.Bytes(), &out); err != nil || out.Key == "" {
		t.Fatalf("no session: %v: %s", err, got.Body)
	}
	return []string{"AWS_ACCESS_KEY_ID=" + out.Key, "AWS_SECRET_ACCESS_KEY=" + out.Secret, "AWS_SESSION_TOKEN=" + out.Token}
}
