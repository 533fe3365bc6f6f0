package gcp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// A hint is the way out for a code whose message holds text.
type hint struct {
	code, text    string           // no text: any
	class         exchangers.Class // empty: by status
	reason, field string           // of exchangers.Error
	way           string
}

// The first that fits is taken.
var hints = []hint{
	{"invalid_grant", "Error connecting to the given credential's issuer", exchangers.Propagation, "issuer_unread", "broker.issuer", "Google could not read our issuer's key set, or it lacks the key: the issuer must answer from the internet, or its keys be uploaded anew"},
	{"invalid_grant", "The audience in ID Token", "", "audience_unregistered", "cloud.provider.allowed_audiences", "empty the provider's allowed audiences, or add the Target's audience to them, with https:"},
	{"invalid_grant", "The issuer in ID Token", "", "issuer_unregistered", "cloud.provider.issuer_uri", "set the provider's issuer URI to our issuer, byte for byte"},
	{"invalid_grant", "stale to sign-in", "", "token_expired", "clock", "compare the broker's clock"},
	{"invalid_grant", "signature", "", "key_differs", "cloud.provider.jwks", "the provider's key set holds another key of that ID: upload it anew"},
	{"invalid_grant", "certificate", "", "anchor_differs", "cloud.provider.trust_store", "the X.509 provider's trust store must hold a CA of our bundle: compare it with credence bundle show"},
	{"invalid_grant", "", "", "token_refused", "cloud.provider.issuer_uri", "check the provider's issuer URI, audiences and keys"},
	{"unauthorized_client", "attribute condition", "", "attribute_condition", "cloud.provider.attribute_condition", "the provider's attribute condition is false for this SPIFFE ID"},
	{"invalid_target", "", "", "provider_unknown", "audience", "check audience: the pool or provider does not exist, or is disabled or deleted"},
	{"invalid_request", "127 bytes", "", "subject_long", "identity.spiffe_id", "the SPIFFE ID is longer than 127 bytes: shorten it, or map google.subject to something shorter"},
	{"invalid_request", "subject_token_type", "", "svid_kind", "svid", "check svid: an OIDC provider takes jwt, an X.509 provider x509, at its own endpoint"},
	{"invalid_request", "map", "", "attribute_mapping", "cloud.provider.attribute_mapping", "the provider maps no google.subject for this SVID: for svid x509 it must be assertion.san.uri"},
	{"invalid_request", "audience", "", "audience_malformed", "audience", "check audience: it takes the project's number, not its ID"},
	{"invalid_scope", "", "", "scope_refused", "scopes", "check scopes"},
	{"quota_exceeded", "", exchangers.Throttled, "throttled", "", ""},
	{"RESOURCE_EXHAUSTED", "", exchangers.Throttled, "throttled", "", ""},
	{"INTERNAL", "", exchangers.Outage, "outage", "", ""},
	{"UNAVAILABLE", "", exchangers.Outage, "outage", "", ""},
	{"DEADLINE_EXCEEDED", "", exchangers.Outage, "outage", "", ""},
	{"ABORTED", "", exchangers.Outage, "outage", "", ""},
	{"PERMISSION_DENIED", "required permission to use project", "", "quota_project", "quota_project", "give this SPIFFE ID's principal roles/serviceusage.serviceUsageConsumer on quota_project"},
	{"PERMISSION_DENIED", "", "", "service_account_binding", "cloud.service_account.binding", "give this SPIFFE ID's principal roles/iam.workloadIdentityUser on the service_account, which must exist (roles/iam.serviceAccountTokenCreator to each delegate for the next), and enable the IAM Service Account Credentials API; a new binding takes up to 2 min"},
	{"NOT_FOUND", "", "", "service_account_unknown", "service_account", "check service_account"},
	{"UNAUTHENTICATED", "", "", "impersonation_endpoint", "impersonation_endpoint", "check impersonation_endpoint: it does not know the token that STS gave"},
	{"INVALID_ARGUMENT", "Lifetime", "", "lifetime_policy", "lifetime", "lower lifetime to 1h, or allow more by the organization policy constraints/iam.allowServiceAccountCredentialLifetimeExtension"},
	{"INVALID_ARGUMENT", "lifetime", "", "lifetime_policy", "lifetime", "lower lifetime to 1h, or allow more by the organization policy constraints/iam.allowServiceAccountCredentialLifetimeExtension"},
	{"INVALID_ARGUMENT", "", "", "request_invalid", "scopes", "check scopes, lifetime and service_account"},
}

// refusal reads an OAuth error (RFC 6749 §5.2) or a google.rpc.Status.
func refusal(status int, body []byte, secret exchangers.Secret) *exchangers.Error {
	code, message := parse(body)
	if code == "" && message == "" {
		message = fmt.Sprintf("HTTP status %d, and no reason that can be read", status)
	}
	e := &exchangers.Error{Provider: provider, Status: status, Code: exchangers.Clean(code),
		Message: exchangers.Clean(message, secret), Class: exchangers.ClassOf(status)}
	for _, h := range hints {
		if h.code == code && strings.Contains(message, h.text) {
			e.Reason, e.Field, e.Hint = h.reason, h.field, h.way
			if h.class != "" {
				e.Class = h.class
			}
			return e
		}
	}
	if status/100 == 3 || status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
		e.Hint = "check the Target's endpoint: redirects are not followed"
	}
	return e
}

func parse(body []byte) (code, message string) {
	var answer struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return "", ""
	}
	if json.Unmarshal(answer.Error, &code) == nil {
		return code, answer.Description
	}
	var rpc struct{ Status, Message string }
	if json.Unmarshal(answer.Error, &rpc) != nil {
		return "", ""
	}
	return rpc.Status, rpc.Message
}
