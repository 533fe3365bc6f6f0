package aws_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
)

func TestRolesAnywhereValidate(t *testing.T) {
	rows := map[string]struct {
		change func(*aws.RolesAnywhere)
		want   string // empty: it is valid
	}{
		"good":                {func(*aws.RolesAnywhere) {}, ""},
		"region said":         {func(s *aws.RolesAnywhere) { s.Region = "us-east-1" }, ""},
		"role with a path":    {func(s *aws.RolesAnywhere) { s.Role = "arn:aws:iam::123456789012:role/a/b+x=,.@-_/role" }, ""},
		"China":               {func(s *aws.RolesAnywhere) { *s = china(*s) }, ""},
		"empty":               {func(s *aws.RolesAnywhere) { *s = aws.RolesAnywhere{} }, "role"},
		"no role":             {func(s *aws.RolesAnywhere) { s.Role = "" }, "role"},
		"user for a role":     {func(s *aws.RolesAnywhere) { s.Role = "arn:aws:iam::123456789012:user/x" }, "role"},
		"role of 11 digits":   {func(s *aws.RolesAnywhere) { s.Role = "arn:aws:iam::12345678901:role/x" }, "role"},
		"unknown partition":   {func(s *aws.RolesAnywhere) { s.Role = "arn:aws-x:iam::123456789012:role/x" }, "role"},
		"space in the role":   {func(s *aws.RolesAnywhere) { s.Role += " " }, "role"},
		"line in the role":    {func(s *aws.RolesAnywhere) { s.Role += "\n" }, "role"},
		"no trust anchor":     {func(s *aws.RolesAnywhere) { s.TrustAnchor = "" }, "trust_anchor"},
		"profile as anchor":   {func(s *aws.RolesAnywhere) { s.TrustAnchor = profileARN }, "trust_anchor"},
		"anchor without UUID": {func(s *aws.RolesAnywhere) { s.TrustAnchor = strings.TrimSuffix(anchorARN, "5") }, "trust_anchor"},
		"no profile":          {func(s *aws.RolesAnywhere) { s.Profile = "" }, "profile"},
		"profile's region":    {func(s *aws.RolesAnywhere) { s.Profile = strings.Replace(profileARN, "us-east-1", "eu-west-1", 1) }, "region and account"},
		"profile's account":   {func(s *aws.RolesAnywhere) { s.Profile = strings.Replace(profileARN, "9012", "9013", 1) }, "region and account"},
		"role's partition":    {func(s *aws.RolesAnywhere) { s.Role = strings.Replace(roleARN, "aws", "aws-cn", 1) }, "partition"},
		"other region":        {func(s *aws.RolesAnywhere) { s.Region = "eu-west-1" }, "region"},
		"one-letter session":  {func(s *aws.RolesAnywhere) { s.SessionName = "x" }, "session_name"},
		"SPIFFE ID as name":   {func(s *aws.RolesAnywhere) { s.SessionName = "spiffe://example.org/x" }, "session_name"},
		"65 characters":       {func(s *aws.RolesAnywhere) { s.SessionName = strings.Repeat("x", 65) }, "session_name"},
		"14 minutes":          {func(s *aws.RolesAnywhere) { s.Duration = exchangers.Duration(14 * time.Minute) }, "duration"},
		"13 hours":            {func(s *aws.RolesAnywhere) { s.Duration = exchangers.Duration(13 * time.Hour) }, "duration"},
		"negative":            {func(s *aws.RolesAnywhere) { s.Duration = -1 }, "duration"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := anywhere()
			row.change(s)
			checkMessage(t, s.Validate(), row.want)
			if _, err := aws.New(aws.Config{Settings: s}); (err == nil) != (row.want == "") {
				t.Errorf("New: %v", err)
			}
		})
	}
}

func china(s aws.RolesAnywhere) aws.RolesAnywhere {
	for _, f := range []*string{&s.Role, &s.TrustAnchor, &s.Profile} {
		*f = strings.NewReplacer("arn:aws:", "arn:aws-cn:", "us-east-1", "cn-north-1").Replace(*f)
	}
	return s
}

