package oauth_test

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
)

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// read is what a Target's YAML decodes into.
func read(text string) (*oauth.Settings, error) {
	var s oauth.Settings
	err := yaml.UnmarshalWithOptions([]byte(text), &s, yaml.Strict())
	return &s, err
}

const (
	txBase = "token_exchange: {token_url: 'https://as.example/token', audience: 'https://as.example'"
	caBase = "client_assertion: {token_url: 'https://as.example/token', audience: 'https://as.example'"
	vjBase = "vault_jwt: {url: 'https://bao.example:8200', audience: bao"
	vcBase = "vault_cert: {url: 'https://bao.example:8200', role: checkout"
)

func TestValidate(t *testing.T) {
	rows := map[string]struct{ yaml, want string }{
		"token exchange":          {txBase + "}", ""},
		"all of it":               {txBase + ", requested_audiences: [a, 'https://b'], resources: ['https://c/d?e', 'urn:f:g'], scopes: [h, 'i:j'], requested_token_type: 'urn:ietf:params:oauth:token-type:jwt', client_id: k, client_auth: jwt-spiffe}", ""},
		"client assertion":        {caBase + ", client_id: 'spiffe://example.org/x', client_auth: jwt-bearer}", ""},
		"jwt bearer":              {"jwt_bearer: {token_url: 'https://as.example/token', audience: x, client_id: y, scopes: [z], resources: ['https://c']}", ""},
		"vault jwt":               {vjBase + ", role: checkout, mount: spiffe/jwt, namespace: team/shop}", ""},
		"vault cert":              {vcBase + "}", ""},
		"no mode":                 {"{}", "exactly one of token_exchange"},
		"a mode of nothing":       {"token_exchange:", "exactly one of token_exchange"},
		"two modes":               {vjBase + ", role: r}\n" + vcBase + "}", "exactly one of token_exchange"},
		"an empty mode":           {"token_exchange: {}", "token_exchange: token_url: it is missing"},
		"an empty vault":          {"vault_jwt: {}", "vault_jwt: url: it is missing"},
		"an empty cert":           {"vault_cert: {}", "vault_cert: url: it is missing"},
		"plain HTTP":              {"vault_cert: {url: 'http://bao.example', role: r}", "vault_cert: url"},
		"a query":                 {"jwt_bearer: {token_url: 'https://as.example/token?x=y', audience: x}", "jwt_bearer: token_url"},
		"no audience":             {"jwt_bearer: {token_url: 'https://as.example/token'}", "jwt_bearer: audience"},
		"no audience of vault":    {"vault_jwt: {url: 'https://bao.example', role: r}", "vault_jwt: audience"},
		"a spaced audience":       {"jwt_bearer: {token_url: 'https://as.example/token', audience: 'a b'}", "jwt_bearer: audience"},
		"client auth":             {caBase + ", client_auth: none}", "client_auth"},
		"client auth of exchange": {txBase + ", client_auth: secret}", "client_auth"},
		"two scopes in one":       {txBase + ", scopes: ['a b']}", "scopes"},
		"a quoted scope":          {txBase + `, scopes: ['a"b']}`, "scopes"},
		"an empty scope":          {txBase + ", scopes: ['']}", "scopes"},
		"too many scopes":         {txBase + ", scopes: [" + strings.Repeat("a,", 33) + "]}", "at most 32"},
		"too many resources":      {txBase + ", resources: [" + strings.Repeat("'https://a',", 33) + "]}", "at most 32"},
		"a relative resource":     {txBase + ", resources: [orders]}", "resources"},
		"a fragment":              {txBase + ", resources: ['https://a/#b']}", "resources"},
		"an empty audience":       {txBase + ", requested_audiences: ['']}", "requested_audiences"},
		"a short type":            {txBase + ", requested_token_type: access_token}", "requested_token_type"},
		"a refresh token":         {txBase + ", requested_token_type: 'urn:ietf:params:oauth:token-type:refresh_token'}", "requested_token_type"},
		"a spaced client":         {caBase + ", client_id: 'a b'}", "client_id"},
		"no role":                 {vjBase + "}", "vault_jwt: role"},
		"no role of cert":         {"vault_cert: {url: 'https://bao.example'}", "vault_cert: role"},
		"a mount with auth":       {vcBase + ", mount: /auth/cert/}", "mount"},
		"a mount upwards":         {vcBase + ", mount: ../sys}", "mount"},
		"a namespace upwards":     {vcBase + ", namespace: a/../b}", "namespace"},
		"an escaped mount":        {vcBase + ", mount: 'a%2fb'}", "mount"},
		"a secret of the mode":    {caBase + ", client_secret: x}", "client_secret"},
		"an unknown mode":         {"saml: {}", "saml"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s, err := read(row.yaml)
			if err == nil {
				err = s.Validate()
			}
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if row.want != "" {
				if _, err := oauth.New(oauth.Config{Settings: s}); err == nil && s.Validate() != nil {
					t.Error("made")
				}
				return
			}
			wire, err := exchangers.Target{Name: "orders", Flow: "oauth", Settings: s}.Wire()
			if err != nil {
				t.Fatal(err)
			}
			got, err := exchangers.ParseWire(wire, &oauth.Settings{})
			if diff := cmp.Diff(exchangers.Settings(s), got.Settings); err != nil || diff != "" {
				t.Errorf("%v (-yaml +wire):\n%s", err, diff)
			}
		})
	}
	good, err := read(vcBase + "}")
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]oauth.Config{"no settings": {}, "plain HTTP": {Settings: good, Endpoint: "http://bao.example"}, "no such file": {Settings: good, CAFile: "none.pem"}} {
		if _, err := oauth.New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

// The audience is the JWT-SVID's alone; a mode that presents an X509-SVID has
// none, and neither have two modes.
func TestAudience(t *testing.T) {
	for text, want := range map[string]string{
		txBase + ", requested_audiences: [other]}": "https://as.example", caBase + "}": "https://as.example", vjBase + ", role: r}": "bao",
		"jwt_bearer: {token_url: 'https://as.example/token', audience: x}": "x", vcBase + "}": "", "{}": "", vjBase + ", role: r}\n" + vcBase + "}": "",
	} {
		if s, err := read(text); err != nil || s.Audience() != want {
			t.Errorf("%s: %q, %v", text, s.Audience(), err)
		}
	}
}
