package gcp

import (
	"encoding/json"
	"errors"
	"strings"
	"time"
)

// A Supply is where Google's libraries get the SVID: exactly one of its fields
// is set.
type Supply struct {
	File       string // with a JWT-SVID
	URL        *URL
	Executable string // a command line, split at spaces by the library
	// A certificate configuration, whose certificate holds only what of the
	// chain is in Chain too.
	Certificate, Chain string
}

// URL answers GET with JSON.
type URL struct {
	URL           string
	Header, Value string // of the secret
	Field         string // of the JSON, with the JWT-SVID
}

func (s Supply) source() map[string]any {
	switch {
	case s.File != "":
		return map[string]any{"file": s.File, "format": map[string]any{"type": "text"}}
	case s.URL != nil:
		return map[string]any{"url": s.URL.URL, "headers": map[string]string{s.URL.Header: s.URL.Value},
			"format": map[string]any{"type": "json", "subject_token_field_name": s.URL.Field}}
	case s.Executable != "":
		return map[string]any{"executable": map[string]any{"command": s.Executable, "timeout_millis": 60000}}
	case s.Certificate != "":
		certificate := map[string]any{"certificate_config_location": s.Certificate}
		if s.Chain != "" {
			certificate["trust_chain_path"] = s.Chain
		}
		return map[string]any{"certificate": certificate}
	}
	return nil
}

// Account writes the credential configuration (external_account) by which
// Google's libraries make this exchange themselves: the file that
// GOOGLE_APPLICATION_CREDENTIALS names. endpoint is the Target's. Where there
// are delegates it is an impersonated_service_account, which can say them, with
// the external_account in it. It is an error for id_token_audience: libraries
// ask for access tokens by such a file.
func (s Settings) Account(endpoint string, from Supply) ([]byte, error) {
	source := from.source()
	switch {
	case s.IDTokenAudience != "":
		return nil, errors.New("a target with id_token_audience gives ID tokens, and libraries ask for access tokens")
	case source == nil || (from.Certificate != "") != s.x509():
		return nil, errors.New("the way to the SVID is not one of this target's svid")
	}
	sts, kind := "https://sts.googleapis.com", jwtType
	if s.x509() {
		sts, kind = "https://sts.mtls.googleapis.com", mtlsType
	}
	account := map[string]any{
		"type": "external_account", "audience": s.resource(), "subject_token_type": kind,
		"token_url": base(sts, endpoint) + "/v1/token", "token_info_url": base(sts, endpoint) + "/v1/introspect",
		"universe_domain": "googleapis.com", "credential_source": source,
	}
	if s.ServiceAccount == "" {
		return s.charged(account)
	}
	impersonate := base("https://iamcredentials.googleapis.com", endpoint, s.ImpersonationEndpoint) + "/v1/" +
		accountName(s.ServiceAccount) + ":generateAccessToken"
	if len(s.Delegates) > 0 {
		delegates := make([]string, len(s.Delegates))
		for i, d := range s.Delegates {
			delegates[i] = accountName(d)
		}
		return s.charged(map[string]any{
			"type": "impersonated_service_account", "service_account_impersonation_url": impersonate, "delegates": delegates,
			"universe_domain": "googleapis.com", "source_credentials": account,
		})
	}
	account["service_account_impersonation_url"] = impersonate
	if s.Lifetime != 0 {
		account["service_account_impersonation"] = map[string]any{"token_lifetime_seconds": int(time.Duration(s.Lifetime) / time.Second)}
	}
	return s.charged(account)
}

// charged adds whom calls are charged to.
func (s Settings) charged(account map[string]any) ([]byte, error) {
	if s.QuotaProject != "" {
		account["quota_project_id"] = s.QuotaProject
	}
	return json.MarshalIndent(account, "", "  ")
}

// Project is the ID of the service account's project, which libraries use where
// the program names none; empty: it can't be told.
func (s Settings) Project() string {
	_, host, _ := strings.Cut(s.ServiceAccount, "@")
	name, ok := strings.CutSuffix(host, ".iam.gserviceaccount.com")
	if !ok {
		return ""
	}
	if name, domain, scoped := strings.Cut(name, "."); scoped {
		return domain + ":" + name
	}
	return name
}
