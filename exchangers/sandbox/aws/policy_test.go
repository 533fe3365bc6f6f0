package aws_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

// The context of these conditions: sub is "spiffe://example.org/ns/shop/sa/orders",
// amr is ["a","b"], email is not there.
func TestConditions(t *testing.T) {
	const sub, amr, email = "id.example.org/main:sub", "id.example.org/main:amr", "id.example.org/main:email"
	rows := []struct {
		name string
		op   string
		key  string
		want any
		ok   bool
	}{
		{"equal", "StringEquals", sub, spiffeID, true},
		{"equal to one of", "StringEquals", sub, []string{"x", spiffeID}, true},
		{"equal in another case", "StringEquals", sub, strings.ToUpper(spiffeID), false},
		{"a star in StringEquals is a star", "StringEquals", sub, "spiffe://example.org/*", false},
		{"key in another case", "StringEquals", "ID.example.org/Main:Sub", spiffeID, true},
		{"equal to a missing key", "StringEquals", email, "x", false},
		{"not equal", "StringNotEquals", sub, "x", true},
		{"not equal, but it is", "StringNotEquals", sub, []string{"x", spiffeID}, false},
		{"not equal to a missing key", "StringNotEquals", email, "x", true},
		{"like", "StringLike", sub, "spiffe://example.org/*/shop/sa/order?", true},
		{"like is anchored at the end", "StringLike", sub, "spiffe://example.org/ns", false},
		{"like is anchored at the start", "StringLike", sub, "*/ns", false},
		{"? is one character", "StringLike", sub, spiffeID + "?", false},
		{"like with backtracking", "StringLike", sub, "*s*s*s", true},
		{"not like", "StringNotLike", sub, "spiffe://other.example/*", true},
		{"not like, but it is", "StringNotLike", sub, "spiffe://*", false},
		{"if exists, missing", "StringEqualsIfExists", email, "x", true},
		{"if exists, there", "StringEqualsIfExists", sub, "x", false},
		{"null, missing", "Null", email, "true", true},
		{"null, there", "Null", sub, "true", false},
		{"not null, there", "Null", sub, false, true},
		{"not null, missing", "Null", email, "false", false},
		{"any value", "ForAnyValue:StringEquals", amr, "b", true},
		{"no value", "ForAnyValue:StringEquals", amr, "c", false},
		{"any value of a missing key", "ForAnyValue:StringEquals", email, "x", false},
		{"any value is another", "ForAnyValue:StringNotEquals", amr, "a", true},
		{"no value is another", "ForAnyValue:StringNotEquals", amr, []string{"a", "b"}, false},
		{"all values", "ForAllValues:StringLike", amr, []string{"a", "b", "c"}, true},
		{"not all values", "ForAllValues:StringEquals", amr, "a", false},
		{"all values of a missing key", "ForAllValues:StringEquals", email, "x", true},
		{"several values without a set operator", "StringEquals", amr, []string{"a", "b"}, false},
		{"several values without a set operator, negated", "StringNotEquals", amr, "c", false},
		{"bool of a text", "Bool", sub, true, false},
		{"bool, missing, if exists", "BoolIfExists", email, "true", true},
		{"ARN operator on what is none", "ArnLike", sub, "arn:aws:*:*:*:*", false},
	}
	e := newWeb(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			b, err := json.Marshal(map[string]any{row.op: map[string]any{row.key: row.want}})
			must(t, err)
			r := e.role
			r.TrustPolicy = fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":%q},
				"Action":"sts:AssumeRoleWithWebIdentity","Condition":%s}]}`, e.cloud.ProviderARN(issuerURL), b)
			must(t, e.cloud.PutRole(r))
			want := http.StatusForbidden
			if row.ok {
				want = http.StatusOK
			}
			if w := e.post(e.form(e.token().with("amr", []string{"a", "b"}))); w.Code != want {
				t.Errorf("%s: %d %s", b, w.Code, w.Body)
			}
		})
	}
}

func TestARNConditions(t *testing.T) {
	rows := []struct {
		name, op, want string
		ok             bool
	}{
		{"equal", "ArnEquals", anchorARN, true},
		{"wildcard in ArnEquals", "ArnEquals", "arn:aws:rolesanywhere:*:123456789012:trust-anchor/*", true},
		{"like", "ArnLike", "arn:aws:*:us-east-?:*:trust-anchor/*", true},
		{"a star does not cross a colon", "ArnLike", "arn:aws:rolesanywhere:*:*:*:trust-anchor/11111111-2222-3333-4444-555555555555", false},
		{"another account", "ArnEquals", strings.Replace(anchorARN, account, "000000000000", 1), false},
		{"not equal", "ArnNotEquals", anchorARN, false},
		{"not like", "ArnNotLike", "arn:aws:rolesanywhere:eu-*:*:*", true},
		{"StringEquals", "StringEquals", anchorARN, true},
	}
	e := newAnywhere(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := e.role
			r.TrustPolicy = fmt.Sprintf(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"Service":"rolesanywhere.amazonaws.com"},
				"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"],
				"Condition":{%q:{"aws:SourceArn":%q},"StringLike":{"aws:SourceAccount":%q,"sts:SourceIdentity":"CN=orders"}}}}`, row.op, row.want, account)
			must(t, e.cloud.PutRole(r))
			if w := e.send(t, e.call()); (w.Code == http.StatusCreated) != row.ok {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// A Deny wins wherever it stands, and one that cannot be judged holds.
func TestDenyWins(t *testing.T) {
	for name, deny := range map[string]string{
		"all":                `{"Effect":"Deny","Principal":"*","Action":"sts:AssumeRoleWithWebIdentity"}`,
		"AWS star":           `{"Effect":"Deny","Principal":{"AWS":"*"},"Action":"sts:*"}`,
		"the provider":       `{"Effect":"Deny","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/id.example.org/main"},"Action":"STS:Assume*"}`,
		"not equal, missing": `{"Effect":"Deny","Principal":"*","Action":"sts:*","Condition":{"StringNotEquals":{"id.example.org/main:email":"x"}}}`,
		"several values":     `{"Effect":"Deny","Principal":"*","Action":"sts:*","Condition":{"StringEquals":{"id.example.org/main:amr":"z"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, statements := range []string{deny + "," + allowAll, allowAll + "," + deny} {
				e := newWeb(t)
				r := e.role
				r.TrustPolicy = `{"Version":"2012-10-17","Statement":[` + statements + `]}`
				must(t, e.cloud.PutRole(r))
				wantError(t, e.post(e.form(e.token().with("amr", []string{"a", "b"}))), 403, "AccessDenied", notAuthorized)
			}
		})
	}
}

const allowAll = `{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/id.example.org/main"},"Action":"sts:AssumeRoleWithWebIdentity"}`

// What cannot be evaluated is refused when the role is made.
func TestPolicyRefused(t *testing.T) {
	with := func(old, new string) string {
		p := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"x"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"a:b":"c"}}}]}`
		out := strings.Replace(p, old, new, 1)
		if out == p {
			t.Fatalf("%q is not in the policy", old)
		}
		return out
	}
	rows := map[string]string{
		"empty":                   "",
		"no JSON":                 "{",
		"an array":                "[]",
		"no version":              with(`"Version":"2012-10-17",`, ""),
		"old version":             with("2012-10-17", "2008-10-17"),
		"unknown element":         with(`"Version"`, `"Foo":1,"Version"`),
		"no statement":            `{"Version":"2012-10-17"}`,
		"empty statements":        `{"Version":"2012-10-17","Statement":[]}`,
		"statement is a text":     `{"Version":"2012-10-17","Statement":["x"]}`,
		"element twice":           with(`"Effect":"Allow"`, `"Effect":"Deny","Effect":"Allow"`),
		"no effect":               with(`"Effect":"Allow",`, ""),
		"effect in another case":  with("Allow", "allow"),
		"no principal":            with(`"Principal":{"Federated":"x"},`, ""),
		"empty principal":         with(`{"Federated":"x"}`, `{}`),
		"unknown principal":       with("Federated", "CanonicalUser"),
		"wildcard in principal":   with(`"x"`, `"*"`),
		"principal without value": with(`"x"`, `[]`),
		"NotPrincipal":            with(`"Principal"`, `"NotPrincipal"`),
		"NotAction":               with(`"Action"`, `"NotAction"`),
		"Resource":                with(`"Action"`, `"Resource":"*","Action"`),
		"no action":               with(`"Action":"sts:AssumeRole",`, ""),
		"action of S3":            with("sts:AssumeRole", "s3:GetObject"),
		"every action":            with("sts:AssumeRole", "*"),
		"unknown operator":        with("StringEquals", "StringMatches"),
		"date operator":           with("StringEquals", "DateLessThan"),
		"unknown set operator":    with("StringEquals", "ForSomeValues:StringEquals"),
		"NullIfExists":            with("StringEquals", "NullIfExists"),
		"null of a text":          with(`"StringEquals":{"a:b":"c"}`, `"Null":{"a:b":"c"}`),
		"null of two":             with(`"StringEquals":{"a:b":"c"}`, `"Null":{"a:b":["true","false"]}`),
		"bool of a text":          with(`"StringEquals":{"a:b":"c"}`, `"Bool":{"a:b":"yes"}`),
		"ARN of no ARN":           with(`"StringEquals":{"a:b":"c"}`, `"ArnEquals":{"a:b":"c"}`),
		"operator without keys":   with(`{"a:b":"c"}`, `{}`),
		"key without a colon":     with("a:b", "ab"),
		"no values":               with(`"c"`, `[]`),
		"a number":                with(`"c"`, `1`),
		"null condition":          with(`{"StringEquals":{"a:b":"c"}}`, `null`),
		"variable":                with(`"c"`, `"${aws:username}"`),
		"too long":                with(`"c"`, `"`+strings.Repeat("c", 8192)+`"`),
	}
	e := newWeb(t)
	must(t, e.cloud.PutRole(aws.Role{ARN: roleARN, TrustPolicy: with("Allow", "Deny")}))
	for name, p := range rows {
		t.Run(name, func(t *testing.T) {
			if err := e.cloud.PutRole(aws.Role{ARN: roleARN, TrustPolicy: p}); err == nil {
				t.Errorf("accepted: %s", p)
			}
		})
	}
}

func TestConfigRefused(t *testing.T) {
	rows := map[string]func(e *anywhere, cfg *aws.Config){
		"no account":               func(_ *anywhere, cfg *aws.Config) { cfg.Account = "" },
		"no region":                func(_ *anywhere, cfg *aws.Config) { cfg.Region = "" },
		"negative rate":            func(_ *anywhere, cfg *aws.Config) { cfg.RatePerSecond = -1 },
		"negative skew":            func(_ *anywhere, cfg *aws.Config) { cfg.Skew = -1 },
		"leeway above 300 s":       func(_ *anywhere, cfg *aws.Config) { cfg.JWTLeeway = 301e9 },
		"anchor of another region": func(_ *anywhere, cfg *aws.Config) { cfg.Region = "eu-west-1" },
		"no certificates":          func(_ *anywhere, cfg *aws.Config) { cfg.TrustAnchors[0].Certificates = nil },
		"a nil certificate":        func(_ *anywhere, cfg *aws.Config) { cfg.TrustAnchors[0].Certificates = []*x509.Certificate{nil} },
		"three certificates": func(e *anywhere, cfg *aws.Config) {
			cfg.TrustAnchors[0].Certificates = []*x509.Certificate{e.root.cert, e.root.cert, e.root.cert}
		},
		"anchor that is a leaf": func(e *anywhere, cfg *aws.Config) {
			cfg.TrustAnchors[0].Certificates = []*x509.Certificate{e.cert}
		},
		"anchor's UUID":         func(_ *anywhere, cfg *aws.Config) { cfg.TrustAnchors[0].ARN += "0" },
		"CRL that is none":      func(_ *anywhere, cfg *aws.Config) { cfg.TrustAnchors[0].CRLs = []aws.CRL{{Data: []byte("x")}} },
		"profile's duration":    func(_ *anywhere, cfg *aws.Config) { cfg.Profiles[0].Duration = 899e9 },
		"profile without roles": func(_ *anywhere, cfg *aws.Config) { cfg.Profiles[0].RoleARNs = nil },
		"session policy":        func(_ *anywhere, cfg *aws.Config) { cfg.Profiles[0].SessionPolicy = "x" },
		"mapping of another field": func(_ *anywhere, cfg *aws.Config) {
			cfg.Profiles[0].AttributeMappings = map[string][]string{"x509": {"*"}}
		},
		"mapping specifier": func(_ *anywhere, cfg *aws.Config) {
			cfg.Profiles[0].AttributeMappings = map[string][]string{"x509SAN": {"IP"}}
		},
		"role's duration": func(_ *anywhere, cfg *aws.Config) { cfg.Roles[0].MaxSessionDuration = 1800e9 },
		"role of another account": func(_ *anywhere, cfg *aws.Config) {
			cfg.Roles[0].ARN = "arn:aws:iam::000000000000:role/x"
		},
		"provider with http": func(_ *anywhere, cfg *aws.Config) {
			cfg.OIDCProviders = []aws.OIDCProvider{{URL: "http://id.example.org"}}
		},
		"provider with a port": func(_ *anywhere, cfg *aws.Config) {
			cfg.OIDCProviders = []aws.OIDCProvider{{URL: "https://id.example.org:8443"}}
		},
		"provider with a query": func(_ *anywhere, cfg *aws.Config) {
			cfg.OIDCProviders = []aws.OIDCProvider{{URL: "https://id.example.org?a"}}
		},
		"provider of 256": func(_ *anywhere, cfg *aws.Config) {
			cfg.OIDCProviders = []aws.OIDCProvider{{URL: "https://id.example.org/" + strings.Repeat("x", 233)}}
		},
		"101 client IDs": func(_ *anywhere, cfg *aws.Config) {
			cfg.OIDCProviders = []aws.OIDCProvider{{URL: issuerURL, ClientIDs: make([]string, 101)}}
		},
		"empty client ID": func(_ *anywhere, cfg *aws.Config) {
			cfg.OIDCProviders = []aws.OIDCProvider{{URL: issuerURL, ClientIDs: []string{""}}}
		},
	}
	for name, change := range rows {
		t.Run(name, func(t *testing.T) {
			e := newAnywhere(t)
			cfg := aws.Config{Now: e.Now, Account: account, Region: region, TrustAnchors: []aws.TrustAnchor{e.anchor},
				Profiles: []aws.Profile{e.profile}, Roles: []aws.Role{e.role}}
			if _, err := aws.New(cfg); err != nil {
				t.Fatal(err)
			}
			change(e, &cfg)
			if c, err := aws.New(cfg); err == nil || c != nil {
				t.Error("accepted")
			}
		})
	}
}

func TestCRLsRefused(t *testing.T) {
	e := newAnywhere(t)
	list := revoke(t, e.root)
	for name, data := range map[string][]byte{
		"garbage":       []byte("x"),
		"two PEM":       append(list.Data, list.Data...),
		"a certificate": e.cert.Raw,
		"an extension that is critical": crlWith(t, e.root, pkix.Extension{
			Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}),
	} {
		if err := e.cloud.ImportCRL(anchorARN, aws.CRL{Data: data}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	must(t, e.cloud.ImportCRL(anchorARN, list))
	must(t, e.cloud.ImportCRL(anchorARN, list))
	if err := e.cloud.ImportCRL(anchorARN, list); err == nil {
		t.Error("a third list: accepted")
	}
}

func crlWith(t *testing.T, ca *authority, ext pkix.Extension) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: ca.now,
		NextUpdate: ca.now.Add(time.Hour), ExtraExtensions: []pkix.Extension{ext}}, ca.cert, ca.key)
	must(t, err)
	return der
}
