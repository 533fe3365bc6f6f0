package aws_test

import (
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/sandbox"
	cloud "github.com/credence-id/credence/exchangers/sandbox/aws"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func anywhere() *aws.RolesAnywhere {
	return &aws.RolesAnywhere{Role: roleARN, TrustAnchor: anchorARN, Profile: profileARN}
}

func TestAnywhereExchanges(t *testing.T) {
	a := newAccount(t)
	rsaLeaf := certify(t, a.issuing, issuertest.RSA(), leafTemplate())
	p384 := certify(t, a.issuing, ecKey(t, elliptic.P384()), leafTemplate())
	direct := certify(t, a.root, ecKey(t, elliptic.P256()), leafTemplate())
	rows := map[string]struct {
		svid     *x509svid.SVID
		duration time.Duration
		name     string
		session  string
	}{
		"P-256, one intermediate": {svid: x509SVID(a.leaf, a.issuing)},
		"P-384":                   {svid: x509SVID(p384, a.issuing)},
		"RSA 2048":                {svid: x509SVID(rsaLeaf, a.issuing)},
		"no intermediate":         {svid: x509SVID(direct)},
		"duration and name":       {svid: x509SVID(direct), duration: 15 * time.Minute, name: "ci", session: "ci"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := anywhere()
			s.Duration, s.SessionName = exchangers.Duration(row.duration), row.name
			cred, err := exchanger(t, s, a.anywhere).Exchange(t.Context(), svids{x509: row.svid})
			if err != nil {
				t.Fatal(err)
			}
			life := row.duration
			if life == 0 {
				life = time.Hour
			}
			i := slices.IndexFunc(a.cloud.Sessions(), func(s cloud.Session) bool { return s.AccessKeyID == cred.AWS.AccessKeyID })
			if i < 0 {
				t.Fatal("the cloud knows no such session")
			}
			got := a.cloud.Sessions()[i]
			if cred.AWS.AccessKeyID == "" || cred.AWS.Region != "us-east-1" || cred.Bearer != nil || cred.RequestID == "" ||
				!strings.HasPrefix(cred.AWS.AssumedRole, "arn:aws:sts::123456789012:assumed-role/orders/"+row.session) {
				t.Errorf("credential %+v of %+v", cred.AWS, cred)
			}
			if left := time.Until(cred.Expires); left > life || left < life-time.Minute {
				t.Errorf("expires in %s, want %s", left, life)
			}
			if cred.Expires.After(got.Expires) {
				t.Errorf("reported expiry %s is after the real one %s", cred.Expires, got.Expires)
			}
		})
	}
}