func TestWebIdentityValidate(t *testing.T) {
	rows := map[string]struct {
		change func(*aws.WebIdentity)
		want   string
	}{
		"good":              {func(*aws.WebIdentity) {}, ""},
		"region and name":   {func(s *aws.WebIdentity) { s.Region, s.SessionName = "eu-central-1", "ci" }, ""},
		"empty":             {func(s *aws.WebIdentity) { *s = aws.WebIdentity{} }, "role"},
		"space in audience": {func(s *aws.WebIdentity) { s.TokenAudience = "a b" }, "audience"},
		"256 characters":    {func(s *aws.WebIdentity) { s.TokenAudience = strings.Repeat("a", 256) }, "audience"},
		"region in China":   {func(s *aws.WebIdentity) { s.Region = "cn-north-1" }, "region"},
		"a host for region": {func(s *aws.WebIdentity) { s.Region = "evil.example/#" }, "region"},
		"session name":      {func(s *aws.WebIdentity) { s.SessionName = "a/b" }, "session_name"},
		"duration":          {func(s *aws.WebIdentity) { s.Duration = exchangers.Duration(time.Minute) }, "duration"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := web()
			row.change(s)
			checkMessage(t, s.Validate(), row.want)
		})
	}
	if got := (aws.WebIdentity{}).Audience(); got != "sts.amazonaws.com" {
		t.Errorf("default audience %q", got)
	}
	if got := (aws.RolesAnywhere{}).Audience(); got != "" {
		t.Errorf("Roles Anywhere's audience %q", got)
	}
}

func checkMessage(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n")):
		t.Errorf("error %v, want one line with %q", err, want)
	}
}

func TestSettingsInYAMLAndOnTheWire(t *testing.T) {
	text := "role: " + roleARN + "\ntrust_anchor: " + anchorARN + "\nprofile: " + profileARN + "\nsession_name: ci\nduration: 1h\n"
	var s aws.RolesAnywhere
	if err := yaml.UnmarshalWithOptions([]byte(text), &s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	wire, err := exchangers.Target{Name: "orders", Flow: "aws_roles_anywhere", Settings: &s}.Wire()
	if err != nil {
		t.Fatal(err)
	}
	got, err := exchangers.ParseWire(wire, &aws.RolesAnywhere{})
	if diff := cmp.Diff(exchangers.Settings(&s), got.Settings); err != nil || diff != "" {
		t.Errorf("%v (-yaml +wire):\n%s", err, diff)
	}
	if got, err := exchangers.ParseWire(wire, &aws.WebIdentity{}); err == nil {
		t.Errorf("the settings of one flow were read as another's: %+v", got)
	}
}

func TestNewRefuses(t *testing.T) {
	rows := map[string]aws.Config{
		"no settings":           {},
		"endpoint without TLS":  {Settings: web(), Endpoint: "http://127.0.0.1:1"},
		"endpoint with a path":  {Settings: anywhere(), Endpoint: "https://127.0.0.1:1/aws"},
		"endpoint with a query": {Settings: web(), Endpoint: "https://127.0.0.1:1/?x=1"},
		"no such ca_file":       {Settings: web(), CAFile: "testdata/none.pem"},
		"other settings":        {Settings: struct{ aws.WebIdentity }{*web()}},
	}
	for name, cfg := range rows {
		t.Run(name, func(t *testing.T) {
			if x, err := aws.New(cfg); err == nil {
				t.Errorf("made %v", x)
			}
		})
	}
}

// transport sees where a request goes, and sends nothing.
type transport struct{ host string }

func (tr *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.host = r.URL.Host
	return nil, http.ErrHandlerTimeout
}

func TestOwnEndpoints(t *testing.T) {
	a := newAccount(t)
	cn, cnWeb, gov := china(*anywhere()), web(), web()
	cnWeb.Role = strings.Replace(webRoleARN, "aws", "aws-cn", 1)
	gov.Role = strings.Replace(webRoleARN, "aws", "aws-us-gov", 1)
	rows := map[string]exchangers.Settings{
		"rolesanywhere.us-east-1.amazonaws.com":     anywhere(),
		"rolesanywhere.cn-north-1.amazonaws.com.cn": &cn,
		"sts.us-east-1.amazonaws.com":               web(),
		"sts.eu-central-1.amazonaws.com":            &aws.WebIdentity{Role: webRoleARN, Region: "eu-central-1"},
		"sts.cn-north-1.amazonaws.com.cn":           cnWeb,
		"sts.us-gov-west-1.amazonaws.com":           gov,
	}
	for host, s := range rows {
		t.Run(host, func(t *testing.T) {
			tr := &transport{}
			x := must(t, func() (exchangers.Exchanger, error) {
				return aws.New(aws.Config{Settings: s, Client: &http.Client{Transport: tr}})
			})
			cred, err := x.Exchange(t.Context(), svids{x509: x509SVID(a.leaf, a.issuing), jwt: "a.b.c"})
			if e := refused(t, cred, err); e.Class != exchangers.Outage || e.Status != 0 || tr.host != host {
				t.Errorf("asked %s: %+v", tr.host, e)
			}
		})
	}
}
