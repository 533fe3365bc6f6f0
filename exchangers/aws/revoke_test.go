package aws_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	cloud "github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func cut() exchangers.Cut {
	now := time.Now()
	return exchangers.Cut{
		IDs: []spiffeid.ID{workload}, Issuer: issuertest.URL, Now: now, Until: now.Add(time.Hour),
		CRLs: []exchangers.CRLFile{{Issuer: "abc", File: "crl/abc.pem", NextUpdate: now.Add(24 * time.Hour)}},
	}
}

// after is the argument of a command that follows a flag.
func after(t *testing.T, command []string, flag string) string {
	t.Helper()
	i := slices.Index(command, flag)
	if i < 0 || i+1 == len(command) {
		t.Fatalf("no %s in %q", flag, command)
	}
	return command[i+1]
}

// The list that the command imports stops the SVID's next exchange, and not
// another one's.
func TestRevokeRolesAnywhere(t *testing.T) {
	a := newAccount(t)
	s := anywhere()
	advice := s.Revoke(cut())
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: []x509.RevocationListEntry{
		{SerialNumber: a.leaf.cert.SerialNumber, RevocationTime: time.Now()},
	}}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.issuing.cert, a.issuing.key)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	command := advice.Remedies[0].Command
	if file := after(t, command, "--crl-data"); file != "fileb://crl/abc.pem" || after(t, command, "--trust-anchor-arn") != s.TrustAnchor || after(t, command, "--region") != "us-east-1" {
		t.Errorf("%q", command)
	}
	if err := os.Mkdir("crl", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.FromSlash("crl/abc.pem"), der, 0o600); err != nil {
		t.Fatal(err)
	}
	ask := exchanger(t, s, a.anywhere)
	presented := svids{x509: x509SVID(a.leaf, a.issuing)}
	if _, err := ask.Exchange(t.Context(), presented); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(strings.TrimPrefix(after(t, command, "--crl-data"), "fileb://"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cloud.ImportCRL(after(t, command, "--trust-anchor-arn"), cloud.CRL{Data: text, Enabled: slices.Contains(command, "--enabled")}); err != nil {
		t.Fatal(err)
	}
	cred, err := ask.Exchange(t.Context(), presented)
	refused(t, cred, err)
	if _, err := ask.Exchange(t.Context(), svids{x509: x509SVID(certify(t, a.issuing, a.leaf.key, leafTemplate()), a.issuing)}); err != nil {
		t.Errorf("the SVID that came after it: %v", err)
	}

	deny := advice.Remedies[len(advice.Remedies)-1]
	wantPolicy(t, deny, "orders", "StringEquals", "aws:PrincipalTag/x509SAN/URI", workload.String())
	if end := advice.Until.Sub(cut().Now); end < 11*time.Hour || end > 12*time.Hour || !strings.Contains(advice.Sessions, "12h") {
		t.Errorf("%s: %s", advice.Until, advice.Sessions)
	}
}

func wantPolicy(t *testing.T, deny exchangers.Remedy, role, operator, key, value string) {
	t.Helper()
	var policy struct {
		Version   string
		Statement []struct {
			Effect, Action, Resource string
			Condition                map[string]map[string][]string
		}
	}
	text := after(t, deny.Command, "--policy-document")
	if text != string(deny.Document) || after(t, deny.Command, "--role-name") != role {
		t.Errorf("%q", deny.Command)
	}
	if !regexp.MustCompile(`^[\w+=,.@-]{1,128}$`).MatchString(after(t, deny.Command, "--policy-name")) {
		t.Errorf("%q is no name of a policy", after(t, deny.Command, "--policy-name"))
	}
	if err := json.Unmarshal([]byte(text), &policy); err != nil || policy.Version != "2012-10-17" || len(policy.Statement) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	s := policy.Statement[0]
	if s.Effect != "Deny" || s.Action != "*" || s.Resource != "*" || len(s.Condition) != 2 || !slices.Equal(s.Condition[operator][key], []string{value}) {
		t.Errorf("%s", text)
	}
	at, err := time.Parse(time.RFC3339, s.Condition["DateLessThan"]["aws:TokenIssueTime"][0])
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("%s: %v", text, err)
	}
}

// Without what is needed for it, or where it would do nothing, a remedy is left
// out, and what cannot be done is said.
func TestRevokeRolesAnywhereWithout(t *testing.T) {
	s := anywhere()
	ended := cut()
	ended.Until = ended.Now.Add(-time.Second)
	if got := s.Revoke(ended); len(got.Remedies) != 1 {
		t.Errorf("SVIDs have ended: %v", got.Remedies)
	}
	long := cut()
	long.IDs = []spiffeid.ID{spiffeid.RequireFromString("spiffe://example.org/" + strings.Repeat("a", 256))}
	if got := s.Revoke(long); len(got.Remedies) != 1 || len(got.Missing) != 1 || !strings.Contains(got.Missing[0], "session tag") {
		t.Errorf("a long ID: %v", got)
	}
}

// The statement stops the subject's exchanges by tokens old and new, nobody
// else's; the policy names the sessions that our exchanger made.
func TestRevokeWebIdentity(t *testing.T) {
	a := newAccount(t)
	s := &aws.WebIdentity{Role: webRoleARN}
	advice := s.Revoke(cut())
	ask := exchanger(t, s, a.sts)
	cred, err := ask.Exchange(t.Context(), a.jwt(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	var trust struct {
		Version   string
		Statement []json.RawMessage
	}
	open := strings.Replace(webPolicy, `,"example.com/credence:sub":"`+workload.String()+`"`, "", 1) // to any subject
	if err := json.Unmarshal([]byte(open), &trust); err != nil {
		t.Fatal(err)
	}
	trust.Statement = append(trust.Statement, advice.Remedies[0].Document)
	text, err := json.Marshal(trust)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cloud.PutRole(cloud.Role{ARN: webRoleARN, TrustPolicy: string(text)}); err != nil {
		t.Fatal(err)
	}
	got, err := ask.Exchange(t.Context(), a.jwt(t, nil))
	refused(t, got, err)
	if _, err := ask.Exchange(t.Context(), a.jwt(t, map[string]any{"sub": "spiffe://example.org/other"})); err != nil {
		t.Errorf("another subject: %v", err)
	}
	session := cred.AWS.AssumedRole[strings.LastIndexByte(cred.AWS.AssumedRole, '/')+1:]
	wantPolicy(t, advice.Remedies[1], webRoleARN[strings.LastIndexByte(webRoleARN, '/')+1:], "StringLike", "aws:userid", "*:"+session)
	if len(advice.Missing) != 1 || !strings.Contains(advice.Missing[0], "STS knows no revoked token") {
		t.Errorf("%q", advice.Missing)
	}
	none := cut()
	none.Issuer = ""
	if got := s.Revoke(none); len(got.Remedies) != 1 {
		t.Errorf("without an issuer: %v", got.Remedies)
	}
}
