package gcp_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/gcp"
)

const accountProvider = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/prov"

func TestAccount(t *testing.T) {
	file := gcp.Supply{File: "/run/x.jwt"}
	const top = `{
  "audience": "` + accountProvider + `",
  "credential_source": {
    "file": "/run/x.jwt",
    "format": {
      "type": "text"
    }
  },
`
	const rest = `  "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
  "token_info_url": "https://sts.googleapis.com/v1/introspect",
  "token_url": "https://sts.googleapis.com/v1/token",
  "type": "external_account",
  "universe_domain": "googleapis.com"
}`
	plain := gcp.Settings{Provider: accountProvider}
	impersonating := plain
	impersonating.ServiceAccount, impersonating.Lifetime, impersonating.QuotaProject = "a@p.iam.gserviceaccount.com", exchangers.Duration(2*time.Hour), "charged"
	private := plain
	private.ServiceAccount = "a@p.iam.gserviceaccount.com"
	private.Delegates = []string{"b@p.iam.gserviceaccount.com"}
	private.ImpersonationEndpoint = "https://iam.internal/"
	for name, c := range map[string]struct {
		settings gcp.Settings
		endpoint string
		want     string
	}{
		"federated": {plain, "", top + rest},
		"impersonating": {impersonating, "", top + `  "quota_project_id": "charged",
  "service_account_impersonation": {
    "token_lifetime_seconds": 7200
  },
  "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken",
` + rest},
		"elsewhere, by delegates": {private, "https://sts.internal", `{
  "delegates": [
    "projects/-/serviceAccounts/b@p.iam.gserviceaccount.com"
  ],
  "service_account_impersonation_url": "https://iam.internal/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken",
  "source_credentials": ` + strings.ReplaceAll(strings.ReplaceAll(top+rest, "\n", "\n  "), "https://sts.googleapis.com", "https://sts.internal") + `,
  "type": "impersonated_service_account",
  "universe_domain": "googleapis.com"
}`},
	} {
		got, err := c.settings.Account(c.endpoint, file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(c.want, string(got)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestAccountRefuses(t *testing.T) {
	plain := gcp.Settings{Provider: accountProvider}
	ids, x509 := plain, plain
	ids.ServiceAccount, ids.IDTokenAudience = "a@p.iam.gserviceaccount.com", "https://orders.example"
	x509.SVID = "x509"
	for name, c := range map[string]struct {
		settings gcp.Settings
		from     gcp.Supply
	}{
		"ID tokens":             {ids, gcp.Supply{File: "/x"}},
		"no way":                {plain, gcp.Supply{}},
		"a file for X.509":      {x509, gcp.Supply{File: "/x"}},
		"a certificate for JWT": {plain, gcp.Supply{Certificate: "/x"}},
	} {
		if got, err := c.settings.Account("", c.from); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestProject(t *testing.T) {
	for account, want := range map[string]string{
		"": "", "123456789": "", "a@my-project.iam.gserviceaccount.com": "my-project",
		"a@my-project.example.com.iam.gserviceaccount.com": "example.com:my-project", "a@example.com": "",
	} {
		if got := (gcp.Settings{ServiceAccount: account}).Project(); got != want {
			t.Errorf("%q: %q, want %q", account, got, want)
		}
	}
}