// What AWS refuses with an unhelpful text is refused before it is asked.
func TestAnywhereRefusesUnfitSVIDs(t *testing.T) {
	a := newAccount(t)
	asked := 0
	server := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	leaf := func(change func(*x509.Certificate)) *x509svid.SVID {
		template := leafTemplate()
		change(template)
		return x509SVID(certify(t, a.issuing, ecKey(t, elliptic.P256()), template), a.issuing)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	other := x509SVID(a.leaf, a.issuing)
	other.PrivateKey = ecKey(t, elliptic.P256())
	long := x509SVID(a.leaf, a.issuing)
	long.ID = spiffeid.RequireFromString("spiffe://example.org/" + strings.Repeat("a", 236))
	rows := map[string]struct {
		svid *x509svid.SVID
		want string
	}{
		"empty subject":       {leaf(func(c *x509.Certificate) { c.Subject = pkix.Name{} }), `add x509.subject: "CN=<identity>"`},
		"CA":                  {leaf(func(c *x509.Certificate) { c.IsCA = true }), "no CA"},
		"no digitalSignature": {leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "digitalSignature"},
		"P-521":               {x509SVID(certify(t, a.issuing, ecKey(t, elliptic.P521()), leafTemplate()), a.issuing), "P-256, P-384 or RSA"},
		"Ed25519":             {x509SVID(certify(t, a.issuing, ed, leafTemplate()), a.issuing), "P-256, P-384 or RSA"},
		"key of another":      {other, "not the X509-SVID's"},
		"257 characters":      {long, "256"},
		"six intermediates":   {x509SVID(a.leaf, a.issuing, a.issuing, a.issuing, a.issuing, a.issuing, a.issuing), "takes 5"},
		"no certificate":      {&x509svid.SVID{ID: workload}, "no X509-SVID"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			cred, err := exchanger(t, anywhere(), server).Exchange(t.Context(), svids{x509: row.svid})
			e := refused(t, cred, err)
			if e.Class != exchangers.Config || !strings.Contains(e.Error(), row.want) {
				t.Errorf("%+v, want %q", e, row.want)
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		for _, at := range []time.Time{time.Now().Add(2 * time.Hour), time.Now().Add(-2 * time.Hour)} {
			x := must(t, func() (exchangers.Exchanger, error) {
				return aws.New(aws.Config{Settings: anywhere(), Endpoint: server.URL, Client: server.Client(), Now: func() time.Time { return at }})
			})
			cred, err := x.Exchange(t.Context(), svids{x509: x509SVID(a.leaf, a.issuing)})
			if e := refused(t, cred, err); !strings.Contains(e.Error(), "clock") {
				t.Errorf("%v", e)
			}
		}
	})
	if _, err := exchanger(t, anywhere(), server).Exchange(t.Context(), svids{}); err == nil {
		t.Error("no SVID gave a credential")
	}
	if asked != 0 {
		t.Errorf("AWS was asked %d times", asked)
	}
}

func TestAnywhereRefusals(t *testing.T) {
	a := newAccount(t)
	good := svids{x509: x509SVID(a.leaf, a.issuing)}
	stranger := authority(t, nil, "root")
	rows := map[string]struct {
		settings func(*aws.RolesAnywhere)
		svids    svids
		cloud    func(*testing.T)
		status   int
		code     string
		hint     string
	}{
		"another CA": {svids: svids{x509: x509SVID(certify(t, stranger, ecKey(t, elliptic.P256()), leafTemplate()))},
			status: 403, code: "AccessDeniedException", hint: "trust anchor"},
		"intermediate left out": {svids: svids{x509: x509SVID(a.leaf)}, status: 403, code: "AccessDeniedException", hint: "trust anchor"},
		"role not in the profile": {settings: func(s *aws.RolesAnywhere) { s.Role = webRoleARN },
			status: 403, code: "AccessDeniedException", hint: "lists the role"},
		"longer than the role allows": {settings: func(s *aws.RolesAnywhere) { s.Duration = exchangers.Duration(2 * time.Hour) },
			cloud: func(t *testing.T) {
				if err := a.cloud.PutProfile(cloud.Profile{ARN: profileARN, RoleARNs: []string{roleARN}, Enabled: true, Duration: 2 * time.Hour}); err != nil {
					t.Fatal(err)
				}
			}, status: 403, code: "AccessDeniedException", hint: "lower the Target's duration"},
		"unknown profile": {settings: func(s *aws.RolesAnywhere) { s.Profile = strings.ReplaceAll(profileARN, "6666", "7777") },
			status: 404, code: "ResourceNotFoundException", hint: "check trust_anchor and profile"},
		"trust policy of another": {cloud: func(t *testing.T) {
			if err := a.cloud.PutRole(cloud.Role{ARN: roleARN, TrustPolicy: strings.ReplaceAll(anywherePolicy, "sa/orders", "sa/other")}); err != nil {
				t.Fatal(err)
			}
		}, status: 403, code: "AccessDeniedException", hint: "the role's trust policy"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s, present := anywhere(), good
			if row.settings != nil {
				row.settings(s)
			}
			if row.cloud != nil {
				row.cloud(t)
				defer func() { // what the other rows start from
					a.cloud.PutRole(cloud.Role{ARN: roleARN, TrustPolicy: anywherePolicy})
					a.cloud.PutProfile(cloud.Profile{ARN: profileARN, RoleARNs: []string{roleARN}, Enabled: true, AcceptRoleSessionName: true})
				}()
			}
			if row.svids.x509 != nil {
				present = row.svids
			}
			cred, err := exchanger(t, s, a.anywhere).Exchange(t.Context(), present)
			e := refused(t, cred, err)
			if e.Status != row.status || e.Code != row.code || e.Class != exchangers.Config || e.RequestID == "" || !strings.Contains(e.Hint, row.hint) {
				t.Errorf("%+v", e)
			}
		})
	}
	if _, err := exchanger(t, anywhere(), a.anywhere).Exchange(t.Context(), good); err != nil {
		t.Errorf("the good request, after all refusals: %v", err)
	}
}

// faults are the same for both flows.
var faults = map[string]struct {
	fault sandbox.Fault
	class exchangers.Class
	after time.Duration
}{
	"throttled":      {sandbox.Fault{Kind: sandbox.FaultThrottled, RetryAfter: 2 * time.Second}, exchangers.Throttled, 2 * time.Second},
	"error":          {sandbox.Fault{Kind: sandbox.FaultError}, exchangers.Outage, 0},
	"unavailable":    {sandbox.Fault{Kind: sandbox.FaultUnavailable}, exchangers.Outage, 0},
	"hang":           {sandbox.Fault{Kind: sandbox.FaultHang}, exchangers.Outage, 0},
	"closed":         {sandbox.Fault{Kind: sandbox.FaultClosed}, exchangers.Outage, 0},
	"truncated":      {sandbox.Fault{Kind: sandbox.FaultTruncated}, exchangers.Outage, 0},
	"empty":          {sandbox.Fault{Kind: sandbox.FaultEmpty}, exchangers.Outage, 0},
	"a proxy's page": {sandbox.Fault{Kind: sandbox.FaultHTML}, "", 0},
}

func checkFaults(t *testing.T, a *account, within func(limit time.Duration) exchangers.Exchanger, present svids) {
	t.Helper()
	x := within(30 * time.Second)
	for name, row := range faults {
		t.Run(name, func(t *testing.T) {
			a.faults.Queue(1, row.fault)
			first := x
			if row.fault.Kind == sandbox.FaultHang {
				first = within(2 * time.Second)
			}
			cred, err := first.Exchange(t.Context(), present)
			e := refused(t, cred, err)
			if row.class != "" && (e.Class != row.class || e.RetryAfter != row.after) {
				t.Errorf("%+v", e)
			}
			if _, err := x.Exchange(t.Context(), present); err != nil {
				t.Errorf("after the fault: %v (was it retried?)", err)
			}
		})
	}
}

func TestAnywhereFaults(t *testing.T) {
	a := newAccount(t)
	within := func(limit time.Duration) exchangers.Exchanger {
		return exchangerWithin(t, anywhere(), a.anywhere, limit)
	}
	checkFaults(t, a, within, svids{x509: x509SVID(a.leaf, a.issuing)})
}

func TestAnywhereReadsTheCapturedAnswers(t *testing.T) {
	for name, c := range captures(t) {
		t.Run(name, func(t *testing.T) {
			status := http.StatusCreated
			if strings.Contains(name, "denied") {
				status = http.StatusForbidden
			}
			server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if r.Method != http.MethodPost || !json.Valid(body) {
					t.Errorf("%s %s", r.Method, body)
				}
				w.WriteHeader(status)
				_, _ = w.Write(c.ResponseSent)
			}))
			x := must(t, func() (exchangers.Exchanger, error) {
				return aws.New(aws.Config{Settings: anywhere(), Endpoint: server.URL, Client: server.Client(),
					Now: func() time.Time { return time.Date(2026, 11, 21, 2, 30, 0, 0, time.UTC) }})
			})
			leaf := &issued{certificates(t, c.CertPEM)[0], privateKey(t, c.KeyPEM)}
			cred, err := x.Exchange(t.Context(), svids{x509: x509SVID(leaf)})
			if status != http.StatusCreated {
				refused(t, cred, err)
				return
			}
			var sent struct {
				CredentialSet []struct {
					Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken, Expiration string }
				}
			}
			if err := json.Unmarshal(c.ResponseSent, &sent); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			want := sent.CredentialSet[0].Credentials
			got := [4]string{cred.AWS.AccessKeyID, cred.AWS.SecretAccessKey.Reveal(), cred.AWS.SessionToken.Reveal(), cred.Expires.Format(time.RFC3339)}
			if diff := cmp.Diff([4]string{want.AccessKeyID, want.SecretAccessKey, want.SessionToken, want.Expiration}, got); diff != "" {
				t.Errorf("(-sent +read):\n%s", diff)
			}
		})
	}
}

func FuzzAnywhereRefusal(f *testing.F) {
	f.Add(403, "AccessDeniedException:http://x", []byte(`{"message":"Unable to assume role for arn"}`))
	f.Add(429, "", []byte(`{"__type":"com.amazon#ThrottlingException"}`))
	f.Fuzz(func(t *testing.T, status int, code string, body []byte) {
		e := aws.Refusal(status, http.Header{"X-Amzn-Errortype": {code}}, body)
		if e.Class == "" || len(e.Message) > 512 || strings.ContainsAny(e.Error(), "\r\n\x00") {
			t.Errorf("%+v", e)
		}
	})
}
