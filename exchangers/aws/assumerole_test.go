package aws_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	cloud "github.com/credence-id/credence/exchangers/sandbox/aws"
)

const narrow = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}]}`

func second() *aws.AssumeRole { return &aws.AssumeRole{Role: secondARN, ExternalID: external} }

// webChain and anywhereChain are the good settings.
func (a *account) webChain() *aws.WebIdentity {
	s := web()
	s.AssumeRole = second()
	return s
}

func (a *account) anywhereChain() *aws.RolesAnywhere {
	s := anywhere()
	s.AssumeRole = second()
	s.AssumeRole.Endpoint = a.sts.URL
	return s
}

func (a *account) x509() svids { return svids{x509: x509SVID(a.leaf, a.issuing)} }

func TestChains(t *testing.T) {
	a := newAccount(t)
	both := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sessions" {
			a.cloud.RolesAnywhere().ServeHTTP(w, r)
			return
		}
		a.cloud.STS().ServeHTTP(w, r)
	}))
	fromAnywhere := anywhere()
	fromAnywhere.AssumeRole = second() // the Target's endpoint is both
	named := a.webChain()
	named.AssumeRole.SessionName, named.AssumeRole.Duration = "ci", exchangers.Duration(15*time.Minute)
	named.AssumeRole.SessionPolicy, named.AssumeRole.SessionPolicyARNs = narrow, []string{"arn:aws:iam::aws:policy/ReadOnlyAccess"}
	for name, row := range map[string]struct {
		settings exchangers.Settings
		svids    svids
		life     time.Duration
		want     string
	}{
		"from Roles Anywhere": {fromAnywhere, a.x509(), time.Hour, "arn:aws:sts::123456789012:assumed-role/second/ns.shop.sa.orders-"},
		"from web identity":   {a.webChain(), a.jwt(t, nil), time.Hour, "arn:aws:sts::123456789012:assumed-role/second/ns.shop.sa.orders-"},
		"all":                 {named, a.jwt(t, nil), 15 * time.Minute, "arn:aws:sts::123456789012:assumed-role/second/ci"},
	} {
		t.Run(name, func(t *testing.T) {
			cred, err := exchanger(t, row.settings, both).Exchange(t.Context(), row.svids)
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(cred.Expires); left > row.life || left < row.life-time.Minute {
				t.Errorf("expires in %s", left)
			}
			if !strings.HasPrefix(cred.AWS.AssumedRole, row.want) || cred.AWS.Region != "us-east-1" || cred.RequestID == "" {
				t.Errorf("%+v of %+v", cred.AWS, cred)
			}
			sessions := a.cloud.Sessions()
			at := slices.IndexFunc(sessions, func(s cloud.Session) bool { return s.AccessKeyID == cred.AWS.AccessKeyID })
			if at < 0 || sessions[at].ARN != cred.AWS.AssumedRole {
				t.Errorf("the cloud knows no such session: %+v", sessions)
			}
			if row.svids.x509 != nil && sessions[at].SourceIdentity != "CN=orders" {
				t.Errorf("the source identity did not go on: %+v", sessions[at])
			}
		})
	}
}

// What breaks the second step names assume_role, and the good settings pass.
func TestChainRefusals(t *testing.T) {
	a := newAccount(t)
	deny := `,{"Effect":"Deny","Principal":{"AWS":"arn:aws:iam::123456789012:role/orders-web"},"Action":"sts:AssumeRole"}]}`
	for name, row := range map[string]struct {
		change func(*aws.WebIdentity)
		policy string // of the second role
		status int
		code   string
		hint   string
	}{
		"role that does not exist": {change: func(s *aws.WebIdentity) { s.AssumeRole.Role += "x" }, status: 403, code: "AccessDenied", hint: "assume_role.role must exist"},
		"no external ID":           {change: func(s *aws.WebIdentity) { s.AssumeRole.ExternalID = "" }, status: 403, code: "AccessDenied", hint: "external_id"},
		"another external ID":      {change: func(s *aws.WebIdentity) { s.AssumeRole.ExternalID += "3" }, status: 403, code: "AccessDenied", hint: "external_id"},
		"a session policy without": {change: func(s *aws.WebIdentity) { s.SessionPolicy = narrow }, status: 403, code: "AccessDenied", hint: "session policy"},
		"not trusted":              {policy: strings.ReplaceAll(secondPolicy, "role/orders-web", "role/other"), status: 403, code: "AccessDenied", hint: "trust policy"},
		"denied":                   {policy: strings.TrimSuffix(secondPolicy, "]}") + deny, status: 403, code: "AccessDenied", hint: "trust policy"},
		"first step refused":       {change: func(s *aws.WebIdentity) { s.Role += "x" }, status: 403, code: "AccessDenied", hint: "the OIDC provider"},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.webChain()
			if row.change != nil {
				row.change(s)
			}
			if row.policy != "" {
				if err := a.cloud.PutRole(cloud.Role{ARN: secondARN, TrustPolicy: row.policy}); err != nil {
					t.Fatal(err)
				}
			}
			cred, err := exchanger(t, s, a.sts).Exchange(t.Context(), a.jwt(t, nil))
			e := refused(t, cred, err)
			if e.Status != row.status || e.Code != row.code || e.Class != exchangers.Config || e.RequestID == "" || !strings.Contains(e.Hint, row.hint) {
				t.Errorf("%+v", e)
			}
			if err := a.cloud.PutRole(cloud.Role{ARN: secondARN, TrustPolicy: secondPolicy}); err != nil {
				t.Fatal(err)
			}
			if _, err := exchanger(t, a.webChain(), a.sts).Exchange(t.Context(), a.jwt(t, nil)); err != nil {
				t.Errorf("the good settings: %v", err)
			}
		})
	}
}

// Roles Anywhere sets a source identity, which must be let on.
func TestChainNeedsSetSourceIdentity(t *testing.T) {
	a := newAccount(t)
	without := strings.Replace(secondPolicy, `["sts:AssumeRole","sts:SetSourceIdentity"]`, `"sts:AssumeRole"`, 1)
	if err := a.cloud.PutRole(cloud.Role{ARN: secondARN, TrustPolicy: without}); err != nil {
		t.Fatal(err)
	}
	x := aws.Config{Settings: a.anywhereChain(), Endpoint: a.anywhere.URL, Client: a.client(t)}
	made, err := aws.New(x)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := made.Exchange(t.Context(), a.x509())
	if e := refused(t, cred, err); e.Code != "AccessDenied" || !strings.Contains(e.Hint, "sts:SetSourceIdentity") {
		t.Errorf("%+v", e)
	}
	if err := a.cloud.PutRole(cloud.Role{ARN: secondARN, TrustPolicy: secondPolicy}); err != nil {
		t.Fatal(err)
	}
	if _, err := made.Exchange(t.Context(), a.x509()); err != nil {
		t.Errorf("with it: %v", err)
	}
}

func TestAssumeRoleValidate(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*aws.AssumeRole)
		want   string
	}{
		"good":            {func(*aws.AssumeRole) {}, ""},
		"another account": {func(c *aws.AssumeRole) { c.Role = "arn:aws:iam::210987654321:role/x" }, ""},
		"all": {func(c *aws.AssumeRole) {
			c.SessionName, c.SessionPolicy, c.Endpoint = "ci", narrow, "https://sts.us-east-1.amazonaws.com"
		}, ""},
		"FIPS":                  {func(c *aws.AssumeRole) { c.Endpoint = "https://sts-fips.us-east-1.amazonaws.com" }, ""},
		"no role":               {func(c *aws.AssumeRole) { c.Role = "" }, "assume_role.role"},
		"role's partition":      {func(c *aws.AssumeRole) { c.Role = strings.Replace(secondARN, "aws", "aws-us-gov", 1) }, "partition"},
		"external ID":           {func(c *aws.AssumeRole) { c.ExternalID = "a b" }, "assume_role.external_id"},
		"long external ID":      {func(c *aws.AssumeRole) { c.ExternalID = strings.Repeat("x", 1225) }, "assume_role.external_id"},
		"session name":          {func(c *aws.AssumeRole) { c.SessionName = "spiffe://x" }, "assume_role.session_name"},
		"over the hour":         {func(c *aws.AssumeRole) { c.Duration = exchangers.Duration(2 * time.Hour) }, "assume_role.duration"},
		"policy is no JSON":     {func(c *aws.AssumeRole) { c.SessionPolicy = "allow" }, "assume_role.session_policy"},
		"old policy":            {func(c *aws.AssumeRole) { c.SessionPolicy = strings.Replace(narrow, "2012", "2008", 1) }, "assume_role.session_policy"},
		"policy and more":       {func(c *aws.AssumeRole) { c.SessionPolicy = narrow + narrow }, "assume_role.session_policy"},
		"long policy":           {func(c *aws.AssumeRole) { c.SessionPolicy = narrow + strings.Repeat(" ", 2048) }, "assume_role.session_policy"},
		"policy of China":       {func(c *aws.AssumeRole) { c.SessionPolicyARNs = []string{"arn:aws-cn:iam::aws:policy/X"} }, "session_policy_arns"},
		"role for a policy":     {func(c *aws.AssumeRole) { c.SessionPolicyARNs = []string{secondARN} }, "session_policy_arns"},
		"eleven policies":       {func(c *aws.AssumeRole) { c.SessionPolicyARNs = make([]string, 11) }, "at most 10"},
		"plain HTTP":            {func(c *aws.AssumeRole) { c.Endpoint = "http://sts.example" }, "assume_role.endpoint"},
		"STS of another region": {func(c *aws.AssumeRole) { c.Endpoint = "https://sts.eu-west-1.amazonaws.com" }, "assume_role.endpoint"},
		"another service":       {func(c *aws.AssumeRole) { c.Endpoint = "https://rolesanywhere.us-east-1.amazonaws.com" }, "assume_role.endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range []exchangers.Settings{anywhere(), web()} {
				c := second()
				row.change(c)
				switch s := s.(type) {
				case *aws.RolesAnywhere:
					s.AssumeRole = c
				case *aws.WebIdentity:
					s.AssumeRole = c
				}
				checkMessage(t, s.Validate(), row.want)
			}
		})
	}
	s := web()
	s.SessionPolicy = "{}"
	checkMessage(t, s.Validate(), "session_policy")
}

func TestAssumeRoleInYAMLAndOnTheWire(t *testing.T) {
	text := "role: " + webRoleARN + "\nsession_policy: '" + narrow + "'\nassume_role:\n  role: " + secondARN + "\n  external_id: " + external + "\n  duration: 30m\n"
	var s aws.WebIdentity
	if err := yaml.UnmarshalWithOptions([]byte(text), &s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	wire, err := exchangers.Target{Name: "orders", Flow: "aws_web_identity", Settings: &s}.Wire()
	if err != nil {
		t.Fatal(err)
	}
	got, err := exchangers.ParseWire(wire, &aws.WebIdentity{})
	if diff := cmp.Diff(exchangers.Settings(&s), got.Settings); err != nil || diff != "" || s.AssumeRole == nil {
		t.Errorf("%v (-yaml +wire):\n%s", err, diff)
	}
	if err := yaml.UnmarshalWithOptions([]byte(text+"  tags: {}\n"), &s, yaml.Strict()); err == nil {
		t.Error("an unknown field was read")
	}
}

func TestRevokeChained(t *testing.T) {
	now := time.Now()
	c := exchangers.Cut{Now: now, Until: now.Add(time.Hour)}
	for name, pair := range map[string][2]exchangers.Revoker{
		"Roles Anywhere": {anywhere(), &aws.RolesAnywhere{Role: roleARN, TrustAnchor: anchorARN, Profile: profileARN, AssumeRole: second()}},
		"web identity":   {web(), &aws.WebIdentity{Role: webRoleARN, AssumeRole: second()}},
	} {
		alone, chained := pair[0].Revoke(c), pair[1].Revoke(c)
		last := chained.Remedies[len(chained.Remedies)-1]
		if len(chained.Remedies) != len(alone.Remedies)+1 || !slices.Contains(last.Command, "second") || !chained.Until.Equal(alone.Until.Add(time.Hour)) {
			t.Errorf("%s: until %s, %q", name, chained.Until, last.Command)
		}
	}
}

func TestEndpointOfAnotherPlace(t *testing.T) {
	gov := anywhere()
	for _, f := range []*string{&gov.Role, &gov.TrustAnchor, &gov.Profile} {
		*f = strings.NewReplacer("arn:aws:", "arn:aws-us-gov:", "us-east-1", "us-gov-west-1").Replace(*f)
	}
	cn := china(*anywhere())
	inFrankfurt := web()
	inFrankfurt.Region = "eu-central-1"
	for _, row := range []struct {
		settings exchangers.Settings
		endpoint string
		good     bool
	}{
		{anywhere(), "https://rolesanywhere.us-east-1.amazonaws.com", true},
		{anywhere(), "https://rolesanywhere-fips.us-east-1.amazonaws.com", true},
		{anywhere(), "https://rolesanywhere.us-east-1.api.aws/", true},
		{anywhere(), "https://vpce-1.rolesanywhere.us-east-1.vpce.amazonaws.com", true},
		{anywhere(), "https://proxy.example", true},
		{anywhere(), "https://rolesanywhere.eu-west-1.amazonaws.com", false},
		{anywhere(), "https://vpce-1.rolesanywhere.eu-west-1.vpce.amazonaws.com", false},
		{anywhere(), "https://ROLESANYWHERE.us-gov-west-1.amazonaws.com.", false},
		{anywhere(), "https://sts.us-east-1.amazonaws.com", false},
		{gov, "https://rolesanywhere.us-gov-west-1.amazonaws.com", true},
		{gov, "https://rolesanywhere.us-east-1.amazonaws.com", false},
		{&cn, "https://rolesanywhere.cn-north-1.amazonaws.com.cn", true},
		{&cn, "https://rolesanywhere.cn-north-1.api.amazonwebservices.com.cn", true},
		{&cn, "https://rolesanywhere.cn-north-1.amazonaws.com", false},
		{web(), "https://sts.amazonaws.com", true},
		{inFrankfurt, "https://sts.amazonaws.com", false},
		{inFrankfurt, "https://sts.eu-central-1.amazonaws.com", true},
	} {
		_, err := aws.New(aws.Config{Settings: row.settings, Endpoint: row.endpoint})
		if (err == nil) != row.good || err != nil && !strings.Contains(err.Error(), "endpoint") {
			t.Errorf("%s: %v", row.endpoint, err)
		}
	}
}

// In each partition both steps go to hosts of its own.
func TestChainStaysInItsPartition(t *testing.T) {
	for _, row := range []struct{ partition, region, domain string }{
		{"aws", "eu-west-1", "amazonaws.com"}, {"aws-us-gov", "us-gov-east-1", "amazonaws.com"}, {"aws-cn", "cn-northwest-1", "amazonaws.com.cn"},
	} {
		t.Run(row.partition, func(t *testing.T) {
			a := newAccountIn(t, row.partition, row.region)
			in := strings.NewReplacer("arn:aws:", "arn:"+row.partition+":", "us-east-1", row.region)
			s := a.anywhereChain()
			for _, f := range []*string{&s.Role, &s.TrustAnchor, &s.Profile, &s.AssumeRole.Role} {
				*f = in.Replace(*f)
			}
			s.AssumeRole.Endpoint = ""
			hosts := &toHosts{t: t, servers: map[string]http.Handler{
				"rolesanywhere." + row.region + "." + row.domain: a.cloud.RolesAnywhere(),
				"sts." + row.region + "." + row.domain:           a.cloud.STS(),
			}}
			x, err := aws.New(aws.Config{Settings: s, Client: &http.Client{Transport: hosts}})
			if err != nil {
				t.Fatal(err)
			}
			cred, err := x.Exchange(t.Context(), a.x509())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(cred.AWS.AssumedRole, "arn:"+row.partition+":sts::") || cred.AWS.Region != row.region {
				t.Errorf("%+v", cred.AWS)
			}
		})
	}
}

func FuzzSessionPolicy(f *testing.F) {
	f.Add(narrow)
	f.Add(`{"Version":"2012-10-17","Statement":[]}`)
	f.Fuzz(func(t *testing.T, text string) {
		s := web()
		s.SessionPolicy = text
		if err := s.Validate(); err == nil && text != "" && (!json.Valid([]byte(text)) || utf8.RuneCountInString(text) > 2048) {
			t.Errorf("taken: %q", text)
		}
	})
}
